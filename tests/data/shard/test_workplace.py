"""The pieces of a run are found again, and nothing stale is."""

import fcntl
import json

import pytest

from data.shard.records import blocks
from data.shard.workplace import TooFew, all_pieces, is_whole, missing, prepare, workplace
from minibio.run.errors import InputError
from minibio.run.fingerprint import of_state


class Recipe:
    def __init__(self, place, fingerprint="one"):
        self.tokenizer, self.fingerprint = place / "tokenizer", fingerprint


class Bar:
    n = 0

    def update(self, n):
        self.n += n


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setattr("data.shard.records.BLOCK", 50)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} line\n" * 40)
    return [tmp_path / "a.txt", tmp_path / "b.txt"]


def touch(stem):
    stem.parent.mkdir(exist_ok=True)
    stem.with_name(f"{stem.name}.npz").touch()


def test_what_is_there_is_not_made_again(tmp_path, inputs):
    (tmp_path / "w").mkdir()
    folders = prepare(tmp_path / "w", inputs, Recipe(tmp_path))
    n = len(list(blocks(inputs[0])))
    first = Bar()
    tasks = list(missing(inputs, folders, first))
    assert len(tasks) == 2 * n and first.n == sum(path.stat().st_size for path in inputs)
    assert [stem.parent for _, stem in tasks] == [folders[0]] * n + [folders[1]] * n
    assert json.loads((folders[0] / "blocks.json").read_text()) == {"blocks": n}
    for _, stem in tasks[:3] + tasks[n:]:
        touch(stem)
    assert not is_whole(folders[0]) and is_whole(folders[1])
    inputs[1].write_bytes(b"")  # whole: not read again
    again = Bar()
    assert [stem for _, stem in missing(inputs, folders, again)] == [s for _, s in tasks[3:n]]
    assert again.n == inputs[0].stat().st_size


def test_an_input_named_twice_is_tokenised_once(tmp_path, inputs):
    (tmp_path / "w").mkdir()
    twice = [inputs[0], inputs[0]]
    folders = prepare(tmp_path / "w", twice, Recipe(tmp_path))
    assert len(list(missing(twice, folders, Bar()))) == len(list(blocks(inputs[0])))


def test_an_input_half_read_is_not_whole(tmp_path, inputs):
    (tmp_path / "w").mkdir()
    folders = prepare(tmp_path / "w", inputs[:1], Recipe(tmp_path))
    for _, stem in missing(inputs[:1], folders, Bar()):
        touch(stem)
        assert not is_whole(folders[0])
    assert is_whole(folders[0])


def test_what_is_stale_is_removed(tmp_path, inputs):
    place = tmp_path / "w"
    (place / "tokenizer").mkdir(parents=True)
    recipe = Recipe(place)
    folders = prepare(place, inputs, recipe)
    for folder in folders:
        touch(folder / "000000")
        (folder / ".000001.npz.new").touch()
    assert prepare(place, inputs, recipe) == folders
    assert all([p.name for p in folder.iterdir()] == ["000000.npz"] for folder in folders)
    inputs[0].write_text("changed")
    changed = prepare(place, inputs, recipe)
    assert changed[0] == place / of_state(inputs[0]) and not folders[0].exists()
    assert list(folders[1].glob("*.npz")), "what still holds was removed"
    prepare(place, inputs, Recipe(place, "another length"))
    assert not list(place.glob("*/*.npz")) and (place / "tokenizer").is_dir()


def test_the_workplace_goes_with_its_work(tmp_path):
    place = tmp_path / ".out.pieces"
    with workplace(tmp_path / "out") as found:
        assert found == place and place.is_dir()
        touch(place / "x" / "000000")
    assert not place.exists()
    with pytest.raises(InputError, match="^bad$"), workplace(tmp_path / "out"):
        raise InputError("bad")
    assert not place.exists(), "kept without a piece"
    with pytest.raises(InputError, match="bad .the next run resumes from .*out.pieces"):
        with workplace(tmp_path / "out"):
            touch(place / "x" / "000000")
            raise InputError("bad")
    with pytest.raises(KeyboardInterrupt), workplace(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(place.glob("*/*.npz"))
    with pytest.raises(TooFew, match="^few$"), workplace(tmp_path / "out"):
        raise TooFew("few")
    assert not place.exists()


def test_two_runs_do_not_write_one_output(tmp_path):
    place = tmp_path / ".out.pieces"
    place.mkdir()
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="out.pieces/lock: another process is writing there"):
            with workplace(tmp_path / "out"):
                pass
        assert place.exists()
    with workplace(tmp_path / "out"):
        pass


def test_an_input_without_documents_is_named(tmp_path, inputs):
    (tmp_path / "w").mkdir()
    with pytest.raises(InputError, match="a.txt: no document in it"):
        all_pieces(inputs, prepare(tmp_path / "w", inputs, Recipe(tmp_path)))
