# SPDX-License-Identifier: Apache-2.0
"""How long to wait before another attempt, and when to give up."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

import tenacity

from spatext_lab.datasets.coco.fetch.answers import TransferError

WORTH_SAYING = 2.0  # seconds of a pause
SILENT = 10.0  # seconds between two lines: eight transfers would say the same


class Stopped(Exception):
    """The downloader was closed during a transfer; what has arrived stays."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often to try again.

    Args:
        attempts: in a row without a new byte, the first one included.
        first: seconds, the longest pause after one failure; doubled with each more.
        longest: seconds, of any pause.
        silence: seconds without a byte, after which a connection is given up.
        asked: seconds, the longest wait that a server may ask for (Retry-After).
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 60.0
    silence: float = 30.0
    asked: float = 300.0

    def pause(self, failed: int) -> float:
        """Seconds after so many failures: random, so that eight do not come back at once."""
        return random.uniform(0, min(self.longest, self.first * 2 ** (failed - 1)))


class Tries:
    """How often in a row one transfer has failed without a new byte.

    Args:
        patience: how often it may.
    """

    def __init__(self, patience: Patience):
        self.failed = 0
        self._most = 0
        self._patience = patience

    def arrived(self, size: int) -> None:
        """After an attempt, whatever came of it: the bytes that are there now."""
        self.failed = 1 if size > self._most else self.failed + 1
        self._most = max(self._most, size)

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt."""
        return self._patience.pause(self.failed)

    def over(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give up."""
        return self.failed >= self._patience.attempts


class Waiting:
    """The pauses of all transfers together.

    Args:
        patience: the longest wait that a server may ask for.
        tell: called with a line when nothing happens for long.
    """

    def __init__(self, patience: Patience, tell: Callable[[str], None]):
        self.closed = Event()
        self._patience, self._tell = patience, tell
        self._told = float("-inf")
        self._quiet_until = 0.0  # monotonic: a server wants no request until then

    def quiet(self, seconds: float) -> None:
        """A server has asked everybody to wait."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def keep_quiet(self) -> None:
        """Waits as long as a server has asked for, and a little more, each transfer another.

        Raises:
            TransferError: that is too long, so that it is not asked again.
            Stopped: meanwhile all was closed.
        """
        seconds = self._quiet_until - time.monotonic()
        if seconds > self._patience.asked:
            raise TransferError(f"the server asks to wait for {seconds:.0f} s: run again then")
        self.sleep(seconds + self._patience.pause(1) if seconds > 0 else 0.0)

    def sleep(self, seconds: float) -> None:
        """Waits, unless all is closed.

        Raises:
            Stopped: it is.
        """
        if self.closed.wait(seconds):
            raise Stopped

    def say(self, what: str, pause: float) -> None:
        """Tells why nothing happens, if the pause is long."""
        now = time.monotonic()
        pause = max(pause, self._quiet_until - now)
        if pause >= WORTH_SAYING and now - self._told >= SILENT:
            self._told = now
            self._tell(f"{what}; again in {pause:.0f} s")
