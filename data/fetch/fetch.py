"""Download what training and scoring need: `python -m data.fetch WHAT [--out DIR]`.

    pubmed     PubMed's XML from NLM: baseline and daily updates, each with its .md5
    biobert    the teacher, BioBERT v1.2
    starts     DistilBERT (cased, uncased), TinyBERT and MobileBERT, to train further
    ner        BioBERT's eight sets, as `eval.py ner` reads them
    relation   GAD in ten folds, CHEMPROT with 13 relations
    qa         SQuAD 1.1; BioASQ with --registered

A run that was cut, killed or refused is simply run again: what is there stays, a file half there is
resumed. DIR/fetched.json keeps address, revision, size, sha256, date and licence of every file; a
later fetch of the same file must give the same bytes. Exit status: 0, 1 where a file failed (it is
named, the others are there), 2 for a wrong option or a full disk. Addresses stand in sources.py.
"""

import argparse
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from data.fetch import sources
from data.fetch.download import Failed, Stopped, Web, digests
from data.fetch.fetched import Folder, verify
from data.fetch.pins import PINS
from data.fetch.sources import BIOASQ, MODELS, SETS, Item
from data.fetch.unpack import is_archive, unpack
from minibio.run.errors import InputError

UNPACKED = 10  # times the size of an archive: what it and its contents take, at most
RECIPE = """\
{folder} has its weights as a pickle alone, which can run code when it is read; this project reads
none. To convert it in an environment that is thrown away afterwards:

  python3 -m venv convert-env
  convert-env/bin/pip install torch "transformers>=5" safetensors
  HF_HUB_OFFLINE=1 convert-env/bin/python -c '{code}' {folder}
  rm -r convert-env
"""
# one line, no single quote; only the weights go in, since config.json would be rewritten too
CONVERT = (
    "import os, sys, tempfile, transformers; d = sys.argv[1]; "
    "t = tempfile.mkdtemp(dir=d); "
    "transformers.{hf_class}.from_pretrained(d).save_pretrained(t); "
    'os.replace(t + "/model.safetensors", d + "/model.safetensors"); '
    '[os.remove(t + "/" + f) for f in os.listdir(t)]; os.rmdir(t)'
)


# ---- what to fetch


def plan(items: list[Item], folder: Folder, web: Web, jobs: int, failed: dict,
         progress: bool = False) -> list[Item]:  # fmt: skip
    """The items that are still to come, as the server knows them; `failed` gets the others."""
    from tqdm import tqdm

    todo, by_hand = [], []
    for item in items:
        if not folder.has(item):
            # Drive may refuse even to say what it has
            is_here = item.choose and folder.at(item.place).is_file()
            (by_hand if is_here else todo).append(folder.expect(item))
        elif folder.at(item.place).is_file() and item.place in folder.files:
            if wrong := folder.changed(item.place):
                failed[item.place] = wrong
    settled = {}

    def ask(item: Item) -> None:
        settled[item.place] = sources.settle(item, web)
        bar.update()

    with tqdm(total=len(todo), desc="sizes", unit=" files", leave=False,
              disable=not progress) as bar:  # fmt: skip
        side_by_side(ask, todo, jobs, web, failed)
    for item in todo:
        if item.place in settled and settled[item.place] is None:
            folder.put(item.place, item, absent=True)
    return by_hand + [found for item in todo if (found := settled.get(item.place))]


def side_by_side(action: Callable[[Item], None], items: Iterable[Item], jobs: int, web: Web,
                 failed: dict) -> None:  # fmt: skip
    """`action` on every item, `jobs` at once; what fails is noted, the others go on."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(action, item): item for item in items}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except (Failed, InputError) as error:
                    failed[futures[future].place] = str(error)
        except BaseException:  # an interrupt, a full disk: what there is stays for the next run
            web.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def check_space(items: list[Item], folder: Folder) -> None:
    """Raises `InputError` where the disk cannot hold what is to come."""
    need = sum((item.size or 0) * (UNPACKED if item.choose else 1) for item in items)
    need -= sum(part.stat().st_size for part in folder.path.rglob(".*.part"))
    free = shutil.disk_usage(folder.path).free
    if need > free:
        raise InputError(
            f"{folder.path}: {size_text(need)} to come, {size_text(free)} free; choose another "
            "--out, or a part with --only or --files"
        )


def check_year(items: list[Item], folder: Folder) -> None:
    """PubMed's numbers start anew every December: two years in one folder would be mixed up."""
    years = {item.revision for item in items}
    years |= {name[6:8] for name in folder.files if re.match(r"pubmed\d\dn", name)}
    if len(years) > 1:
        raise InputError(
            f"{folder.path} would hold PubMed's files of {' and '.join(sorted(years))}, which have "
            "the same numbers: take an empty --out, or --only baseline"
        )


