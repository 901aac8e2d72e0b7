# SPDX-License-Identifier: Apache-2.0
"""Data that other processes render ahead: the same items, each once, in order."""

from concurrent.futures import Executor, Future

from spatext_lab.training.ahead import Ahead, renderers


def square(number: int) -> int:
    return number * number


class Pool(Executor):
    """Like a pool of processes; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked = []

    def map(self, item, numbers, chunksize):
        self.asked.append(numbers)
        return map(item, numbers)


def test_blocks_are_items_by_number():
    ahead = Ahead(square, 3)
    assert ahead.block(0) == [0, 1, 4]
    assert ahead.block(2) == [36, 49, 64]


def test_the_next_block_is_rendered_too_and_none_twice():
    pool = Pool()
    ahead = Ahead(square, 3, pool)
    blocks = [ahead.block(number) for number in (4, 5, 6)]
    assert blocks == [Ahead(square, 3).block(number) for number in (4, 5, 6)]
    assert pool.asked == [range(12, 15), range(15, 18), range(18, 21), range(21, 24)]


def test_processes_render_the_same_items():
    with renderers("cuda") as pool:
        assert Ahead(abs, 200, pool).block(1) == list(range(200, 400))
        assert isinstance(pool.submit(abs, -1), Future)


def test_the_cpu_renders_itself():
    assert renderers("cpu") is None
