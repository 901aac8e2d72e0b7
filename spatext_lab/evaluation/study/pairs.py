# SPDX-License-Identifier: Apache-2.0
"""The pairs of a blind study, what a rater's page gets of them, and the key that stays behind.

    sheet, key = blind([Pair(scene, {"spatext": image, "reco": other}), ...])

The sheet names the two images of a pair x and y; the key says which method is which. Which one is
x is random and balanced: each method is x in half of the pairs, so that it stands at each side
equally often (the page shows x on the left, and for about half of the raters on the right).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from spatext_lab.figures.png import colour, enlarged, fitted, ink_on, to_image
from spatext_lab.figures.scenes import outline
from spatext_lab.scene import Scene, files

# SpaText, arXiv 2211.14305, section 4.1 (user study): visual quality, match of the whole text,
# match of the regions' texts
QUESTIONS = {
    "better": "Which image is better?",
    "caption": "Which image fits the caption better?",
    "regions": "Which image fits the regions better?",
}
NAMES = ("x", "y")
LARGEST = 512  # pixels of an image's longer side on the page
LOSSLESS = 256  # up to this size, compression changes no pixel
FORM = 'Pair(scene, {"spatext": image, "reco": image})'


@dataclass(frozen=True)
class Pair:
    """Two images of one scene.

    Args:
        scene: what both methods were asked for; questions are left out for what it lacks, an empty
            caption or regions.
        images: two images by the names of their methods, as `figures.to_image` takes them.

    Raises:
        ValueError: where there are not two images.
    """

    scene: Scene
    images: Mapping[str, Any]

    def __post_init__(self) -> None:
        if len(self.images) != 2:
            raise ValueError(f"images has {list(self.images)}; pass two: {FORM}")

    @property
    def questions(self) -> tuple[str, ...]:
        """The names of the questions that can be asked of this scene, in their order."""
        there = (True, self.scene.caption.strip(), self.scene.regions)
        return tuple(name for name, has in zip(QUESTIONS, there, strict=True) if has)


@dataclass(frozen=True)
class Key:
    """Which method made which image of a study; whoever answers does not see it.

    Args:
        study: the id of the study, a digest of its sheet.
        methods: the two methods; shares are of answers for the first one.
        pairs: for each pair's id the methods of its images x and y.
        questions: for each pair's id the names of its questions.
    """

    study: str
    methods: tuple[str, str]
    pairs: dict[str, tuple[str, str]]
    questions: dict[str, tuple[str, ...]]

    def chosen(self, pair: str, answer: str) -> str:
        """The method of a pair's image x or y."""
        return self.pairs[pair][NAMES.index(answer)]

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file.

        Raises:
            ValueError: the key of another study is there, whose answers could not be read any more.
        """
        if Path(path).exists() and (other := Key.load(path).study) != self.study:
            raise ValueError(f"{path} is the key of another study, {other}: move it away")
        file = {"format": "spatext-study-key", "version": 1} | asdict(self)
        files.write(path, json.dumps(file, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Key:
        """Read what `save` wrote.

        Raises:
            ValueError: for anything else, the path in front.
        """
        try:
            file = json.loads(Path(path).read_text(encoding="utf-8"))
            if (file["format"], file["version"]) != ("spatext-study-key", 1):
                raise ValueError(f"format is {file['format']!r}, version {file['version']!r}")
            pairs, asked = (
                {str(name): tuple(map(str, values)) for name, values in file[field].items()}
                for field in ("pairs", "questions")
            )
            first, second = map(str, file["methods"])
            if pairs.keys() != asked.keys() or any(
                sorted(each) != sorted((first, second)) for each in pairs.values()
            ):
                raise ValueError("pairs, methods and questions do not fit")
            return cls(str(file["study"]), (first, second), pairs, asked)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)} is not the key of a study ({error!r:.200}): pass the key.json "
                "that `spatext-lab study make` wrote"
            ) from None


def blind(pairs: Sequence[Pair], seed: int = 0) -> tuple[dict[str, Any], Key]:
    """Hide which method made which image.

    Args:
        pairs: all by the same two methods.
        seed: of the choice which image of a pair is x.

    Returns:
        The sheet, JSON for the page: study (the id), texts (of the questions), pairs (id, caption,
        regions, questions, and as base64 of WebP the images x, y and the regions' outlines). The
        images are encoded anew, so that nothing in their files names a method. And the key.

    Raises:
        ValueError: no pairs, or different methods.
    """
    if not pairs:
        raise ValueError(f"pairs is empty: pass at least one {FORM}")
    methods = tuple(pairs[0].images)
    swaps = [k % 2 == 1 for k in range(len(pairs))]
    Random(f"{seed}/study").shuffle(swaps)
    shown, key = [], {}
    for k, (pair, swap) in enumerate(zip(pairs, swaps, strict=True)):
        if set(pair.images) != set(methods):
            names = f"{list(pair.images)}, but pairs[0].images has {list(methods)}"
            raise ValueError(f"pairs[{k}].images has {names}: pass the same two methods")
        name = f"p{k + 1:0{len(str(len(pairs)))}}"
        key[name] = methods[::-1] if swap else methods
        images = [to_image(pair.images[method]) for method in key[name]]
        shown.append({"id": name, "images": list(map(_encoded, images))} | _asked(pair, images[0]))
    content = {"texts": QUESTIONS, "pairs": shown}
    study = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    questions = {name: pair.questions for name, pair in zip(key, pairs, strict=True)}
    return {"study": study} | content, Key(study, methods, key, questions)


def _asked(pair: Pair, image: Image.Image) -> dict[str, Any]:
    asked = {"questions": pair.questions, "caption": pair.scene.caption, "regions": []}
    if pair.scene.regions:
        asked["outlines"] = _encoded(outlines(pair.scene, image.size))
    for k, region in enumerate(pair.scene.regions, start=1):
        back, ink = (f"rgb{rgb}" for rgb in (colour(k), ink_on(colour(k))))
        asked["regions"].append({"text": region.text, "back": back, "ink": ink})
    return asked


def outlines(scene: Scene, shape: tuple[int, int], size: int = LARGEST) -> Image.Image:
    """The outlines and numbers of the regions on a transparent image.

    Args:
        scene: the regions.
        shape: (width, height) of the images that it is laid over.
        size: pixels of the longer side.
    """
    black, white = (
        np.asarray(outline(Image.new("RGB", fitted(shape, size), ground), scene, size), np.float32)
        for ground in ("black", "white")
    )
    # Over black, one sees colour * alpha; over white, 1 - alpha more.
    alpha = 1 - (white - black)[..., :1] / 255
    rgba = np.concatenate([black / np.maximum(alpha, 1 / 255), 255 * alpha], axis=2)
    return Image.fromarray(rgba.round().clip(0, 255).astype(np.uint8), "RGBA")


def _encoded(image: Image.Image) -> str:
    shown = enlarged(image, LARGEST) if max(image.size) > LARGEST else image
    lossless = image.mode == "RGBA" or max(image.size) <= LOSSLESS
    effort = 0 if lossless else 90  # without a loss, what WebP calls quality is only its patience
    shown.save(buffer := io.BytesIO(), format="WEBP", lossless=lossless, quality=effort)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
