# SPDX-License-Identifier: Apache-2.0
"""The scenes that come with the course, to begin from: the files of data/scenes."""

from __future__ import annotations

from functools import cache

from spatext_lab import zoo
from spatext_lab.scene import Scene


@cache
def presets() -> dict[str, Scene]:
    """Every shipped scene by the name of its file, in alphabetical order."""
    return {path.stem: Scene.load(path) for path in sorted(zoo.shipped("scenes").glob("*.json"))}