# ---- fetching


def fetch_one(item: Item, folder: Folder, web: Web, advance: Callable[[int], None]) -> None:
    """One file to its place and into the record.

    Raises:
        Failed: it cannot be had, or other bytes are there already.
    """
    place = folder.at(item.place)
    check = is_packed(item, place) if item.choose else lambda path: None
    md5 = None
    if item.md5_address:
        found = re.search(rb"\b[0-9a-fA-F]{32}\b", web.read(item.md5_address))
        if not found:
            raise Failed(f"{item.md5_address}: no MD5 in it")
        md5 = found[0].decode().lower()
    if place.exists():  # by hand, or killed before it was recorded
        found = {"size": place.stat().st_size, **digests(place, with_md5=md5 is not None)}
        for name, value in (("sha256", item.sha256), ("md5", md5), ("size", item.size)):
            if value is not None and value != found[name]:
                raise Failed(f"is there already, {name} {found[name]}, expected {value}; remove it")
        check(place)
        advance(found["size"])
        folder.put(item.place, item, size=found["size"], sha256=found["sha256"])
        return
    size = None if item.choose else item.size  # Drive's HEAD may be of a page in between
    try:
        got = web.download(item.address, place, sha256=item.sha256, md5=md5, size=size,
                           check=check, advance=advance)  # fmt: skip
    except Failed as error:
        if item.since and "expected" in str(error):
            raise Failed(f"{error}: other bytes than on {item.since}") from None
        raise
    item = replace(item, revision=got.revision or item.revision)
    folder.put(item.place, item, size=got.size, sha256=got.sha256)


def is_packed(item: Item, place: Path) -> Callable[[Path], None]:
    """Refuses a page in place of an archive: that is how Google Drive says no."""

    def check(path: Path) -> None:
        if not is_archive(path):
            with open(path, "rb") as file:
                begins = file.read(15)
            raise Failed(
                f"{item.address}: no archive, it begins with {begins!r}; open the address in a "
                f"browser, save the file as {place} and run this again"
            )

    return check


def unpack_one(item: Item, folder: Folder, notes: list[str]) -> None:
    """The files of an archive that are not there yet, into the record.

    Raises:
        Failed: the archive lacks one. InputError: it is damaged.
    """
    if folder.has_contents(item):
        return
    entry = folder.files[item.place]

    def choose(member: str) -> str | None:
        place = item.choose(member)
        return None if place is None or folder.holds(place) else place

    written = unpack(folder.at(item.place), folder.at, choose)
    for place in written:
        path = folder.at(place)
        sha256 = digests(path)["sha256"]
        if PINS.get(place, sha256) != sha256:
            notes.append(f"{place}: not the bytes this project measured with (sha256 {sha256})")
        folder.put(place, item, size=path.stat().st_size, sha256=sha256, archive=item.place)
    if lacking := [place for place in item.wanted if not folder.holds(place)]:
        raise Failed(f"has no {', '.join(lacking)}")
    if not item.wanted:
        found = sorted({*written, *entry.get("unpacked", ())})
        if not found:
            raise Failed("has none of the files that were looked for")
        with folder.lock:
            entry["unpacked"] = found
        folder.put(item.place, item, size=entry["size"], sha256=entry["sha256"], unpacked=found)


def fetch(items: list[Item], folder: Folder, web: Web, jobs: int = 4,
          progress: bool = False) -> tuple[dict[str, str], list[str]]:  # fmt: skip
    """Fetch what is not there -> ({place: what failed}, notes).

    Raises:
        InputError: the folder cannot be written, or the disk cannot hold it.
    """
    from tqdm import tqdm

    failed, notes = {}, []
    with folder.alone():
        check_year([item for item in items if item.md5_address], folder)
        todo = plan(items, folder, web, jobs, failed, progress)
        check_space(todo, folder)
        total = sum(item.size or 0 for item in todo)
        bar_lock = threading.Lock()
        with tqdm(total=total, unit="B", unit_scale=True, disable=not progress or not todo) as bar:

            def advance(n: int) -> None:
                with bar_lock:
                    bar.update(n)

            side_by_side(
                lambda item: fetch_one(item, folder, web, advance), todo, jobs, web, failed
            )
        packed = [item for item in items if item.choose and item.place in folder.files]
        side_by_side(lambda item: unpack_one(item, folder, notes), packed, 1, web, failed)
    return failed, notes


# ---- what is said


def size_text(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} GB"


