# SPDX-License-Identifier: Apache-2.0
"""One file from an address to its place: resumed where it was cut off, checked, tried again.

HTTP as in RFC 9110: section 10.2.3 Retry-After, 13.1.5 If-Range, 14 range requests, 15.5.17
status 416. Whatever a server does, a file has its name only when it is whole and was checked.
"""

import ssl
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import tenacity

from spatext_lab import __version__
from spatext_lab.datasets.coco.fetch.answers import (
    Again,
    Patience,
    TransferError,
    continues,
    judged,
    note_of,
    refuse_redirect,
    refuse_status,
    refuse_web_page,
)
from spatext_lab.datasets.coco.fetch.part import Note, Part

AT_A_TIME = 8
# identity: sizes, ranges and checks are about the file's own bytes
HEADERS = {"User-Agent": f"spatext-lab/{__version__}", "Accept-Encoding": "identity"}


class Stopped(Exception):
    """The downloader was closed during a transfer; what has arrived stays."""


class Downloader:
    """Fetches files over http and https; to be used by several threads, and with `with`.

    Args:
        patience: how long to wait and how often to try again.
    """

    def __init__(self, patience: Patience):
        self.patience = patience
        self.closed = Event()
        self._quiet_until = 0.0  # monotonic: a server asked everybody to wait until then
        self._client = httpx.Client(
            verify=_certificates(),
            headers=HEADERS,
            follow_redirects=True,
            timeout=httpx.Timeout(patience.silence, pool=None),
            limits=httpx.Limits(max_connections=AT_A_TIME),
            event_hooks={"response": [refuse_redirect]},
        )

    def __enter__(self) -> "Downloader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.closed.set()
        self._client.close()

    def fetch(
        self,
        url: str,
        path: Path,
        check: Callable[[Path], None],
        watch: Callable[[int, int | None], None] = lambda size, length: None,
    ) -> int:
        """Fetches a file, or the rest of it.

        Args:
            url: its address.
            path: its place; an old file there stays until the new one is whole.
            check: raises ValueError if the file that it is given is not the one wanted, which is
                then fetched anew, or TransferError if that is of no use.
            watch: called with the bytes so far and the whole length, as they arrive; may raise.

        Returns:
            Its size in bytes.

        Raises:
            TransferError: it cannot be had; a part of it may stay, for another run.
            OSError: it cannot be written.
            Stopped: the downloader was closed meanwhile.
        """
        part, tries = Part(path), _Tries(self.patience)
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            wait=tries.wait,
            stop=tries.over,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return again(self._attempt, url, part, check, watch, tries)
        except Again as error:
            raise TransferError(f"{error} ({tries.failed} times in a row)") from None
        finally:
            if part.size == 0:
                part.discard()

    def _attempt(self, url: str, part: Part, check: Any, watch: Any, tries: "_Tries") -> int:
        self._keep_quiet()
        try:
            if (note := part.note(url)) is None or part.size != note.length:
                self._transfer(url, part, note, watch)
        except httpx.HTTPError as error:
            raise judged(error) from None
        except httpx.InvalidURL as error:
            raise TransferError(f"not an address: {error}") from None
        except Again as error:
            self._quiet_until = max(self._quiet_until, time.monotonic() + error.wait)
            raise
        finally:
            tries.arrived(part.size)
        try:
            check(part.bytes)
        except TransferError:
            part.discard()
            raise
        except ValueError as error:
            part.discard()
            raise Again(str(error)) from None
        size = part.size
        part.finish()
        return size

    def _transfer(self, url: str, part: Part, note: Note | None, watch: Any) -> None:
        """Appends what is missing, or begins anew where the server does not continue."""
        headers = {}
        if note and note.validator:
            headers = {"Range": f"bytes={part.size}-", "If-Range": note.validator}
        with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == 416:
                if answer.headers.get("content-range") == f"bytes */{part.size}":
                    return  # all bytes were there already
                part.discard()
                raise Again("the server's file is another one by now")
            refuse_status(answer)
            if answer.status_code != 206:
                note = note_of(url, answer)
                part.begin(note)
            elif note is None or not continues(answer, part.size, note):
                part.discard()
                raise Again("the server went on with other bytes than were asked for")
            self._append(answer, part, note, watch)
        if note.length not in (None, part.size):
            raise Again(f"cut off after {part.size} of {note.length} bytes")

    def _append(self, answer: httpx.Response, part: Part, note: Note, watch: Any) -> None:
        size = part.size
        watch(size, note.length)
        with part.bytes.open("ab", buffering=0) as file:
            for chunk in answer.iter_raw():
                if self.closed.is_set():
                    raise Stopped
                if size == 0:
                    refuse_web_page(answer, chunk)
                file.write(chunk)
                size += len(chunk)
                watch(size, note.length)

    def _keep_quiet(self) -> None:
        """Waits as long as a server has asked for; one that asks for too much is not asked."""
        seconds = self._quiet_until - time.monotonic()
        if seconds > self.patience.asked:
            raise TransferError(f"the server asks to wait for {seconds:.0f} s: run again then")
        self._sleep(max(0, seconds))

    def _sleep(self, seconds: float) -> None:
        if self.closed.wait(seconds):
            raise Stopped


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes 0.1 s


class _Tries:
    """How often in a row a transfer has failed without a new byte."""

    def __init__(self, patience: Patience):
        self.failed = 0
        self._most = 0
        self._patience = patience

    def arrived(self, size: int) -> None:
        """After an attempt, whatever came of it."""
        self.failed = 1 if size > self._most else self.failed + 1
        self._most = max(self._most, size)

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt: full jitter below a doubling limit."""
        return self._patience.pause(self.failed)

    def over(self, state: tenacity.RetryCallState) -> bool:
        return self.failed >= self._patience.attempts
