"""Whatever goes wrong with a download ends in the right bytes, or in a line that says why."""

import email.utils
import gzip
import hashlib
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from email.message import Message

import pytest
from fake_web import Page, cut, serve, status, wrong
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fetch import download
from data.fetch.download import Failed, Part, Stopped, Web, seconds
from helpers import ROOT

BODY = random.Random(0).randbytes(50_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
ADDRESS, PATH = "https://host/x", "/host/x"
OTHER = random.Random(1).randbytes(50_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    with serve({PATH: Page(BODY)}) as server:
        yield server


def page(server, **changes):
    server.pages[PATH] = Page(BODY, **changes)
    return server.pages[PATH]


def get(server, tmp_path, **known):
    place = tmp_path / "x"
    got = Web(server.url).download(ADDRESS, place, **known)
    assert not list(tmp_path.glob(".x.part*"))
    return place.read_bytes(), got


def fails(server, tmp_path, match, address=ADDRESS, **known):
    with pytest.raises(Failed, match=match) as caught:
        Web(server.url, tries=3).download(address, tmp_path / "x", **known)
    assert not (tmp_path / "x").exists()
    assert "\n" not in str(caught.value)
    return caught.value


def begin(server, tmp_path, n, **changes):
    """The first n bytes of BODY, as a run that was killed leaves them."""
    page(server, faults=[cut(n), status(404)], **changes)
    fails(server, tmp_path, "404")
    server.log.clear()
    assert Part(tmp_path / "x").length() == n


# ---- whole


def test_a_file(server, tmp_path):
    body, got = get(server, tmp_path)
    assert body == BODY and got == (len(BODY), SHA256, None)


@pytest.mark.parametrize("n", [0, 1, download.CHUNK, download.CHUNK + 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_any_size(server, tmp_path, n, framing):
    body = bytes(i % 251 for i in range(n))
    server.pages[PATH] = Page(body, framing=framing)
    assert get(server, tmp_path)[0] == body


def test_progress_adds_up(server, tmp_path):
    page(server, faults=[cut(20_000), wrong(OTHER[:30_000]), cut(100)])
    seen = []
    get(server, tmp_path, sha256=SHA256, advance=seen.append)
    assert sum(seen) == len(BODY) and min(seen) < 0


# ---- cut


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60_000), max_size=5),
    framing=st.sampled_from(["length", "chunked"]),
    has_ranges=st.booleans(),
    etag=st.sampled_from(['"v1"', 'W/"v1"', None]),
    modified=st.sampled_from([None, "Wed, 21 Oct 2015 07:28:00 GMT"]),
    is_known=st.booleans(),
)
def test_cut_anywhere(tmp_path_factory, cuts, framing, has_ranges, etag, modified, is_known):
    tmp_path = tmp_path_factory.mktemp("cut")
    one = Page(BODY, framing=framing, has_ranges=has_ranges, etag=etag, modified=modified)
    one.faults = [cut(n) for n in cuts]
    with serve({PATH: one}) as server:
        body, got = get(server, tmp_path, sha256=SHA256 if is_known else None)
    assert body == BODY and got.sha256 == SHA256


@settings(max_examples=40, deadline=None)
@given(kept=st.integers(0, 49_999), is_known=st.booleans())
def test_a_killed_process_leaves_any_beginning(tmp_path_factory, kept, is_known):
    """What a run before has left: some first bytes and the note of whose they are."""
    tmp_path = tmp_path_factory.mktemp("kept")
    with serve({}) as server:
        begin(server, tmp_path, kept)
        assert get(server, tmp_path, sha256=SHA256 if is_known else None)[0] == BODY
    # what was there is not fetched again
    assert server.gets() == [(f"bytes={kept}-", '"v1"') if kept else (None, None)]


KILLED = """
import sys
from pathlib import Path
from data.fetch.download import Web
Web(sys.argv[1]).download("https://host/x", Path(sys.argv[2]))
"""


def test_a_killed_process(tmp_path):
    """SIGKILL at moments of no choosing, until one run comes through."""
    body, place = random.Random(2).randbytes(30_000_000), tmp_path / "x"
    rng, kills = random.Random(3), 0

    def size():
        try:
            return (tmp_path / ".x.part").stat().st_size
        except FileNotFoundError:  # not yet, or already in its place
            return 0

    with serve({PATH: Page(body)}) as server:
        while not place.exists():
            command = [sys.executable, "-c", KILLED, server.url, str(place)]
            limit = size() + rng.randrange(4_000_000, 9_000_000)
            with subprocess.Popen(command, cwd=ROOT) as process:
                while process.poll() is None and size() < limit:
                    time.sleep(0.0005)
                process.send_signal(signal.SIGKILL)
            kills += process.returncode == -signal.SIGKILL
            assert kills < 30
    assert kills > 1 and place.read_bytes() == body
    assert any(asked for asked, _ in server.gets())


def test_the_rest_is_asked_for_on_condition(server, tmp_path):
    page(server, faults=[cut(20_000)])
    get(server, tmp_path)
    assert server.gets() == [(None, None), ("bytes=20000-", '"v1"')]


def test_a_date_serves_where_the_tag_is_weak(server, tmp_path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    page(server, faults=[cut(20_000)], etag='W/"v1"', modified=date)
    get(server, tmp_path)
    assert server.gets()[1] == ("bytes=20000-", date)


def test_without_validator_or_checksum_nothing_is_resumed(server, tmp_path):
    page(server, faults=[cut(20_000)], etag=None)
    get(server, tmp_path)
    assert server.gets() == [(None, None), (None, None)]


def test_as_long_as_there_is_progress_it_goes_on(server, tmp_path):
    page(server, faults=[cut(1000) for _ in range(20)])
    assert get(server, tmp_path)[0] == BODY
    assert len(server.gets()) == 21


def test_without_progress_it_ends(server, tmp_path):
    page(server, has_ranges=False, faults=[cut(9), cut(500), *(cut(400), cut(500)) * 50])
    fails(server, tmp_path, r"host/x: cut after \d+ bytes; 3 attempts")
    assert len(server.gets()) == 5
    assert (tmp_path / ".x.part").exists()  # for the next run


def test_silence_is_a_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.1)
    page(server, faults=[cut(20_000, silence=0.5)])
    assert get(server, tmp_path)[0] == BODY
    assert server.gets()[1] == ("bytes=20000-", '"v1"')


def test_a_line_that_stays_open_behind_the_last_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.1)
    page(server, faults=[cut(len(BODY), silence=0.5)])
    assert get(server, tmp_path)[0] == BODY
    assert len(server.gets()) == 1


