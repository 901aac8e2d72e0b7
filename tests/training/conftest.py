# SPDX-License-Identifier: Apache-2.0
"""The tiny model, and recipes that are small enough for a test."""

from pathlib import Path

import pytest

from spatext_lab.training.cache import store
from tests.tiny import tiny_model
from tests.training.small import shrink


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
    shrink(monkeypatch, root)
