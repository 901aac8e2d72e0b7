# SPDX-License-Identifier: Apache-2.0
"""Texts for the segments of a photo: captions of their crops, or the nearest of some names.

ReCo, arXiv 2211.15518, is trained on captions that GIT gives to the crops of COCO's boxes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.datasets.coco.names import region_text
from spatext_lab.evaluation.pretrained import from_folder
from spatext_lab.scene import Scene

LONGEST = 30  # tokens of a caption
MARGIN = 0.25  # of a box's sides, around a padded crop: ours, for the release does not say it
TYPES = ("blip", "git")

Describe = Callable[[Sequence[Image.Image]], list[str]]


class Captioner:
    """A BLIP or GIT model of `transformers`, which describes images in a sentence each."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the model.

        Args:
            folder: a model's folder as transformers saves it; nothing is downloaded.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds another kind of model, code, or damaged files.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model, self.processor = from_folder(
            folder, "captioner", AutoModelForImageTextToText, AutoProcessor, TYPES
        )

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """A caption of each image, the most probable word after word; may be empty."""
        inputs = self.processor(images=list(images), return_tensors="pt")
        tokens = self.model.generate(
            pixel_values=inputs["pixel_values"], max_new_tokens=LONGEST, do_sample=False
        )
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


class ClipNames:
    """Names segments by CLIP: of some names the one whose text is nearest to the segment.

    The texts are encoded as SpaText encodes them, without "a photo of" in front.
    """

    def __init__(self, clip: Clip, names: Sequence[str]) -> None:
        """Encodes the names.

        Args:
            clip: any CLIP; for photos one that was trained on photos.
            names: such as "dog" or "grass"; an article is added where one belongs.
        """
        self.clip, self.texts = clip, [region_text(name) for name in names]
        with torch.no_grad():
            self.encoded = clip.encode_text(self.texts)

    @torch.no_grad()
    def __call__(self, image: Image.Image, masks: Sequence[np.ndarray]) -> list[str]:
        """A text for each mask, bool of the image's size; CLIP sees the segment on black."""
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255)
        whole = pixels.permute(2, 0, 1)
        encoded = [self.clip.encode_segments(whole[None], torch.tensor(m)[None]) for m in masks]
        return [self.texts[(self.encoded @ each[0]).argmax()] for each in encoded]


def clip_names(names: Sequence[str], model: str) -> ClipNames:
    """Names segments by the CLIP of a model, see `zoo.folder`."""
    return ClipNames(Clip.from_pretrained(zoo.folder(model, "spatext/clip")), names)


# ReCo, arXiv 2211.15518, as released: the crop's caption, unless it quotes; then the padded crop's
def reco_text(cropped: str, padded: Callable[[], str], name: str | None) -> str | None:
    """The text of a region: a caption of its crop, or the name of its class.

    A caption with a double quote repeats writing that the captioner has read in the photo. Then the
    padded crop's caption is taken, and the name where that quotes as well or nothing is left.

    Args:
        cropped: caption of the box's crop.
        padded: gives the caption of the crop with a margin; called only where it is needed.
        name: of the class, None where it has none.
    """
    if _plain(cropped):
        return cropped
    wider = padded()
    return wider if _plain(wider) else name


def _plain(caption: str) -> bool:
    return bool(caption.strip()) and '"' not in caption


def described(scene: Scene, image: Image.Image, describe: Describe) -> list[str | None]:
    """A text for each region of a scene: `reco_text` of its box in the image.

    Args:
        scene: its texts are the names.
        image: that the scene was made of.
        describe: such as a `Captioner`.
    """
    boxes = [region.box for region in scene.regions]
    crops = describe([cropped(image, box) for box in boxes]) if boxes else []
    return [
        reco_text(crop, lambda box=box: describe([cropped(image, box, MARGIN)])[0], region.text)
        for crop, box, region in zip(crops, boxes, scene.regions, strict=True)
    ]


def cropped(
    image: Image.Image, box: tuple[float, float, float, float], margin: float = 0
) -> Image.Image:
    """A box's part of an image, with a margin around it as far as the image goes.

    Args:
        image: of any size.
        box: left, top, right, bottom as fractions of the image.
        margin: on each side, as a fraction of the box's width and height.
    """
    (x0, y0, x1, y1), (w, h) = box, image.size
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, top = max(0, round((x0 - dx) * w)), max(0, round((y0 - dy) * h))
    right, bottom = min(w, round((x1 + dx) * w)), min(h, round((y1 + dy) * h))
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
