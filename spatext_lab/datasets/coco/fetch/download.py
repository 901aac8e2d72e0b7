# SPDX-License-Identifier: Apache-2.0
"""One file from an address to its place: resumed where it was cut off, checked, tried again.

HTTP as in RFC 9110: section 10.2.3 Retry-After, 13.1.5 If-Range, 14 range requests, 15.5.17
status 416. Whatever a server does, a file has its name only when it is whole and was checked.
"""

import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import tenacity

from spatext_lab import __version__
from spatext_lab.datasets.coco.fetch.answers import (
    Again,
    TransferError,
    continues,
    judged,
    note_of,
    refuse_redirect,
    refuse_status,
    refuse_web_page,
)
from spatext_lab.datasets.coco.fetch.part import Note, Part
from spatext_lab.datasets.coco.fetch.waiting import Patience, Stopped, Tries, Waiting

AT_A_TIME = 8
# identity: sizes, ranges and checks are about the file's own bytes
HEADERS = {"User-Agent": f"spatext-lab/{__version__}", "Accept-Encoding": "identity"}


class Downloader:
    """Fetches files over http and https; to be used by several threads, and with `with`.

    Args:
        patience: how long to wait and how often to try again.
        tell: called with a line when it waits for long.
    """

    def __init__(self, patience: Patience, tell: Callable[[str], None] = lambda line: None):
        self._patience, self._waiting = patience, Waiting(patience, tell)
        self.closed = self._waiting.closed
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
        part, tries = Part(path), Tries(self._patience)

        def tell(state: tenacity.RetryCallState) -> None:
            self._waiting.say(f"{path.name}: {state.outcome.exception()}", state.upcoming_sleep)

        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            wait=tries.wait,
            stop=tries.over,
            before_sleep=tell,
            sleep=self._waiting.sleep,
            reraise=True,
        )
        try:
            return again(self._attempt, url, part, check, watch, tries)
        except Again as error:
            raise TransferError(f"{error} ({tries.failed} times in a row)") from None
        finally:
            if part.size == 0:
                part.discard()

    def _attempt(self, url: str, part: Part, check: Any, watch: Any, tries: Tries) -> int:
        self._waiting.keep_quiet()
        try:
            if (note := part.note(url)) is None or part.size != note.length:
                self._transfer(url, part, note, watch)
        except httpx.HTTPError as error:
            raise judged(error) from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise TransferError(f"not an address: {error}") from None
        except Again as error:
            self._waiting.quiet(error.wait)
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
        with part.bytes.open("ab") as file:
            for chunk in answer.iter_raw():
                if self.closed.is_set():
                    raise Stopped
                if size == 0:
                    refuse_web_page(answer, chunk)
                file.write(chunk)
                file.flush()  # a killed process has lost nothing that had arrived
                size += len(chunk)
                watch(size, note.length)


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes 0.1 s
