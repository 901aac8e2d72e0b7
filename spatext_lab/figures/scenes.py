# SPDX-License-Identifier: Apache-2.0
"""The one visual language of the course: pictures of scenes, of maps, of results, plain curves.

Region k has the same colour everywhere and its number on it, so that no figure speaks by colour
alone. This is the front door: `pictures` and `charts` are what stands behind it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from spatext_lab.figures.charts import curve, grid
from spatext_lab.figures.png import (
    EMPTY,
    INK,
    PALETTE,
    WHITE,
    Colour,
    Picture,
    colour,
    enlarged,
    fitted,
    save,
    show,
    to_image,
)
from spatext_lab.scene import Scene

__all__ = [
    "PALETTE",
    "Picture",
    "colour",
    "curve",
    "draw_scene",
    "grid",
    "map_picture",
    "outline",
    "save",
    "show",
    "to_image",
    "token_strip",
]


def draw_scene(
    scene: Scene,
    size: int = 256,
    background: Any = None,
    numbers: bool = True,
    legend: bool = False,
) -> Image.Image:
    """The scene as a picture: each region in its colour, later ones over earlier ones.

    Args:
        size:       pixels of the longer side.
        background: a picture that shines through the regions.
        numbers:    write each region's number on it.
        legend:     add the texts of the regions below.
    """
    photo = None if background is None else to_image(background)
    masks = [region.mask for region in scene.regions if region.is_mask]
    shape = photo.size if photo else masks[0].shape[::-1] if masks else (1, 1)
    w, h = fitted(shape, size)
    labels = scene.label_map(h, w)
    colours = np.array([colour(k) for k in range(len(scene.regions) + 1)], np.uint8)
    picture = Image.fromarray(colours[labels])
    if photo:
        veil = Image.fromarray(np.where(labels > 0, 150, 0).astype(np.uint8))
        picture = Image.composite(picture, enlarged(photo, size), veil)
    for edge in _edges(scene, h, w, max(1, round(size / 150))):
        picture.paste(WHITE, mask=_as_image(edge))
    if numbers:
        _paste_numbers(picture, scene)
    return _with_legend(picture, scene) if legend else picture


def outline(image: Any, scene: Scene, size: int = 256, numbers: bool = True) -> Image.Image:
    """A picture with the outline, and the number, of every region drawn over it."""
    picture = enlarged(to_image(image), size)
    w, h = picture.size
    line = max(1, round(size / 150))
    for edge in _edges(scene, h, w, 2 * line):
        picture.paste(WHITE, mask=_as_image(edge))
    for k, edge in enumerate(_edges(scene, h, w, line), start=1):
        picture.paste(colour(k), mask=_as_image(edge))
    if numbers:
        _paste_numbers(picture, scene)
    return picture


def map_picture(st_map: Float[Any, "d h w"], size: int = 256) -> Image.Image:
    """A spatio-textual map, array or tensor (d, h, w), as a picture of its h x w grid.

    Red, green and blue are the first three principal components of the vectors that are there, all
    on one scale, so that like colours mean like vectors; pixels without a vector are light grey.
    Each component's sign is fixed (its largest weight is positive): one map has one picture.
    """
    values = np.asarray(st_map.detach().float().cpu() if hasattr(st_map, "detach") else st_map)
    vectors = values.reshape(len(values), -1).T.astype(np.float64)
    there = vectors.any(axis=1)
    rgb = np.full((len(vectors), 3), EMPTY, np.uint8)
    if there.any():
        centred = vectors[there] - vectors[there].mean(axis=0)
        axes = np.linalg.eigh(centred.T @ centred)[1][:, :-4:-1].T  # the largest three
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
        shares = centred @ (axes * np.sign(largest)).T
        shares /= max(np.abs(shares).max(), 1e-6)  # equal vectors: rounding errors stay grey
        shares = np.pad(shares, ((0, 0), (0, 3 - shares.shape[1])))
        rgb[there] = np.round(128 + 96 * shares)
    return enlarged(Image.fromarray(rgb.reshape(*values.shape[1:], 3)), size)


def token_strip(tokens: Sequence[tuple[str, int, bool]], note: str = "") -> str:
    """Tokens as a row of coloured chips, as HTML for a notebook.

    tokens: (text, region, whether it is a position): region k in its colour, with its number in the
        tooltip, 0 (the caption) in light grey; positions are filled, words have a coloured edge.
    note: said at the end.
    """
    chips = "".join(_chip(*token) for token in tokens)
    style = "line-height:2;font-family:monospace;font-size:13px"
    return f'<div style="{style}">{chips} <i>{html.escape(note)}</i></div>'


def _chip(text: str, region: int, position: bool) -> str:
    back, ink = (colour(region), _ink_on(colour(region))) if position else (WHITE, INK)
    edge = EMPTY if region == 0 else colour(region)
    title = f"region {region}" if region else "caption"
    style = (
        f"border:2px solid rgb{edge};background:rgb{back};color:rgb{ink};border-radius:6px;"
        "padding:1px 4px;margin:1px;white-space:nowrap;display:inline-block;line-height:1.4"
    )
    return f'<span title="{title}" style="{style}">{html.escape(text)}</span>'


def _ink_on(back: Colour) -> Colour:
    """Black or white, whichever stands out more."""
    return INK if np.dot((0.299, 0.587, 0.114), back) > 130 else WHITE


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
    """Where a mask comes within `width` pixels of its end; the rim of the picture is no end."""
    inner = _as_image(mask).filter(ImageFilter.MinFilter(2 * width + 1))
    return mask & (np.asarray(inner) == 0)


def _deepest(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of a place deep inside: what is left last when edge after edge is taken off."""
    step = max(mask.shape) // 64 + 1  # about 64 pixels are fine enough, and fast
    sampled = mask[::step, ::step]
    if not sampled.any():
        step, sampled = 1, mask
    rest = np.pad(sampled, 1)  # here the rim counts, or a sky would have its number at the top
    while rest.any():
        core, rest = rest, rest & ~_edge(rest, 1)
    rows, columns = np.nonzero(core)
    middle = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return (int(columns[middle]) - 1) * step, (int(rows[middle]) - 1) * step


