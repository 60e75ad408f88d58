"""A fingerprint changes with what it stands for, and with nothing else."""

import os

import numpy as np

from data.fingerprint import fingerprint, identity


def test_a_fingerprint_changes_with_each_part():
    array = np.arange(3, dtype=np.uint8)
    many = [(), (1,), ("1",), (b"1",), (1, 2), (12,), ("a", "b"), ("ab",), ("a", "b", ""), (None,),
            (array,), (array[::-1],), (array[:2],), ({"a": 1},), ({"a": 2},)]  # fmt: skip
    assert len({fingerprint(*parts) for parts in many}) == len(many)
    assert fingerprint(1, "a", array) == fingerprint(1, "a", array.copy())
    assert len(fingerprint()) == 24


def test_identity_changes_with_the_file(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"mice " * 50_000)
    os.utime(path, ns=(5, 5))
    before = identity(path)
    assert identity(path) == before
    for change in (
        lambda: path.write_bytes(b"rats " + b"mice " * 49_999),
        lambda: path.write_bytes(b"mice " * 49_999 + b"rats "),
        lambda: path.write_bytes(b"mice " * 50_001),
    ):
        change()
        os.utime(path, ns=(5, 5))
        assert identity(path) != before
    path.write_bytes(b"mice " * 50_000)
    os.utime(path, ns=(5, 6))
    assert identity(path) != before
    os.utime(path, ns=(5, 5))
    assert identity(path) == before
    assert identity(path.rename(tmp_path / "other.txt")) != before
