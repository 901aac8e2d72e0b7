# SPDX-License-Identifier: Apache-2.0
"""One transfer from a server that is slow, cuts off, refuses, lies, or sends something else."""

import time
from email.utils import formatdate
from threading import Thread

import pytest

from spatext_lab.datasets.coco.fetch import waiting
from spatext_lab.datasets.coco.fetch.answers import TransferError, retry_after
from spatext_lab.datasets.coco.fetch.download import Downloader
from spatext_lab.datasets.coco.fetch.part import Note, Part
from spatext_lab.datasets.coco.fetch.waiting import Patience, Stopped
from tests.datasets.coco.fetch import server as tricks

try:
    import resource
except ImportError:  # Windows
    resource = None

QUICK = Patience(attempts=3, first=0.01, longest=0.02, silence=5.0)
BODY = bytes(range(256)) * 40
PATH = "/file.bin"


def whole(path):
    if path.read_bytes()[-10:] != BODY[-10:]:
        raise ValueError("not the file's end")


@pytest.fixture
def fetch(server, tmp_path):
    """fetch(trick, ...): the file from a server that misbehaves so, one request after the other."""
    server.files[PATH] = BODY

    def run(*how, check=whole, patience=QUICK, url=None):
        server.tricks[PATH] = list(how)
        with Downloader(patience) as downloader:
            path = tmp_path / "sub" / "file.bin"
            size = downloader.fetch(url or server.url + PATH, path, check)
        assert sorted(path.parent.iterdir()) == [path]
        assert size == path.stat().st_size
        return path.read_bytes()

    return run


def ranges(server):
    return [headers.get("Range") for _, headers in server.asked]


def test_a_file_comes_whole_by_one_request(fetch, server):
    assert fetch() == BODY
    assert ranges(server) == [None]
    assert server.asked[0][1]["Accept-Encoding"] == "identity"
    assert server.asked[0][1]["User-Agent"].startswith("spatext-lab/")


def test_where_it_was_cut_off_it_goes_on(fetch, server):
    assert fetch(tricks.cut(1), tricks.cut(1000), tricks.cut(0)) == BODY
    assert ranges(server) == [None, "bytes=1-", "bytes=1001-", "bytes=1001-"]


def test_an_attempt_that_brought_bytes_does_not_count_against_it(fetch, server):
    assert fetch(*[tricks.cut(100)] * 50) == BODY
    assert len(server.asked) == 51


def test_attempts_without_a_byte_end(fetch, server):
    with pytest.raises(TransferError, match=r"peer closed connection .*\(3 times in a row\)"):
        fetch(tricks.cut(100), *[tricks.cut(0)] * 5)
    assert len(server.asked) == 3


def test_another_process_goes_on(server, fetch):
    with pytest.raises(TransferError):
        fetch(*[tricks.cut(3000)] + [tricks.cut(0)] * 5)
    server.asked.clear()
    assert fetch() == BODY
    assert ranges(server) == ["bytes=3000-"]


def test_of_another_address_nothing_is_continued(server, fetch):
    with pytest.raises(TransferError):
        fetch(*[tricks.cut(3000)] + [tricks.cut(0)] * 5)
    server.asked.clear()
    server.files["/other.bin"] = other = b"other" + BODY[5:]
    assert fetch(url=f"{server.url}/other.bin") == other
    assert ranges(server) == [None]


def test_a_server_without_ranges_sends_all_of_it_again(fetch, server):
    server.ranges = False
    assert fetch(tricks.cut(5000)) == BODY
    assert ranges(server) == [None, "bytes=5000-"]


@pytest.mark.parametrize("names", [("last_modified",), ("weak_etag", "last_modified")])
def test_the_date_names_the_version_where_no_strong_etag_does(fetch, server, names):
    server.named_by = names
    assert fetch(tricks.cut(5000)) == BODY
    assert ranges(server) == [None, "bytes=5000-"]
    assert server.asked[1][1]["If-Range"].endswith(" GMT")


@pytest.mark.parametrize("names", [(), ("weak_etag",)])
def test_without_a_name_for_the_version_nothing_is_continued(fetch, server, names):
    server.named_by = names
    assert fetch(tricks.cut(5000)) == BODY
    assert ranges(server) == [None, None]


def test_a_file_that_changes_meanwhile_is_not_pieced_together(fetch, server):
    new = b"changed" + BODY[::-1] + BODY

    def change(handler, content):
        tricks.cut(4000)(handler, content)
        server.files[PATH] = new

    assert fetch(change) == new


def test_a_server_that_goes_on_with_another_version_is_caught(fetch, server):
    def other(handler, content):
        span = f"bytes 4000-{len(BODY) - 1}/{len(BODY)}"
        handler.answer(206, b"x" * (len(BODY) - 4000), content_range=span, etag='"other"')

    assert fetch(tricks.cut(4000), other, check=lambda path: None) == BODY
    assert ranges(server) == [None, "bytes=4000-", None]


