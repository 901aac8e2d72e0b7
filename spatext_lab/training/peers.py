# SPDX-License-Identifier: Apache-2.0
"""The other processes of a run: how they are reached, and how it is noticed that one has ended."""

import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

import psutil
import torch.distributed as dist

from spatext_lab.training import launch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = timedelta(days=1)  # of the others while process 0 fills a cache or writes


@cache
def words() -> dist.ProcessGroup:
    """The group for what is small and for what takes long.

    It is gloo's on GPUs too: it notices at once when a process is gone, where NCCL may wait.
    """
    return dist.new_group(backend="gloo", timeout=PATIENCE)


@dataclass(frozen=True)
class Place:
    """Where a process runs."""

    machine: str
    launcher: str  # the number of the torchrun that has started it
    number: int  # that the system gives it


@cache
def places() -> list[Place]:
    """Where each process runs."""
    here = Place(platform.node(), os.environ.get("GROUP_RANK", "0"), os.getpid())
    found = [here] * launch.count()
    dist.all_gather_object(found, here, group=words())
    return found


def _ended() -> str:
    """Which processes of the same torchrun are there no more, in words."""
    found = places() if dist.is_initialized() else []
    mine = replace(found[launch.rank()], number=0) if found else None
    here = [(k, each.number) for k, each in enumerate(found) if replace(each, number=0) == mine]
    return ", ".join(f"process {k} has ended" for k, number in here if _gone(number))


def _gone(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def together() -> Iterator[None]:
    """Says what it means when the others cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(0.5)  # a process that ends closes its connections first
        some = f"one of the {launch.count()} processes has ended or cannot be reached ({error})"
        raise ConnectionError(_ended() or some) from None


@contextmanager
def ending_once() -> Iterator[None]:
    """Where several processes share a run, SIGTERM ends it as Ctrl-C does, and both only once.

    torchrun sends it when another process has ended.
    """
    if launch.count() == 1:
        yield
        return
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    except BaseException:
        _ignore_signals()  # the process ends, and has yet to say why
        raise
    for number, handler in before.items():
        signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    _ignore_signals()
    if number == signal.SIGTERM:
        raise KeyboardInterrupt(_ended() or "another process has ended, or torchrun was stopped")
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
