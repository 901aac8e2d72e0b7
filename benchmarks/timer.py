# SPDX-License-Identifier: Apache-2.0
"""A fair clock: two sides in alternation, medians, and the table of their ratios."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

ROUNDS = 5
COLUMNS = ("", "ours", "peer", "ratio", "ratio, wall", "goal", "met")


@dataclass(frozen=True)
class Setup:
    """What the benchmarks run on.

    Args:
        models: the model folder, see `zoo.folder`.
        folder: where files are kept that the next run uses again.
        quick: small work, to see that everything runs; its ratios mean nothing.
    """

    models: str = "pocket"
    folder: Path = Path("outputs/benchmarks")
    quick: bool = False

    @property
    def steps(self) -> int:
        """Denoising steps of an image."""
        return 2 if self.quick else 10


@dataclass(frozen=True)
class Case:
    """One row: the same work, done by two sides.

    Args:
        what: the work, and against whom.
        ours, peer: do it once and return what came out.
        goal: the ratio of ours to the peer's that is wanted, at most.
        clock: what is compared: "CPU" seconds of this process and of children that have ended,
            "wall" seconds, or "memory", the attribute `peak` of both sides after a call, in GB.
        same: whether both return the same, which a test compares.
    """

    what: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    goal: float | None = None
    clock: Literal["CPU", "wall", "memory"] = "CPU"
    same: bool = True


@dataclass(frozen=True)
class Row:
    """What was measured of a case, round by round; seconds, or GB."""

    what: str
    clock: str
    ours: list[float]
    peer: list[float]
    wall_ratio: float
    goal: float | None

    @property
    def ratio(self) -> float:
        """Median of ours by median of the peer's."""
        return median(self.ours) / median(self.peer)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.ratio <= self.goal

    def cells(self) -> list[str]:
        """The row of the table."""
        unit = {"CPU": "s", "wall": "s (wall)", "memory": "GB"}[self.clock]
        sides = (
            f"{median(each):.3g} ({min(each):.3g}–{max(each):.3g}) {unit}"
            for each in (self.ours, self.peer)
        )
        goal = "" if self.goal is None else f"≤ {self.goal:.2f}x"
        met = {None: "", True: "yes", False: "no"}[self.met]
        wall = "" if self.clock == "memory" else f"{self.wall_ratio:.2f}x"
        return [self.what, *sides, f"{self.ratio:.2f}x", wall, goal, met]

    def to_dict(self) -> dict:
        """The row for a JSON file."""
        return asdict(self) | {"ratio": self.ratio, "met": self.met}


def measure(case: Case, rounds: int = ROUNDS) -> Row:
    """Both sides in alternation, after a round that does not count."""
    found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for name, side in (("ours", case.ours), ("peer", case.peer)):
            cpu, wall = _cpu(), time.perf_counter()
            side()
            wall, cpu = time.perf_counter() - wall, _cpu() - cpu
            if number:
                found[name].append((cpu, wall, getattr(side, "peak", 0.0)))
    kind = ("CPU", "wall", "memory").index(case.clock)
    ours, peer = ([each[kind] for each in found[name]] for name in ("ours", "peer"))
    walls = [median(each[1] for each in found[name]) for name in ("ours", "peer")]
    return Row(case.what, case.clock, ours, peer, walls[0] / walls[1], case.goal)


def _cpu() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])  # the first is finer


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