def test_nobody_there(tmp_path):
    with serve({}) as server:
        url = server.url
    with pytest.raises(Failed, match="refused.*; 2 attempts"):
        Web(url, tries=2).download(ADDRESS, tmp_path / "x")


# ---- another file


def test_a_file_that_changed_in_between(server, tmp_path):
    begin(server, tmp_path, 20_000)
    server.pages[PATH] = Page(OTHER, etag='"v2"')
    assert get(server, tmp_path)[0] == OTHER


@pytest.mark.parametrize("etag", ['"v2"', None])
def test_a_server_that_ignores_if_range(server, tmp_path, etag):
    """With a tag one sees it at once; else the checksum tells, and it starts over."""
    begin(server, tmp_path, 20_000)
    server.pages[PATH] = Page(OTHER, etag=etag, checks_if_range=False)
    sha256 = hashlib.sha256(OTHER).hexdigest()
    assert get(server, tmp_path, sha256=sha256)[0] == OTHER


def test_another_tag_on_the_rest_is_seen_without_a_checksum(server, tmp_path):
    begin(server, tmp_path, 20_000)
    server.pages[PATH] = Page(OTHER, etag='"v2"', checks_if_range=False)
    assert get(server, tmp_path)[0] == OTHER


def test_a_shorter_file_416(server, tmp_path):
    begin(server, tmp_path, 20_000)
    server.pages[PATH] = Page(OTHER[:5000], checks_if_range=False)
    assert get(server, tmp_path)[0] == OTHER[:5000]


def test_all_bytes_there_416(server, tmp_path):
    """Killed between the last byte and the renaming."""
    begin(server, tmp_path, 20_000)
    (tmp_path / ".x.part").write_bytes(BODY)
    assert get(server, tmp_path)[0] == BODY
    assert server.gets()[-1] == (f"bytes={len(BODY)}-", '"v1"') and len(server.gets()) == 1


def test_416_without_a_range(server, tmp_path):
    page(server, faults=[status(416)])
    assert fails(server, tmp_path, "416").status == 416


def test_a_range_that_starts_elsewhere(server, tmp_path):
    page(server, faults=[cut(20_000), status(206, BODY, Content_Range="bytes 0-49999/50000")])
    assert get(server, tmp_path)[0] == BODY


def test_a_server_that_gives_less_than_asked_for(server, tmp_path):
    page(server, faults=[cut(20_000)], largest=9_000)
    assert get(server, tmp_path)[0] == BODY
    assert len(server.gets()) == 5


def test_a_partial_answer_that_nobody_asked_for(server, tmp_path):
    page(server, faults=[status(206, Content_Range="bytes 0-9/50000"), status(206)])
    assert get(server, tmp_path)[0] == BODY


