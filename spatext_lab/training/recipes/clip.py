# SPDX-License-Identifier: Apache-2.0
"""The pocket CLIP: images, close-ups and black-background crops against their texts."""

import numpy as np
import torch
from jaxtyping import Float
from open_clip import ClipLoss
from open_clip.model import CLIP
from torch import Tensor

from spatext_lab.clip import Clip, segment_crop
from spatext_lab.datasets.pocket import PocketItem, Segment, pocket_item
from spatext_lab.images import to_tensor, to_unit
from spatext_lab.text_to_image.tokenizer import new_tokenizer
from spatext_lab.training.job import Job, save_half
from spatext_lab.training.plan import Plan

SCENES = 48  # per step; their segments, each combination once, and WHOLE whole images
WHOLE = 16
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


def new_clip() -> Clip:
    """A CLIP with random weights."""
    tokenizer = new_tokenizer(length=CONTEXT)
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


def batch(
    step: int, generator: torch.Generator, size: int
) -> tuple[Float[Tensor, "b 3 s s"], list[str]]:
    """Images in [0, 1] and their texts: crops (four in five black outside) and whole images."""
    items = [pocket_item("train", i) for i in range(step * SCENES, (step + 1) * SCENES)]
    images = to_unit(to_tensor(item.image for item in items))
    crops, texts = [], []
    for i, segment in distinct(items):
        mask = torch.from_numpy(segment.mask.copy())
        black = torch.rand((), generator=generator) < 0.8
        crops.append((segment_crop if black else close_up)(images[i], mask, size))
        texts.append(segment.text)
    whole = torch.nn.functional.interpolate(
        images[:WHOLE], (size, size), mode="bilinear", antialias=True
    )
    return torch.cat([torch.stack(crops), whole]), texts + [i.captions[0] for i in items[:WHOLE]]


class _Pairs(torch.nn.Module):
    """The CLIP network without its temperature, which stays fixed."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        model.logit_scale.requires_grad_(False).fill_(float(np.log(1 / TEMPERATURE)))


def make(plan: Plan, device: str) -> Job:
    """open_clip's contrastive loss on pairs of a crop (or a whole image) and its text."""
    torch.manual_seed(plan.seed)
    clip = new_clip()
    loss = ClipLoss()

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        crops, texts = batch(step, generator, clip.image_size)
        vectors = clip.encode_images(crops.to(clip.device))
        return loss(vectors, clip.encode_text(texts), clip.model.logit_scale.exp())

    scenes = f"pocket scenes train 0-{plan.steps * SCENES - 1}, no held-out combination"

    pairs = _Pairs(clip.model)
    return Job(pairs, loss_at, lambda folder: save_half(clip, folder), plan, scenes)
