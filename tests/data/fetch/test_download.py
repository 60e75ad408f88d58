"""Whatever goes wrong with a download ends in the right bytes, or in a line that says why."""

import gzip
import hashlib
import random
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.message import Message

import pytest
from fake_web import Page, cut, serve, status, wrong
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fetch import download
from data.fetch.download import Failed, Web
from helpers import ROOT
from minibio.run.errors import InputError

BODY, OTHER = (random.Random(seed).randbytes(50_000) for seed in (0, 1))
SHA256 = hashlib.sha256(BODY).hexdigest()
ADDRESS, PATH = "https://host/x", "/host/x"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(download, "TRIES", 3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    with serve({PATH: Page(BODY)}) as server:
        yield server


def page(server, **changes):
    server.pages[PATH] = Page(BODY, **changes)


def get(server, tmp_path, **known):
    part = tmp_path / "part"
    sha256, _ = Web(server.url).download(ADDRESS, part, **known)
    assert sha256 == hashlib.sha256(part.read_bytes()).hexdigest()
    return part.read_bytes()


def fails(server, tmp_path, match, **known):
    with pytest.raises(Failed, match=match) as caught:
        Web(server.url).download(ADDRESS, tmp_path / "part", **known)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("n", [0, 1, download.CHUNK, download.CHUNK + 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_any_size(server, tmp_path, n, framing):
    body, seen = bytes(i % 251 for i in range(n)), []
    server.pages[PATH] = Page(body, framing=framing)
    assert get(server, tmp_path, advance=seen.append) == body and sum(seen) == n


# ---- cut


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60_000), max_size=4),
    framing=st.sampled_from(["length", "chunked"]),
    has_ranges=st.booleans(),
    largest=st.sampled_from([9_000, 1 << 40]),
    sha256=st.sampled_from([SHA256, None]),
)
def test_cut_anywhere(tmp_path_factory, cuts, framing, has_ranges, largest, sha256):
    one = Page(BODY, framing=framing, has_ranges=has_ranges, largest=largest)
    one.faults = [fault for n in cuts for fault in (cut(n), cut(40_000))][:5]
    with serve({PATH: one}) as server:
        folder = tmp_path_factory.mktemp("cut")
        for _ in range(5):
            try:
                assert get(server, folder, sha256=sha256) == BODY
                return
            except Failed as error:  # three attempts that gain nothing
                assert "3 attempts" in str(error)
    raise AssertionError("no run came through")


def test_only_the_rest_is_asked_for(server, tmp_path):
    page(server, faults=[cut(20_000)])
    assert get(server, tmp_path, sha256=SHA256) == BODY
    assert server.ranges() == [None, "bytes=20000-"]


@settings(max_examples=30, deadline=None)
@given(kept=st.integers(0, 50_000))
def test_a_killed_process_leaves_any_beginning(tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "part").write_bytes(BODY[:kept])
    with serve({PATH: Page(BODY)}) as server:
        assert get(server, folder, sha256=SHA256) == BODY
    assert server.ranges() == [f"bytes={kept}-" if kept else None]


KILLED = """
import sys
from pathlib import Path
from data.fetch.download import Web
Web(sys.argv[1]).download("https://host/x", Path(sys.argv[2]), sys.argv[3])
print("whole")
"""


def test_a_killed_process(tmp_path):
    """SIGKILL at moments of no choosing, until one run comes through."""
    body, part = random.Random(2).randbytes(30_000_000), tmp_path / "part"
    rng, kills, said = random.Random(3), 0, b""
    with serve({PATH: Page(body)}) as server:
        command = [sys.executable, "-c", KILLED, server.url, part, hashlib.sha256(body).hexdigest()]
        while not said:
            limit = download.length(part) + rng.randrange(4_000_000, 9_000_000)
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
                while process.poll() is None and download.length(part) < limit:
                    time.sleep(0.0005)
                process.send_signal(signal.SIGKILL)
                said = process.stdout.read()
            kills += process.returncode == -signal.SIGKILL
            assert kills < 30
    assert kills > 1 and part.read_bytes() == body and any(server.ranges())


def test_without_a_checksum_nothing_is_resumed(server, tmp_path):
    page(server, faults=[cut(20_000)])
    assert get(server, tmp_path) == BODY and server.ranges() == [None, None]
    # the hub should tell one, and does not: what was resumed proves nothing
    (tmp_path / "part").write_bytes(OTHER[:100])
    assert get(server, tmp_path, is_told=True) == BODY
    assert server.ranges()[2:] == ["bytes=100-", None]


def test_without_progress_it_ends(server, tmp_path):
    page(server, faults=[cut(1000) for _ in range(20)])
    assert get(server, tmp_path, sha256=SHA256) == BODY and len(server.log) == 21
    page(server, has_ranges=False, faults=[cut(9), cut(500), *(cut(400), cut(500)) * 50])
    fails(server, tmp_path / "new", r"host/x: cut after \d+ bytes; 3 attempts", sha256=SHA256)
    assert len(server.log) == 26


def test_silence_is_a_cut_but_not_behind_the_last_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.1)
    page(server, faults=[cut(20_000, silence=0.5), cut(len(BODY), silence=0.5)])
    assert get(server, tmp_path, sha256=SHA256) == BODY
    assert server.ranges() == [None, "bytes=20000-"]


def test_nobody_there(tmp_path):
    with serve({}) as server:
        pass
    fails(server, tmp_path, "refused.*; 3 attempts")


# ---- another file


def test_a_file_that_changed_in_between(server, tmp_path):
    """The checksum shows it, and it is fetched from the start, once."""
    (tmp_path / "part").write_bytes(OTHER[:20_000])
    assert get(server, tmp_path, sha256=SHA256) == BODY
    assert server.ranges() == ["bytes=20000-", None]
    (tmp_path / "part").write_bytes(BODY + b"more")
    assert get(server, tmp_path, sha256=SHA256) == BODY