def test_another_answer_than_200(server, tmp_path):
    begin(server, tmp_path, 20_000)
    page(server, faults=[status(203)])
    assert get(server, tmp_path)[0] == b""  # a whole answer, though an empty one


def test_the_part_of_another_address(server, tmp_path):
    begin(server, tmp_path, 20_000)
    server.pages["/host/y"] = Page(OTHER)
    Web(server.url).download("https://host/y", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OTHER


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_a_damaged_note(server, tmp_path, note):
    (tmp_path / ".x.part").write_bytes(OTHER[:100])
    (tmp_path / ".x.part.json").write_bytes(note)
    assert get(server, tmp_path)[0] == BODY


# ---- wrong bytes


def test_wrong_bytes_once(server, tmp_path):
    page(server, faults=[wrong(OTHER)])
    assert get(server, tmp_path, sha256=SHA256)[0] == BODY


@pytest.mark.parametrize("known", ["sha256", "md5"])
def test_wrong_bytes_never_get_the_name(server, tmp_path, known):
    digest = hashlib.new(known, OTHER).hexdigest()
    found = hashlib.new(known, BODY).hexdigest()
    seen = []
    fails(server, tmp_path, f"{known} is {found}, expected {digest}; twice",
          advance=seen.append, **{known: digest})  # fmt: skip
    assert sum(seen) == 0
    assert not list(tmp_path.iterdir()) and len(server.gets()) == 2


def test_a_page_in_place_of_the_file(server, tmp_path):
    fails(server, tmp_path, "size is 50000, expected 60000; twice", size=60_000)

    def check(path):
        raise Failed(f"begins with {path.read_bytes()[:1]!r}")

    fails(server, tmp_path, "begins with", check=check)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [0, 10, 20_000])
def test_no_length(server, tmp_path, n):
    """Where a connection's end is the file's, only a size or checksum can tell a cut."""
    page(server, framing="close")
    fails(server, tmp_path, "neither length nor checksum")
    page(server, framing="close", faults=[cut(n)])
    assert get(server, tmp_path, size=len(BODY), sha256=SHA256)[0] == BODY
    page(server, framing="close", faults=[cut(n)])
    assert get(server, tmp_path, sha256=SHA256)[0] == BODY


# ---- packed on the way


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_gzip_on_the_way(server, tmp_path, framing):
    page(server, encoding="gzip", framing=framing, faults=[cut(20_000)])
    assert get(server, tmp_path)[0] == BODY
    assert server.gets() == [(None, None), (None, None)]  # a part of it could not be resumed


def test_a_packed_answer_after_a_plain_one(server, tmp_path):
    begin(server, tmp_path, 20_000)
    page(server, encoding="gzip")  # its range would be of the packed bytes
    assert get(server, tmp_path)[0] == BODY


def test_gz_files_stay_as_they_are(tmp_path):
    body = gzip.compress(BODY)
    with serve({"/host/x.gz": Page(body, encoding="x-gzip", faults=[cut(20_000)])}) as server:
        assert Web(server.url).look("https://host/x.gz").size == len(body)
        Web(server.url).download("https://host/x.gz", tmp_path / "x.gz")
    assert (tmp_path / "x.gz").read_bytes() == body
    assert server.gets() == [(None, None), ("bytes=20000-", '"v1"')]


def test_damaged_gzip(server, tmp_path):
    page(server, headers={"Content-Encoding": "gzip"})
    fails(server, tmp_path, "incorrect header check; 3 attempts")


def test_packed_bytes_that_end_too_early(server, tmp_path):
    server.pages[PATH] = Page(gzip.compress(BODY)[:-9], headers={"Content-Encoding": "gzip"})
    fails(server, tmp_path, r"cut after [\d,]+ bytes; 3 attempts")


def test_an_unknown_packing(server, tmp_path):
    page(server, headers={"Content-Encoding": "br"})
    assert Web(server.url).look(ADDRESS) == (None, None, None)
    fails(server, tmp_path, "packed as 'br'")


# ---- refused


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451])
def test_final_answers(server, tmp_path, code):
    page(server, faults=[status(code)])
    assert fails(server, tmp_path, f"^https://host/x: {code} ").status == code
    assert len(server.gets()) == 1


