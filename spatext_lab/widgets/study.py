# SPDX-License-Identifier: Apache-2.0
"""A blind study in the notebook: two images of a scene, which one is better?

    study = Study([Pair(scene, {"spatext": image, "reco": other}), ...], "answers.jsonl")
    study              # keys 1 and 2, or the arrows; stop and go on as you like
    study.collect()    # the shares so far, with intervals

Sides and order are random, and no name of a method reaches the page: its images are x and y.
Whoever runs the cells has the pairs in the kernel, so ask somebody else, or do not look. For a
class there is `study_page.make`, a page that needs no kernel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import msgspec
import traitlets

from spatext_lab.evaluation.study.answers import Answer, Reading, append, read
from spatext_lab.evaluation.study.pairs import Pair, blind
from spatext_lab.evaluation.study.report import Report, summary
from spatext_lab.widgets.sources import script, style


class Study(anywidget.AnyWidget):
    """A widget that asks three questions about each pair and appends the answers to a file.

    Args:
        pairs: all by the same two methods.
        answers: the file, JSON lines; those to this study that are there already are not asked
            again.
        rater: the name that the page suggests, the last one in the file if not given; the rater may
            choose another.
        seed: of the choice which image of a pair is x.

    Raises:
        ValueError: what `blind` refuses.
    """

    _esm = script("study")
    _css = style("study")

    sheet = traitlets.Dict().tag(sync=True)
    answers = traitlets.Unicode().tag(sync=True)
    rater = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        pairs: Sequence[Pair],
        answers: str | os.PathLike = "answers.jsonl",
        *,
        rater: str = "",
        seed: int = 0,
    ) -> None:
        sheet, self.key = blind(pairs, seed)
        super().__init__(sheet=sheet, answers=os.fspath(answers))
        before = self._reading().answers
        self.rater = rater or (before[-1].rater if before else "")
        self.on_msg(self._asked)

    def collect(self, width: float = 0.1) -> Report:
        """The result so far; `key.save` and `spatext-lab study collect` do the same in a terminal.

        Args:
            width: wanted, of the interval of a share.

        Raises:
            ValueError: a width out of range.
        """
        reading = self._reading()
        return Report(self.key, tuple(summary(reading.answers, self.key, width)), reading, width)

    def __repr__(self) -> str:
        return f"<Study: {len(self.key.pairs)} pairs; needs a running kernel, see study_page.make>"

    def _asked(self, _: Any, message: dict, __: Any) -> None:
        """A rater begins, or has answered; a ping is answered too."""
        try:
            answer = {"answered": []}
            if "answer" in message:
                self._keep(msgspec.convert(message["answer"], Answer))
            elif "rater" in message:
                done = (each for each in self._reading().answers if each.rater == message["rater"])
                answer["answered"] = [(each.pair, each.question) for each in done]
        except Exception as error:  # the page has to hear of each
            answer = {"problem": f"{type(error).__name__}: {error}"}
        self.send(answer | {"number": message.get("number")})

    def _keep(self, answer: Answer) -> None:
        """Appends an answer, once: the page asks again where it has heard nothing."""
        if answer.asked not in {each.asked for each in self._reading().answers}:
            append(self.answers, answer)

    def _reading(self) -> Reading:
        return read([self.answers] if Path(self.answers).exists() else [], self.key)
