"""The pieces of a run: made by several processes, kept while work remains, found by the next run.

They lie in a hidden directory beside the output, a folder for each input:

    .OUT.pieces/recipe.txt              fingerprint of the recipe: tokenizer, length, options
    .OUT.pieces/3f0a.../000017.npz ...  pieces of the input whose identity is 3f0a...
    .OUT.pieces/3f0a.../blocks.json     how many there will be, once the input was read to its end

A run of another recipe removes them all, a changed or missing input those of its folder. When the
output is in place the directory is removed.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from data.parallel import ordered
from data.shard.pieces import Maker, Piece, PieceRecipe
from data.shard.records import Block, blocks
from minibio.run import fingerprint
from minibio.run.errors import InputError
from minibio.run.files import beside, locked, read_json, write_json


class TooFew(InputError):
    """Complete pieces that hold too few documents: there is nothing to resume."""


@contextmanager
def workplace(out: Path):
    """The hidden directory of the pieces of `out`; removed at the end, kept where work remains.

    Raises:
        InputError: another run is at work there.
    """
    place = beside(out, "pieces")
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / "lock"):
        try:
            yield place
        except BaseException as error:
            if isinstance(error, TooFew) or not any(place.glob("*/*.npz")):
                discard(place)
            elif isinstance(error, InputError):
                raise InputError(f"{error} (the next run resumes from {place})") from None
            raise
        discard(place)


def discard(folder: Path) -> None:
    """Remove pieces and all beside them, so that what a kill leaves is never taken for whole."""
    for table in folder.rglob("*.npz"):
        table.unlink()
    shutil.rmtree(folder)


def prepare(place: Path, inputs: list[Path], recipe: PieceRecipe) -> list[Path]:
    """The folder of each input's pieces; pieces of other inputs or options are removed."""
    folders = [place / fingerprint.of_state(path) for path in inputs]
    state = place / "recipe.txt"
    is_same = state.is_file() and state.read_bytes() == recipe.fingerprint.encode()
    for folder in place.iterdir():
        if folder.is_dir() and folder != recipe.tokenizer and not (is_same and folder in folders):
            discard(folder)
    state.write_text(recipe.fingerprint)
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for half in folder.glob(".*"):  # of a run that was killed
            half.unlink(missing_ok=True)
    return folders


def tokenise(
    inputs: list[Path], folders: list[Path], recipe: PieceRecipe, workers: int, progress: bool
) -> None:
    """Make every piece that is not there yet."""
    from tqdm import tqdm

    total, is_quiet = sum(p.stat().st_size for p in inputs), not (progress and sys.stderr.isatty())
    bar = tqdm(desc="tokens", total=total, unit="B", unit_scale=True, disable=is_quiet)
    tasks = missing(inputs, folders, bar)
    with bar, closing(ordered(Maker, (recipe,), tasks, workers)) as results:
        for _ in results:
            pass


def missing(inputs: list[Path], folders: list[Path], bar) -> Iterator[tuple[Block, Path]]:
    """The blocks without a piece, and the path of each one's piece.

    The number of blocks of an input is noted when its last one was read: an input all of whose
    pieces are there is not read again.
    """
    for folder, path in dict(zip(folders, inputs, strict=True)).items():
        read = 0
        if not is_whole(folder):
            for block in blocks(path):
                stem = folder / f"{block.number:06d}"
                if not Path(f"{stem}.npz").exists():
                    yield block, stem
                bar.update(block.read - read)
                read = block.read
            write_json(folder / "blocks.json", {"blocks": block.number + 1})
        bar.update(path.stat().st_size - read)


def is_whole(folder: Path) -> bool:
    """Whether all pieces of an input are there."""
    note = folder / "blocks.json"
    return note.is_file() and len(list(folder.glob("*.npz"))) == read_json(note).get("blocks")


def all_pieces(inputs: list[Path], folders: list[Path]) -> list[Piece]:
    """The pieces of all inputs, in order.

    Raises:
        InputError: an input without a document.
    """
    pieces, first = [], 0
    for path, folder in zip(inputs, folders, strict=True):
        here = [Piece(Path(str(file)[: -len(".npz")])) for file in sorted(folder.glob("*.npz"))]
        if sum(int(piece.column("counts")[0]) for piece in here) == 0:
            raise InputError(f"{path}: no document in it")
        for piece in here:
            pieces.append(Piece(piece.stem, first))
            first += len(piece.column("key"))
    return pieces
