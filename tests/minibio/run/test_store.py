"""Whole or not there: killed before every file operation, with every one of them failing."""

import errno
import json
import os
import resource
import signal
import sys

import pytest
import torch
from safetensors import safe_open

from minibio.run import store
from minibio.run.errors import InputError

OPERATIONS = {"mkdir", "open", "write", "flush", "fsync", "rename", "unlink", "rmdir"}
PARTS = ("a", "b")


def tensors(step):
    """Two parts that tell which step they are of."""
    return {"a": {"w": torch.full((300,), float(step))}, "b": {"n": torch.tensor(step)}}


def write(folder, step, also=None):
    return store.write(folder, step, tensors(step), json.dumps({"step": step}).encode(), also)


def whole(folder):
    """The steps of what stands, newest first; each of them is whole, and of its step."""
    places = store.whole(folder)
    for place in places:
        step = store.check(place, PARTS)["step"]
        assert store.read(place, PARTS)["a/w"][0] == step
    return [store.step_of(place) for place in places]


def hidden(folder):
    return sorted(path.name for path in folder.glob(".*"))


class before_operation:
    """Do something before the n-th call that changes or syncs files; counts the calls."""

    def __init__(self, n, action):
        self.n, self.action, self.calls = n, action, []

    def __enter__(self):
        sys.setprofile(self.see)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)

    def see(self, frame, event, function):
        if event == "c_call" and function.__name__ in OPERATIONS:
            self.calls.append(function.__name__)
            if len(self.calls) == self.n:
                self.action()


