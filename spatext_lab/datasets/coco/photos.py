# SPDX-License-Identifier: Apache-2.0
"""Whether a photo's file can be used: whole, readable, and of the size that its annotation says."""

from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from spatext_lab.figures import to_image


class Unusable(Exception):
    """Why a photo cannot be used, although its file is what its publisher offers."""


class NotWhole(Unusable):
    """The file is missing, damaged or another one: the publisher's would do."""


def check_photo(path: Path, size: tuple[int, int], *, decode: bool = True) -> None:
    """Reads a photo's header, and its pixels if asked.

    Args:
        path: the photo.
        size: (height, width) in its annotation, in pixels.
        decode: decode the pixels too, so that damage is found wherever it is.

    Raises:
        NotWhole, Unusable: the reason, in words that are the same for all photos.
    """
    try:
        with Image.open(path) as image:
            stored = (image.height, image.width)
            found = stored[::-1] if _is_turned(image) else stored
            if decode and size in (stored, found):  # a damaged header asks for any amount of memory
                image.load()
                _check_pixels(image)
    except FileNotFoundError:
        raise NotWhole("image file is missing") from None
    except UnidentifiedImageError:
        fault = "image format is not supported, or the file's header is damaged"
        raise NotWhole(fault) from None
    except Unusable:
        raise
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        cause = getattr(error, "strerror", None)  # the operating system's: no permission, ...
        fault = f"cannot be read: {cause}" if cause else "is corrupt"
        raise NotWhole(f"image file {fault}") from None
    if found != size:
        if stored == size:
            raise Unusable("its EXIF orientation turns the image, and its annotation does not")
        raise NotWhole("image has another size than its annotation says")


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF, as far as it stands in the header, exchanges height and width."""
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)


def _check_pixels(image: Image.Image) -> None:
    try:
        to_image(image)
    except ValueError as error:
        reason = str(error).partition(",")[0]  # without the values, which differ by image
        raise Unusable(f"{reason}: expected 8 or 16 bits a channel") from None
