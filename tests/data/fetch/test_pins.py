"""Checksums that stand in the source."""

import hashlib
import re

from data.fetch.pins import PINS
from helpers import real_data


def test_their_form():
    assert len(PINS) == 66
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in PINS.values())
    assert list(PINS) == sorted(PINS)


def test_they_are_those_of_the_real_files():
    base, checked = real_data("ner").parent, 0
    for place, sha256 in PINS.items():
        name = place.removeprefix("bioasq/")
        found = [base / x / name for x in ("ner", "relation", "qa") if (base / x / name).is_file()]
        for path in found:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, place
            checked += 1
    assert checked == 59
