# SPDX-License-Identifier: Apache-2.0
"""ReCo's prompts as text, in the two forms that people write: numbers in brackets, and bins.

    numbers:  two boats <100> <400> <350> <800> a red boat <600> <420> <900> <790> a blue boat
    bins:     two boats <|endoftext|> <bin100> ... <|startoftext|> a red boat <|endoftext|> ...

Numbers are thousandths of the image, as in the paper's own prompts; bins are tokens of the
vocabulary, as published weights in the layout of diffusers expect them.
"""

import re
from collections.abc import Callable

from spatext_lab.reco.position_tokens import (
    END,
    START,
    bin_token,
    check_bins,
    check_text,
    to_bin,
)
from spatext_lab.scene import Region, Scene

_MARK = r"<(bin_?)?(\d+)>"
_FOUR = re.compile(rf"((?:\s*{_MARK}){{4}})")
THOUSAND = 1000
FORM = "write: caption <x0> <y0> <x1> <y1> text <x0> <y0> <x1> <y1> text ..."


def write_numbers(scene: Scene) -> str:
    """The scene as the paper writes it; `read` inverts it, coordinates to the thousandth.

    Raises:
        ValueError: naming the region, for a text that holds a mark and for a box without any area
            once it is rounded.
    """
    return _write(scene, lambda value: f"<{round(value * THOUSAND)}>")


def write_bins(scene: Scene, bins: int) -> str:
    """The scene as a prompt for a tokenizer that has the bins and adds the outer BOS and EOS.

    Args:
        bins: position tokens of the vocabulary, at least 2.

    Raises:
        ValueError: naming the region, for a text that holds a mark and for a box without any area
            once it is rounded; for fewer than 2 bins.
    """
    check_bins(bins)
    return _write(scene, lambda value: bin_token(to_bin(value, bins)), END, START)


def _write(scene: Scene, mark: Callable[[float], str], before: str = "", after: str = "") -> str:
    """Caption, boxes and texts; before, after: what surrounds the four marks of a box."""
    check_text(scene.caption, "caption", empty=True)
    parts = [scene.caption]
    for k, region in enumerate(scene.regions):
        check_text(region.text, f"regions[{k}].text")
        x0, y0, x1, y1 = marks = [mark(value) for value in region.box]
        if x0 == x1 or y0 == y1:
            box = " ".join(marks)
            raise ValueError(
                f"regions[{k}].box is {region.box}, too thin to be written ({box}): make it larger"
            )
        parts += [before, *marks, after, region.text]
    return " ".join(part for part in parts if part)


def read(prompt: str, bins: int = THOUSAND) -> Scene:
    """The scene of a prompt in either form.

    Args:
        bins: position tokens of the vocabulary that `<binNNN>` refers to, at least 2.

    Raises:
        ValueError: naming the region, for marks that are not four in a row, for numbers beyond
            1000 or the last bin, for boxes without area and for empty texts.
    """
    check_bins(bins)
    plain = prompt.replace(START, " ").replace(END, " ")
    caption, *pieces = _FOUR.split(plain)
    places, texts = pieces[::4], [piece.strip() for piece in pieces[3::4]]
    check_text(caption := caption.strip(), "caption", empty=True)
    regions = []
    for k, (place, text) in enumerate(zip(places, texts, strict=True)):
        check_text(text, f"regions[{k}].text")
        try:
            box = tuple(_value(*mark, bins) for mark in re.findall(_MARK, place))
            regions.append(Region(text, box=box))
        except ValueError as error:
            raise ValueError(f"regions[{k}] is {place.strip()}: {error}. {FORM}") from None
    return Scene(caption, regions)


def _value(kind: str, digits: str, bins: int) -> float:
    """The coordinate that one mark encodes."""
    number, last = int(digits), bins - 1 if kind else THOUSAND
    if number > last:
        raise ValueError(f"<{kind}{digits}> is beyond the last, {last}")
    return number / last
