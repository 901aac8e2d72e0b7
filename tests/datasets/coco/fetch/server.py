# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine that knows ranges, counts requests, and can be made to misbehave."""

import hashlib
import re
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Trick = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """Serves `files` (content by path); of `tricks[path]` each request takes the first one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(files)
        self.tricks: dict[str, list[Trick]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []  # path and headers of each request
        self.ranges = True
        self.named_by: tuple[str, ...] = ("etag",)  # headers that name a file's version
        self.chunk, self.delay, self.slow = 2**16, 0.0, ""  # in paths with these letters
        self.sent = self.at_once = self.most_at_once = 0  # bytes; requests
        self.clients: set[tuple[str, int]] = set()  # one for each connection
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self) -> list[str]:
        """The paths of all requests so far."""
        return [path for path, _ in self.asked]

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would hold back a body for 40 ms

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked.append((self.path, dict(self.headers)))
            server.clients.add(self.client_address)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            tricks = server.tricks.get(self.path)
            trick = tricks.pop(0) if tricks else None
        try:
            content = server.files.get(self.path)
            if trick:
                trick(self, content or b"")
            elif content is None:
                self.answer(404)
            else:
                self.give(content)
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, status: int, content: bytes = b"nothing here", **headers: str) -> None:
        """One answer with a body; retry_after="1" is the header Retry-After."""
        self.send_response(status)
        headers.setdefault("content_length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.write(content)

    def write(self, content: bytes) -> None:
        for start in range(0, len(content), self.server.chunk):
            self.wfile.write(piece := content[start : start + self.server.chunk])
            with self.server.lock:
                self.server.sent += len(piece)
            if self.server.delay and self.server.slow in self.path:
                time.sleep(self.server.delay)

    def give(self, content: bytes) -> None:
        """As RFC 9110 asks: a range if that is of the version that the client has."""
        known = {name: version(name, content) for name in self.server.named_by}
        headers = {name.removeprefix("weak_"): value for name, value in known.items()}
        strong = [value for name, value in known.items() if not name.startswith("weak")]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not (self.server.ranges and wanted and self.headers.get("If-Range") in (None, *strong)):
            return self.answer(200, content, **headers)
        start = int(wanted[1])
        if start >= len(content):
            return self.answer(416, b"", content_range=f"bytes */{len(content)}")
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206, content[start:], content_range=span, **headers)


def version(header: str, content: bytes) -> str:
    """A name for this content, in the form of a header."""
    digest = hashlib.sha1(content).hexdigest()
    if header == "last_modified":
        return formatdate(int(digest[:7], 16), usegmt=True)
    return f'W/"{digest}"' if header == "weak_etag" else f'"{digest}"'


# --- tricks ---------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Trick:
    return lambda handler, content: handler.answer(code, b"no", **headers)


def says(content: bytes, kind: str = "image/jpeg", **headers: str) -> Trick:
    """Another content."""
    return lambda handler, _: handler.answer(200, content, content_type=kind, **headers)


def cut(at: int) -> Trick:
    """The connection ends after so many bytes of the body, which was promised whole."""

    def trick(handler: Handler, content: bytes) -> None:
        begun = re.match(r"bytes=(\d+)-", handler.headers.get("Range", "bytes=0-"))
        real, handler.write = handler.write, lambda body: None
        handler.give(content)
        handler.write = real
        handler.write(content[int(begun[1]) :][:at])
        handler.close_connection = True

    return trick


def wrong_length(more: int) -> Trick:
    """A Content-Length that is not the body's."""

    def trick(handler: Handler, content: bytes) -> None:
        length = len(content) + more
        handler.answer(200, content[: min(length, len(content))], content_length=str(length))
        handler.close_connection = True

    return trick
