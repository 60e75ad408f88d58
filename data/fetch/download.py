"""One file over HTTP, whole or not there: resumed after a cut, checked, then renamed into place.

    web = Web()
    told = web.look(address)                            # size, checksum and revision, by HEAD
    got = web.download(address, place, sha256=told.sha256)

Bytes go to .NAME.part beside the place. Killed at any byte and run again, the rest is asked for
(Range), on condition that the server's file is still the same (If-Range with its ETag or date, kept
in .NAME.part.json); where it is not, or the server knows no ranges, it starts over. Only a file of
the told length and the expected checksum gets its name. A cut connection or a busy server is asked
again, as long as something is gained now and then; any other refusal is final: one line, `Failed`.
The standard library's urllib, which follows redirects and the proxies of the environment.
"""

import email.utils
import hashlib
import http.client
import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

CHUNK = 1 << 18  # bytes read at once
SILENCE = 30  # seconds without a byte until a connection counts as cut
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled with each that gains nothing
PATIENCE = 600  # seconds a server may ask us to wait
TRIES = 6  # in a row that gain nothing
SMALL = 16 << 20  # bytes of a page that is read into memory
BUSY = (408, 425, 429, 500, 502, 503, 504)
SHA256 = re.compile(r"[0-9a-f]{64}")


class Failed(Exception):
    """A file that cannot be had, in one line; `status` is the server's, where it gave one."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Cut(Exception):
    """An attempt that may be repeated, after `wait` seconds where the server says so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class Stopped(Exception):
    """The user wants no more."""


class Told(NamedTuple):
    """What the server says of a file."""

    size: int | None = None  # bytes
    sha256: str | None = None
    revision: str | None = None


class Got(NamedTuple):
    """A file that is in its place."""

    size: int
    sha256: str
    revision: str | None