def _paste_numbers(picture: Image.Image, scene: Scene) -> None:
    w, h = picture.size
    radius = max(7, round(max(w, h) / 25))
    for k, mask in enumerate(scene.visible_masks(h, w), start=1):
        if mask.any():
            x, y = _deepest(mask)
            _paste_badge(picture, k, x, y, radius)


def _paste_badge(picture: Image.Image, k: int, x: int, y: int, radius: int) -> None:
    badge = _badge(k, radius)
    corner = [  # as near to (x, y) as the badge is whole
        max(0, min(at - radius, side - space))
        for at, side, space in zip((x, y), picture.size, badge.size, strict=True)
    ]
    picture.paste(badge, tuple(corner), badge)


@lru_cache
def _badge(k: int, radius: int) -> Image.Image:
    """Region k's number on a disc of its colour, in black or white, whichever stands out more."""
    fine = 4  # drawn larger and shrunk, for smooth edges
    side = (2 * radius + 1) * fine
    badge = Image.new("RGBA", (side, side), (*WHITE, 0))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, side - 1, side - 1), colour(k), WHITE, round(1.5 * fine))
    ink = _ink_on(colour(k))
    font = ImageFont.load_default(1.2 * radius * fine)
    draw.text((side / 2, side / 2), str(k), ink, font, anchor="mm")
    return badge.reduce(fine)


def _with_legend(picture: Image.Image, scene: Scene) -> Image.Image:
    w, h = picture.size
    line, font = 24, ImageFont.load_default(13)
    sheet = Image.new("RGB", (w, h + line * len(scene.regions) + 8), WHITE)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for k, region in enumerate(scene.regions, start=1):
        text, middle = region.text, h + 8 + line * k - line // 2
        while font.getlength(text) > w - 30:
            text = text.rstrip("…")[:-1] + "…"
        _paste_badge(sheet, k, 10, middle, 9)
        draw.text((26, middle), text, INK, font, anchor="lm")
    return sheet