@pytest.mark.parametrize("span", ["bytes 0-10239/10240", "bytes 4000-10239/999", "words", ""])
def test_a_range_that_was_not_asked_for_is_refused(fetch, server, span):
    wrong = {"content_range": span} if span else {}

    def lie(handler, content):
        handler.answer(206, b"x" * 6240, **wrong)

    assert fetch(tricks.cut(4000), lie, check=lambda path: None) == BODY
    assert ranges(server) == [None, "bytes=4000-", None]


def test_a_range_that_ends_early_is_not_the_end(fetch, server):
    def some(handler, content):
        named = {"content_range": "bytes 4000-4999/10240", "etag": tricks.version("etag", BODY)}
        handler.answer(206, content[4000:5000], **named)

    assert fetch(tricks.cut(4000), some, check=lambda path: None) == BODY
    assert ranges(server) == [None, "bytes=4000-", "bytes=5000-"]


def test_more_than_the_server_has_is_fetched_anew(fetch, server, tmp_path):
    part = Part(tmp_path / "sub" / "file.bin")
    part.begin(Note(server.url + PATH, tricks.version("etag", BODY), "", None))
    part.bytes.write_bytes(BODY + b"too much")
    assert fetch() == BODY
    assert ranges(server) == [f"bytes={len(BODY) + 8}-", None]


def test_a_process_killed_after_the_last_byte_asks_for_no_more(fetch, server, tmp_path):
    part = Part(tmp_path / "sub" / "file.bin")
    part.begin(Note(server.url + PATH, tricks.version("etag", BODY), "", len(BODY)))
    part.bytes.write_bytes(BODY)
    assert fetch() == BODY
    assert server.asked == []
    part.begin(
        Note(server.url + PATH, tricks.version("etag", BODY), "", None)
    )  # its length was not known
    part.bytes.write_bytes(BODY)
    assert fetch() == BODY
    assert ranges(server) == [f"bytes={len(BODY)}-"]


def test_bytes_without_a_note_are_not_trusted(fetch, server, tmp_path):
    part = Part(tmp_path / "sub" / "file.bin")
    part.bytes.parent.mkdir()
    part.bytes.write_bytes(b"who knows")
    assert fetch() == BODY
    assert ranges(server) == [None]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(fetch, server, code):
    assert fetch(tricks.status(code), tricks.status(code)) == BODY
    assert len(server.asked) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451])
def test_a_refusal_is_final(fetch, server, code):
    with pytest.raises(TransferError, match=str(code)):
        fetch(tricks.status(code))
    assert len(server.asked) == 1


def test_a_server_that_stays_busy_is_named_as_that(fetch, server):
    with pytest.raises(TransferError, match=r"503 Service Unavailable \(3 times in a row\)"):
        fetch(*[tricks.status(503)] * 9)
    assert len(server.asked) == 3


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(fetch, server, code):
    began = time.monotonic()
    assert fetch(tricks.status(code, retry_after="1")) == BODY
    assert time.monotonic() - began >= 1.0


def test_retry_after_holds_for_all_transfers_to_come(server, tmp_path):
    server.files |= {"/a": BODY, "/b": BODY}
    server.tricks["/a"] = [tricks.status(429, retry_after="1")]
    with Downloader(QUICK) as downloader:
        first = Thread(target=downloader.fetch, args=(f"{server.url}/a", tmp_path / "a", whole))
        first.start()
        while not downloader._waiting._quiet_until:
            time.sleep(0.01)
        began = time.monotonic()
        downloader.fetch(f"{server.url}/b", tmp_path / "b", whole)
        assert time.monotonic() - began > 0.5
        first.join()
    assert server.paths()[0] == "/a"
    assert sorted(server.paths()) == ["/a", "/a", "/b"]


