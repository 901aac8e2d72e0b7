# SPDX-License-Identifier: Apache-2.0
"""Segmenters for `Scene.from_image`: a picture goes in, texts with masks come out.

SpaText, arXiv 2211.14305, section 3.1, takes its training segments from a panoptic segmenter.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from spatext_lab import zoo
from spatext_lab.datasets.pocket import COLOURS, KINDS, LABELS, SIZE
from spatext_lab.evaluation.judge import Judge
from spatext_lab.images import to_tensor

MIN_AREA = 0.02  # of the picture; smaller segments are left out


class PocketSegmenter:
    """The judge, for pictures of the pocket world."""

    def __init__(self) -> None:
        self.judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))

    def __call__(self, image: Image.Image) -> Iterator[tuple[str, np.ndarray]]:
        """("a red ball", bool mask 64 x 64) of each connected segment; other sizes are resized."""
        pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        kinds, colours = (seen[0].numpy() for seen in self.judge(to_tensor(pixels[None].copy())))
        for k, label in enumerate(LABELS):
            patches, count = ndimage.label(kinds == k)
            for i in range(1, count + 1):
                mask = patches == i
                if mask.mean() >= MIN_AREA:
                    yield _name(label, colours[mask]), mask


def _name(label: str, colours: np.ndarray) -> str:
    """A thing's kind with its most frequent colour; a backdrop's name as it is."""
    if label not in KINDS:
        return label
    if not (colours > 0).any():
        return f"a {label}"
    colour = COLOURS[np.bincount(colours[colours > 0]).argmax() - 1]
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {label}"


class PanopticSegmenter:
    """A panoptic model of `transformers`, such as Mask2Former, for photos; "a {label}" as text."""

    def __init__(self, folder: str | Path) -> None:
        """folder: a model's folder as transformers saves it; nothing is downloaded."""
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json; give a segmenter's folder")
        self.model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
        self.processor = AutoImageProcessor.from_pretrained(folder)

    def __call__(self, image: Image.Image) -> Iterator[tuple[str, np.ndarray]]:
        """("a dog", bool mask of the picture's size) of each segment."""
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
                yield f"a {self.model.config.id2label[segment['label_id']]}", mask
