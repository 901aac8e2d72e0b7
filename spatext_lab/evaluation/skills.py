# SPDX-License-Identifier: Apache-2.0
"""PaintSkills: does an image show the kind, the number, the colour, the relation asked for?

Cho, Zala and Bansal, "DALL-Eval", arXiv 2202.04053. The rules are those of the released
evaluator (j-min/DallEval; colour from its first version), with these errors corrected:

* Spatial: it checked that exactly two objects are seen only while images of the detections were
  saved, so that saving them changed the score. Here the check belongs to the rule.
* Count: it took as many detections as there were confident ones of any kind, so that a confident
  cat let an uncertain dog count as a dog. Here an object counts if it is confident itself. The
  first version also took one detection where none was confident; here that is none.
* It read an option (`FT`) that was never defined, and looked for weights under another name than
  it had downloaded. Here a rule has no options, and the judge comes from `zoo`, which refuses a
  damaged file.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

from PIL import Image

from spatext_lab import zoo
from spatext_lab.datasets.pocket import COLOURS, KINDS
from spatext_lab.datasets.pocket.paintskills import (
    SKILLS,
    SPLITS,
    SkillItem,
    SkillPrompt,
    Thing,
    skill_item,
)
from spatext_lab.datasets.published_paintskills import read_prompts
from spatext_lab.evaluation.boxes import Detection, detections
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.metrics import mean_and_interval
from spatext_lab.evaluation.report import sampled
from spatext_lab.evaluation.tasks import Task
from spatext_lab.scene.places import Box

THRESHOLD = 0.7  # the released evaluator's threshold


def object_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """Whether the most confident detection is of the kind."""
    return bool(found) and _best(found).label == item.things[0].kind


def count_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """Whether as many confident objects of the kind are seen as asked for; others do not count."""
    kind = item.things[0].kind
    return sum(one.label == kind for one in _confident(found)) == len(item.things)


def colour_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """Whether the most confident detection is of the kind, and in the colour."""
    return object_right(found, item) and _best(found).colour == item.things[0].colour


def spatial_right(found: Sequence[Detection], item: SkillPrompt) -> bool:
    """Whether exactly two confident objects are seen: the two kinds, the second where it should be.

    Two objects of one kind (in the published set alone) may stand either way round.
    """
    kinds = [thing.kind for thing in item.things]
    confident = _confident(found)
    return len(confident) == 2 and any(
        [a.label, b.label] == kinds and side(a.box, b.box) == item.relation
        for a, b in permutations(confident)
    )


def side(a: Box, b: Box) -> str:
    """Where b is as seen from a, by the axis on which the centres are farther apart."""
    # twice the distance of the centres
    right, down = (b[k] + b[k + 2] - a[k] - a[k + 2] for k in (0, 1))
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "above" if down < 0 else "below"


def _best(found: Sequence[Detection]) -> Detection:
    return max(found, key=lambda one: one.score)


def _confident(found: Sequence[Detection]) -> list[Detection]:
    return [one for one in found if one.score > THRESHOLD]


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
    published: Path | None = None,
) -> dict:
    """How often a method does what the prompts of each skill ask for.

    Args:
        method: a name in METHODS; "true" and "autoencoder" give the ceilings that the judge sets.
        prompts: how many of each skill, the first ones.
        seed: of the first image.
        model: as in `report.evaluate`; the judge is always the shipped one.
        skills: some of SKILLS.
        published: a file of the published PaintSkills, ROOT/count/scenes/count_val.json, whose
            prompts are used in place of the pocket world's; those that ask for a kind or a colour
            that the judge does not know are left out and counted.

    Returns:
        method, prompts, seed, settings, and for each skill its accuracy in [0, 1] under its name
        and a 95 % interval under its name with `_95`; for a published file, `left_out` too.

    Raises:
        ValueError: an unknown method or skill, a method that needs true segments (or, for published
            prompts, true images), more prompts than a skill has or fewer than 1, and a file with no
            prompt that the judge could answer; and what reading the model or the file raises.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if method == "true-vectors":
        raise ValueError(f"method is {method!r}, which needs true segments; a skill gives boxes")
    if published is not None:
        if method in ("true", "autoencoder"):
            raise ValueError(f"method is {method!r}; published prompts have no true images")
        if prompts < 1:
            raise ValueError(f"prompts is {prompts}; pass at least 1")
        items, left_out = published_items(published)
        chosen = {items[0].skill: items[:prompts]}
        counted = {"prompts": len(items[:prompts]), "left_out": left_out}
    else:
        chosen = {skill: _pocket_items(skill, prompts) for skill in skills}
        counted = {"prompts": prompts}
    settings = METHODS[method].settings
    sampler = METHODS[method].load(model, settings)
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    report = {"method": method} | counted | {"seed": seed}
    for skill, items in chosen.items():
        todo = [Task(item, item.scene) for item in items]
        images = sampled(sampler, todo, seed, f"{method}, {skill}")
        report |= mean_and_interval(skill, _answers(items, images, judge), range(len(items)))
    return report | {"settings": settings}


def _pocket_items(skill: str, prompts: int) -> list[SkillItem]:
    """The first validation prompts of a skill in the pocket world."""
    if skill not in RULES:
        raise ValueError(f"skill is {skill!r}; there are {', '.join(RULES)}")
    if not 1 <= prompts <= SPLITS[skill]["val"]:
        raise ValueError(f"prompts is {prompts}; {skill} has 1 to {SPLITS[skill]['val']}")
    return [skill_item(skill, "val", index) for index in range(prompts)]


def published_items(file: Path) -> tuple[list[SkillPrompt], int]:
    """The prompts of a published scene file that the judge can answer, and how many it cannot.

    Args:
        file: in the published layout, ROOT/count/scenes/count_val.json.

    Raises:
        FileNotFoundError, ValueError: what `read_prompts` raises, a path that is not of this
            form, and a file with no prompt that the judge could answer.
    """
    found = read_prompts(file)
    kept = [one for one in found if all(map(_can_be_judged, one.things))]
    if not kept:
        raise ValueError(
            f"{file}: none of the {len(found)} prompts asks for what the judge knows: "
            f"{', '.join(KINDS)}, in {', '.join(COLOURS)}"
        )
    return kept, len(found) - len(kept)


def _can_be_judged(thing: Thing) -> bool:
    return thing.kind in KINDS and thing.colour in (None, *COLOURS)


def _answers(
    items: Sequence[SkillPrompt], images: Sequence[Image.Image], judge: Judge
) -> list[bool]:
    pairs = zip(detections(images, judge), items, strict=True)
    return [RULES[item.skill](found, item) for found, item in pairs]
