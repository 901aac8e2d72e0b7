# SPDX-License-Identifier: Apache-2.0
"""PaintSkills: does a picture show the kind, the number, the colour, the relation asked for?

Cho, Zala and Bansal, "DALL-Eval", arXiv 2202.04053. The rules are those of the released
evaluator (j-min/DallEval; colour from its first version), of which this was wrong and is mended:

* Spatial: that two things and no more are seen was checked only while pictures of the detections
  were saved, so that looking changed the score. Here the check belongs to the rule.
* Count: it took as many answers as there were sure ones of any kind, so that a sure cat let an
  unsure dog count as a dog. Here a thing counts if it is sure itself. The first version also took
  one answer where none was sure; here nothing seen is none.
* It read an option (`FT`) that nobody had defined, and looked for weights under another name than
  it had fetched. Neither can exist here: a rule has no options, and the judge comes from `zoo`,
  which knows one name for it and refuses a damaged file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image

from spatext_lab import zoo
from spatext_lab.datasets.pocket.paintskills import (
    SKILLS,
    SPLITS,
    SkillItem,
    SkillPrompt,
    skill_item,
)
from spatext_lab.evaluation.boxes import Detection, detections
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.metrics import bootstrap
from spatext_lab.evaluation.report import drawn
from spatext_lab.scene import Scene
from spatext_lab.scene.places import Box

SURE = 0.7  # the released evaluator's threshold
_BATCH = 16


@dataclass(frozen=True)
class SkillTask:
    """A prompt as a method is given it."""

    item: SkillItem

    @property
    def scene(self) -> Scene:
        """The prompt and its layout."""
        return self.item.scene


def object_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """The surest thing is of the kind."""
    return bool(found) and _surest(found).label == item.things[0].kind


def count_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """As many sure things of the kind as asked for; others do not count against it."""
    kind = item.things[0].kind
    return sum(one.label == kind for one in _sure(found)) == len(item.things)


def colour_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """The surest thing is of the kind, and in the colour."""
    return object_right(found, item) and _surest(found).colour == item.things[0].colour


def spatial_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """Exactly two sure things: the two kinds, the second one where it should be.

    Two things of one kind (in the published set alone) may stand either way round.
    """
    kinds = [thing.kind for thing in item.things]
    sure = _sure(found)
    return len(sure) == 2 and any(
        [a.label, b.label] == kinds and side(a.box, b.box) == item.relation
        for a, b in permutations(sure)
    )


def side(a: Box, b: Box) -> str:
    """Where b is as seen from a, by the axis on which the centres are farther apart."""
    # twice the way from centre to centre
    right, down = (b[k] + b[k + 2] - a[k] - a[k + 2] for k in (0, 1))
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "above" if down < 0 else "below"


def _surest(found: Sequence[Detection]) -> Detection:
    return max(found, key=lambda one: one.score)


def _sure(found: Sequence[Detection]) -> list[Detection]:
    return [one for one in found if one.score > SURE]


Rule = Callable[[Sequence[Detection], SkillPrompt], bool]
RULES: dict[str, Rule] = {
    "object": object_right,
    "count": count_right,
    "colour": colour_right,
    "spatial": spatial_right,
}


def evaluate_skills(
    method: str,
    prompts: int = 512,
    seed: int = 0,
    model: str = "pocket",
    skills: Sequence[str] = SKILLS,
) -> dict:
    """How often `method` does what the first `prompts` validation prompts of each skill ask for.

    method: a name in METHODS; "true" and "autoencoder" give the ceilings that the judge sets.
    model: as in `report.evaluate`; the judge is always the shipped one.

    Returns method, prompts, seed, settings, and for each skill its accuracy in [0, 1] under its
    name and a 95 % interval under its name with `_95`.
    Raises ValueError for an unknown method or skill, for a method that draws from true segments,
    and for more prompts than a skill has or fewer than 1; and what reading the model raises.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if method == "true-vectors":
        raise ValueError(f"method is {method!r}, which needs true segments; a skill gives boxes")
    for skill in skills:
        if skill not in RULES:
            raise ValueError(f"skill is {skill!r}; there are {', '.join(RULES)}")
        if not 1 <= prompts <= SPLITS[skill]["val"]:
            raise ValueError(f"prompts is {prompts}; {skill} has 1 to {SPLITS[skill]['val']}")
    draw = METHODS[method].drawer(model)
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    report = {"method": method, "prompts": prompts, "seed": seed}
    for skill in skills:
        todo = [SkillTask(skill_item(skill, "val", index)) for index in range(prompts)]
        right = _answers(todo, drawn(draw, todo, seed, f"{method}, {skill}"), judge)
        report[skill] = round(float(np.mean(right)), 4)
        report[f"{skill}_95"] = [round(x, 4) for x in bootstrap(right, range(prompts))]
    return report | {"settings": METHODS[method].settings}


def _answers(todo: Sequence[SkillTask], images: Sequence[Image.Image], judge: Judge) -> list[bool]:
    right = []
    for start in range(0, len(todo), _BATCH):
        some = slice(start, start + _BATCH)
        for found, task in zip(detections(images[some], judge), todo[some], strict=True):
            right.append(RULES[task.item.skill](found, task.item))
    return right
