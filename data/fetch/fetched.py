"""What was fetched to a folder, kept beside the files in fetched.json: addresses and checksums.

    {"format": "minibio fetch", "version": 1, "files": {PLACE:
        {"address", "revision", "size", "sha256", "date", "licence"}, ...}}

and "archive" of what was unpacked, "unpacked" of an archive, "absent" of what the server lacks. The
record is written after each file; a file that came but was not recorded, since the process was
killed in between, is checked and recorded by the next run.
"""

import fcntl
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data.fetch.download import digests
from data.fetch.sources import Item
from minibio.run.errors import InputError
from minibio.run.files import check_writable, read_json, write_json

FORMAT, VERSION = "minibio fetch", 1


class Folder:
    """The files of one place, and fetched.json, which says what they are."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.file = path / "fetched.json"
        record = read_json(self.file) if self.file.exists() else {}
        self.files: dict[str, dict] = record.get("files", {})
        is_ours = not record or record.get("format") == FORMAT
        if not (is_ours and isinstance(self.files, dict)
                and all(isinstance(entry, dict) for entry in self.files.values())):  # fmt: skip
            raise InputError(f"{self.file} is no record of data.fetch; choose another --out")

    def at(self, place: str) -> Path:
        return inside(self.path, place)

    def holds(self, place: str) -> bool:
        return place in self.files and self.at(place).is_file()

    def has(self, item: Item) -> bool:
        """Whether an item is there, or known not to exist; weights may be there as a pickle."""
        for place in item.places:
            if self.holds(place) or self.files.get(place, {}).get("absent"):
                return True
        # weights that were converted since, the pickle removed
        is_converted = item.places[-1] in self.files and self.at(item.place).is_file()
        return is_converted or self.has_contents(item)

    def has_contents(self, item: Item) -> bool:
        """Whether all of an archive is unpacked; it may be removed then."""
        wanted = item.wanted or self.files.get(item.place, {}).get("unpacked", ())
        return bool(wanted) and all(self.holds(place) for place in wanted)

    def changed(self, place: str) -> str | None:
        """What is wrong with a recorded file, told from its size alone."""
        size, expected = self.at(place).stat().st_size, self.files[place]["size"]
        if size != expected:
            return f"{size:,} bytes, {expected:,} were fetched; remove it to fetch it again"
        return None

    def expect(self, item: Item) -> Item:
        """An item that was fetched before: the same address, the same bytes."""
        for place in item.places:
            entry = self.files.get(place)
            if entry and not entry.get("absent"):
                return replace(
                    item, place=place, repo=None, address=entry["address"],
                    sha256=entry["sha256"], revision=entry["revision"], since=entry["date"],
                )  # fmt: skip
        return item

    def put(self, place: str, item: Item, **found) -> None:
        entry = {"address": item.address, "revision": item.revision, **found,
                 "date": time.strftime("%Y-%m-%d"), "licence": item.licence}  # fmt: skip
        with self.lock:
            self.files[place] = entry
            ordered = dict(sorted(self.files.items()))
            write_json(self.file, {"format": FORMAT, "version": VERSION, "files": ordered})

    @contextmanager
    def alone(self):
        """No other fetch writes here meanwhile: two would spoil each other's parts."""
        check_writable(self.path / "x")
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another data.fetch writes there; wait") from None
            yield


def inside(folder: Path, place: str) -> Path:
    """`place` below `folder`.

    Raises:
        InputError: it would lead elsewhere.
    """
    parts = PurePosixPath(place).parts
    if not parts or place.startswith("/") or ".." in parts or "\\" in place or "\0" in place:
        raise InputError(f"{place!r} is no place below {folder}")
    return folder.joinpath(*parts)


def verify(folder: Folder) -> dict[str, str]:
    """Read every recorded file again -> {place: what is wrong}."""
    wrong = {}
    for place, entry in folder.files.items():
        path = folder.at(place)
        if entry.get("absent"):
            continue
        if not path.is_file():
            wrong[place] = "not there; fetch it again"
        elif digests(path)["sha256"] != entry["sha256"]:
            wrong[place] = "its bytes are not those that were fetched; remove it and fetch it again"
    return wrong
