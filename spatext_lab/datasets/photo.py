# SPDX-License-Identifier: Apache-2.0
"""Photos as they are meant to be seen: upright, and as 8-bit RGB whatever their file holds."""

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF's tag; from 5 on, width and height change places


class UnsupportedPixels(ValueError):
    """The values of an image's pixels have no known range."""


def is_turned(image: Image.Image) -> bool:
    """Whether the file says, in its header, that it is seen with width and height exchanged."""
    return Image.Image.getexif(image).get(_ORIENTATION, 1) in (5, 6, 7, 8)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright, in mode RGB; 16-bit values are scaled, transparent parts become white.

    Raises:
        UnsupportedPixels: 32 bits a channel, a range that no file names.
        OSError: the file is damaged.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise UnsupportedPixels(
                f"image has 32-bit pixels (mode {image.mode}): save it with 8 or 16 bits a channel"
            )
        image = Image.fromarray(np.rint(pixels / 257.0).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