@dataclass
class Web:
    """How to ask.

    Args:
        mirror: an address M to ask for M/HOST/PATH in place of https://HOST/PATH.
        stop:   set by another thread to end all transfers; what they have is kept.
    """

    mirror: str | None = None
    tries: int = TRIES
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self, address: str) -> Told | None:
        """What the server says of a file, without its bytes; None where there is none (404).

        Raises:
            Failed: it does not say.
        """
        try:
            with self.patiently(lambda: self.open(address, method="HEAD")) as answer:
                return told(address, answer)
        except Failed as error:
            if error.status == 404:
                return None
            if error.status in (405, 501):  # HEAD is not served: only the bytes will tell
                return Told()
            raise

    def read(self, address: str) -> bytes:
        """A small page.

        Raises:
            Failed: it cannot be read, or is not small.
        """

        def attempt():
            with self.open(address) as answer, unbroken(address):
                body = answer.read(SMALL + 1)
                if len(body) > SMALL:
                    raise Failed(f"{address}: more than {SMALL >> 20} MiB, expected a small page")
                if answer.length:
                    raise Cut(f"{address}: cut after {len(body):,} bytes")
                return unpacker(address, answer).decompress(body)

        return self.patiently(attempt)

    def download(self, address: str, place: Path, *, sha256: str | None = None,
                 md5: str | None = None, size: int | None = None,
                 check: Callable[[Path], None] = lambda path: None,
                 advance: Callable[[int], None] = lambda n: None) -> Got:  # fmt: skip
        """Fetch a file to `place`, or what is still missing of it.

        Args:
            sha256, md5, size: what it must have; None = not known.
            check:   raises `Failed` where the whole file is not what it should be.
            advance: is told of bytes as they come, and of fewer than 0 when they go.
        Raises:
            Failed: it cannot be had, or has other bytes; nothing is in its place then.
            OSError: the disk is full or broken.
        """
        part = Part(place)
        shown, refused = 0, 0

        def show(position: int) -> None:
            nonlocal shown
            advance(position - shown)
            shown = position

        while True:
            seen = self.patiently(
                lambda: self.transfer(address, part, bool(sha256 or md5), size, show),
                part.length,
            )
            found = {"size": part.length(), **digests(part.path, with_md5=md5 is not None)}
            expected = {"size": size, "sha256": sha256, "md5": md5}
            wrong = [k for k, value in expected.items() if value is not None and found[k] != value]
            if not wrong:
                break
            part.remove()
            show(0)
            refused += 1
            if refused == 2:  # once may be a file that changed in between, or a bad line
                k = wrong[-1]
                raise Failed(f"{address}: {k} is {found[k]}, expected {expected[k]}; twice")
        if seen is None and not (sha256 or md5 or size is not None):
            part.remove()
            raise Failed(f"{address}: the server tells neither length nor checksum")
        try:
            check(part.path)
        except Failed:
            part.remove()
            raise
        part.rename()
        return Got(found["size"], found["sha256"], seen.revision if seen else None)

    def transfer(self, address: str, part: "Part", is_checked: bool, size: int | None,
                 show) -> Told | None:  # fmt: skip
        """Append what is missing to the part -> what the server told; None if it told no end.

        Args:
            is_checked: a checksum will tell in the end whether all parts are of one file.
            size:       of the whole, where known: it ends what has no end of its own.
            show:       is told the bytes there are.

        Raises:
            Cut: there is more to come.
        """
        have, validator = part.resume(address, is_checked)
        asked = {"Range": f"bytes={have}-"} if have else {}
        if have and validator:
            asked["If-Range"] = validator
        try:
            answer = self.open(address, asked)
        except Failed as error:
            if error.status != 416 or not have:
                raise
            if str(error).endswith(f"*/{have}"):  # the part is the whole file
                return Told()
            part.remove()
            raise Cut(f"{address}: has become another file", wait=0) from None
        with answer, unbroken(address):
            if answer.status != 206:
                have, end = 0, None
                part.begin(address, answer)
            elif not (end := continues(address, answer, have, validator)):
                part.remove()
                raise Cut(f"{address}: has become another file", wait=0)
            unpack, length, received = unpacker(address, answer), answer.length, 0
            with open(part.path, "ab") as file:
                show(have)
                for chunk in chunks(answer):
                    if self.stop.is_set():
                        raise Stopped
                    received += len(chunk)
                    file.write(unpack.decompress(chunk))
                    show(file.tell())
            end = end or (size if length is None else None)
            is_short = (length and received < length) or (end and part.length() < end)
            if is_short or not unpack.eof:
                raise Cut(f"{address}: cut after {received:,} bytes")
            has_end = length is not None or answer.chunked
            return told(address, answer) if has_end else None

    def open(self, address: str, asked: dict[str, str] | None = None, method: str = "GET"):
        """The answer of the server, after redirects; `answer.trail` has the headers of each.

        Raises:
            Cut: to be asked again. Failed: to be asked no more.
        """
        url = address
        if self.mirror is not None:
            url = f"{self.mirror.rstrip('/')}/{address.split('://', 1)[1]}"
        headers = {"User-Agent": "minibio", "Accept-Encoding": "identity", **(asked or {})}
        request = urllib.request.Request(url, headers=headers, method=method)
        request.trail = []
        try:
            with unbroken(address):
                answer = urllib.request.build_opener(Trail).open(request, timeout=SILENCE)
        except urllib.error.HTTPError as error:
            is_told = method == "HEAD" and error.code < 400 and error.headers["X-Linked-Size"]
            if not is_told:
                with error:
                    raise refusal(address, error) from None
            answer = error  # the redirect that was not followed
        answer.trail = [*request.trail, answer.headers]
        return answer

    def patiently(self, action, position: Callable[[], int] = lambda: 0):
        """`action()`, again and again while it is `Cut` and gets further than ever before."""
        fruitless, furthest = 0, position()
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return action()
            except Cut as cut:
                fruitless = 0 if position() > furthest else fruitless + 1
                furthest = max(furthest, position())
                if fruitless >= self.tries:
                    raise Failed(f"{cut}; {fruitless} attempts") from None
                wait = FIRST_WAIT * 2 ** max(fruitless - 1, 0) if cut.wait is None else cut.wait
                if self.stop.wait(min(wait, PATIENCE)):
                    raise Stopped from None


