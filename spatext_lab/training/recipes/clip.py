# SPDX-License-Identifier: Apache-2.0
"""The pocket CLIP: images, close-ups and black-background crops against their texts."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float
from open_clip import ClipLoss
from open_clip.model import CLIP
from torch import Tensor

from spatext_lab.clip import Clip, segment_crop
from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.datasets.photo_views import PhotoView, wide_view
from spatext_lab.datasets.pocket import SIZE, PocketItem, Segment, pocket_item
from spatext_lab.images import to_tensor, to_unit
from spatext_lab.text_to_image.tokenizer import MERGES, PHOTO_MERGES, new_tokenizer
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.photos import batches, training_photos
from spatext_lab.training.plan import Plan, device_of

SCENES = 48  # per step; their segments, each combination once, and WHOLE whole images
WHOLE = 16
MIN_AREA = 0.02  # of a view of a photo, that a segment covers of it
CONTEXT = 32  # tokens; only the longest captions of four objects are truncated
# CLIP, arXiv 2103.00020, section 2.5: the learned temperature ends at its limit, 1/100. Fixed there
# from the start, as a learned one would not get so far in a pocket CLIP's few steps; so sharp a
# temperature keeps the two clouds apart, which is the gap that a prior has to bridge.
TEMPERATURE = 1 / 100


def config(vocabulary: int) -> dict:
    """open_clip's configuration of a small vision transformer and a small text transformer."""
    vision = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32}
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 128, "heads": 4}
    text |= {"layers": 2, "hf_tokenizer_name": "tokenizer"}
    return {
        "model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }


def new_clip(merges: int = MERGES) -> Clip:
    """A CLIP with random weights, and a tokenizer of so many merges."""
    tokenizer = new_tokenizer(merges, CONTEXT)
    settings = config(len(tokenizer))
    parts = dict(settings["model_cfg"])
    parts["text_cfg"] = {k: v for k, v in parts["text_cfg"].items() if k != "hf_tokenizer_name"}
    return Clip(CLIP(**parts), tokenizer, settings)


def close_up(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """The segment's crop (3, size, size) with its surroundings kept."""
    rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
    window = torch.zeros_like(mask)
    window[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return segment_crop(image, window, size)


def distinct(items: list[PocketItem]) -> list[tuple[int, Segment]]:
    """The first segment of each (label, colour, pattern), with its scene's number.

    Contrastive learning treats every other text of the batch as wrong, so none may be right.
    """
    first = {}
    for i, item in enumerate(items):
        for segment in item.segments:
            first.setdefault((segment.label, segment.colour, segment.pattern), (i, segment))
    return list(first.values())


Shown = tuple[int, Bool[Tensor, "h w"], str]  # an image's number in a batch, a segment, its text
Pairs = tuple[Float[Tensor, "b 3 s s"], list[str]]


def batch(number: int, generator: torch.Generator, size: int) -> Pairs:
    """Images in [0, 1] and their texts: crops (four in five black outside) and whole images."""
    items = [pocket_item("train", i) for i in range(number * SCENES, (number + 1) * SCENES)]
    images = to_unit(to_tensor(item.image for item in items))
    segments = [
        (i, torch.from_numpy(segment.mask.copy()), segment.text) for i, segment in distinct(items)
    ]
    crops = _crops(images, segments, generator, size)
    texts = [text for *_, text in segments] + [item.captions[0] for item in items[:WHOLE]]
    return torch.cat([crops, _resized(images[:WHOLE], size)]), texts


def photo_batch(views: Sequence[PhotoView], generator: torch.Generator, size: int) -> Pairs:
    """As `batch`, of views of photos: each text once, and of each photo one view as a whole."""
    images = to_unit(to_tensor(view.image for view in views))
    segments = [*{text: (i, mask, text) for i, mask, text in _segments(views)}.values()]
    whole = [*{view.photo: i for i, view in enumerate(views)}.values()][:WHOLE]
    drawn = torch.rand(len(whole), generator=generator).tolist()
    captions = [
        views[i].captions[int(u * len(views[i].captions))]
        for i, u in zip(whole, drawn, strict=True)
    ]
    rest = _resized(images[whole], size)
    if not segments:
        return rest, captions
    crops = _crops(images, segments, generator, size)
    return torch.cat([crops, rest]), [text for *_, text in segments] + captions


def _segments(views: Sequence[PhotoView]) -> Iterable[Shown]:
    """Of every view the segments of which enough is seen."""
    for i, view in enumerate(views):
        seen = torch.from_numpy(view.labels)
        for k, text in enumerate(view.texts, start=1):
            mask = seen == k
            if mask.float().mean() >= MIN_AREA:
                yield i, mask, text


def _crops(
    images: Tensor, segments: Sequence[Shown], generator: torch.Generator, size: int
) -> Float[Tensor, "n 3 size size"]:
    crops = []
    for i, mask, _ in segments:
        black = torch.rand((), generator=generator) < 0.8
        crops.append((segment_crop if black else close_up)(images[i], mask, size))
    return torch.stack(crops)


def _resized(images: Tensor, size: int) -> Float[Tensor, "n 3 size size"]:
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


class _Pairs(torch.nn.Module):
    """The CLIP network without its temperature, which stays fixed."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        model.logit_scale.requires_grad_(False).fill_(float(np.log(1 / TEMPERATURE)))


def make(
    plan: Plan, device: str, *, data: Path | None = None, **choice: Unpack[PhotoChoice]
) -> Job:
    """open_clip's contrastive loss on pairs of a crop (or a whole image) and its text.

    An image is compared with the texts of its own micro-batch: several a step are not a larger one.

    Args:
        data: a folder in COCO layout, whose photos, captions and category names are learned, with
            a larger vocabulary; pocket scenes if not given.
        choice: of the folder's photos, see `PhotoChoice`.
    """
    torch.manual_seed(plan.seed)
    clip = new_clip(MERGES if data is None else PHOTO_MERGES)
    loss, pairs_of = ClipLoss(), batch
    phrase = f"pocket scenes train 0-{plan.batches * SCENES - 1}, no held-out combination"
    if data is not None:
        pairs_of, phrase = photo_pairs(data, plan.seed, device_of(device), **choice)

    def loss_at(number: int, generator: torch.Generator) -> Tensor:
        crops, texts = pairs_of(number, generator, clip.image_size)
        vectors = clip.encode_images(crops.to(clip.device))
        return loss(vectors, clip.encode_text(texts), clip.model.logit_scale.exp())

    pairs = _Pairs(clip.model)
    return Job(pairs, loss_at, lambda folder: save_half(clip, folder), plan, phrase)


def photo_pairs(
    data: Path, seed: int, device: str, **choice: Unpack[PhotoChoice]
) -> tuple[Callable[[int, torch.Generator, int], Pairs], str]:
    """A function like `batch` that has views of photos, and a phrase for the card."""
    photos, phrase = training_photos(data, **{"min_area": MIN_AREA} | choice)
    views = batches(partial(wide_view, seed=seed, photos=photos, size=SIZE), SCENES, device)
    return lambda number, generator, size: photo_batch(views(number), generator, size), phrase
