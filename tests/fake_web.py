"""A web server on the loopback that can do what servers do wrong.

    with serve({"/host/x": Page(b"...")}) as server:
        server.pages["/host/x"].faults = [cut(10), status(503)]    # one for each GET, in order

Afterwards `server.log` has every request: (method, path, Range, If-Range).
"""

import gzip
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 1000  # bytes of one chunk of a chunked answer


@dataclass
class Page:
    body: bytes = b""
    etag: str | None = '"v1"'
    modified: str | None = None  # Last-Modified
    headers: dict = field(default_factory=dict)  # of every answer, a redirect's too
    faults: list = field(default_factory=list)  # of the GETs, the first first
    head_faults: list = field(default_factory=list)
    redirect: str | None = None
    has_ranges: bool = True
    largest: int = 1 << 40  # bytes of a partial answer
    checks_if_range: bool = True
    framing: str = "length"  # or "chunked", or "close": neither length nor end
    encoding: str | None = None  # gzip: packs on the way


@dataclass
class Fault:
    status: int | None = None
    headers: dict = field(default_factory=dict)
    after: int | None = None  # bytes of the body until the connection is cut
    body: bytes | None = None  # in place of the page's
    silence: float = 0.0  # seconds until then


def cut(after: int, silence: float = 0.0) -> Fault:
    return Fault(after=after, silence=silence)


def status(code: int, body: bytes = b"", **headers) -> Fault:
    headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return Fault(code, headers, body=body)


def wrong(body: bytes) -> Fault:
    return Fault(body=body)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.serve("HEAD")

    def do_GET(self):
        self.serve("GET")

    def serve(self, method):
        server = self.server.owner
        with server.lock:
            asked, condition = self.headers["Range"], self.headers["If-Range"]
            server.log.append((method, self.path, asked, condition))
            page = server.pages.get(self.path)
            faults = (page.faults if method == "GET" else page.head_faults) if page else []
            fault = faults.pop(0) if faults else Fault()
        self.close_connection = True
        if page is None:
            self.answer(404, {}, b"no such page", method)
        elif fault.status:
            self.answer(fault.status, page.headers | fault.headers, fault.body or b"", method)
        elif page.redirect:
            self.answer(302, page.headers | {"Location": page.redirect}, b"", method)
        else:
            self.page(page, fault, asked, condition, method)

    def page(self, page, fault, asked, condition, method):
        body = page.body if fault.body is None else fault.body
        headers = dict(page.headers)
        if page.etag:
            headers["ETag"] = page.etag
        if page.modified:
            headers["Last-Modified"] = page.modified
        if page.encoding:
            headers["Content-Encoding"] = page.encoding
        if page.encoding == "gzip" and not self.path.endswith(".gz"):
            body = gzip.compress(body)
        code = 200
        is_same = not page.checks_if_range or condition in (None, page.etag, page.modified)
        if asked and page.has_ranges and is_same:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            if first >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"", method)
                return
            last = min(len(body), first + page.largest) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            code, body = 206, body[first : last + 1]
        self.answer(code, headers, body, method, page.framing, fault.after)
        time.sleep(fault.silence)

    def answer(self, code, headers, body, method, framing="length", after=None):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if framing == "length":
            self.send_header("Content-Length", str(len(body)))
        if framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if method == "HEAD":
            return
        sent = body if after is None else body[:after]
        if framing != "chunked":
            self.wfile.write(sent)
            return
        for i in range(0, len(sent), CHUNK):
            piece = sent[i : i + CHUNK]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if after is None:
            self.wfile.write(b"0\r\n\r\n")


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request, address):
        """A reader that goes away in the middle is what is tested here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


class Server:
    def __init__(self, pages):
        self.pages, self.log, self.lock = pages, [], threading.Lock()
        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def gets(self, path=None):
        """The GETs of a path: (Range, If-Range) each."""
        return [each[2:] for each in self.log if each[0] == "GET" and path in (None, each[1])]


@contextmanager
def serve(pages):
    server = Server(pages)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