def listing(items: list[Item], folder: Folder, web: Web, jobs: int) -> dict[str, str]:
    """Print what would be fetched, file by file, then by set with its licence; what failed."""
    failed, sizes = {}, {}
    missing = [folder.expect(item) for item in items if not folder.has(item)]

    def ask(item: Item) -> None:
        sizes[item.place] = sources.settle(item, web)

    side_by_side(ask, missing, jobs, web, failed)
    total, unknown = 0, 0
    for item in items:
        found = sizes.get(item.place)
        if folder.has(item):
            state = "there"
        elif found is None:
            state = "failed" if item.place in failed else "none"
        else:
            state = "?" if found.size is None else size_text(found.size)
            total, unknown = total + (found.size or 0), unknown + (found.size is None)
        print(f"{state:>10}  {(found or item).place}  {(found or item).address}")
    say_licences(items)
    more = f", and {unknown} files of unknown size" if unknown else ""
    print(f"{size_text(total)} to come{more}")
    return failed


def say_licences(items: list[Item]) -> None:
    for name in dict.fromkeys(item.set for item in items):
        of_set = [item for item in items if item.set == name]
        print(f"{name}: {len(of_set)} files; licence: {of_set[0].licence}")


def say_recipes(folder: Folder) -> None:
    """How to convert the pickles that have no safetensors beside them."""
    for place in folder.files:
        path = folder.at(place)
        if path.name == "pytorch_model.bin" and not path.with_name("model.safetensors").exists():
            name = path.parent.relative_to(folder.path).name or sources.TEACHER
            code = CONVERT.format(hf_class=MODELS[name].hf_class)
            print(RECIPE.format(folder=path.parent, code=code))


# ---- the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("data.fetch", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("what", choices=list(SETS))
    p.add_argument("--out", type=Path, metavar="DIR", help="folder; default: downloads/WHAT")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of its sets")
    p.add_argument("--files", metavar="A-B", help="pubmed: the files with these numbers")
    p.add_argument("--revision", metavar="REV", help="biobert, starts: in place of the pinned one")
    p.add_argument("--registered", action="store_true", help="qa: you are registered with BioASQ")
    p.add_argument("--list", action="store_true", help="print sizes and licences, fetch nothing")
    p.add_argument("--verify", action="store_true", help="read again what is there, fetch nothing")
    p.add_argument("--jobs", type=int, default=4, metavar="N", help="files at once")
    p.add_argument("--mirror", metavar="URL", default=os.environ.get("MINIBIO_MIRROR"),
                   help="ask URL/HOST/PATH for https://HOST/PATH ($MINIBIO_MIRROR)")  # fmt: skip
    return p


def numbers_of(text: str | None) -> range | None:
    """1-5 or 7, as PubMed numbers its files."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise InputError(f"--files is {text!r}, expected a number or two, like 1-5")
    return range(first, last + 1)


def chosen(args) -> tuple[str, ...]:
    """The sets that are asked for.

    Raises:
        InputError: an option does not go with them.
    """
    names = SETS[args.what]
    if other := [name for name in args.only if name not in names]:
        raise InputError(f"--only {other[0]}: {args.what} has {', '.join(names)}")
    for option, value, goes_with in (
        ("--files", args.files, ("pubmed",)), ("--revision", args.revision, ("biobert", "starts")),
        ("--registered", args.registered, ("qa",)),
    ):  # fmt: skip
        if value and args.what not in goes_with:
            raise InputError(f"{option} goes with {' and '.join(goes_with)} alone")
    if args.jobs < 1:
        raise InputError(f"--jobs is {args.jobs}, expected 1 or more")
    if args.what == "qa" and not args.registered:
        if "bioasq" in args.only:
            raise InputError(
                "BioASQ is for registered users: register at http://participants-area.bioasq.org, "
                "then add --registered"
            )
        return tuple(args.only) or ("squad",)
    return tuple(args.only) or names


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    names, numbers = chosen(args), numbers_of(args.files)
    folder, web = Folder(args.out or Path("downloads", args.what)), Web(args.mirror)
    notes = []
    try:
        if args.verify:
            failed = verify(folder)
            print(f"{folder.path}: {len(folder.files)} files read, {len(failed)} of them wrong")
        else:
            items = sources.items(args.what, web, names, numbers, args.revision)
            if args.list:
                failed = listing(items, folder, web, args.jobs)
            else:
                say_licences(items)
                progress = sys.stderr.isatty()
                failed, notes = fetch(items, folder, web, args.jobs, progress)
                print(f"{folder.path}: {len(items) - len(failed)} of {len(items)} files there")
                say_recipes(folder)
            if args.what == "qa" and not args.registered:
                print(BIOASQ)
    except Failed as error:
        failed = {args.what: str(error)}
    except Stopped:
        raise KeyboardInterrupt from None
    for note in notes:
        print(f"data.fetch: note: {note}", file=sys.stderr)
    for place, line in sorted(failed.items()):
        print(f"data.fetch: {place}: {' '.join(line.split())}", file=sys.stderr)
    return 1 if failed else 0
