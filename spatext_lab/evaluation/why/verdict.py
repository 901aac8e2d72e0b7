# SPDX-License-Identifier: Apache-2.0
"""From losses and measurements to plain sentences: what is used, and where to look if it is not.

All thresholds stand here. An effect is the increase of the loss over that under the own layout, as
a fraction of the latter at the same t, so that quiet and noisy timesteps count alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from spatext_lab.evaluation.why.losses import ORDERS, OWN, TURNS

# An effect counts from 1 % of the loss: the shipped ReCo has some 300 %, and a recipe that had
# learned nothing of boxes in 1,400 steps had less than 0.2 % (docs/log.md, 25 November).
LEAST = 0.01
# "Not used" is only said where the interval ends below 10 %; else more images are needed.
CLEAR = 0.10
# Hidden states of two texts that differ in one word: 88 % apart at that word in the shipped ReCo,
# 4 to 19 % in the text encoder that had forgotten words (docs/log.md). For boxes: 67 % and 1 %.
ALIKE = 0.25
# Neighbouring bins, relative to any two: 0.19 in the shipped ReCo, 1 for random embeddings.
RANDOM = 0.5
# What lies outside of the curves of `smooth_rows`: 0.38 in the shipped ReCo, 0 before training.
UNTRAINED = 0.01
# Weights on the map relative to all others: 0.28 in the shipped SpaText, 0 before training.
UNREAD = 0.01
# R^2 of a cell's row and column: 0.2 to 0.45 of the columns in the U-Net that learned no boxes.
LOST = 0.5
DRAWS, INTERVAL = 2000, 0.95

State = Literal["used", "weak", "misread", "unused", "unclear"]


@dataclass(frozen=True)
class Effect:
    """The relative increase of the loss, over all bins of t and in each, with intervals.

    low and high are the 95 % interval of the mean over t, by resampling images. Those of the single
    bins are wider, so that all of them hold at once with 95 % (Bonferroni).
    """

    mean: float
    low: float
    high: float
    by_t: tuple[tuple[float, float, float], ...]  # mean, low, high of each bin


def effect(
    own: Float[np.ndarray, "bins n"], other: Float[np.ndarray, "bins n"], seed: int = 0
) -> Effect:
    """The increase from `own` to `other`, in units of `own`'s mean in the same bin of t.

    Args:
        own, other: losses of the same n images with the same noise, so that differences are paired.
        seed: of the resampling.
    """
    bins, n = own.shape
    relative = (other - own) / own.mean(1, keepdims=True)
    pick = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
    resampled = relative[:, pick].mean(2)
    tail = (1 - INTERVAL) / 2
    low, high = np.quantile(resampled.mean(0), (tail, 1 - tail))
    lows, highs = np.quantile(resampled, (tail / bins, 1 - tail / bins), axis=1)
    by_t = np.stack([relative.mean(1), lows, highs], axis=1).tolist()
    return Effect(float(relative.mean()), float(low), float(high), tuple(map(tuple, by_t)))


@dataclass(frozen=True)
class Finding:
    """What is known about one part of the condition: layout, texts or caption."""

    part: str
    state: State
    sentence: str


@dataclass(frozen=True)
class Cause:
    """A place to look at, and the measurement that points there."""

    where: str
    sentence: str


def findings(
    losses: Mapping[str, Float[np.ndarray, "bins n"]], edges: list[int], noun: str
) -> tuple[list[Finding], dict[str, Effect]]:
    """Which parts of the condition are used, and the effects that say so.

    Args:
        losses: what `paired_losses` returns.
        edges: the first timestep of each bin, and the number of timesteps.
        noun: what a layout consists of, "boxes" or "masks".
    """
    effects = {name: effect(losses[OWN], values) for name, values in losses.items() if name != OWN}
    parts = [
        _finding("layout", f"the {noun}", effects["other layout"], edges),
        _finding("texts", "the region texts", effects["other texts"], edges),
        _finding("caption", "the caption", effects["other caption"], edges),
    ]
    if name := misreading(losses, effects):
        parts[0] = Finding("layout", "misread", _misread(noun, name, effects[name]))
    return parts, effects


def misreading(
    losses: Mapping[str, Float[np.ndarray, "bins n"]], effects: Mapping[str, Effect]
) -> str | None:
    """The wrong way to read a layout that suits the model better than the right one, if any.

    It must have a lower loss than the own layout read rightly, and than no layout at all: any
    change may help a model for which position tokens are nothing but noise.
    """
    able = [
        name
        for name in (*ORDERS, *TURNS)
        if name in effects
        and effects[name].high < -LEAST
        and effect(losses[name], losses["no regions"]).low > LEAST
    ]
    return min(able, key=lambda name: effects[name].mean, default=None)


def _finding(part: str, name: str, found: Effect, edges: list[int]) -> Finding:
    """By the interval of the mean over t; if that is not clear, by the bins' own."""
    verb = "is" if part == "caption" else "are"
    peak = max(range(len(found.by_t)), key=lambda b: found.by_t[b][0])
    if found.low > LEAST:
        most = f"most at {_times(edges, peak)} ({found.by_t[peak][0]:+.0%})"
        said = f"used: with another image's the loss {_changes(found)}, {most}"
        return Finding(part, "used", f"{name} {verb} {said}.")
    strong = [b for b, (_, low, _) in enumerate(found.by_t) if low > LEAST]
    if strong:
        best = max(strong, key=lambda b: found.by_t[b][1])
        mean, low, high = found.by_t[best]
        said = f"{_times(edges, best)} ({mean:+.1%}, {low:+.1%} to {high:+.1%})"
        return Finding(part, "weak", f"{name} {verb} used a little, only at some t: {said}.")
    if found.high < CLEAR:
        bound = max(abs(found.low), abs(found.high), 0.001)
        said = f"own and another image's differ by less than {bound:.1%} of the loss"
        return Finding(part, "unused", f"{name} {verb} NOT used: {said}, {_signed(found)}.")
    said = f"with another image's the loss changes by {_signed(found)}; take more images (--scenes)"
    return Finding(part, "unclear", f"whether {name} {verb} used is not clear: {said}.")


