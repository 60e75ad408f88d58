"""Download what training and scoring need: `python -m data.fetch WHAT [--out DIR]`.

    pubmed     PubMed's XML from NLM: baseline and daily updates, each with its .md5
    biobert    the teacher, BioBERT v1.2
    starts     DistilBERT (cased, uncased), TinyBERT and MobileBERT, to train further
    ner        BioBERT's eight sets, as `eval.py ner` reads them
    relation   GAD in ten folds, CHEMPROT with 13 relations
    qa         SQuAD 1.1; BioASQ with --registered

After a cut or a kill the same command resumes: what is there stays, half a file is completed.
DIR/fetched.json keeps address, revision, size, sha256, date and licence of every file; a later
fetch of the same file must give the same bytes. Exit status: 0, 1 where a file failed (it is named,
the others are there), 2 for a wrong option or a full disk.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data.fetch import sources
from data.fetch.download import Failed, Web, Wrong, digests
from data.fetch.pins import PINS
from data.fetch.sources import BIOASQ, LICENCES, SETS, Item, pickled
from data.fetch.unpack import inside, is_archive, unpack
from minibio.run.errors import InputError
from minibio.run.files import beside, check_writable, locked, read_json, write_json
from minibio.run.options import Parser

FORMAT = {"format": "minibio fetch", "version": 1}
KINDS = {"address": str, "licence": str, "date": str, "revision": str | None, "size": int,
         "sha256": str, "unpacked": list}  # fmt: skip
NEEDED = ("address", "licence", "date", "revision", "size", "sha256")


class Manifest:
    """The files of a folder, and fetched.json, which says what they are.

        {"format": "minibio fetch", "version": 1, "files": {PLACE:
            {"address", "revision", "size", "sha256", "date", "licence"}, ...}}

    and "archive" of what was unpacked, "unpacked" of an archive, "absent" of what the server lacks.
    An entry is written before its file gets its name.

    Raises:
        InputError: fetched.json is damaged, or not ours.
    """

    def __init__(self, folder: Path):
        self.folder, self.file, self.files = folder, folder / "fetched.json", {}
        if self.file.exists():
            manifest = read_json(self.file)
            if {**manifest, **FORMAT} != manifest:
                raise InputError(f"{self.file} is not a record of data.fetch; choose another --out")
            if wrong := damage(manifest.get("files")):
                raise InputError(
                    f"{self.file}: {wrong}; remove it and run the same command: what is there is "
                    "checked and recorded again"
                )
            self.files: dict[str, dict] = manifest["files"]

    def at(self, place: str) -> Path:
        return inside(self.folder, place)

    def holds(self, place: str) -> bool:
        """True where a file is recorded and there."""
        return "sha256" in self.files.get(place, {}) and self.at(place).is_file()

    def has(self, item: Item) -> bool:
        """True where nothing is left to do for an item.

        It is there, or known not to exist; weights may be there as a pickle, or converted since;
        all of an archive is unpacked, and it may be removed then.
        """
        entry = self.files.get(item.place, {})
        if item.is_archive:
            wanted = item.wanted or entry.get("unpacked", ())
            return bool(wanted) and all(map(self.holds, wanted))
        if item.is_weights and pickled(item.place) in self.files:
            return self.at(item.place).is_file() or self.holds(pickled(item.place))
        return self.holds(item.place) or "absent" in entry

    def put(self, place: str, item: Item, **found) -> None:
        entry = {"address": item.address, "revision": item.revision} | found
        now = time.strftime("%Y-%m-%d")
        self.files[place] = entry | {"date": now, "licence": LICENCES[item.set]}
        self.save()

    def save(self) -> None:
        write_json(self.file, {**FORMAT, "files": dict(sorted(self.files.items()))})

    def faults(self, is_read: bool) -> dict[str, str]:
        """{place: what is wrong} of the recorded files, by their bytes or only by their size."""
        found = {}
        for place, entry in self.files.items():
            path = self.at(place)
            if self.holds(place) and (size := path.stat().st_size) != entry["size"]:
                found[place] = f"{size:,} bytes, {entry['size']:,} were fetched; remove it"
            elif self.holds(place) and is_read and digests(path)["sha256"] != entry["sha256"]:
                found[place] = "not the bytes that were fetched; remove it and fetch it again"
            elif is_read and not self.holds(place) and "absent" not in entry:
                found[place] = "not there; fetch it again"
        return found


def damage(files) -> str | None:
    """The first value of the record's "files" that is not of its type."""
    if not isinstance(files, dict):
        return f"files is of type {type(files).__name__}, expected an object"
    for place, entry in files.items():
        if not isinstance(entry, dict):
            return f"files[{place!r}] is of type {type(entry).__name__}, expected an object"
        try:
            inside(Path(), place)
        except InputError as error:
            return str(error)
        for name in (*NEEDED[: 4 if "absent" in entry else 6], *(entry.keys() & KINDS)):
            if not isinstance(entry.get(name, ...), KINDS[name]):
                return f"files[{place!r}][{name!r}] is missing or of another type"
        if not all(isinstance(each, str) for each in entry.get("unpacked", ())):
            return f"files[{place!r}]['unpacked'] holds more than text"
    return None


