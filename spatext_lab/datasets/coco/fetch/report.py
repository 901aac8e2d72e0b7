# SPDX-License-Identifier: Apache-2.0
"""What a fetch has brought, and what could not be had."""

from dataclasses import dataclass, field

from spatext_lab.datasets.coco.fetch.archives import size
from spatext_lab.datasets.coco.item import CocoSubset
from spatext_lab.datasets.coco.report import printable

NAMES_SHOWN = 10


@dataclass
class FetchReport:
    """A subset of COCO, and how its photos came to be there.

    Args:
        subset: the photos that were chosen; those that failed are among them.
        fetched: number of photos that were fetched.
        bytes: their size together.
        failed: for each photo that could not be had, "ADDRESS" and the reason.
        notes: what else a reader should know.
    """

    subset: CocoSubset
    fetched: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """All of it: what was chosen and what was left out, what was fetched and what failed."""
        there = len(self.subset.items) - self.fetched - len(self.failed)
        counts = (
            f"photos: {there} were there, {self.fetched} fetched ({size(self.bytes)}), "
            f"{len(self.failed)} failed"
        )
        own = printable([*self.notes, counts, *self._failures()])
        return f"{self.subset.report.text()}\n{own}"

    def _failures(self) -> list[str]:
        lines = []
        for reason in sorted(set(self.failed.values())):
            names = [name for name, why in self.failed.items() if why == reason]
            lines.append(f"  {len(names)} x {reason}")
            lines += [f"      {name}" for name in names[:NAMES_SHOWN]]
            lines += ["      ..."] if len(names) > NAMES_SHOWN else []
        return lines