class Trail(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the headers on the way: Hugging Face's hub tells revision, size
    and checksum first and then sends one on to where the bytes lie, which serves GET alone."""

    def redirect_request(self, request, body, code, message, headers, url):
        if request.get_method() == "HEAD" and headers["X-Linked-Size"]:
            return None
        if request.full_url.startswith("https:") and not url.startswith("https:"):
            raise Failed(f"{request.full_url}: sends us on to {url}, which is not encrypted")
        new = super().redirect_request(request, body, code, message, headers, url)
        new.method = request.get_method()  # a HEAD stays one: before Python 3.13 it became a GET
        new.trail = request.trail
        new.trail.append(headers)
        return new


@contextmanager
def unbroken(address: str):
    """What a connection can end with, as `Cut`; a false certificate is no accident: `Failed`."""
    try:
        yield
    except urllib.error.HTTPError:
        raise  # an answer
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError,
            ssl.SSLError, zlib.error) as error:  # fmt: skip
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Failed(f"{address}: {reason.verify_message}") from None
        raise Cut(f"{address}: {reason or type(error).__name__}") from None


def refusal(address: str, error: urllib.error.HTTPError) -> Exception:
    """`Cut` or `Failed` for an answer of 400 or more."""
    line = " ".join(f"{address}: {error.code} {error.reason}".split())
    if error.code == 416:
        return Failed(f"{line} {error.headers.get('Content-Range', '')}".rstrip(), 416)
    if error.code not in BUSY:
        return Failed(line, error.code)
    wait = seconds(error.headers.get("Retry-After"))
    if wait is not None and wait > PATIENCE:
        return Failed(f"{line}; the server asks us to wait {wait:,.0f} s", error.code)
    return Cut(line, wait)


def seconds(text: str | None) -> float | None:
    """Retry-After: a number of seconds, or a date; None where it is neither."""
    text = (text or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def chunks(answer) -> Iterator[bytes]:
    """The bytes as they come, and none behind the told length: not all servers close the line.

    (Before Python 3.11.8 `read1` waits for more there.)
    """
    left = answer.length
    while left is None or left > 0:
        chunk = answer.read1(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        left = None if left is None else left - len(chunk)
        yield chunk


def told(address: str, answer) -> Told:
    """From the headers of an answer and of the redirects before it."""

    def first(name):
        return next((headers[name] for headers in answer.trail if headers[name]), None)

    # X-Linked-...: the hub's, of files that are kept apart; of others the last answer has the size
    size, tag = first("X-Linked-Size"), (first("X-Linked-Etag") or "").strip('"')
    if size is None and answer.status == 200 and not packing(address, answer):
        size = answer.headers["Content-Length"]
    return Told(
        int(size) if size and size.isdecimal() else None,
        tag if SHA256.fullmatch(tag) else None,
        first("X-Repo-Commit"),
    )


def continues(address: str, answer, have: int, validator: str | None) -> int | None:
    """The bytes of the whole file, where a partial answer goes on at the part's end; else None.

    (A server may give less than it was asked for: then the rest is asked for again.)
    """
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    tag = answer.headers.get("ETag")
    is_same = not (tag and validator and validator.startswith('"')) or tag == validator
    is_next = match is not None and have == int(match[1]) > 0
    return int(match[2]) if is_next and is_same and not packing(address, answer) else None


def packing(address: str, answer) -> str:
    """What was done to the bytes on the way though we asked for nothing: gzip, ...; "" = nothing.

    Some servers call the packing of the file itself, x.gz, an encoding: that one stays.
    """
    name = answer.headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    is_own = name == "gzip" and address.endswith((".gz", ".tgz"))
    return "" if name == "identity" or is_own else name


class Plain:
    """The unpacker of what is not packed."""

    eof = True

    def decompress(self, chunk: bytes) -> bytes:
        return chunk


def unpacker(address: str, answer):
    name = packing(address, answer)
    if not name:
        return Plain()
    if name in ("gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise Failed(f"{address}: comes packed as {name!r}, which was not asked for")


class Part:
    """The bytes so far, .NAME.part, and whose they are, .NAME.part.json."""

    def __init__(self, place: Path):
        self.place = place
        self.path = place.with_name(f".{place.name}.part")
        self.note = place.with_name(f".{place.name}.part.json")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def resume(self, address: str, is_checked: bool) -> tuple[int, str | None]:
        """(bytes to keep, validator); (0, None) where the rest may not be of the same file.

        Args:
            is_checked: a checksum will tell in the end.
        """
        try:
            note = json.loads(self.note.read_text("utf-8"))
            known = note["address"] == address and note["is_plain"]
            validator = note["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            known, validator = False, None
        if self.length() and known and (validator or is_checked):
            return self.length(), validator
        self.remove()
        return 0, None

    def begin(self, address: str, answer) -> None:
        """Start over with a new answer: first no bytes, then the note, then bytes."""
        self.remove()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tag = answer.headers.get("ETag") or ""  # a weak one (W/) is of the meaning, not the bytes
        validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
        is_plain = not packing(address, answer)  # else a range would be of the packed bytes
        note = {"address": address, "validator": validator, "is_plain": is_plain}
        self.note.write_text(json.dumps(note), "utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def rename(self) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())  # the name must not come to the disk before the bytes
        os.replace(self.path, self.place)
        self.note.unlink(missing_ok=True)


def digests(path: Path, with_md5: bool = False) -> dict[str, str]:
    """sha256, and md5, of a file, in one pass."""
    found = {"sha256": hashlib.sha256()}
    if with_md5:
        found["md5"] = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for digest in found.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in found.items()}