def test_after_a_wait_they_do_not_all_come_back_at_once():
    all_of_them = waiting.Waiting(Patience(first=0.2), tell=print)
    all_of_them.quiet(0.1)
    until, ends = time.monotonic() + 0.1, []

    def wait():
        all_of_them.keep_quiet()
        ends.append(time.monotonic() - until)

    threads = [Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(ends) >= 0
    assert max(ends) - min(ends) > 0.03


def test_a_wait_that_is_too_long_is_said_and_not_waited_for(fetch, server):
    began = time.monotonic()
    with pytest.raises(TransferError, match="asks to wait for 3600 s"):
        fetch(tricks.status(429, retry_after="3600"))
    assert time.monotonic() - began < 60
    assert len(server.asked) == 1


def test_retry_after_is_a_number_or_a_date():
    assert retry_after("7") == 7
    assert 58 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    assert [retry_after(text) for text in ("", "soon", "-3", "1.5")] == [0, 0, 0, 0]


def test_pauses_are_random_below_a_doubling_limit():
    patience = Patience(first=1.0, longest=6.0)
    for failed, limit in [(1, 1), (2, 2), (3, 4), (4, 6), (30, 6)]:
        pauses = [patience.pause(failed) for _ in range(300)]
        assert 0.8 * limit < max(pauses) <= limit
        assert 0.0 <= min(pauses) < 0.2 * limit


def test_a_length_that_is_too_large_is_a_cut_off(fetch, server):
    assert fetch(tricks.wrong_length(+7)) == BODY
    assert len(server.asked) == 2


def test_a_length_that_is_too_small_is_found_by_the_check(fetch, server):
    assert fetch(tricks.wrong_length(-7)) == BODY
    assert ranges(server) == [None, None]


def test_what_never_passes_the_check_is_not_kept(fetch, server, tmp_path):
    with pytest.raises(TransferError, match=r"not the file's end \(3 times in a row\)"):
        fetch(*[tricks.says(b"something else")] * 9)
    assert list((tmp_path / "sub").iterdir()) == []


PAGE = b"\n<!DOCTYPE html><html><head><title>Campus\n Wi-Fi</title></head></html>"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "image/jpeg"])
def test_a_proxys_page_is_named_as_that(fetch, server, tmp_path, kind):
    with pytest.raises(TransferError, match=r'a web page "Campus Wi-Fi" came from 127.0.0.1'):
        fetch(tricks.says(PAGE, kind))
    assert len(server.asked) == 1
    assert not (tmp_path / "sub" / "file.bin").exists()


def test_bytes_that_were_packed_on_the_way_are_refused(fetch, server):
    with pytest.raises(TransferError, match="sent as gzip"):
        fetch(tricks.says(b"...", content_encoding="gzip"))


def test_a_redirect_is_followed(fetch, server):
    server.tricks["/moved"] = [tricks.status(302, location=PATH)]
    assert fetch(url=f"{server.url}/moved") == BODY


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(fetch, server, target):
    with pytest.raises(TransferError, match=r"redirected from http to .*: refused"):
        fetch(tricks.status(302, location=target))
    assert len(server.asked) == 1


def test_a_circle_of_redirects_ends(fetch, server):
    with pytest.raises(TransferError, match="redirect"):
        fetch(*[tricks.status(302, location=PATH)] * 99)


def test_where_nobody_listens_that_is_said(fetch):
    with pytest.raises(TransferError, match=r"refused.* \(3 times in a row\)"):
        fetch(url="http://127.0.0.1:1/file.bin")


def test_silence_is_given_up_and_asked_again(fetch, server):
    def silent(handler, content):
        time.sleep(1.2)

    assert fetch(silent, patience=Patience(silence=0.6, first=0.01)) == BODY
    assert len(server.asked) == 2


def test_an_old_file_stays_until_the_new_one_is_whole(fetch, server, tmp_path):
    path = tmp_path / "sub" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(b"old")
    with pytest.raises(TransferError):
        fetch(*[tricks.cut(100)] + [tricks.cut(0)] * 5)
    assert path.read_bytes() == b"old"
    assert fetch() == BODY


@pytest.mark.skipif(resource is None, reason="this system has no limits of file sizes")
def test_where_a_disk_is_full_what_arrived_is_whole(fetch, server, tmp_path):
    """The system writes a part of a block, and only then refuses the next."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, usual[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not isinstance(caught.value, TransferError)
    part = Part(tmp_path / "sub" / "file.bin")
    assert part.bytes.read_bytes() == BODY[: part.size]
    assert fetch() == BODY
    assert len(server.asked) == 2


def test_a_long_wait_is_told(server, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "WORTH_SAYING", 0.5)
    server.files |= {"/a": BODY, "/b": BODY}
    server.tricks = {"/a": [tricks.status(503, retry_after="1")], "/b": [tricks.status(500)]}
    lines = []
    with Downloader(QUICK, lines.append) as downloader:
        for name in "ba":
            downloader.fetch(f"{server.url}/{name}", tmp_path / name, whole)
    assert lines == ["a: 503 Service Unavailable; again in 1 s"]


def test_of_many_waits_one_is_told(monkeypatch):
    lines = []
    pauses = waiting.Waiting(QUICK, lines.append)
    for name in "abc":
        pauses.say(name, 5.0)
    assert lines == ["a; again in 5 s"]
    monkeypatch.setattr(waiting, "SILENT", 0.0)
    pauses.say("d", 60.0)
    assert lines[1:] == ["d; again in 60 s"]


def test_a_closed_downloader_stops_a_transfer_and_a_wait(server, tmp_path):
    server.files[PATH] = BODY
    server.chunk, server.delay = 100, 0.02
    with Downloader(QUICK) as downloader:

        def watch(size, length):
            assert length == len(BODY)
            if size > 500:
                downloader.closed.set()

        with pytest.raises(Stopped):
            downloader.fetch(server.url + PATH, tmp_path / "a", whole, watch)
    assert 500 < Part(tmp_path / "a").size < len(BODY)
