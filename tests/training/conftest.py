# SPDX-License-Identifier: Apache-2.0
"""The tiny model, and recipes that are small enough for a test."""

from inspect import unwrap
from pathlib import Path

import pytest

from spatext_lab import zoo
from spatext_lab.training.cache import store
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
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """The tiny model's folder; read it only."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path_factory) -> Path:
    """Where runs on photos keep their caches."""
    folder = tmp_path_factory.getbasetemp() / "caches"
    monkeypatch.setattr(store, "FOLDER", folder)
    return folder


@pytest.fixture
def small(monkeypatch, root) -> None:
    """Few scenes, small batches, and the tiny model in place of the shipped one."""
    for module in (autoencoder, judge):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(decoder, "SCENES", 2)
    monkeypatch.setattr(decoder, "WIDTH", 12)
    monkeypatch.setattr(clip, "SCENES", 6)
    monkeypatch.setattr(clip, "WHOLE", 3)
    for module in (spatext, other_maps, pixel, prior, reco, gligen, update_mask, energy):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (text_to_image, spatext, other_maps, pixel, reco, gligen):
        monkeypatch.setitem(unwrap(module.make).__kwdefaults__, "batch", 4)
    for module in (spatext, pixel, prior, views, update_mask, energy):
        monkeypatch.setattr(module, "SCENES", 8)
    monkeypatch.setattr(text_to_image, "SMALL_VIEWS", 1)
    monkeypatch.setattr(text_to_image, "LARGE_VIEWS", 2)
    monkeypatch.setattr(text_to_image, "SMALL_STEPS", 1)
    monkeypatch.setattr(views, "PER_SKILL", 1)
    monkeypatch.setattr(views, "LARGE", 2)
    monkeypatch.setattr(reco, "FULL_LENGTH", 1)
    for module in (reco, gligen):
        monkeypatch.setattr(module, "STAGES", (1, 2))
    monkeypatch.setattr(zoo, "_POCKETS", (root,))
