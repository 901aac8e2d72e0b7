# SPDX-License-Identifier: Apache-2.0
"""The answers of a blind study: one JSON line each, appended, and read back with every problem.

    {"study": "5f0c...", "rater": "anna", "pair": "p07", "question": "better", "answer": "x",
     "side": "left", "time": "2026-11-26T10:00:00.000Z", "seconds": 3.2}

Which method x is, only the study's key says.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from spatext_lab.evaluation.study.pairs import Key


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a rater chose.

    Args:
        study: id of the study.
        rater: a name that the rater chose or was given.
        pair: id of the pair.
        question: name of the question.
        answer: which image of the pair was chosen, x or y of the sheet.
        side: where it was shown.
        time: when, ISO 8601 in UTC.
        seconds: from seeing the question to the answer.
    """

    study: str
    rater: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    pair: str
    question: str
    answer: Literal["x", "y"]
    side: Literal["left", "right"]
    time: str
    seconds: Annotated[float, msgspec.Meta(ge=0)]

    @property
    def asked(self) -> tuple[str, str, str]:
        """Who was asked what: (rater, pair, question)."""
        return self.rater, self.pair, self.question


@dataclass(frozen=True)
class Problem:
    """A line that is not counted, and why.

    Args:
        kind: "damaged", "another study", "unknown pair or question" or "answered before".
        where: file and line.
        what: a sentence.
    """

    kind: str
    where: str
    what: str


@dataclass(frozen=True)
class Reading:
    """What files of answers hold.

    Args:
        answers: those that count, in the order of their times; one for a rater, pair and question.
        problems: the others.
    """

    answers: tuple[Answer, ...]
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of problems of each kind."""
        return dict(Counter(problem.kind for problem in self.problems))


def append(path: str | os.PathLike, answer: Answer) -> None:
    """Add a line to a file of answers and wait until it is on the disk.

    The line is written in one piece, after whatever another process has written. What a killed
    process left of a line is ended first, and no line before it is touched.

    Raises:
        OSError: it cannot be written; the answer does not count then.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(answer) + b"\n"
    with open(path, "a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        os.fsync(file.fileno())


def read(paths: Sequence[str | os.PathLike], key: Key) -> Reading:
    """Read files of answers, the widget's JSON lines or the page's JSON files.

    Args:
        paths: the files; they are not changed.
        key: of the study.

    Raises:
        OSError: a file that cannot be read.
    """
    found, problems = [], []
    for where, text in (entry for path in paths for entry in _entries(Path(path))):
        try:
            answer = msgspec.json.decode(text, type=Answer)
        except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
            problems.append(Problem("damaged", where, f"{error}: {text!r:.80}"))
            continue
        if answer.study != key.study:
            what = f"it answers the study {answer.study!r:.40}, the key is of {key.study}"
            problems.append(Problem("another study", where, what))
        elif answer.question not in key.questions.get(answer.pair, ()):
            what = f"the study has no question {answer.question!r:.40} of {answer.pair!r:.40}"
            problems.append(Problem("unknown pair or question", where, what))
        else:
            found.append((where, answer))
    first: dict[tuple, Answer] = {}
    for where, answer in sorted(found, key=lambda each: each[1].time):
        counted = first.setdefault(answer.asked, answer)
        if counted is not answer:
            same = "the same answer" if counted == answer else "another answer; the first counts"
            what = f"{answer.rater!r:.40} answered {answer.question} of {answer.pair}: {same}"
            problems.append(Problem("answered before", where, what))
    return Reading(tuple(first.values()), tuple(problems))


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Place and text of each answer in a file: of a JSON list, or of its lines where it is none.

    The page's file is a list with a line for each answer, so the rest of a damaged one is read.
    """
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        for k, entry in enumerate(whole, start=1):
            yield f"{path}, answer {k}", json.dumps(entry).encode()
        return
    for k, line in enumerate(content.splitlines(), start=1):
        if (text := line.strip().removesuffix(b",")) not in (b"", b"[", b"]"):
            yield f"{path}, line {k}", text
