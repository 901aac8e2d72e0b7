# SPDX-License-Identifier: Apache-2.0
"""The two forms in which ReCo's prompts are written: as numbers in brackets, and as bins.

    numbers:  two boats <100> <400> <350> <800> a red boat <600> <420> <900> <790> a blue boat
    bins:     two boats <|endoftext|> <bin100> ... <|startoftext|> a red boat <|endoftext|> ...

Numbers are thousandths of the picture, as in the paper's own prompts; bins are the words of the
vocabulary, as the weights in the layout of diffusers are given them.
"""

import re
from collections.abc import Callable

from spatext_lab.scene import Region, Scene

START, END = "<|startoftext|>", "<|endoftext|>"
_MARK = r"<(bin_?)?(\d+)>"
_FOUR = re.compile(rf"((?:\s*{_MARK}){{4}})")
_RESERVED = re.compile(rf"{_MARK}|{re.escape(START)}|{re.escape(END)}")
THOUSAND = 1000
FORM = "write: caption <x0> <y0> <x1> <y1> text <x0> <y0> <x1> <y1> text ..."


def bin_token(number: int) -> str:
    """The word of a bin, three digits at least, as published vocabularies name it."""
    return f"<bin{number:03d}>"


def check_text(text: str, field: str, empty: bool = False) -> None:
    """Raises ValueError for a text that a sentence cannot hold: an empty one, unless that is
    allowed, and one with a mark that means a place, a beginning or an end."""
    if not empty and not text.strip():
        raise ValueError(f'{field} is {text!r}; say what is there, such as "a red ball"')
    if found := _RESERVED.search(text):
        raise ValueError(
            f"{field} is {text!r:.80}, which holds {found[0]!r}, a mark of the sequence itself; "
            "take it out: places are given as the region's box"
        )


def write_numbers(scene: Scene) -> str:
    """The scene as the paper writes it: `read` gives it back, coordinates to the thousandth.

    Raises ValueError, naming the region, as `write_bins` does.
    """
    return _write(scene, lambda value: f"<{round(value * THOUSAND)}>")


def write_bins(scene: Scene, bins: int) -> str:
    """The scene as a prompt for a tokenizer that has the bins and adds the outer BOS and EOS.

    Raises ValueError, naming the region, for a text that holds a mark and a box without any area
    once it is rounded.
    """
    return _write(scene, lambda value: bin_token(round(value * (bins - 1))), END, START)


def _write(scene: Scene, mark: Callable[[float], str], before: str = "", after: str = "") -> str:
    """Caption, places and texts; before, after: what stands around the four marks of a place."""
    check_text(scene.caption, "caption", empty=True)
    parts = [scene.caption]
    for k, region in enumerate(scene.regions):
        check_text(region.text, f"regions[{k}].text")
        x0, y0, x1, y1 = marks = [mark(value) for value in region.box]
        if x0 == x1 or y0 == y1:
            place = " ".join(marks)
            raise ValueError(
                f"regions[{k}].box is {region.box}, too thin to be written ({place}): "
                "give a larger box"
            )
        parts += [before, *marks, after, region.text]
    return " ".join(part for part in parts if part)


def read(prompt: str, bins: int = THOUSAND) -> Scene:
    """The scene of a prompt in either form.

    bins: how many bins the vocabulary has that `<binNNN>` is meant for.
    Raises ValueError, naming the region, for marks that are not four in a row, for numbers beyond
    1000 or the last bin, for boxes without area and for empty texts.
    """
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
    """The coordinate that one mark says."""
    number, last = int(digits), bins - 1 if kind else THOUSAND
    if number > last:
        raise ValueError(f"<{kind}{digits}> is beyond the last, {last}")
    return number / last
