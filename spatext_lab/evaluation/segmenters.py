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
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, SIZE
from spatext_lab.datasets.pocket.texts import article
from spatext_lab.evaluation.judge import Judge
from spatext_lab.figures import to_image

MIN_AREA = 0.02  # fraction of the image; smaller segments are left out

Segmenter = Callable[[Image.Image], Iterator[tuple[str, np.ndarray]]]


def segmenter_named(name: str) -> Segmenter:
    """A segmenter by its name.

    Args:
        name: "judge", for pocket images; the folder of a panoptic model of `transformers`; or the
            name of such a folder in ./models, such as "mask2former".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: what is in it cannot be read as a segmenter.
    """
    if name == "judge":
        return PocketSegmenter()
    found = [place for place in (Path(name), Path("models", name)) if place.is_dir()]
    if not found:
        raise FileNotFoundError(
            f"segmenter is {name!r}; pass judge, or a segmenter's folder such as models/mask2former"
        )
    try:
        return PanopticSegmenter(found[0])
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever transformers raises for a damaged folder
        raise ValueError(f"{found[0]} cannot be read as a segmenter: {error}") from None


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

        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json; pass a segmenter's folder")
        local = {"trust_remote_code": False, "local_files_only": True}  # nothing in it is executed
        model = AutoModelForUniversalSegmentation.from_pretrained(
            folder, use_safetensors=True, **local
        )
        self.model = model.eval()
        self.processor = AutoImageProcessor.from_pretrained(folder, **local)

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
                yield article(self.model.config.id2label[segment["label_id"]]), mask
