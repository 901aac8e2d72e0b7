# SPDX-License-Identifier: Apache-2.0
"""ReCo's position tokens: a scene as one token sequence, box coordinates between the texts.

A coordinate in [0, 1] is rounded to one of N bins, and each bin is a token of the vocabulary,
shared by x and y. So a scene is a sequence of ids that the text transformer reads as any text:

    [BOS] caption [EOS]  x0 y0 x1 y1 [BOS] text [EOS]  x0 y0 x1 y1 [BOS] text [EOS] ... [PAD] [PAD]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spatext_lab.scene import Region, Scene
from spatext_lab.scene.notes import warn
from spatext_lab.scene.places import Box

START, END = "<|startoftext|>", "<|endoftext|>"
_RESERVED = re.compile(rf"<(bin_?)?\d+>|{re.escape(START)}|{re.escape(END)}")


# ReCo, arXiv 2211.15518, section 3.1, as its released code has it: id(v) = round(v (N - 1)) + V.
# One rounding, ever: the released prompt script rounds twice and moves 499 of 1000 bins.
def to_bin(value: float, bins: int) -> int:
    """The bin (0 ... bins - 1) that a coordinate in [0, 1] is rounded to."""
    return round(value * (bins - 1))


def to_value(number: int, bins: int) -> float:
    """The coordinate in [0, 1] of a bin; `to_bin` inverts it, for every bin."""
    return number / (bins - 1)


def snapped(box: Box, bins: int) -> Box:
    """The box that its bins encode, each edge at most 1 / (2 (bins - 1)) away from the original."""
    return tuple(to_value(to_bin(value, bins), bins) for value in box)


def is_thin(box: Box, bins: int) -> bool:
    """Whether rounding leaves nothing of the box, so that position tokens cannot express it."""
    x0, y0, x1, y1 = (to_bin(value, bins) for value in box)
    return x0 == x1 or y0 == y1


def bin_token(number: int) -> str:
    """The token of a bin, three digits at least, as published vocabularies name it."""
    return f"<bin{number:03d}>"


def check_text(text: str, field: str, empty: bool = False) -> None:
    """Checks that the sequence can hold a text.

    Raises:
        ValueError: an empty text, unless `empty`, or one with a position token or a special token.
    """
    if not empty and not text.strip():
        raise ValueError(f'{field} is {text!r}; name what is there, such as "a red ball"')
    if found := _RESERVED.search(text):
        raise ValueError(
            f"{field} is {text!r:.80}, which holds {found[0]!r}, a token of the sequence itself; "
            "remove it: positions are passed as the region's box"
        )


def check_bins(bins: int) -> None:
    """Checks that there are bins for the two edges of an image.

    Raises:
        ValueError: fewer than two.
    """
    if bins < 2:
        raise ValueError(f"bins is {bins}; pass at least 2, the image's two edges")


@dataclass(frozen=True)
class Token:
    """One entry of the sequence.

    Attributes:
        region: 0 for the caption, k for the k-th region (from 1), -1 for padding.
    """

    id: int
    text: str
    region: int
    is_position: bool = False


@dataclass(frozen=True, repr=False)
class TokenSequence:
    """A scene's tokens with their origin; a notebook displays them in colour.

    dropped: indices (from 0) of the regions that did not fit.
    """

    tokens: tuple[Token, ...]
    dropped: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        """The input of the text transformer."""
        return [token.id for token in self.tokens]

    def _repr_html_(self) -> str:
        from spatext_lab.figures import token_strip  # Pillow only where a sequence is shown

        content = [token for token in self.tokens if token.region >= 0]
        row = [(t.text, t.region, t.is_position) for t in content]
        n, used = len(self.tokens), len(content)
        return token_strip(row, f"and {n - used} of padding; {used} of {n} used")

    def __repr__(self) -> str:
        return f"<TokenSequence: {self}>"

    def __str__(self) -> str:
        return " ".join(token.text for token in self.tokens if token.region >= 0)


class PositionTokens:
    """Scenes to ids and back, by a tokenizer that has position tokens (`text_encoder.grow`).

    Args:
        tokenizer: a CLIP tokenizer with the tokens `<bin000>`, `<bin001>` ...; with none, only
            captions can be encoded.
        length: tokens that the text transformer reads; 8 * 77 = 616 in the paper's COCO model.
    """

    def __init__(self, tokenizer, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.bin_ids = bin_ids(tokenizer)
        self._number = {token: number for number, token in enumerate(self.bin_ids)}

    @property
    def bins(self) -> int:
        """How many position tokens the vocabulary has."""
        return len(self.bin_ids)

    def encode(self, scenes: Sequence[Scene], negatives: int = 0) -> Int[Tensor, "b length"]:
        """The ids of scenes, padded as Stable Diffusion pads: with the tokenizer's pad token.

        Regions that do not fit are dropped whole, last first, and named in a warning.

        Args:
            negatives: how many of the scenes, at the end, are negative prompts; for messages.

        Raises:
            ValueError: naming the region, for an empty text, a text that holds a position token or
                another special one, and a box that is thinner than a bin.
        """
        names = ["caption"] * (len(scenes) - negatives) + ["negative_prompt"] * negatives
        words = self._tokenized(scenes, names)
        ids = np.full((len(scenes), self.length), self.tokenizer.pad_token_id, np.int64)
        for row, scene, name in zip(ids, scenes, names, strict=True):
            parts, dropped = self._parts(scene, words, name)
            if dropped:
                names = (f"regions[{k}] ({scene.regions[k].text!r:.60})" for k in dropped)
                warn(
                    f"regions dropped: {', '.join(names)}; the scene has more than "
                    f"{self.length} tokens: shorten the texts",
                    stacklevel=2,
                )
            content = [token for part in parts for token in part]
            row[: len(content)] = content
        return torch.from_numpy(ids)

    def attention_mask(self, ids: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """True for content tokens, the last end token included; False for padding."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        padded = (ids == pad).flip(1).cumprod(1).flip(1).bool()
        # where padding is made of end tokens, as CLIP's is, the first of them is content
        return ~padded if pad != end else ~padded | (~padded).roll(1, 1)

    def token_regions(self, ids: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The region of each token: 0 for the caption, k for the k-th region, -1 for padding."""
        is_bin = torch.isin(ids, torch.tensor(self.bin_ids, dtype=ids.dtype))
        begins = is_bin & ~is_bin.roll(1, 1)  # the first of four bins
        return begins.cumsum(1).masked_fill(~self.attention_mask(ids), -1)

    def show_work(self, scene: Scene) -> TokenSequence:
        """The tokens of one scene, each with its text and its region."""
        parts, dropped = self._parts(scene, self._tokenized([scene], ["caption"]))
        texts = self.tokenizer.convert_ids_to_tokens
        tokens = [
            Token(i, texts(i).removesuffix("</w>"), region, i in self._number)
            for region, part in enumerate(parts)
            for i in part
        ]
        pad = Token(self.tokenizer.pad_token_id, self.tokenizer.pad_token, -1)
        return TokenSequence((*tokens, *[pad] * (self.length - len(tokens))), tuple(dropped))

    def decode(self, ids: Sequence[int] | Int[Tensor, " length"]) -> Scene:
        """The scene that a sequence encodes.

        Texts come back as CLIP tokenizes them (in lower case, a space before commas), boxes on
        their bins.

        Raises:
            ValueError: naming the position and the id, for what is not such a sequence.
        """
        ids, regions = [int(i) for i in ids], []
        caption, at = self._read_text(ids, 0)
        while at < len(ids) and ids[at] in self._number:
            corners = ids[at : at + 4]
            if len(corners) < 4 or not all(i in self._number for i in corners):
                raise ValueError(f"ids[{at}:{at + 4}] is {corners}; a region begins with four bins")
            box = tuple(to_value(self._number[i], self.bins) for i in corners)
            text, end = self._read_text(ids, at + 4)
            try:
                regions.append(Region(text, box=box))
            except ValueError as error:
                raise ValueError(f"ids[{at}:{at + 4}] is {corners}: {error}") from None
            at = end
        for place in range(at, len(ids)):
            if ids[place] != self.tokenizer.pad_token_id:
                raise ValueError(
                    f"ids[{place}] is {ids[place]}; after an end token comes a bin "
                    f"({self.bins} of them, from {self.bin_ids[:1]}) or only padding"
                )
        return Scene(caption, regions)

    def _read_text(self, ids: list[int], at: int) -> tuple[str, int]:
        """The text from its start token at ids[at] on, and the index behind its end token."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if at >= len(ids) or ids[at] != start:
            found = ids[at] if at < len(ids) else "nothing"
            raise ValueError(f"ids[{at}] is {found}; a text begins with the start token, {start}")
        if end not in ids[at:]:
            raise ValueError(f"ids[{at}] begins a text without an end token, {end}")
        stop = ids.index(end, at)
        known = len(self.tokenizer)
        for place in range(at + 1, stop):
            if not 0 <= ids[place] < known or ids[place] in (*self._number, start):
                raise ValueError(
                    f"ids[{place}] is {ids[place]}; a text holds ids from 0 to {known - 1}, "
                    "neither bins nor special tokens"
                )
        return self._text(ids[at + 1 : stop]), stop + 1

    def _text(self, ids: list[int]) -> str:
        """Ids as text; rebuilt tokenizers leave end-of-word marks in it, which are removed."""
        return self.tokenizer.decode(ids).replace("</w>", " ").strip()

    def _tokenized(self, scenes: Sequence[Scene], names: Sequence[str]) -> dict[str, list[int]]:
        """The ids of every text of the scenes, each text tokenized once."""
        texts: dict[str, None] = {}
        for scene, name in zip(scenes, names, strict=True):
            check_text(scene.caption, name, empty=True)
            texts[scene.caption] = None
            for k, region in enumerate(scene.regions):
                check_text(region.text, f"regions[{k}].text")
                texts[region.text] = None
        if not texts:  # which the tokenizer refuses
            return {}
        plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return dict(zip(texts, self.tokenizer(list(texts), **plain).input_ids, strict=True))

    def _parts(
        self, scene: Scene, words: dict[str, list[int]], name: str = "caption"
    ) -> tuple[list[list[int]], list[int]]:
        """The caption's ids and each region's, as many as fit; and the regions that do not."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        caption = words[scene.caption]
        if len(caption) > self.length - 2:
            rest = self._text(caption[self.length - 2 :])
            warn(
                f"{name} is longer than {self.length} tokens: {rest!r:.80} is truncated",
                stacklevel=4,
            )
        parts = [[start, *caption[: self.length - 2], end]]
        for k, region in enumerate(scene.regions):
            bins = len(self.bin_ids)
            corners = [to_bin(value, bins) for value in region.box] if bins else [0] * 4
            if corners[0] == corners[2] or corners[1] == corners[3]:
                raise ValueError(self._thin(k, region))
            position = [self.bin_ids[number] for number in corners]
            parts.append([*position, start, *words[region.text], end])
        total = np.cumsum([len(part) for part in parts])
        kept = int((total <= self.length).sum())
        return parts[:kept], list(range(kept - 1, len(parts) - 1))

    def _thin(self, k: int, region: Region) -> str:
        """Why a region's box has no position tokens."""
        if not self.bins:
            return f"regions[{k}]: the tokenizer has no position tokens; add them with grow(...)"
        return (
            f"regions[{k}].box is {region.box}, thinner than one of {self.bins} bins "
            f"(1/{self.bins - 1} of the image): make it larger"
        )


def bin_ids(tokenizer) -> list[int]:
    """The ids of the position tokens in a tokenizer's vocabulary, in the order of their bins.

    Raises:
        ValueError: where some are missing between others.
    """
    numbered = {}
    for token, i in tokenizer.get_added_vocab().items():
        if found := re.fullmatch(r"<bin_?(\d+)>", token):
            numbered[int(found[1])] = i
    if sorted(numbered) != list(range(len(numbered))):
        missing = min(set(range(len(numbered))) - set(numbered))
        raise ValueError(f"the tokenizer has {len(numbered)} bins and not {bin_token(missing)}")
    return [numbered[number] for number in range(len(numbered))]