@pytest.mark.parametrize("code", download.BUSY)
def test_busy_servers(server, tmp_path, code):
    page(server, faults=[status(code), status(code)])
    assert get(server, tmp_path)[0] == BODY
    (tmp_path / "x").unlink()
    page(server, faults=[status(code)] * 9)
    fails(server, tmp_path, f"{code} .*; 3 attempts")


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after(server, tmp_path, code):
    waits = []

    class Clock(threading.Event):
        def wait(self, timeout=None):
            if timeout is not None:  # else it is a thread's
                waits.append(timeout)

    page(server, faults=[status(code, Retry_After="7"), status(code), status(code)])
    Web(server.url, stop=Clock()).download(ADDRESS, tmp_path / "x")
    assert waits == [7.0, 0.002, 0.004]


def test_retry_after_too_long(server, tmp_path):
    page(server, faults=[status(429, Retry_After="86400")])
    fails(server, tmp_path, "429 Too Many Requests; the server asks us to wait 86,400 s")


def test_seconds():
    assert seconds("0") == 0 and seconds(" 12 ") == 12
    soon = seconds(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert 55 < soon <= 60
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for text in (None, "", "soon", "-3", "1e3", "Wed, 99 Oct 2015"):
        assert seconds(text) is None


# ---- redirects


def test_redirects_keep_range_and_what_was_told_on_the_way(server, tmp_path):
    told = {
        "X-Repo-Commit": "c0ffee", "X-Linked-Size": str(len(BODY)), "X-Linked-Etag": f'"{SHA256}"'
    }  # fmt: skip
    page(server, redirect="/cdn/1", headers=told)
    server.pages["/cdn/1"] = Page(redirect="/cdn/2")
    server.pages["/cdn/2"] = Page(BODY, faults=[cut(20_000)])
    assert Web(server.url).look(ADDRESS) == (len(BODY), SHA256, "c0ffee")
    assert server.log == [("HEAD", PATH, None, None)]  # the address it names is signed for GET
    body, got = get(server, tmp_path)
    assert body == BODY and got.revision == "c0ffee"
    assert server.gets("/cdn/2") == [(None, None), ("bytes=20000-", '"v1"')]


def test_a_head_stays_one_behind_a_redirect(server):
    page(server, redirect="/cdn/1", headers={"X-Repo-Commit": "c0ffee"})
    server.pages["/cdn/1"] = Page(BODY)
    assert Web(server.url).look(ADDRESS) == (len(BODY), None, "c0ffee")
    assert [method for method, *_ in server.log] == ["HEAD", "HEAD"]


def test_a_circle(server, tmp_path):
    page(server, redirect=PATH)
    fails(server, tmp_path, "302")


def test_no_redirect_out_of_encryption():
    request = urllib.request.Request("https://host/x")
    with pytest.raises(Failed, match="not encrypted"):
        download.Trail().redirect_request(request, None, 302, "Found", Message(), "http://host/x")


# ---- look, read


def test_look(server):
    web = Web(server.url, tries=2)
    assert web.look(ADDRESS) == (len(BODY), None, None)
    assert web.look("https://host/none") is None
    page(server, head_faults=[status(503), status(405), status(403), *[status(429)] * 2])
    assert web.look(ADDRESS) == (None, None, None)
    with pytest.raises(Failed, match="403"):
        web.look(ADDRESS)
    with pytest.raises(Failed, match="429 .*; 2 attempts"):
        web.look(ADDRESS)
    page(server, encoding="gzip")
    assert web.look(ADDRESS).size is None
    page(server, headers={"X-Linked-Etag": '"3b1f-other"', "X-Linked-Size": "x"})
    assert web.look(ADDRESS) == (None, None, None)


def test_read(server, monkeypatch):
    web = Web(server.url)
    page(server, faults=[cut(10), status(500)])
    assert web.read(ADDRESS) == BODY
    page(server, framing="chunked", faults=[cut(10)])
    assert web.read(ADDRESS) == BODY
    page(server, encoding="gzip")
    assert web.read(ADDRESS) == BODY
    monkeypatch.setattr(download, "SMALL", 1000)
    with pytest.raises(Failed, match="small page"):
        web.read(ADDRESS)


def test_a_false_certificate_is_final():
    import ssl

    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_message = "self-signed certificate"
    with pytest.raises(Failed, match="self-signed"), download.unbroken(ADDRESS):
        raise urllib.error.URLError(error)


# ---- the end


def test_stopped_by_another_thread(server, tmp_path):
    web = Web(server.url)
    with pytest.raises(Stopped):
        web.download(ADDRESS, tmp_path / "x", advance=lambda n: web.stop.set())
    with pytest.raises(Stopped):
        web.look(ADDRESS)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_no_cut(server, tmp_path, monkeypatch):
    def begin(self, address, answer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "begin", begin)
    with pytest.raises(OSError, match="No space left"):
        Web(server.url).download(ADDRESS, tmp_path / "x")
    assert len(server.gets()) == 1
