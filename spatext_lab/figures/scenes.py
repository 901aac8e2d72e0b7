# SPDX-License-Identifier: Apache-2.0
"""Images of scenes and maps, and tokens as HTML: the one visual language of the course.

Region k has the same colour everywhere and its number on it, so that no figure relies on colour
alone.
"""

from __future__ import annotations

import html
from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from spatext_lab.figures.png import EMPTY, INK, WHITE, colour, enlarged, fitted, ink_on, to_image
from spatext_lab.scene import Scene


def draw_scene(
    scene: Scene,
    size: int = 256,
    background: Any = None,
    numbers: bool = True,
    legend: bool = False,
) -> Image.Image:
    """Draw a scene: each region in its colour, later ones over earlier ones.

    Args:
        size:       pixels of the longer side.
        background: an image that shows through the regions.
        numbers:    write each region's number on it.
        legend:     write the texts of the regions below, each truncated to one line.
    """
    photo = None if background is None else to_image(background)
    masks = [region.mask for region in scene.regions if region.is_mask]
    shape = photo.size if photo else masks[0].shape[::-1] if masks else (1, 1)
    w, h = fitted(shape, size)
    labels = scene.label_map(h, w)
    colours = np.array([colour(k) for k in range(len(scene.regions) + 1)], np.uint8)
    image = Image.fromarray(colours[labels])
    if photo:
        veil = Image.fromarray(np.where(labels > 0, 150, 0).astype(np.uint8))
        image = Image.composite(image, enlarged(photo, size), veil)
    for edge in _edges(scene, h, w, max(1, round(size / 150))):
        image.paste(WHITE, mask=_as_image(edge))
    if numbers:
        _paste_numbers(image, scene)
    return _with_legend(image, scene) if legend else image


def outline(image: Any, scene: Scene, size: int = 256, numbers: bool = True) -> Image.Image:
    """Draw the outline of every region, and its number, over an image.

    Args:
        image:   what `to_image` takes.
        size:    pixels of the longer side.
        numbers: write each region's number on it.
    """
    image = enlarged(to_image(image), size)
    w, h = image.size
    line = max(1, round(size / 150))
    for edge in _edges(scene, h, w, 2 * line):
        image.paste(WHITE, mask=_as_image(edge))
    for k, edge in enumerate(_edges(scene, h, w, line), start=1):
        image.paste(colour(k), mask=_as_image(edge))
    if numbers:
        _paste_numbers(image, scene)
    return image


def map_image(st_map: Float[Any, "d h w"], size: int = 256) -> Image.Image:
    """Show a spatio-textual map as an image of its h x w grid.

    Red, green and blue are the first three principal components of the nonzero vectors, all on one
    scale, so that similar colours mean similar vectors; cells without a vector are light grey.
    Each component's sign is fixed (its largest weight is positive): one map gives one image.

    Args:
        st_map: array or tensor (d, h, w).
        size:   pixels of the longer side.
    """
    values = np.asarray(st_map.detach().float().cpu() if hasattr(st_map, "detach") else st_map)
    vectors = values.reshape(len(values), -1).T.astype(np.float64)
    there = vectors.any(axis=1)
    rgb = np.full((len(vectors), 3), EMPTY, np.uint8)
    if there.any():
        centred = vectors[there] - vectors[there].mean(axis=0)
        axes = np.linalg.eigh(centred.T @ centred)[1][:, :-4:-1].T  # the largest three
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
        components = centred @ (axes * np.sign(largest)).T
        components /= max(
            np.abs(components).max(), 1e-6
        )  # equal vectors: rounding errors stay grey
        components = np.pad(components, ((0, 0), (0, 3 - components.shape[1])))
        rgb[there] = np.round(128 + 96 * components)
    return enlarged(Image.fromarray(rgb.reshape(*values.shape[1:], 3)), size)


def token_strip(tokens: Sequence[tuple[str, int, bool]], note: str = "") -> str:
    """Show tokens as a row of coloured chips, in HTML for a notebook.

    Args:
        tokens: (text, region, is_position) each; region 0 is the caption.
        note:   a text at the end.
    """
    chips = "".join(chip(*token) for token in tokens)
    style = "line-height:2;font-family:monospace;font-size:13px"
    return f'<div style="{style}">{chips} <i>{html.escape(note)}</i></div>'


