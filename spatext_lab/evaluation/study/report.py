# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab study collect`: which method the raters preferred, and how sure that is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatext_lab.evaluation import tables
from spatext_lab.evaluation.study.answers import Answer, Reading, read
from spatext_lab.evaluation.study.pairs import QUESTIONS, Key
from spatext_lab.evaluation.study.statistics import answers_needed, binomial_interval, fleiss_kappa
from spatext_lab.scene import files

LISTED = 20  # problems on the page; the JSON file has all

NOTE = """\
Shares are of answers for {first}, with exact 95 % intervals (Clopper-Pearson). The interval of
the answers takes them as independent. Answers of several raters to one pair are not, the more so
the larger kappa is: then it is too narrow, and that of the pairs, one vote each by the majority of
its raters, is the one to quote. Tied pairs have no vote. Kappa is Fleiss' (1: the raters agree, 0:
as by chance). Left: share of answers for the left image, near 0.5 if the side did not matter.
Needed: answers until the interval is {width} wide, at this share and if independent.
"""


@dataclass(frozen=True)
class Report:
    """The result of a study; a notebook shows it as a table.

    Args:
        key: of the study.
        rows: what `summary` returns.
        reading: the answers and the problems.
        width: wanted, of the interval of a share.
    """

    key: Key
    rows: tuple[dict[str, Any], ...]
    reading: Reading
    width: float

    def to_markdown(self) -> str:
        """The table, how to read it, and what was not counted."""
        first, second = self.key.methods
        columns = {"answers": "answers", "raters": "raters", f"share for {first}": "share"}
        columns |= {f"pairs for {first}": "majority", "pairs": "pairs", "tied": "tied"}
        columns |= {"kappa": "kappa", "left": "left", "seconds": "seconds", "needed": "needed"}
        names = [QUESTIONS[row["question"]] for row in self.rows]
        lines = [
            f"# Blind study: {first} or {second}",
            tables.markdown(self.rows, names, columns),
            NOTE.format(first=first, width=self.width),
        ]
        if self.reading.problems:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.reading.counts.items())
            listed = [f"* {p.where}: {p.kind}: {p.what}" for p in self.reading.problems[:LISTED]]
            more = len(self.reading.problems) - LISTED
            listed += [f"* and {more} more, listed in the JSON file"] if more > 0 else []
            lines.append("\n".join([f"Not counted: {kinds}.", "", *listed, ""]))
        return "\n".join(lines)

    def save(self, out: str | os.PathLike) -> None:
        """Write study.md, and study.json with every problem, into the folder `out`."""
        problems = [asdict(problem) for problem in self.reading.problems]
        facts = {"study": self.key.study, "methods": self.key.methods, "width": self.width}
        facts |= {"questions": self.rows, "not_counted": self.reading.counts, "problems": problems}
        files.write(Path(out) / "study.json", json.dumps(facts, indent=2) + "\n")
        files.write(Path(out) / "study.md", self.to_markdown())

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def collect(paths: Sequence[Path], key: Path, *, width: float = 0.1) -> Report:
    """Read the answers to a study and sum them up.

    Args:
        paths: files of answers, the widget's or the page's; they are not changed.
        key: the study's key.json.
        width: of the interval that you want, for the number of answers needed.

    Raises:
        ValueError: a width outside (0, 1), a file that is no key.
        OSError: a file that cannot be read.
    """
    loaded = Key.load(key)
    reading = read(paths, loaded)
    return Report(loaded, tuple(summary(reading.answers, loaded, width)), reading, width)


def summary(answers: Sequence[Answer], key: Key, width: float = 0.1) -> list[dict[str, Any]]:
    """A row for each question that the study asks.

    Returns:
        question; answers and raters, their numbers; share, the fraction of answers for the
        first method; pairs, the number that a majority decided, majority, the fraction of them for
        the first method, and tied, the number of the others; kappa, the agreement of raters; left,
        the fraction of answers for the left image; seconds, the median; needed, see
        `answers_needed`. Intervals of 95 % are under share_95, majority_95, left_95. What cannot be
        computed is None.
    """
    asked = {name for names in key.questions.values() for name in names}
    rows = []
    for question in (name for name in QUESTIONS if name in asked):
        those = [answer for answer in answers if answer.question == question]
        votes = {pair: [0, 0] for pair in key.pairs}  # for the first method, for the second
        for answer in those:
            votes[answer.pair][key.methods.index(key.chosen(answer.pair, answer.answer))] += 1
        counts = np.array(list(votes.values()))
        first, second = counts.T
        row = {"question": question, "answers": len(those)}
        row["raters"] = len({answer.rater for answer in those})
        row |= _share("share", int(first.sum()), len(those))
        won, lost = int((first > second).sum()), int((first < second).sum())
        row |= {"pairs": won + lost} | _share("majority", won, won + lost)
        row["tied"] = int(((first == second) & (first > 0)).sum())
        row["kappa"] = fleiss_kappa(counts)
        row |= _share("left", sum(answer.side == "left" for answer in those), len(those))
        row["seconds"] = float(np.median([a.seconds for a in those])) if those else None
        row["needed"] = answers_needed(width, 0.5 if row["share"] is None else row["share"])
        rows.append(row)
    return rows


def _share(name: str, k: int, n: int) -> dict[str, Any]:
    return {name: k / n if n else None, f"{name}_95": binomial_interval(k, n)}
