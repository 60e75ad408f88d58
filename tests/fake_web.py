"""A web server on the loopback that can do what servers do wrong.

    with serve({"/host/x": Page(b"...")}) as server:
        server.pages["/host/x"].faults = [cut(10), status(503)]    # one for each request, in order

Afterwards `server.log` has every request: (path, Range).
"""

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
    headers: dict = field(default_factory=dict)  # of every answer, a redirect's too
    faults: list = field(default_factory=list)  # the first first
    redirect: str | None = None
    has_ranges: bool = True
    largest: int = 1 << 40  # bytes of a partial answer
    framing: str = "length"  # or "chunked", or "close": neither length nor end


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

    def do_GET(self):
        server = self.server.owner
        asked, page = self.headers["Range"], server.pages.get(self.path)
        server.log.append((self.path, asked))
        fault = page.faults.pop(0) if page and page.faults else Fault()
        self.close_connection = True
        if page is None:
            self.answer(404, {}, b"no such page")
        elif fault.status:
            self.answer(fault.status, page.headers | fault.headers, fault.body or b"")
        elif page.redirect:
            self.answer(302, page.headers | {"Location": page.redirect}, b"")
        else:
            self.page(page, fault, asked)

    def page(self, page, fault, asked):
        body = page.body if fault.body is None else fault.body
        headers, code = dict(page.headers), 200
        if asked and page.has_ranges:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            if first >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
                return
            last = min(len(body), first + page.largest) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            code, body = 206, body[first : last + 1]
        self.answer(code, headers, body, page.framing, fault.after)
        time.sleep(fault.silence)

    def answer(self, code, headers, body, framing="length", after=None):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if framing == "length":
            self.send_header("Content-Length", str(len(body)))
        if framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
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
        """A client that goes away in the middle is what is tested here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


class Server:
    def __init__(self, pages):
        self.pages, self.log = pages, []
        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def ranges(self, path=None):
        """The Range of each request for a path."""
        return [asked for each, asked in self.log if path in (None, each)]


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
