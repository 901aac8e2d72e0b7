# SPDX-License-Identifier: Apache-2.0
"""Many files at a time, by threads; one that cannot be had does not stop the others."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic

from spatext_lab.datasets.coco.fetch.answers import TransferError
from spatext_lab.datasets.coco.fetch.download import AT_A_TIME, Downloader
from spatext_lab.datasets.coco.fetch.waiting import Stopped

HOPELESS = 3 * AT_A_TIME  # failures in a row after which the rest is not tried
NOT_TRIED = f"not tried, for {HOPELESS} others in a row had failed"
_PATIENCE = 1.0  # seconds for threads to end; they are daemons, and any moment will do


@dataclass(frozen=True)
class Order:
    """One file to fetch.

    Args:
        url: its address.
        path: its place.
        check: raises ValueError if a file is not the one wanted.
    """

    url: str
    path: Path
    check: Callable[[Path], None]


Result = tuple[Order, int, TransferError | None]  # bytes; why it cannot be had


def fetch_all(downloader: Downloader, orders: Sequence[Order]) -> Iterator[Result]:
    """Fetches files, `AT_A_TIME` at a time.

    Yields:
        Each order when it is done, with its size in bytes or with what went wrong.

    Raises:
        OSError: a file cannot be written; the others are given up too.
    """
    waiting, done = deque(orders), Queue()
    open_orders = {order.path: order for order in orders}
    failed = 0
    with _crew(downloader, waiting, done):
        while open_orders and failed < HOPELESS:
            order, size, error = _next(done)
            if error is not None and not isinstance(error, TransferError):
                raise error
            del open_orders[order.path]
            yield order, size, error
            failed = failed + 1 if error else 0
        if open_orders:
            downloader.closed.set()
    for order in open_orders.values():
        yield order, 0, TransferError(NOT_TRIED)


@contextmanager
def _crew(downloader: Downloader, waiting: deque, done: Queue) -> Iterator[None]:
    """Threads that work on what is waiting; if the block is left early, they stop."""
    threads = [
        Thread(target=_work, args=(downloader, waiting, done), daemon=True)
        for _ in range(min(AT_A_TIME, len(waiting)))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException:
        downloader.closed.set()
        raise
    finally:
        until = monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - monotonic()))


def _work(downloader: Downloader, waiting: deque, done: Queue) -> None:
    while not downloader.closed.is_set():
        try:
            order = waiting.popleft()
        except IndexError:
            return
        try:
            done.put((order, downloader.fetch(order.url, order.path, order.check), None))
        except Stopped:
            return
        except Exception as error:  # the thread that waits for it judges it
            done.put((order, 0, error))


def _next(done: Queue) -> Result:
    """The next result; the wait has pauses, for Ctrl-C ends no endless one on Windows."""
    while True:
        try:
            return done.get(timeout=0.5)
        except Empty:
            continue