def _misread(noun: str, name: str, found: Effect) -> str:
    return (
        f"the {noun} are used, but read wrongly: {name}. Changed that way, the loss "
        f"{_changes(found)}, and is lower than without any."
    )


def _times(edges: list[int], b: int) -> str:
    return f"t = {edges[b]} to {edges[b + 1] - 1}"


def _changes(found: Effect) -> str:
    """An increase or a decrease that is certain."""
    verb = "rises" if found.mean > 0 else "falls"
    low, high = sorted((abs(found.low), abs(found.high)))
    digits = 0 if abs(found.mean) >= 0.1 else 1
    mean, low, high = (f"{value:.{digits}%}" for value in (abs(found.mean), low, high))
    return f"{verb} by {mean} (95 % interval {low} to {high})"


def _signed(found: Effect) -> str:
    return f"{found.mean:+.1%} (95 % interval {found.low:+.1%} to {found.high:+.1%})"


# --- causes ---------------------------------------------------------------------------------------

# where to look -> (measurement, whether its value is a fault, sentence); in the order of the data
_POSITION, _WORDS = "position tokens", "text encoder"
ORDER = (
    "the model was trained with that order, or its table of position tokens is in it; pass regions "
    "in the same way, or train with boxes as (x0, y0, x1, y1), y downwards"
)
Rule = tuple[str, str, Callable[[float], bool], str]
LAYOUT_RULES: tuple[Rule, ...] = (
    (
        _POSITION,
        "neighbours",
        lambda value: value > RANDOM,
        "the embeddings of neighbouring bins are as unlike as those of any two (ratio {:.2f}; "
        f"trained ones are below {RANDOM}): they were never trained",
    ),
    (
        _POSITION,
        "start",
        lambda value: value < UNTRAINED,
        "the embeddings are still the smooth curves that they were initialized with ({:.1%} of "
        f"their spread lies outside; trained ones have more than {UNTRAINED:.0%}): they were never "
        "trained",
    ),
    (
        _WORDS,
        "boxes",
        lambda value: value < ALIKE,
        "another box moves the hidden states of its region's text by {:.0%} of their length "
        f"(below {ALIKE:.0%}), so the U-Net can hardly tell boxes apart",
    ),
    (
        "map channels",
        "map_weights",
        lambda value: value < UNREAD,
        "the first convolution's weights on the map are {:.1%} of those on other inputs (below "
        f"{UNREAD:.0%}): the U-Net does not read the map",
    ),
    (
        "U-Net positions",
        "position",
        lambda value: value < LOST,
        "a cell's row and column can be read from the U-Net's features with R^2 = {:.2f} only "
        f"(below {LOST}): it does not know where its cells are",
    ),
)
TEXT_RULES: tuple[Rule, ...] = (
    (
        _WORDS,
        "words",
        lambda value: value < ALIKE,
        'texts that differ in one word (such as "a red ball", "a blue ball") are only {:.0%} apart '
        f"(below {ALIKE:.0%}): it has forgotten words",
    ),
    next(rule for rule in LAYOUT_RULES if rule[1] == "map_weights"),
)


def causes(
    parts: list[Finding], effects: Mapping[str, Effect], measured: Mapping[str, float], edges
) -> list[Cause]:
    """Where to look, for the parts that are not used; with the measurement that points there.

    Args:
        parts, effects: what `findings` returns.
        measured: what `inner_measures` returns.
        edges: the first timestep of each bin, and the number of timesteps.
    """
    state = {finding.part: finding.state for finding in parts}
    if state["layout"] == "misread":  # all else is measured on layouts that say something else
        return [Cause("order of coordinates", ORDER)]
    found: list[Cause] = []
    for part, rules in (("layout", LAYOUT_RULES), ("texts", TEXT_RULES)):
        if state[part] == "used":
            continue
        flagged = [
            Cause(where, text.format(measured[key]))
            for where, key, is_fault, text in rules
            if key in measured and is_fault(measured[key])
        ]
        if not flagged and state[part] != "unclear":
            flagged = [_training(part, effects[f"other {part}"], edges)]
        found += flagged
    return list(dict.fromkeys(found))


def _training(part: str, found: Effect, edges: list[int]) -> Cause:
    """No part of the model is at fault, so far as it was measured: what is left is the training."""
    mean, low, high = found.by_t[-1]
    noisiest = f"at t = {edges[-2]} to {edges[-1] - 1} the effect is {mean:+.1%} ({low:+.1%} to "
    return Cause(
        "training and its timesteps",
        f"all parts tell one from another; {noisiest}{high:+.1%}). What the {part} decide is "
        "decided in the noisiest timesteps: train longer, and with more of them",
    )
