# SPDX-License-Identifier: Apache-2.0
"""How this process was started, alone or as one of several that share a run, and who speaks.

torchrun and `accelerate launch` say it in the environment. Nothing here imports torch, unless the
processes have met already.
"""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta


def count() -> int:
    """How many processes share the run, on all machines; 1 where the environment names none."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number among them; process 0 prints and writes."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count_here() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1


def is_first_here() -> bool:
    """Whether it is the first of its machine."""
    return count() == 1 or int(os.environ.get("LOCAL_RANK", 0)) == 0


def speaks() -> bool:
    """Whether this process says why a run ends: the first one of its machine that asks.

    Where one process fails, all end; where all have the same wrong input, all find the same fault.
    Either way a person wants one line.
    """
    if count() == 1:
        return True
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():  # no way to ask the others yet
        return is_first_here()
    place, me = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), str(rank())
    try:
        store = distributed.TCPStore(*place, timeout=timedelta(seconds=5), wait_for_workers=False)
        return store.compare_set(f"says/{platform.node()}", "", me) == me.encode()
    except RuntimeError:  # its keeper is gone, and perhaps whoever could have spoken
        return True


@contextmanager
def one_voice() -> Iterator[None]:
    """Silences all processes but the first: words, warnings and bars, though not their errors."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        yield