def killed(n, action):
    """Run `action` in a child that kills itself before its n-th operation; whether it did."""
    child = os.fork()
    if child == 0:
        try:
            with before_operation(n, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def fail_with(number):
    def fail():
        raise OSError(number, os.strerror(number))

    return fail


def test_what_is_written_is_what_the_package_reads(tmp_path):
    x = torch.arange(24.0).view(4, 6)
    parts = {
        "a": {
            "a": x.byte()[0, :3], "double": x.double(), "turned": x.t(), "half": x.half(),
            "b": x.bfloat16()[:, ::2], "one": torch.tensor(3.0), "every-other": x[0, ::2],
            "none": x[:0], "β": x.long(),
        },
        "b": {"byte": x.byte()[0, :3], "bool": x > 5, "int": x.int(), "tied": x.expand(2, 4, 6)},
        "c": {},
    }  # fmt: skip
    place = store.write(tmp_path / "new" / "folder", 3, parts, b'{"step": 3}')
    assert place == tmp_path / "new" / "folder" / "step-00000003"
    assert store.check(place, tuple(parts)) == {"step": 3}
    read = store.read(place, tuple(parts))
    flat = {f"{part}/{name}": y for part, named in parts.items() for name, y in named.items()}
    assert set(read) == set(flat)
    for name, y in flat.items():
        assert read[name].dtype == y.dtype and torch.equal(read[name], y), name
    with safe_open(place / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("turned"), x.t())
    header = (place / "a.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + size])
    assert size % 8 == 0
    assert all(e["data_offsets"][0] % parts["a"][n].itemsize == 0 for n, e in entries.items())


@pytest.mark.parametrize("again", [False, True], ids=["next-step", "same-step"])
def test_killed_before_every_operation(tmp_path, again):
    """What stood before stands, or the new one does; the next save clears what is left."""
    step, leftovers = 1 if again else 2, set()
    for n in range(1, 200):
        folder = tmp_path / str(n)
        write(folder, 1)
        was_killed = killed(n, lambda folder=folder: write(folder, step))
        found = whole(folder)
        assert found in ([1], [1, 1] if again else [2, 1]), n
        assert was_killed or found == ([1] if again else [2, 1])
        leftovers |= {name.rsplit(".", 1)[1] for name in hidden(folder)}
        if found == [1, 1]:
            leftovers.add("before")
        write(folder, step)  # and a second of the same step
        assert whole(folder) == ([1] if again else [2, 1]) and not hidden(folder)
        if not was_killed:
            break
    assert n > 20 and not was_killed
    assert leftovers == ({"new", "before", "old"} if again else {"new"})


def test_killed_while_removing(tmp_path):
    for n in range(1, 50):
        folder = tmp_path / str(n)
        for step in (1, 2):
            write(folder, step)
        was_killed = killed(n, lambda folder=folder: store.remove(folder / "step-00000001"))
        assert whole(folder) in ([2, 1], [2])
        store.tidy(folder)
        assert whole(folder) in ([2, 1], [2]) and not hidden(folder)
        if not was_killed:
            break
    assert n > 5 and not was_killed


@pytest.mark.parametrize("again", [False, True], ids=["next-step", "same-step"])
def test_every_operation_failing(tmp_path, again):
    """A full disk at any instant: the error comes out, no trace of the half-written one stays."""
    step = 1 if again else 2
    for n in range(1, 200):
        folder = tmp_path / str(n)
        write(folder, 1)
        trap = before_operation(n, fail_with(errno.ENOSPC))
        try:
            with trap:
                write(folder, step)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert set(whole(folder)) <= {1, 2} and 1 in whole(folder), n
            assert not [name for name in hidden(folder) if name.endswith(".new")], n
        else:
            break
        write(folder, step)
        assert whole(folder) == ([1] if again else [2, 1]) and not hidden(folder)
    assert n > 20 and len(trap.calls) == n - 1


def test_a_file_that_grows_too_large(tmp_path):
    """The kernel itself refuses, half-way through a file."""
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.write(tmp_path, 2, {"a": {"w": torch.zeros(100_000)}, "b": {}}, b"{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert whole(tmp_path) == [1] and not hidden(tmp_path)


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), before_operation(9, interrupt):
        write(tmp_path, 1)
    assert os.listdir(tmp_path) == []


def test_down_to_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Every file, their directory and the log, then the name, then the directory of names."""
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(
        os, "rename", lambda a, b, **dirs: (events.append(f"to {b}"), rename(a, b, **dirs))
    )
    log, folder = tmp_path / "log.jsonl", tmp_path / "checkpoints"
    log.write_text("{}\n")
    place = write(folder, 7, also=log)
    staged = str(folder / ".step-00000007.new")
    files = [f"{staged}/{name}" for name in ("a.safetensors", "b.safetensors", "state.json")]
    assert events == [
        str(tmp_path), *files, f"{staged}/manifest.json", staged, str(log), f"to {place}",
        str(folder),
    ]  # fmt: skip


def flip(path, i):
    data = bytearray(path.read_bytes())
    data[i] ^= 1 << (i % 7)
    path.write_bytes(data)


def damages(place):
    """(what is done, the part of the message that names it)."""
    a, state, manifest = (place / n for n in ("a.safetensors", "state.json", "manifest.json"))
    yield lambda: os.truncate(a, a.stat().st_size - 1), "a.safetensors: its .* bytes are not"
    yield lambda: a.write_bytes(a.read_bytes() + b"\0"), "a.safetensors: its .* bytes are not"
    for i in (0, 20, -1):
        yield lambda i=i: flip(a, i), "a.safetensors: its .* bytes are not"
    yield a.unlink, "a.safetensors: no such file"
    yield lambda: (a.unlink(), a.mkdir()), "a.safetensors: no such file"
    yield lambda: state.write_text('{"step": 6}'), "state.json: its .* bytes are not"
    yield lambda: manifest.write_text('{"model_type": "bert"}'), "this is not a manifest"
    yield lambda: manifest.write_text("[]"), "manifest.json: holds a list"
    yield lambda: os.truncate(manifest, 0), "manifest.json: line 1"
    yield manifest.unlink, "manifest.json: No such file"

    def edit(**changes):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))

    yield lambda: edit(version=2), "format 2, expected 1"
    yield lambda: edit(version=None), "format None, expected 1"
    yield lambda: edit(files={}), "does not list a.safetensors, b.safetensors, state.json"
    yield lambda: edit(files=None), "does not list"
    yield lambda: place.rename(place.with_name("step-00000008")), "another than its name says"


@pytest.mark.parametrize("n", range(17))
def test_damage_is_seen_and_named(tmp_path, n):
    place = write(tmp_path, 7)
    assert len(list(damages(place))) == 17
    damage, message = list(damages(place))[n]
    damage()
    (place,) = store.whole(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        store.check(place, PARTS)
    assert place.name in str(caught.value)


def test_no_byte_of_the_manifest_can_change_unseen(tmp_path):
    """Or else the change means nothing: it reads as the same values."""
    place = write(tmp_path, 7)
    manifest = place / "manifest.json"
    text = manifest.read_bytes()
    values = json.loads(text)
    unseen = 0
    for i in range(len(text)):
        flip(manifest, i)
        try:
            store.check(place, PARTS)
            unseen += 1
            assert json.loads(manifest.read_bytes()) == values, text[i - 5 : i + 5]
        except InputError:
            pass
        manifest.write_bytes(text)
    assert unseen < 0.2 * len(text)  # blanks


def test_what_bears_another_name_is_let_alone(tmp_path):
    assert store.whole(tmp_path / "none") == []
    for name in ("step-7", "step-0000000x", "step-00000007.old", "notes"):
        (tmp_path / name).mkdir()
    for step in (9, 123456789, 10):
        write(tmp_path, step)
    (tmp_path / "step-00000010.before").mkdir()
    assert [place.name for place in store.whole(tmp_path)] == [
        "step-123456789", "step-00000010", "step-00000010.before", "step-00000009"
    ]  # fmt: skip
    assert (tmp_path / "notes").is_dir()


def test_the_hash_is_of_the_whole_file(tmp_path):
    import hashlib

    entry = store.write_file(tmp_path / "x", b"ab" + b"c" * 1000)
    data = (tmp_path / "x").read_bytes()
    assert data == b"ab" + b"c" * 1000
    assert entry == {"bytes": 1002, "sha256": hashlib.sha256(data).hexdigest()}
