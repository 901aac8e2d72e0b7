# SPDX-License-Identifier: Apache-2.0
"""One picture: the colours it is drawn in, and its way out to a notebook or a PNG file.

None leaves without an alt text.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from spatext_lab.scene import files

DPI = 100  # of every figure, so that its size in inches is its size in pixels / 100


Colour = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), in an order that puts the unlike side by side.
PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # green
    (204, 121, 167),  # pink
    (86, 180, 233),  # sky
    (213, 94, 0),  # vermilion
    (240, 228, 66),  # yellow
)
EMPTY: Colour = (238, 238, 238)  # where no region lies
WHITE: Colour = (255, 255, 255)
INK: Colour = (38, 38, 38)


def colour(k: int) -> Colour:
    """The RGB colour (0 to 255) of region k, counted from 1; after seven they begin again."""
    return EMPTY if k == 0 else PALETTE[(k - 1) % len(PALETTE)]


@dataclass(frozen=True)
class Picture:
    """The bytes of a PNG and its alt text; a notebook shows it as HTML, which keeps both."""

    png: bytes
    alt: str

    def _repr_html_(self) -> str:
        # As image/png, JupyterLab would drop the alt text.
        data = base64.b64encode(self.png).decode("ascii")
        return f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return f"<Picture: {self.alt}>"


def show(obj: Any, alt: str) -> None:
    """Display a picture, array or figure in a notebook with its alt text; small ones enlarged.

    Raises:
        ValueError: for an empty alt text, and for what `to_image` refuses.
    """
    from IPython.display import display

    image = to_image(obj)
    if max(image.size) < 256:
        image = enlarged(image, 256)
    display(Picture(png(image, alt), alt))


def save(
    obj: Any, path: str | os.PathLike, alt: str, params: Mapping[str, Any] | None = None
) -> Path:
    """Write a picture, array or figure to a PNG file that tells what it is; returns the path.

    The file's text chunks hold the alt text (`Description`) and how it was made (`Parameters`, as
    JSON). An existing file is replaced only when the new one is complete.

    Raises:
        ValueError: for an empty alt text, and for what `to_image` refuses.
    """
    files.write(path, png(obj, alt, params))
    return Path(path)


def to_image(obj: Any) -> Image.Image:
    """An RGB picture from a PIL image, a uint8 array (h, w, 3) or (h, w), or a matplotlib figure.

    Raises:
        ValueError: naming what was given and the right form.
    """
    if isinstance(obj, Image.Image):
        return obj.convert("RGB")
    if hasattr(obj, "savefig"):
        buffer = io.BytesIO()
        obj.savefig(buffer, format="png", dpi=DPI)
        return Image.open(buffer).convert("RGB")
    if isinstance(obj, np.ndarray) and obj.dtype == np.uint8 and obj.shape[2:] in ((), (3,)):
        return Image.fromarray(obj).convert("RGB")
    what = f"{obj.dtype} {tuple(obj.shape)}" if hasattr(obj, "dtype") else type(obj).__name__
    raise ValueError(f"picture is {what}: give a PIL image or a uint8 array (height, width, 3)")


def enlarged(image: Image.Image, size: int) -> Image.Image:
    """The picture with `size` pixels on its longer side; a smaller one keeps its pixels visible."""
    shrinks = max(image.size) > size
    how = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    return image.resize(fitted(image.size, size), how)


def fitted(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) brought to `size` on the longer side, in the same proportion."""
    longer = max(shape)
    return tuple(max(1, round(side * size / longer)) for side in shape)


def png(obj: Any, alt: str, params: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of the file that `save` writes; raises what it raises."""
    if not alt.strip():
        raise ValueError(f"alt is empty ({alt!r}): say in a sentence what the picture shows")
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("Description", alt)
    if params is not None:
        texts.add_itxt("Parameters", json.dumps(dict(params), ensure_ascii=False, default=str))
    buffer = io.BytesIO()
    to_image(obj).save(buffer, format="PNG", pnginfo=texts, optimize=True)
    return buffer.getvalue()
