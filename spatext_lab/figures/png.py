# SPDX-License-Identifier: Apache-2.0
"""One image: the palette, conversion to RGB, and output to a notebook or a PNG file with alt text.

No image is shown or saved without an alt text.
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
from PIL import Image, ImageOps, PngImagePlugin

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

FORM = "expected a PIL image (8 bits, or 16-bit grey) or a uint8 array (height, width, 3)"


def colour(k: int) -> Colour:
    """The RGB colour (0 to 255) of region k, counted from 1; 0 is grey, after 7 they repeat."""
    return EMPTY if k == 0 else PALETTE[(k - 1) % len(PALETTE)]


# Rec. 601 luma; `painter.js` has the same rule for the page.
def ink_on(back: Colour) -> Colour:
    """INK or WHITE, whichever is easier to read on this background."""
    return INK if np.dot((0.299, 0.587, 0.114), back) > 130 else WHITE


@dataclass(frozen=True)
class ImageWithAlt:
    """The bytes of a PNG file and an alt text; a notebook shows it as HTML, which keeps both."""

    png: bytes
    alt: str

    def _repr_html_(self) -> str:
        # As image/png, JupyterLab would drop the alt text.
        data = base64.b64encode(self.png).decode("ascii")
        return f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return f"<ImageWithAlt: {self.alt}>"


def show(obj: Any, alt: str) -> None:
    """Display an image in a notebook; one below 256 pixels is enlarged.

    Args:
        obj: a PIL image, array or figure, as `to_image` takes it.
        alt: the alt text.

    Raises:
        ValueError: for an empty alt text, and for what `to_image` refuses.
    """
    from IPython.display import display

    image = to_image(obj)
    if max(image.size) < 256:
        image = enlarged(image, 256)
    display(ImageWithAlt(png(image, alt), alt))


def save(
    obj: Any, path: str | os.PathLike, alt: str, params: Mapping[str, Any] | None = None
) -> Path:
    """Write an image to a PNG file; an existing file is replaced when the new one is complete.

    Args:
        obj:    a PIL image, array or figure, as `to_image` takes it.
        path:   the file to write.
        alt:    the alt text; stored in the text chunk `Description`.
        params: how the image was made; stored as JSON in the text chunk `Parameters`.

    Returns:
        The path.

    Raises:
        ValueError: for an empty alt text, and for what `to_image` refuses.
    """
    files.write(path, png(obj, alt, params))
    return Path(path)


def to_image(obj: Any) -> Image.Image:
    """Convert to an RGB image as a viewer would show it.

    A PIL image is turned upright by its EXIF orientation, 16-bit grey is scaled to 8 bits, and
    transparent parts become white.

    Args:
        obj: a PIL image, a uint8 array (height, width, 3) or (height, width), or a matplotlib
            figure.

    Raises:
        ValueError: naming what was passed and the right form.
    """
    if isinstance(obj, Image.Image):
        return _rgb(ImageOps.exif_transpose(obj))
    if hasattr(obj, "savefig"):
        buffer = io.BytesIO()
        obj.savefig(buffer, format="png", dpi=DPI)
        return Image.open(buffer).convert("RGB")
    if isinstance(obj, np.ndarray) and obj.dtype == np.uint8 and obj.shape[2:] in ((), (3,)):
        return Image.fromarray(obj).convert("RGB")
    what = f"{obj.dtype} {tuple(obj.shape)}" if hasattr(obj, "dtype") else type(obj).__name__
    raise ValueError(f"image is {what}: {FORM}")


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips 16-bit values to 255 and shows what transparency hides."""
    if image.mode == "F" or image.mode[0] == "I":  # 16-bit files are opened as I;16, I;16B or I
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            least, most = image.getextrema()
            raise ValueError(f"image has mode {image.mode}, values from {least} to {most}: {FORM}")
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, WHITE)
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def enlarged(image: Image.Image, size: int) -> Image.Image:
    """Resize the longer side to `size` pixels; enlarging keeps pixels as sharp squares."""
    shrinks = max(image.size) > size
    how = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    return image.resize(fitted(image.size, size), how)


def fitted(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) scaled so that the longer side is `size`."""
    longer = max(shape)
    return tuple(max(1, round(side * size / longer)) for side in shape)


def png(obj: Any, alt: str, params: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of the PNG file that `save` writes, with the same arguments and errors."""
    if not alt.strip():
        raise ValueError(f"alt is empty ({alt!r}): expected a sentence on what the image shows")
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("Description", alt)
    if params is not None:
        texts.add_itxt("Parameters", json.dumps(dict(params), ensure_ascii=False, default=str))
    buffer = io.BytesIO()
    to_image(obj).save(buffer, format="PNG", pnginfo=texts, optimize=True)
    return buffer.getvalue()
