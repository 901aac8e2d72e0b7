# SPDX-License-Identifier: Apache-2.0
"""Images of one scene under many settings, sampled once and looked up: in memory, file, page."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from spatext_lab.scene import Scene, files
from spatext_lab.widgets.sources import markup

Key = tuple[float, float, int, int]  # scale of the caption, of the map, steps, seed


@dataclass(frozen=True, repr=False)
class Grid:
    """Images of one scene under many settings; shows itself with sliders.

    Args:
        parameters: everything that the images depend on, the model's fingerprint included.
        images: WebP bytes by (caption scale, map scale, steps, seed).
        film: for each step of one sampling the images "seen", "null", "caption" and "map" that
            `explorer.directions` returns.
    """

    parameters: dict[str, Any]
    images: dict[Key, bytes]
    film: tuple[dict[str, bytes], ...]

    def image(
        self, caption: float, map: float, steps: int | None = None, seed: int = 0
    ) -> Image.Image:
        """The image that the sliders show for these settings.

        Args:
            steps: of sampling; the largest number in the grid if not given.

        Raises:
            ValueError: settings that are not in the grid.
        """
        key = (caption, map, steps or max(self.parameters["steps"]), seed)
        if key not in self.images:
            have = {name: self.parameters[name] for name in ("captions", "maps", "steps", "seeds")}
            raise ValueError(f"caption, map, steps, seed are {key}; sampled are {have}")
        return Image.open(io.BytesIO(self.images[key])).convert("RGB")

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file; an existing one is replaced only when the new one is complete."""
        files.write(path, json.dumps({"format": "spatext-grid", "version": 2} | self._plain()))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Grid:
        """Read what `save` wrote; raises ValueError, the path in front, for anything else."""
        try:
            file = json.loads(Path(path).read_text())
            if (file["format"], file["version"]) == ("spatext-grid", 1):
                return cls({}, {}, ())  # of an earlier release: stale, whatever was asked for
            if (file["format"], file["version"]) != ("spatext-grid", 2):
                raise ValueError(f"format is {file['format']!r}, version {file['version']!r}")
            images = map(base64.b64decode, file["images"])
            film = [{k: base64.b64decode(v) for k, v in step.items()} for step in file["film"]]
            drawn = dict(zip(keys(file["parameters"]), images, strict=True))
            return cls(file["parameters"], drawn, tuple(film))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)} is not a grid of images: {error!r}; delete it"
            ) from None

    def __repr__(self) -> str:
        return f"<Grid: {len(self.images)} images, {len(self.film)} steps of directions>"

    def _plain(self) -> dict[str, Any]:
        def encoded(data: bytes) -> str:
            return base64.b64encode(data).decode("ascii")

        film = [{name: encoded(data) for name, data in step.items()} for step in self.film]
        images = [encoded(self.images[key]) for key in keys(self.parameters)]
        return {"parameters": self.parameters, "images": images, "film": film}

    def _repr_html_(self) -> str:
        # Without scripts (a notebook that is not trusted yet), one image is shown.
        first = base64.b64encode(self.images[keys(self.parameters)[0]]).decode("ascii")
        caption = Scene.from_json(self.parameters["scene"]).caption
        return markup("explorer", self._plain() | {"caption": caption}, first, caption)


def keys(parameters: dict[str, Any]) -> list[Key]:
    """The settings, in the order of their images in a file."""
    return list(product(*(parameters[name] for name in ("captions", "maps", "steps", "seeds"))))