def test_a_range_that_starts_elsewhere(server, tmp_path):
    page(server, faults=[cut(20_000), status(206, BODY, Content_Range="bytes 0-49999/50000")])
    assert get(server, tmp_path, sha256=SHA256) == BODY
    page(server, faults=[status(206, Content_Range="bytes 0-9/50000"), status(206)])
    assert get(server, tmp_path / "new", sha256=SHA256) == BODY


@pytest.mark.parametrize("known", ["sha256", "md5"])
def test_wrong_bytes(server, tmp_path, known):
    page(server, faults=[wrong(OTHER)])
    digest = hashlib.new(known, BODY).hexdigest()
    assert get(server, tmp_path, **{known: digest}) == BODY
    (tmp_path / "part").unlink()
    found = hashlib.new(known, OTHER).hexdigest()
    page(server, faults=[wrong(OTHER)] * 2)
    fails(server, tmp_path, f"^{ADDRESS}: {known} is {found}, expected {digest}; twice$",
          **{known: digest})  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_no_length(server, tmp_path):
    """With the connection's end as the only end, only a checksum shows a cut."""
    page(server, framing="close")
    fails(server, tmp_path, "sends neither length nor checksum")
    page(server, framing="close", faults=[cut(20_000)])
    assert get(server, tmp_path, sha256=SHA256) == BODY


def test_packed_on_the_way(server, tmp_path):
    page(server, headers={"Content-Encoding": "gzip"})
    fails(server, tmp_path, "answer 200 gzip, expected the plain file")
    body = gzip.compress(BODY)  # some servers say so of a file that is packed itself
    server.pages["/host/x.gz"] = Page(body, headers={"Content-Encoding": "x-gzip"})
    Web(server.url).download("https://host/x.gz", tmp_path / "x.gz")
    assert (tmp_path / "x.gz").read_bytes() == body


# ---- refused


@pytest.mark.parametrize("code", [203, 400, 401, 403, 404, 416, 451])
def test_final_answers(server, tmp_path, code):
    page(server, faults=[status(code)])
    error = fails(server, tmp_path, f"^https://host/x: (answer )?{code} ")
    assert error.status == (code if code >= 400 else None) and len(server.log) == 1


@pytest.mark.parametrize("code", download.BUSY)
def test_busy_servers(server, tmp_path, code):
    page(server, faults=[status(code), status(code)])
    assert get(server, tmp_path) == BODY
    page(server, faults=[status(code)] * 9)
    fails(server, tmp_path, f"{code} .*; 3 attempts")


def test_retry_after(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    page(server, faults=[status(503, Retry_After="7"), status(503, Retry_After="soon")])
    assert get(server, tmp_path) == BODY and waits[:2] == [7.0, 0.002]
    page(server, faults=[status(429, Retry_After="86400")])
    fails(server, tmp_path, "429 Too Many Requests; the server asks us to wait 86,400 s")


def test_redirects_keep_range_and_what_was_told_on_the_way(server, tmp_path):
    told = {"X-Repo-Commit": "c0ffee", "X-Linked-Etag": f'"{SHA256}"'}
    page(server, redirect="/cdn/1", headers=told)
    server.pages["/cdn/1"] = Page(redirect="/cdn/2")
    server.pages["/cdn/2"] = Page(BODY, faults=[cut(20_000)], headers={"X-Repo-Commit": "other"})
    got = Web(server.url).download(ADDRESS, tmp_path / "part", is_told=True)
    assert got == (SHA256, "c0ffee")
    assert server.ranges("/cdn/2") == [None, "bytes=20000-"]
    # killed between the last byte and the renaming
    assert get(server, tmp_path, is_told=True) == BODY
    assert server.ranges("/cdn/2")[2:] == ["bytes=50000-"]
    server.pages["/cdn/2"].body = OTHER
    fails(server, tmp_path / "new", f"expected {SHA256}; twice", is_told=True)


def test_redirects_that_are_not_followed(server, tmp_path):
    page(server, redirect=PATH)
    fails(server, tmp_path, "302")
    request = urllib.request.Request("https://host/x")
    with pytest.raises(Failed, match="not encrypted"):
        download.Redirects().redirect_request(request, None, 302, "", Message(), "http://host/x")


def test_a_false_certificate_is_final():
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_message = "self-signed certificate"

    def action():
        raise urllib.error.URLError(error)

    with pytest.raises(Failed, match="https://host/x: self-signed"):
        download.patiently(ADDRESS, action)


def test_a_small_page(server, monkeypatch):
    page(server, faults=[cut(10), status(500)])
    assert Web(server.url).read(ADDRESS) == BODY
    page(server, framing="chunked", faults=[cut(10)])
    assert Web(server.url).read(ADDRESS) == BODY
    monkeypatch.setattr(download, "SMALL", 1000)
    with pytest.raises(Failed, match="small page"):
        Web(server.url).read(ADDRESS)


@pytest.mark.parametrize("mirror", ["", "x", "ftp://host", "http://", "file:///etc", "http://a b"])
def test_mirrors(mirror):
    with pytest.raises(InputError, match="--mirror is .*, expected http"):
        Web(mirror)


def test_a_mirror_that_is_no_address(tmp_path):
    for mirror in ("http://[", "http://a..b", "http://host:port"):
        with pytest.raises(Failed, match="http"):
            Web(mirror).download(ADDRESS, tmp_path / "part")


def test_a_full_disk_is_not_a_cut(server, tmp_path):
    def full(n):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Web(server.url).download(ADDRESS, tmp_path / "part", advance=full)
    assert len(server.log) == 1
