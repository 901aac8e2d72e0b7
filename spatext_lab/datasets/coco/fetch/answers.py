# SPDX-License-Identifier: Apache-2.0
"""What a server's answer means: the file, another attempt later, or none at all."""

import re
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

import httpx

from spatext_lab.datasets.coco.fetch.part import Note

SCHEMES = ("http", "https")
_LATER = {408, 425, 429, 500, 502, 503, 504}  # of these a second request may be answered


class TransferError(OSError):
    """A file cannot be had; the message says why."""


class Again(Exception):
    """An attempt failed, and another one may not; `wait`: seconds that the server asks for."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


def refuse_redirect(answer: httpx.Response) -> None:
    """Lets no redirect lead out of http and https, nor from https to http.

    Raises:
        TransferError: it does.
    """
    if not answer.has_redirect_location:
        return
    target = urljoin(str(answer.url), answer.headers["location"])
    scheme = urlsplit(target).scheme
    if scheme not in SCHEMES or (answer.url.scheme == "https" and scheme == "http"):
        raise TransferError(f"redirected from {answer.url.scheme} to {target:.200}: refused")


def refuse_status(answer: httpx.Response) -> None:
    """Lets 200 and 206 pass.

    Raises:
        Again: the server is busy, or was.
        TransferError: it does not have the file, or does not give it.
    """
    code = answer.status_code
    if code in (200, 206):
        if (coding := answer.headers.get("content-encoding", "identity")) != "identity":
            raise TransferError(f"sent as {coding}, which was not asked for")
        return
    known = code in HTTPStatus._value2member_map_
    name = f"{code} {HTTPStatus(code).phrase}" if known else f"status {code}"
    if code in _LATER:
        raise Again(name, retry_after(answer.headers.get("retry-after", "")))
    raise TransferError(name)


def refuse_web_page(answer: httpx.Response, beginning: bytes) -> None:
    """Names the page that a proxy, a login or a hotel's network sends in place of any file.

    Raises:
        TransferError: it is one.
    """
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    looks = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower()
    if kind in ("text/html", "application/xhtml+xml") or looks.startswith((b"<!doctype", b"<html")):
        title = re.search(rb"<title[^>]*>(.*?)</title", beginning, re.IGNORECASE | re.DOTALL)
        named = f' "{" ".join(title[1].decode(errors="replace").split()):.80}"' if title else ""
        raise TransferError(
            f"a web page{named} came from {answer.url.host} in place of the file: "
            "a proxy, or a network that wants a login first?"
        )


def retry_after(text: str) -> float:
    """Seconds from a Retry-After header: a number or a date; 0 if it is neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def judged(error: httpx.HTTPError) -> Exception:
    """What httpx raised, as worth another attempt or not."""
    what = f"{error}" or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    if isinstance(error, httpx.UnsupportedProtocol | httpx.TooManyRedirects):
        return TransferError(what)
    if "CERTIFICATE_VERIFY_FAILED" in what:
        return TransferError(f"its certificate is not valid: {what}")
    return Again(what)


def note_of(url: str, answer: httpx.Response) -> Note:
    """What a whole answer says of the file."""
    length = answer.headers.get("content-length", "")
    return Note(
        url,
        answer.headers.get("etag", ""),
        answer.headers.get("last-modified", ""),
        int(length) if length.isdecimal() else None,
    )


def continues(answer: httpx.Response, size: int, note: Note) -> bool:
    """Whether a 206 is the rest of this very file."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", ""))
    etag = answer.headers.get("etag", note.etag)
    whole = found and found[2] in ("*", str(note.length))
    return bool(whole) and int(found[1]) == size and etag == note.etag