# ---- one item


def fetch_one(
    item: Item, manifest: Manifest, web: Web, advance: Callable[[int], None], notes: list[str]
) -> None:
    """An item to its place, an archive's files to theirs, and all into the manifest.

    Raises:
        Failed: it cannot be had, or other bytes are there already.
        InputError: an archive is damaged.
    """
    missing = None
    for one in sources.alternatives(item, web):
        try:
            if not manifest.holds(one.place):
                download(one, manifest, web, advance)
            break
        except Failed as error:
            if error.status != 404:
                raise
            missing = missing or error
    else:
        if not item.is_optional:
            raise missing
        manifest.put(item.place, item, absent=True)
    if item.is_archive:
        try:
            unpack_one(item, manifest, notes)
        except InputError:  # damaged: another fetch need not give these bytes
            del manifest.files[item.place]
            manifest.save()
            raise


def download(item: Item, manifest: Manifest, web: Web, advance: Callable[[int], None]) -> None:
    """One file to its place, or what is there into the record; raises `Failed`."""
    path, before = manifest.at(item.place), manifest.files.get(item.place, {})
    part, md5 = beside(path, "part"), None
    sha256, address = item.sha256 or before.get("sha256"), before.get("address", item.address)
    if item.has_md5:
        found = re.search(rb"\b[0-9a-fA-F]{32}\b", web.read(f"{item.address}.md5"))
        if not found:
            raise Failed(f"{item.address}.md5: no MD5 in it")
        md5 = found[0].decode().lower()
    if path.exists() and (item.is_archive or sha256 or md5):  # by hand, or the record was removed
        found = digests(path)
        for name, value in (("sha256", sha256), ("md5", md5)):
            if value and value != found[name]:
                raise Failed(f"is there already, {name} {found[name]}, expected {value}; remove it")
        check_archive(item, path, path)
        manifest.put(item.place, item, size=path.stat().st_size, sha256=found["sha256"])
        return
    try:
        sha256, commit = web.download(address, part, sha256, md5, item.is_weights, advance)
        check_archive(item, part, path)
        if path.exists() and digests(path)["sha256"] != sha256:
            raise Wrong(f"is there already, with other bytes than {address}; remove it")
    except Wrong as error:
        part.unlink(missing_ok=True)
        since = f"; as fetched on {before['date']}" if before else ""
        raise Failed(f"{error}{since}") from None
    found = {"revision": commit or item.revision, "size": part.stat().st_size, "sha256": sha256}
    if commit:  # a branch moves: the commit that was met stays
        address = address.replace("/resolve/main/", f"/resolve/{commit}/")
    manifest.put(item.place, item, address=address, **found)
    with open(part, "rb") as file:
        os.fsync(file.fileno())  # the name must not come to the disk before the bytes
    os.replace(part, path)


