"""One file over HTTP: resumed after a cut (Range), checked (SHA-256, MD5), whole or not there.

Bytes go to a part beside the place. After a cut or a kill only the rest is asked for, and the
checksum shows whether both halves are of one file: where it does not fit, or there is none, the
file is fetched from the start. A cut connection or a busy server is asked again as long as that
gains something now and then; any other refusal is final: one line, `Failed`. The standard
library's urllib follows redirects and the proxies of the environment.
"""

import hashlib
import http.client
import re
import ssl
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError

from minibio.run.errors import InputError

CHUNK = 1 << 18  # bytes read at once
SILENCE = 30  # seconds without a byte until a connection counts as cut
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled with each that gains nothing
PATIENCE = 600  # seconds a server may ask us to wait
TRIES = 6  # in a row that gain nothing
SMALL = 16 << 20  # bytes of a page that is read into memory
BUSY = (408, 425, 429, 500, 502, 503, 504)
BROKEN = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
TOLD = ("X-Linked-Etag", "X-Repo-Commit")  # the hub's: SHA-256 of a large file, revision


class Failed(Exception):
    """A file that cannot be had, in one line; `status` is the server's, where it gave one."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Wrong(Failed):
    """Other bytes than expected."""


class Cut(Exception):
    """An attempt to repeat, after `wait` seconds where the server says so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class Web:
    """Servers, or a mirror M that is asked for M/HOST/PATH in place of https://HOST/PATH."""

    def __init__(self, mirror: str | None = None):
        if mirror is not None and not re.fullmatch(r"https?://[^\s/?#]+(/\S*)?", mirror):
            raise InputError(f"--mirror is {mirror!r}, expected http://HOST or https://HOST/PATH")
        self.mirror = mirror

    def read(self, address: str) -> bytes:
        """A small page; raises `Failed`."""

        def attempt() -> bytes:
            with self.open(address) as answer:
                body = answer.read(SMALL + 1)
            if len(body) > SMALL:
                raise Failed(f"{address}: more than {SMALL >> 20} MiB, expected a small page")
            if answer.length:
                raise Cut(f"cut after {len(body):,} bytes")
            return body

        return patiently(address, attempt)

    def download(
        self,
        address: str,
        part: Path,
        sha256: str | None = None,
        md5: str | None = None,
        is_told: bool = False,
        advance: Callable[[int], None] = lambda n: None,
    ) -> tuple[str, str | None]:
        """Fetch a file into `part`, or what is still missing of it.

        Args:
            sha256, md5: expected; None = not known.
            is_told:     the server sends the SHA-256, as the hub does of large files.
            advance:     is called with the number of bytes that arrived.
        Returns:
            its SHA-256, and the hub's revision.
        Raises:
            Wrong: it has other bytes, twice; no part is left then.
            Failed: it cannot be had; the part stays for the next run.
            OSError: the disk is full or broken.
        """
        resumes = bool(sha256 or md5 or is_told)
        for _ in range(2):  # once may be a file that changed in between, or a bad line
            told = {}
            transfer = partial(self.transfer, address, part, resumes, told, advance)
            first = patiently(address, transfer, lambda: length(part))
            found, tag = digests(part), told.get("X-Linked-Etag", "").strip('"')
            tag = tag if re.fullmatch("[0-9a-f]{64}", tag) else None
            expected = {k: v for k, v in (("sha256", sha256 or tag), ("md5", md5)) if v}
            wrong = [
                f"{k} is {found[k]}, expected {v}" for k, v in expected.items() if v != found[k]
            ]
            if first and not expected:
                wrong = ["no checksum shows that both halves are of one file"]
            if not wrong:
                return found["sha256"], told.get("X-Repo-Commit")
            part.unlink()
            resumes = bool(expected)
        raise Wrong(f"{address}: {wrong[0]}; twice")

    def transfer(self, address: str, part: Path, resumes: bool, told: dict, advance) -> int:
        """Append what is missing to the part, or begin it -> the byte where this began.

        Args:
            told: receives the headers of TOLD, those of redirects too.
        Raises:
            Cut: there is more to come.
        """
        have, end = length(part) if resumes else 0, None
        with self.open(address, have, told) as answer:
            where = answer.headers.get("Content-Range", "")
            if answer.status == 416 and where == f"bytes */{have}":
                return have  # the part is the whole file
            if answer.status == 200:
                have = 0
            else:
                match = re.fullmatch(rf"bytes {have}-\d+/(\d+)", where)
                if not match or not have:
                    part.unlink(missing_ok=True)
                    raise Cut("has become another file", wait=0)
                end = int(match[1])  # a server may give less than it was asked for
            left = answer.length
            if left is None and not (answer.chunked or resumes):
                raise Failed(f"{address}: the server sends neither length nor checksum")
            part.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab" if have else "wb") as file:
                # not behind the told length: some servers leave the line open
                while left is None or left > 0:
                    chunk = answer.read1(CHUNK if left is None else min(CHUNK, left))
                    if not chunk:
                        break
                    file.write(chunk)
                    advance(len(chunk))
                    left = None if left is None else left - len(chunk)
        if left or (end and length(part) < end):
            raise Cut(f"cut after {length(part):,} bytes")
        return have

    def open(self, address: str, first: int = 0, told: dict | None = None):
        """The server's answer after redirects: status 200, or from byte `first` on 206 or 416.

        Raises:
            Cut: to be asked again. Failed: to be asked no more.
        """
        mirror = self.mirror and self.mirror.rstrip("/")
        url = f"{mirror}/{address.split('://', 1)[1]}" if mirror else address
        headers = {"User-Agent": "minibio", "Accept-Encoding": "identity"}
        if first:
            headers["Range"] = f"bytes={first}-"
        try:
            request = urllib.request.Request(url, headers=headers)
            request.told = {} if told is None else told
            answer = urllib.request.build_opener(Redirects).open(request, timeout=SILENCE)
        except HTTPError as error:
            if error.code != 416 or not first:
                with error:
                    raise refusal(address, error) from None
            answer = error
        except (ValueError, http.client.InvalidURL) as error:
            raise Failed(f"{url}: {error}") from None
        keep(answer.headers, request.told)
        # some servers call the packing of the file itself, x.gz, an encoding: it stays as it is
        packing = answer.headers.get("Content-Encoding", "").lower().removeprefix("x-")
        is_own = packing == "gzip" and address.endswith(".gz")
        if answer.status not in (200, 206, 416) or not (packing in ("", "identity") or is_own):
            answer.close()
            raise Failed(f"{address}: answer {answer.status} {packing}, expected the plain file")
        return answer


class Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects whose headers are kept: the hub sends checksum and revision with its own."""

    def redirect_request(self, request, body, code, message, headers, url):
        if request.full_url.startswith("https:") and not url.startswith("https:"):
            raise Failed(f"{request.full_url}: sends us on to {url}, which is not encrypted")
        keep(headers, request.told)
        new = super().redirect_request(request, body, code, message, headers, url)
        new.told = request.told
        return new


def keep(headers, told: dict[str, str]) -> None:
    """The headers of TOLD; of several servers the first one's count."""
    for name in TOLD:
        if headers[name]:
            told.setdefault(name, headers[name])


def refusal(address: str, error: HTTPError) -> Exception:
    """`Cut` or `Failed` for an answer of 400 or more."""
    line = " ".join(f"{error.code} {error.reason}".split())
    if error.code not in BUSY:
        return Failed(f"{address}: {line}", error.code)
    after = error.headers.get("Retry-After", "").strip()  # seconds; a date is not waited for
    wait = float(after) if after.isdecimal() else None
    if wait is not None and wait > PATIENCE:
        return Failed(f"{address}: {line}; the server asks us to wait {wait:,.0f} s", error.code)
    return Cut(line, wait)


def patiently(address: str, action: Callable, position: Callable[[], int] = lambda: 0):
    """`action()`, repeated while its connection is cut and `position` grows now and then."""
    fruitless, furthest = 0, position()
    while True:
        try:
            return action()
        except (Cut, *BROKEN) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Failed(f"{address}: {reason.verify_message}") from None
            fruitless = 0 if position() > furthest else fruitless + 1
            furthest = max(furthest, position())
            if fruitless == TRIES:
                reason = str(reason) or type(reason).__name__
                raise Failed(f"{address}: {reason}; {TRIES} attempts") from None
            wait = getattr(error, "wait", None)
            time.sleep(FIRST_WAIT * 2 ** max(fruitless - 1, 0) if wait is None else wait)


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def digests(path: Path) -> dict[str, str]:
    """SHA-256 and MD5 of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest()}
