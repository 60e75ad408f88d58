"""Whole or not there: what an error, an interrupt or a bad path leaves behind."""

import errno
import os
import subprocess
import sys
import tempfile

import pytest

from helpers import ROOT
from minibio.run.errors import InputError
from minibio.run.files import (
    as_written,
    check_dir,
    check_writable,
    locked,
    read_json,
    staged_dir,
    staged_file,
    write_json,
)


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_directory_appears_when_it_is_whole(tmp_path):
    with staged_dir(tmp_path / "a" / "b") as staged:
        (staged / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert tree(tmp_path) == ["a", "a/b", "a/b/x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, error, overwrite):
    if overwrite:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("0")
    before = tree(tmp_path)
    with pytest.raises(error):
        with staged_dir(tmp_path / "out", overwrite=overwrite) as staged:
            (staged / "x").write_text("1")
            raise error
    assert tree(tmp_path) == before


def test_a_directory_in_use_is_refused_or_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with staged_dir(out) as staged:  # an empty one is taken over
        (staged / "first").write_text("1")
    with pytest.raises(InputError, match="already holds files"):
        with staged_dir(out):
            raise AssertionError("the block must not run")
    with staged_dir(out, overwrite=True) as staged:
        (staged / "second").write_text("2")
        assert tree(out) == ["first"]  # kept until the new one is whole
    assert tree(tmp_path) == ["out", "out/second"]


def test_a_failed_rename_brings_the_old_directory_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_json(out / "old.json", {})
    rename = type(out).rename

    def fail_on_new(self, target):
        if self.name.endswith(".new"):
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(type(out), "rename", fail_on_new)
    with pytest.raises(OSError, match="disk gone"):
        with staged_dir(out, overwrite=True) as staged:
            (staged / "new").write_text("")
    assert tree(tmp_path) == ["out", "out/old.json"]


def test_a_link_keeps_pointing_at_what_is_replaced(tmp_path):
    write_json(tmp_path / "real" / "old.json", {})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_dir(tmp_path / "link", overwrite=True) as staged:
        (staged / "new").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == ["new"]


def test_the_working_directory_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "precious").write_text("")
    monkeypatch.chdir(tmp_path / "work")
    for path in (".", ".."):
        with pytest.raises(InputError, match="contains the working directory"):
            with staged_dir(path, overwrite=True):
                raise AssertionError("the block must not run")


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with staged_file(path) as staged:
        staged.write_text("a")
        assert not path.exists()
    with pytest.raises(RuntimeError):
        with staged_file(path) as staged:
            staged.write_text("half")
            raise RuntimeError
    assert path.read_text() == "a"
    assert tree(tmp_path) == ["deep", "deep/table.csv"]


def test_json_keeps_its_order_and_its_letters(tmp_path):
    value = {"z": 1, "a": [1.5, None], "β": "α-synuclein"}
    write_json(tmp_path / "x.json", value)
    assert list(read_json(tmp_path / "x.json")) == ["z", "a", "β"]
    assert "α-synuclein" in (tmp_path / "x.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"", "line 1, column 1"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 200_000, "expected a JSON file"),
        (b'{"a": ' + b"1" * 5000 + b"}", "expected a JSON file"),
    ],
    ids=["comma", "empty", "list", "latin1", "deep", "long-number"],
)
def test_a_damaged_json_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("take_apart", "what"),
    [
        (lambda record: record["seed"], "no 'seed'"),
        (lambda record: record["test"]["f1"], "list indices must be integers"),
        (lambda record: record["test"][3], "list index out of range"),
        (lambda record: f"{record['model']:.2f}", "Unknown format code"),
        (lambda record: record["model"].f1, "has no attribute 'f1'"),
    ],
)
def test_a_record_of_other_types_is_one_line(take_apart, what):
    with pytest.raises(InputError) as caught, as_written("run.json", "start again"):
        take_apart({"model": "a", "test": []})
    message = str(caught.value)
    assert message.startswith("run.json is not as it was written (") and what in message
    assert message.endswith("; start again")


