# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision on images that are resampled, for its bootstrap interval.

What an image's detections are matched to does not depend on the other images. A resample only
counts each image 0, 1, 2 ... times, so that images are matched once, and counted for all resamples.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torchvision.ops import box_iou

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = torch.linspace(0, 1, 101).double().numpy()  # single precision, as torchmetrics has them


def resamples(images: int, seed: int = 0, draws: int = 1000) -> Int[np.ndarray, "draws n"]:
    """How often each image is in each resample with replacement; those of `metrics.bootstrap`."""
    picks = np.random.default_rng(seed).integers(images, size=(draws, images))
    return np.stack([np.bincount(pick, minlength=images) for pick in picks])


# COCO's evaluation (pycocotools, COCOeval.evaluateImg): greedy, the surest detection first
def matched(
    boxes: Float[np.ndarray, "d 4"], asked: Float[np.ndarray, "g 4"]
) -> Bool[np.ndarray, "ious d"]:
    """Whether each detection in an image has a box of its own, for each of IOUS.

    Args:
        boxes: the detections of one kind, by falling score.
        asked: the boxes asked for of this kind.
    """
    iou = box_iou(torch.from_numpy(boxes), torch.from_numpy(asked)).numpy()
    hit = np.zeros((len(IOUS), len(boxes)), bool)
    for row, least in zip(hit, IOUS, strict=True):
        free = np.ones(len(asked), bool)
        for k, overlaps in enumerate(iou):
            own = np.where(free, overlaps, 0)
            if free.any() and own.max() >= least:
                row[k], free[own.argmax()] = True, False
    return hit


# COCO's AP (pycocotools, COCOeval.accumulate): the mean over 101 recalls of the best precision that
# is reached at this recall or a higher one
def average_precision(
    hit: Bool[np.ndarray, "d"], times: Int[np.ndarray, "n d"], asked: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """The average precision of one kind at one IoU, in each of n resamples.

    Args:
        hit: of each detection, by falling score, whether it has a box of its own.
        times: how often the detection's image is in the resample.
        asked: boxes asked for in the resample; where there are none, the result is NaN.
    """
    if not len(hit):
        return np.where(asked > 0, 0.0, np.nan)
    true = (times * hit).cumsum(1)
    precision = true / times.cumsum(1).clip(min=1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / asked.clip(min=1)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")
    area = (np.diff(reached, prepend=0, axis=1) * best).sum(1) / len(RECALLS)
    return np.where(asked > 0, area, np.nan)
