# SPDX-License-Identifier: Apache-2.0
"""Segmenters for `Scene.from_image`: an image goes in, texts with masks come out.

SpaText, arXiv 2211.14305, section 3.1, takes its training segments from a panoptic segmenter.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from spatext_lab import zoo
from spatext_lab.datasets.coco.names import region_text
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, SIZE
from spatext_lab.datasets.pocket.texts import article
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.pretrained import found, from_folder, model_type
from spatext_lab.figures import to_image

MIN_AREA = 0.02  # fraction of the image; smaller segments are left out

Segmenter = Callable[[Image.Image], Iterator[tuple[str | None, np.ndarray]]]


def segmenter_named(name: str) -> Segmenter:
    """A segmenter by its name.

    Args:
        name: "judge", for pocket images; the folder of a panoptic model of `transformers`, or of
            one of the SAM family; or the name of such a folder in ./models, such as "mask2former".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: what is in it cannot be read as a segmenter.
    """
    if name == "judge":
        return PocketSegmenter()
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

    place = found(name, "segmenter")
    if model_type(place, "segmenter") in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
        return SamSegmenter(place)
    return PanopticSegmenter(place)


def read_photo(path: str | Path) -> Image.Image:
    """An image file as RGB, upright.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return to_image(image)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


class PocketSegmenter:
    """The judge, for images of the pocket world."""

    def __init__(self) -> None:
        self.judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))

    def __call__(self, image: Image.Image) -> Iterator[tuple[str, np.ndarray]]:
        """The connected segments of an image as ("a red ball", bool mask 64 x 64).

        Args:
            image: resized to 64 x 64 where it has another size.
        """
        small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        ((kinds, colours),) = self.judge.maps([small])
        for k, label in enumerate(LABELS):
            patches, count = ndimage.label(kinds == k)
            for i in range(1, count + 1):
                mask = patches == i
                if mask.mean() >= MIN_AREA:
                    yield _name(label, colours[mask]), mask


def _name(label: str, colours: np.ndarray) -> str:
    """An object's kind with its most frequent colour; a backdrop's name as it is."""
    if label not in KINDS:
        return label
    if not (colours > 0).any():
        return article(label)
    colour = COLOURS[np.bincount(colours[colours > 0]).argmax() - 1]
    return article(f"{colour} {label}")


class PanopticSegmenter:
    """A panoptic model of `transformers`, such as Mask2Former, for photos; "a {label}" as text."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the model.

        Args:
            folder: a model's folder as transformers saves it; nothing is downloaded.
        """
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        self.model, self.processor = from_folder(
            folder, "segmenter", AutoModelForUniversalSegmentation, AutoImageProcessor
        )

    def __call__(self, image: Image.Image) -> Iterator[tuple[str, np.ndarray]]:
        """The segments of an image as ("a dog", bool mask of the image's size)."""
        import torch

        image = image.convert("RGB")
        with torch.no_grad():
            out = self.model(**self.processor(images=image, return_tensors="pt"))
        size = [image.size[::-1]]
        (found,) = self.processor.post_process_panoptic_segmentation(out, target_sizes=size)
        numbers = found["segmentation"].numpy()
        for segment in found["segments_info"]:
            mask = numbers == segment["id"]
            if mask.mean() >= MIN_AREA:
                yield region_text(self.model.config.id2label[segment["label_id"]]), mask


class SamSegmenter:
    """A model of the SAM family, for photos: segments without names, as it has no classes."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the model.

        Args:
            folder: a model's folder as transformers saves it; nothing is downloaded.
        """
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

        model, processor = from_folder(
            folder, "segmenter", AutoModelForMaskGeneration, AutoImageProcessor
        )
        self.generate = pipeline("mask-generation", model=model, image_processor=processor)

    def __call__(self, image: Image.Image) -> Iterator[tuple[None, np.ndarray]]:
        """The segments of an image as (None, bool mask of its size), disjoint, largest first.

        SAM finds a thing, and parts of it again. A part keeps its pixels where it is large enough,
        and the thing has the others.
        """
        masks = [np.asarray(mask, bool) for mask in self.generate(image.convert("RGB"))["masks"]]
        taken, kept = np.zeros(image.size[::-1], bool), []
        for mask in sorted(masks, key=np.sum):
            own = mask & ~taken
            if own.mean() >= MIN_AREA:
                kept.append(own)
                taken |= own
        yield from ((None, mask) for mask in sorted(kept, key=np.sum, reverse=True))