def test_a_json_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match="Is a directory"):
        read_json(tmp_path)


def test_unwritable_places_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "out"):
        with pytest.raises(InputError, match="is not a directory"):
            check_writable(path)
    with pytest.raises(InputError, match="is a file, expected a directory"):
        with staged_dir(tmp_path / "file"):
            raise AssertionError("the block must not run")
    with pytest.raises(InputError, match="is a directory, expected a file"):
        with staged_file(tmp_path):
            raise AssertionError("the block must not run")
    assert check_writable(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert tree(tmp_path) == ["file"]


def test_a_file_system_that_takes_no_files(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="Read-only file system; choose another path"):
        check_writable(tmp_path / "out")


# what a killed run leaves


def killed(code):
    """A process of its own, in which `die()` is kill -9."""
    setup = "import os\nfrom minibio.run.files import *\ndie = lambda: os.kill(os.getpid(), 9)\n"
    done = subprocess.run([sys.executable, "-c", setup + code], cwd=ROOT, capture_output=True)
    assert done.returncode == -9, done.stderr


def test_the_next_write_takes_away_what_a_killed_one_left(tmp_path):
    out = tmp_path / "out"
    killed(f"with staged_dir({str(out)!r}) as s:\n (s / 'half').touch()\n die()")
    killed(f"with staged_file({str(tmp_path / 'x')!r}) as s:\n s.write_text('half')\n die()")
    assert tree(tmp_path) == [".out.lock", ".out.new", ".out.new/half", ".x.new"]
    with staged_dir(out) as staged:
        (staged / "whole").touch()
    with staged_file(tmp_path / "x") as staged:
        staged.write_text("whole")
    assert tree(tmp_path) == ["out", "out/whole", "x"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_directory_killed_while_it_is_replaced_is_the_old_or_the_new_one(tmp_path, at):
    out = tmp_path / "out"
    write_json(out / "old.json", {})
    killed(
        "import pathlib\nrename, n = pathlib.Path.rename, []\n"
        "def count(self, to):\n rename(self, to)\n n.append(1)\n"
        f" if len(n) == {at}: die()\n"
        "pathlib.Path.rename = count\n"
        f"with staged_dir({str(out)!r}, overwrite=True) as s:\n (s / 'new').touch()"
    )
    with pytest.raises(InputError, match="already holds files"):
        with staged_dir(out):
            raise AssertionError("the block must not run")
    assert [name for name in tree(out)] == (["old.json"] if at == 1 else ["new"])
    with staged_dir(out, overwrite=True) as staged:
        (staged / "newer").touch()
    assert tree(tmp_path) == ["out", "out/newer"]


def test_a_lock_is_for_one_process_and_leaves_nothing(tmp_path):
    with locked(tmp_path / ".lock"):
        with pytest.raises(InputError, match="another process is writing there"):
            with locked(tmp_path / ".lock"):
                raise AssertionError("the block must not run")
    assert tree(tmp_path) == []
    with staged_file(tmp_path / "x") as staged, pytest.raises(InputError, match="another process"):
        staged.touch()
        with staged_file(tmp_path / "x"):
            raise AssertionError("the block must not run")


def test_check_dir_refuses_what_staged_dir_would(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "used")
    with pytest.raises(InputError, match="already holds files"):
        check_dir(tmp_path / "used")
    assert check_dir(tmp_path / "link", overwrite=True) == (tmp_path / "used").resolve()
    with pytest.raises(InputError, match="is a file"):
        check_dir(tmp_path / "used" / "file")
    assert check_dir(tmp_path / "new") == (tmp_path / "new").resolve()
    assert not (tmp_path / "new").exists()


def test_a_device_is_not_replaced(tmp_path):
    """Root may rename a file over /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe is a device or pipe"), staged_file(pipe):
        pass
    assert pipe.is_fifo()
