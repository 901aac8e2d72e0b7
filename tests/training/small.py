# SPDX-License-Identifier: Apache-2.0
"""Recipes that are small enough for a test."""

from inspect import unwrap
from pathlib import Path

import pytest

from spatext_lab import zoo
from spatext_lab.training.recipes import (
    autoencoder,
    clip,
    decoder,
    energy,
    gligen,
    judge,
    other_maps,
    pixel,
    prior,
    reco,
    spatext,
    text_to_image,
    update_mask,
)
from spatext_lab.training.recipes.reco import views


def shrink(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Few scenes, small batches, and the tiny model in `root` in place of the shipped one."""
    for module in (autoencoder, judge):
        patch.setattr(module, "BATCH", 2)
    patch.setattr(decoder, "SCENES", 2)
    patch.setattr(decoder, "WIDTH", 12)
    patch.setattr(clip, "SCENES", 6)
    patch.setattr(clip, "WHOLE", 3)
    for module in (spatext, other_maps, pixel, prior, reco, gligen, update_mask, energy):
        patch.setattr(module, "BATCH", 4)
    for module in (text_to_image, spatext, other_maps, pixel, reco, gligen):
        patch.setitem(unwrap(module.make).__kwdefaults__, "batch", 4)
    for module in (spatext, pixel, prior, views, update_mask, energy):
        patch.setattr(module, "SCENES", 8)
    patch.setattr(text_to_image, "SMALL_VIEWS", 1)
    patch.setattr(text_to_image, "LARGE_VIEWS", 2)
    patch.setattr(text_to_image, "SMALL_STEPS", 1)
    patch.setattr(views, "PER_SKILL", 1)
    patch.setattr(views, "LARGE", 2)
    patch.setattr(reco, "FULL_LENGTH", 1)
    for module in (reco, gligen):
        patch.setattr(module, "STAGES", (1, 2))
    patch.setattr(zoo, "_POCKETS", (root,))
