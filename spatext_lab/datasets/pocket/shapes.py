# SPDX-License-Identifier: Apache-2.0
"""The twelve kinds of objects of the pocket world, each rendered from signed distance functions.

A signed distance function (SDF) is a point's distance from a shape's edge, negative inside.
So one function gives an exact mask (`sdf < 0`) and an anti-aliased edge (half a pixel either
side of zero). Shapes live in the square [-1, 1] x [-1, 1], x to the right, y down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

Array = np.ndarray
Sdf = Callable[[Array, Array], Array]

BROWN, CREAM, DARK, GOLD, GREY = (
    np.array(c, np.float32) / 255
    for c in ((112, 74, 44), (242, 228, 200), (52, 46, 66), (250, 196, 60), (120, 112, 126))
)


def circle(cx: float, cy: float, r: float) -> Sdf:
    """Distance to a circle of radius `r` around (cx, cy)."""
    return lambda x, y: np.hypot(x - cx, y - cy) - r


def ellipse(cx: float, cy: float, rx: float, ry: float) -> Sdf:
    """Distance to an ellipse, to first order: the zero set is exact, which is what masks need."""

    def sdf(x, y):
        u, v = (x - cx) / rx, (y - cy) / ry
        return (np.hypot(u, v) - 1) * np.hypot(u, v) / np.maximum(np.hypot(u / rx, v / ry), 1e-6)

    return sdf


def rectangle(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Sdf:
    """Distance to the rectangle x0..x1, y0..y1 with corners rounded by `r`."""
    cx, cy, hx, hy = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 - r, (y1 - y0) / 2 - r

    def sdf(x, y):
        dx, dy = np.abs(x - cx) - hx, np.abs(y - cy) - hy
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return outside + np.minimum(np.maximum(dx, dy), 0) - r

    return sdf


def polygon(*points: tuple[float, float]) -> Sdf:
    """Distance to a closed polygon; the sign comes from counting edges crossed to the right."""
    vertices = np.array(points, np.float32)

    def sdf(x, y):
        nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
            if ay != by:
                inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
        return np.where(inside, -nearest, nearest)

    return sdf


def union(*shapes: Sdf) -> Sdf:
    """The union of the shapes."""
    return lambda x, y: np.minimum.reduce([s(x, y) for s in shapes])


def intersect(*shapes: Sdf) -> Sdf:
    """The intersection of the shapes."""
    return lambda x, y: np.maximum.reduce([s(x, y) for s in shapes])


def cut(shape: Sdf, hole: Sdf) -> Sdf:
    """`shape` without `hole`."""
    return lambda x, y: np.maximum(shape(x, y), -hole(x, y))


def _star_points(tips: int, outer: float, inner: float) -> list[tuple[float, float]]:
    angle = np.pi * np.arange(2 * tips) / tips - np.pi / 2
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return list(zip(radius * np.cos(angle), radius * np.sin(angle) + 0.06, strict=True))


def _ring(n: int, distance: float, radius: float) -> list[Sdf]:
    angles = 2 * np.pi * np.arange(n) / n - np.pi / 2
    return [circle(distance * np.cos(a), distance * np.sin(a), radius) for a in angles]


@dataclass(frozen=True)
class Shape:
    """What a kind looks like: a body with the colour and pattern asked for, and fixed details."""

    body: Sdf
    behind: tuple[tuple[Sdf, Array], ...] = ()  # drawn under the body (trunk, mast, stem)
    over: tuple[tuple[Sdf, Array], ...] = ()  # drawn on the body (door, eye, lid)


_HEART = union(
    circle(-0.44, -0.34, 0.50),
    circle(0.44, -0.34, 0.50),
    polygon((-0.9, -0.14), (0.9, -0.14), (0.0, 0.92)),
)

SHAPES: dict[str, Shape] = {
    "ball": Shape(circle(0, 0, 0.92)),
    "box": Shape(
        rectangle(-0.8, -0.72, 0.8, 0.86, 0.08),
        over=((rectangle(-0.92, -0.86, 0.92, -0.44, 0.06), BROWN),),
    ),
    "star": Shape(polygon(*_star_points(5, 0.98, 0.44))),
    "heart": Shape(_HEART),
    "tree": Shape(
        union(circle(0, -0.48, 0.48), circle(-0.42, 0.02, 0.46), circle(0.42, 0.02, 0.46)),
        behind=((rectangle(-0.17, 0.2, 0.17, 0.96), BROWN),),
    ),
    "house": Shape(
        rectangle(-0.72, -0.16, 0.72, 0.92),
        over=(
            (polygon((-0.96, -0.1), (0.0, -0.96), (0.96, -0.1)), DARK),
            (rectangle(-0.2, 0.3, 0.2, 0.92), CREAM),
        ),
    ),
    "fish": Shape(
        union(ellipse(-0.2, 0, 0.74, 0.5), polygon((0.3, 0), (0.96, -0.52), (0.96, 0.52))),
        over=((circle(-0.56, -0.1, 0.13), DARK),),
    ),
    "boat": Shape(
        polygon((-0.96, 0.28), (0.96, 0.28), (0.56, 0.86), (-0.56, 0.86)),
        behind=(
            (rectangle(-0.08, -0.92, 0.08, 0.4), BROWN),
            (polygon((0.14, -0.9), (0.14, 0.14), (0.86, 0.14)), CREAM),
        ),
    ),
    "mushroom": Shape(
        intersect(ellipse(0, 0.1, 0.94, 0.98), rectangle(-1, -1, 1, 0.12)),
        behind=((rectangle(-0.3, -0.1, 0.3, 0.92, 0.14), CREAM),),
    ),
    "cup": Shape(
        union(
            polygon((-0.86, -0.78), (0.42, -0.78), (0.28, 0.84), (-0.72, 0.84)),
            cut(circle(0.44, -0.04, 0.5), circle(0.44, -0.04, 0.25)),
        ),
    ),
    "flower": Shape(union(*_ring(6, 0.56, 0.36)), over=((circle(0, 0, 0.32), GOLD),)),
    "moon": Shape(cut(circle(0.06, 0, 0.94), circle(0.52, -0.12, 0.76))),
}


@dataclass(frozen=True)
class Sprite:
    """One object at one size, still without its colour; every array is (side, side[, 3])."""

    alpha: Array  # coverage of the whole object, in [0, 1]
    mask: Array  # bool, the pixels whose centre lies inside
    light: Array  # soft light from above and a darker rim, factor on the colour
    accent: Array  # how much of the pattern's second colour, in [0, 1]
    body: Array  # fraction of the pixel that takes the colour, in [0, 1]
    detail: Array  # colour of the fixed details, times their fraction of the pixel


def _pattern(name: str, side: int) -> Array:
    """Stripes or dots with a period of at least six pixels, so that an image can show them."""
    period = max(6.0, side / 3.5)
    y, x = np.mgrid[:side, :side] + 0.5
    if name == "striped":
        wave = np.cos(2 * np.pi * (y - side / 2) / period)
    elif name == "dotted":
        shift = np.where(np.floor((y - side / 2) / period + 0.5) % 2 == 0, 0, period / 2)
        u = np.cos(2 * np.pi * (x - side / 2 + shift) / period)
        wave = 1.6 * (u + np.cos(2 * np.pi * (y - side / 2) / period) - 0.9)
    else:
        return np.zeros((side, side), np.float32)
    return np.clip(0.5 + wave, 0, 1).astype(np.float32)


@cache
def sprite(kind: str, pattern: str, side: int, mirrored: bool) -> Sprite:
    """`kind` with `pattern` as arrays of side x side pixels; cached, so rendering is copying.

    There are a few thousand (kind, pattern, side, mirrored) and each is a few kilobytes.
    """
    shape, pixel = SHAPES[kind], 2 / side
    axis = (np.arange(side) + 0.5) * pixel - 1
    x, y = np.meshgrid(-axis if mirrored else axis, axis)

    def coverage(sdf: Array) -> Array:
        return np.clip(0.5 - sdf / pixel, 0, 1).astype(np.float32)

    whole = union(*(s for s, _ in shape.behind), shape.body, *(s for s, _ in shape.over))(x, y)
    body = coverage(shape.body(x, y))
    layers = np.zeros((side, side, 4), np.float32)  # premultiplied RGBA of the details
    for part, colour in shape.behind:
        cover = coverage(part(x, y))[..., None]
        layers = layers * (1 - cover) + cover * np.append(colour, 1)
    layers *= 1 - body[..., None]
    for part, colour in shape.over:
        cover = coverage(part(x, y))[..., None]
        layers = layers * (1 - cover) + cover * np.append(colour, 1)
        body = body * (1 - cover[..., 0])
    total = np.maximum(layers[..., 3] + body, 1e-6)
    rim = np.clip(-whole / (1.6 * pixel), 0, 1)
    light = (0.62 + 0.38 * rim) * (1.06 - 0.16 * (y + 1) / 2)
    arrays = coverage(whole), whole < 0, light.astype(np.float32), _pattern(pattern, side)
    return Sprite(*arrays, body / total, layers[..., :3] / total[..., None])