def check_archive(item: Item, path: Path, place: Path) -> None:
    """Refuse a page in place of an archive: that is how Google Drive says no."""
    if item.is_archive and not is_archive(path):
        with open(path, "rb") as file:
            begins = file.read(15)
        raise Wrong(
            f"{item.address}: not an archive, it begins with {begins!r}; open the address in a "
            f"browser, save the file as {place} and run this again"
        )


def unpack_one(item: Item, manifest: Manifest, notes: list[str]) -> None:
    """The files of an archive that are not there yet."""
    offered = set()

    def choose(member: str) -> str | None:
        place = sources.place_of(member, item.wanted)
        if place is not None:
            offered.add(place)
        return None if place is None or manifest.holds(place) else place

    for place in unpack(manifest.at(item.place), manifest.at, choose):
        path = manifest.at(place)
        sha256 = digests(path)["sha256"]
        if PINS.get(place, sha256) != sha256:
            notes.append(f"{place}: not the bytes this project measured with (sha256 {sha256})")
        manifest.put(place, item, size=path.stat().st_size, sha256=sha256, archive=item.place)
    if lacking := sorted({*item.wanted} - offered):
        raise Failed(f"has no {', '.join(lacking)}")
    if not offered:
        raise Failed("has none of the files that were looked for")
    if not item.wanted:
        entry = manifest.files[item.place]
        found = {"size": entry["size"], "sha256": entry["sha256"], "unpacked": sorted(offered)}
        manifest.put(item.place, item, **found)


# ---- all items


def fetch(
    what: str, names: tuple[str, ...], manifest: Manifest, web: Web, numbers: range | None = None
) -> dict[str, str]:
    """Fetch what is not there -> {place: what failed}.

    Args:
        what, names, numbers: as `sources.items`.
    Raises:
        InputError: PubMed's files are of another year or number, or the disk cannot hold them.
    """
    from tqdm import tqdm

    try:
        items = sources.items(what, names, numbers, web)
    except Failed as error:
        return {what: str(error)}
    check_year(items, manifest)
    failed, notes = manifest.faults(is_read=False), []
    todo = [item for item in items if not manifest.has(item)]
    check_space(todo, manifest)
    for name in dict.fromkeys(item.set for item in todo):
        print(f"{name}: licence: {LICENCES[name]}")
    total, is_quiet = sum(item.size for item in todo) or None, not (todo and sys.stderr.isatty())
    with tqdm(total=total, unit="B", unit_scale=True, disable=is_quiet) as bar:
        for item in todo:
            try:
                fetch_one(item, manifest, web, bar.update, notes)
            except (Failed, InputError) as error:
                failed[item.place] = str(error)
    for note in notes:
        print(f"data.fetch: note: {note}", file=sys.stderr)
    there = [entry["size"] for place, entry in manifest.files.items() if manifest.holds(place)]
    state = f"{sum(map(manifest.has, items))} of {len(items)} items" if failed else "complete"
    print(f"{manifest.folder}: {state}; {len(there)} files, {size_text(sum(there))}")
    for item in items:
        if item.is_weights and manifest.has(item) and not manifest.at(item.place).exists():
            print_recipe(manifest.at(item.place).parent)
    if todo and what == "qa" and "bioasq" not in names:
        print(BIOASQ)
    return failed


def check_space(items: list[Item], manifest: Manifest) -> None:
    """Raise `InputError` where the disk cannot hold what is to come, as far as sizes are known."""
    need = sum(item.size for item in items)
    need -= sum(part.stat().st_size for part in manifest.folder.rglob(".*.part"))
    if need > (free := shutil.disk_usage(manifest.folder).free):
        raise InputError(
            f"{manifest.folder}: about {size_text(need)} to come, {size_text(free)} free; choose "
            "another --out, or a part with --only or --files"
        )


def check_year(items: list[Item], manifest: Manifest) -> None:
    """PubMed's numbers begin again every December: two years in one folder would be mixed up."""
    names = [item.place for item in items] + [*manifest.files]
    years = sorted({name[6:8] for name in names if re.match(r"pubmed\d\dn", name)})
    if len(years) > 1:
        raise InputError(
            f"{manifest.folder} would hold PubMed's files of {' and '.join(years)}, which have the "
            "same numbers: take an empty --out, or --only baseline"
        )