def chip(text: str, region: int, is_position: bool, edge: str = "", attributes: str = "") -> str:
    """Show one token as HTML: positions are filled with the region's colour, others bordered.

    Args:
        region:     named in the tooltip; 0 is the caption.
        edge:       which edge of the box a position token encodes, for the tooltip.
        attributes: more attributes of the element, as HTML.
    """
    back, ink = (colour(region), ink_on(colour(region))) if is_position else (WHITE, INK)
    title = (f"region {region}" if region else "caption") + (f", {edge}" if edge else "")
    style = (
        f"border:2px solid rgb{colour(region)};background:rgb{back};color:rgb{ink};"
        "border-radius:6px;padding:1px 5px;margin:1px;white-space:nowrap;display:inline-block;"
        "line-height:1.4"
    )
    return f'<span title="{title}" style="{style}"{attributes}>{html.escape(text)}</span>'


def _edges(scene: Scene, h: int, w: int, width: int) -> list[NDArray[np.bool_]]:
    """The line around each region. Between two, it belongs to the later one, which lies on top."""
    labels = scene.label_map(h, w)
    edges = []
    for k, region in enumerate(scene.regions, start=1):
        edge = (labels == k) & _edge(labels >= k, width)
        if not region.is_mask:  # a box is drawn whole, also where a later region covers it
            edge |= (labels > k) & _edge(region.mask_at(h, w), width)
        edges.append(edge)
    return edges


def _as_image(mask: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _edge(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of a mask within `width` pixels of its end; the image's border does not count."""
    from scipy.ndimage import minimum_filter

    return mask & ~minimum_filter(mask, 2 * width + 1)


def _deepest(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the mask's end, the middle one of several."""
    from scipy.ndimage import distance_transform_cdt

    step = max(mask.shape) // 64 + 1  # about 64 pixels are fine enough, and fast
    sampled = mask[::step, ::step]
    if not sampled.any():
        step, sampled = 1, mask
    # Here the border counts, or a sky would have its number at the top.
    depth = distance_transform_cdt(np.pad(sampled, 1), "chessboard")
    rows, columns = np.nonzero(depth == depth.max())
    middle = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return (int(columns[middle]) - 1) * step, (int(rows[middle]) - 1) * step


def _paste_numbers(image: Image.Image, scene: Scene) -> None:
    w, h = image.size
    radius = max(7, round(max(w, h) / 25))
    for k, mask in enumerate(scene.visible_masks(h, w), start=1):
        if mask.any():
            x, y = _deepest(mask)
            _paste_badge(image, k, x, y, radius)


def _paste_badge(image: Image.Image, k: int, x: int, y: int, radius: int) -> None:
    badge = _badge(k, radius)
    corner = [  # as near to (x, y) as the badge is whole
        max(0, min(at - radius, side - space))
        for at, side, space in zip((x, y), image.size, badge.size, strict=True)
    ]
    image.paste(badge, tuple(corner), badge)


@lru_cache
def _badge(k: int, radius: int) -> Image.Image:
    """Region k's number on a disc of its colour."""
    fine = 4  # drawn larger and shrunk, for smooth edges
    side = (2 * radius + 1) * fine
    badge = Image.new("RGBA", (side, side), (*WHITE, 0))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, side - 1, side - 1), colour(k), WHITE, round(1.5 * fine))
    font = ImageFont.load_default(1.2 * radius * fine)
    draw.text((side / 2, side / 2), str(k), ink_on(colour(k)), font, anchor="mm")
    return badge.reduce(fine)


def _with_legend(image: Image.Image, scene: Scene) -> Image.Image:
    w, h = image.size
    line, font = 24, ImageFont.load_default(13)
    sheet = Image.new("RGB", (w, h + line * len(scene.regions) + 8), WHITE)
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for k, region in enumerate(scene.regions, start=1):
        middle = h + 8 + line * k - line // 2
        _paste_badge(sheet, k, 10, middle, 9)
        draw.text((26, middle), _truncated(region.text, font, w - 30), INK, font, anchor="lm")
    return sheet


def _truncated(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line of `width` pixels, with an ellipsis where it is longer."""
    text = " ".join(text.split())[: 8 * width]  # no line has room for as many letters
    if font.getlength(text) <= width:
        return text
    room = bisect(range(len(text)), width, key=lambda n: font.getlength(text[:n] + "…"))
    return text[: max(room - 1, 0)] + "…"
