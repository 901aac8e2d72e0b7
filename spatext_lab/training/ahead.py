# SPDX-License-Identifier: Apache-2.0
"""Training data that is rendered without end: block by block, on a GPU ahead of the training."""

from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from spatext_lab.training import launch
from spatext_lab.training.plan import cores

_CHUNK = 64


def renderers(device: str) -> ProcessPoolExecutor | None:
    """Processes that render while a GPU trains, one per core but its own; None on the CPU.

    A GPU is done with a batch before one core has rendered the next. On the CPU training itself
    keeps the core busy.
    """
    count = cores() // launch.count_here() - 1
    if device != "cuda" or count < 1:
        return None
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


class Ahead:
    """Items that are pure functions of their number, in blocks of `size`.

    Args:
        item: from a number to the item; with `pool`, it has to be picklable.
        size: items per block.
        pool: renders a block and the one after it; None to render here, when a block is needed.
            The items are the same.
    """

    def __init__(self, item: Callable[[int], Any], size: int, pool: Executor | None = None) -> None:
        self.item, self.size, self.pool = item, size, pool
        self.begun: dict[int, Any] = {}

    def block(self, number: int) -> list[Any]:
        """Items `number` x size to (`number` + 1) x size - 1."""
        if self.pool is None:
            return [self.item(i) for i in self._numbers(number)]
        for each in (number, number + 1):
            if each not in self.begun:
                numbers = self._numbers(each)
                self.begun[each] = self.pool.map(self.item, numbers, chunksize=_CHUNK)
        return list(self.begun.pop(number))

    def _numbers(self, block: int) -> range:
        return range(block * self.size, (block + 1) * self.size)