# ---- messages


def size_text(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} GB"


def print_items(what: str, names: tuple[str, ...], manifest: Manifest) -> None:
    """Licence, size and files of each set, without the network."""
    items = [] if what == "pubmed" else sources.items(what, names)
    for name in dict.fromkeys(item.set for item in items) or names:
        of_set = [item for item in items if item.set == name]
        total = size_text(sum(item.size for item in of_set))
        print(f"{name}: about {total}" if of_set else f"{name}: tens of GB, {sources.NLM}/{name}/")
        print(f"  licence: {LICENCES[name]}")
        for item in of_set:
            state = "there" if manifest.has(item) else "optional" if item.is_optional else "to come"
            print(f"  {state:<8}  {item.place}  {item.address}")
    if what == "qa" and "bioasq" not in names:
        print(BIOASQ)


def print_recipe(folder: Path) -> None:
    from minibio.model.weights import PICKLE_TO_SAFETENSORS

    print(f"{folder} has its weights as a pickle, which this project does not read. To convert it:")
    print(f"  cd {shlex.quote(str(folder))} && {PICKLE_TO_SAFETENSORS}")


# ---- the command


def parser() -> Parser:
    p = Parser(
        "data.fetch",
        description=__doc__,
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("what", choices=list(SETS))
    p.add_argument("--out", type=Path, metavar="DIR", help="folder; default: downloads/WHAT")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of its sets")
    p.add_argument("--files", metavar="A-B", help="pubmed: the files with these numbers")
    p.add_argument("--registered", action="store_true", help="qa: you are registered with BioASQ")
    p.add_argument(
        "--list", action="store_true", help="print files and licences, without the network"
    )
    p.add_argument(
        "--verify", action="store_true", help="read again what is there, without the network"
    )
    mirror, about = (
        os.environ.get("MINIBIO_MIRROR") or None,
        "ask URL/HOST/PATH for https://HOST/PATH",
    )
    p.add_argument("--mirror", metavar="URL", default=mirror, help=f"{about} ($MINIBIO_MIRROR)")
    return p


def chosen(what: str, only: list[str], registered: bool) -> tuple[str, ...]:
    """The sets that are asked for; BioASQ's only by registered users."""
    names = SETS[what]
    if other := [name for name in only if name not in names]:
        raise InputError(f"--only {other[0]}: {what} has {', '.join(names)}")
    if registered and what != "qa":
        raise InputError("--registered goes only with qa")
    if what == "qa" and not registered:
        if "bioasq" in only:
            raise InputError(
                "BioASQ is for registered users: register at http://participants-area.bioasq.org, "
                "then add --registered"
            )
        names = ("squad",)
    return tuple(dict.fromkeys(only)) or names


def numbers_of(what: str, text: str | None) -> range | None:
    """1-5 or 7, as PubMed numbers its files; None = all."""
    if text is None:
        return None
    if what != "pubmed":
        raise InputError("--files goes only with pubmed")
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if not match or int(match[1]) > int(match[2] or match[1]):
        raise InputError(f"--files is {text!r}, expected a number or two, like 1-5")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    names, numbers = (
        chosen(args.what, args.only, args.registered),
        numbers_of(args.what, args.files),
    )
    web, folder = Web(args.mirror), args.out or Path("downloads", args.what)
    if args.list:
        print_items(args.what, names, Manifest(folder))
        return 0
    if args.verify:
        manifest = Manifest(folder)
        failed = manifest.faults(is_read=True)
        for place, fault in failed.items():
            print(" ".join(f"{place}: {fault}".split()))
        end = f"{folder}: {len(manifest.files)} files read, {len(failed)} of them wrong"
        print(end, file=sys.stderr if failed else sys.stdout)
        return 1 if failed else 0
    check_writable(folder / "fetched.json")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        failed = fetch(args.what, names, Manifest(folder), web, numbers)
    for place, line in sorted(failed.items()):
        print(" ".join(f"data.fetch: {place}: {line}".split()), file=sys.stderr)
    return 1 if failed else 0
