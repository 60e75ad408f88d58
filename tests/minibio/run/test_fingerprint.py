"""A fingerprint changes with what it stands for, and with nothing else."""

import hashlib
import os

import numpy as np
import torch

from minibio.run.fingerprint import of_bytes, of_files, of_parts, of_state, of_value, of_weights


def test_a_fingerprint_changes_with_each_part():
    array = np.arange(3, dtype=np.uint8)
    many = [(), (1,), ("1",), (b"1",), (1, 2), (12,), ("a", "b"), ("ab",), ("a", "b", ""), (None,),
            (array,), (array[::-1],), (array[:2],), ({"a": 1},), ({"a": 2},)]  # fmt: skip
    assert len({of_parts(*parts) for parts in many}) == len(many)
    assert of_parts(1, "a", array) == of_parts(1, "a", array.copy())
    assert len(of_parts()) == 24


def test_a_fingerprint_of_state_changes_with_the_file(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"mice " * 50_000)
    os.utime(path, ns=(5, 5))
    before = of_state(path)
    assert of_state(path) == before
    for change in (
        lambda: path.write_bytes(b"rats " + b"mice " * 49_999),
        lambda: path.write_bytes(b"mice " * 49_999 + b"rats "),
        lambda: path.write_bytes(b"mice " * 50_001),
    ):
        change()
        os.utime(path, ns=(5, 5))
        assert of_state(path) != before
    path.write_bytes(b"mice " * 50_000)
    os.utime(path, ns=(5, 6))
    assert of_state(path) != before
    os.utime(path, ns=(5, 5))
    assert of_state(path) == before
    assert of_state(path.rename(tmp_path / "other.txt")) != before


def test_the_digests_that_records_hold(tmp_path):
    """Spelled out: another formula would make every record on disk another version's."""

    def sha(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    assert of_bytes([b"ab", b"c"]) == sha(b"abc")
    assert of_value((["a", 1],)) == sha(b"(['a', 1],)")
    assert of_parts(1, np.array([7], np.uint8)) == sha(b"1 1" + b"1 \x07")[:24]
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    both = hashlib.sha256(b"1").digest() + hashlib.sha256(b"2").digest()
    assert of_files([tmp_path / "a", tmp_path / "b"]) == sha(both)
    model = torch.nn.Linear(1, 1)
    model.weight.data.fill_(1.0), model.bias.data.fill_(2.0)
    assert of_weights(model) == sha(b"bias" + b"\0\0\0@" + b"weight" + b"\0\0\x80?")
    assert of_weights(None) is None
