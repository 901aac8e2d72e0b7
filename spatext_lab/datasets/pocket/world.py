# SPDX-License-Identifier: Apache-2.0
"""The pocket world: 64 x 64 images rendered from a seed, whose truth is known at every pixel.

One to four objects stand in front of two segments of backdrop, so every pixel is in a segment
with a free-form text (a panoptic segmentation, as COCO has). Item *k* of a split is the same on
every machine. A fifth of the (kind, colour, pattern) combinations is held out of training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random

import numpy as np

from spatext_lab.datasets.pocket.shapes import SHAPES, sprite
from spatext_lab.datasets.pocket.texts import Look, captions, stuff_text, thing_text
from spatext_lab.scene import Region, Scene
from spatext_lab.scene.places import tight_box

SIZE = 64
KINDS = tuple(SHAPES)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PATTERNS = ("plain", "striped", "dotted")
SPLITS = ("train", "val", "test")

_RGB = np.array(
    [
        (208, 34, 44),
        (244, 124, 26),
        (250, 212, 50),
        (34, 138, 64),
        (36, 84, 204),
        (122, 50, 170),
        (246, 132, 186),
        (246, 246, 248),
    ],
    np.float32,
) / np.float32(255)
# The pattern's second colour: lighter where the colour is dark, darker where it is light.
_ACCENT = np.where(
    np.isin(COLOURS, ("yellow", "pink", "white"))[:, None], 0.5 * _RGB, 0.3 * _RGB + 0.7
)

# backdrop: (upper segment, lower segment, waviness of the line between them in pixels)
BACKDROPS = {
    "meadow": ("noon sky", "grass", 3.0),
    "beach": ("sea", "sand", 0.8),
    "night": ("night sky", "dark hills", 4.0),
    "winter": ("grey sky", "snow", 2.0),
    "desert": ("sunset sky", "dunes", 4.0),
    "street": ("brick wall", "pavement", 0.0),
}
STUFF = tuple(name for upper, lower, _ in BACKDROPS.values() for name in (upper, lower))
LABELS = KINDS + STUFF
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) + np.float32(0.5)


def held_out(kind: str, colour: str, pattern: str) -> bool:
    """Whether this combination never appears in a training image or text.

    A Latin-square rule: every kind, colour, pattern and nearly every pair of them stays in
    training; only one triple in five is missing, so a model must combine what it has learned.
    """
    k, c, p = KINDS.index(kind), COLOURS.index(colour), PATTERNS.index(pattern)
    return (k + 2 * c + p) % 5 == 0


def _gradient(top: tuple, bottom: tuple) -> np.ndarray:
    part = (_Y / SIZE)[..., None]
    return (np.float32(top) * (1 - part) + np.float32(bottom) * part) / 255


def _bricks() -> np.ndarray:
    row = np.floor(_Y / 8)
    across = (_X + 8 * (row % 2)) % 16
    joint = np.minimum(np.minimum(_Y % 8, 8 - _Y % 8), np.minimum(across, 16 - across))
    fill = np.clip(joint - 0.2, 0, 1)[..., None]
    return (fill * np.float32((164, 84, 66)) + (1 - fill) * np.float32((206, 182, 166))) / 255


def _stars() -> np.ndarray:
    rng = Random(7)  # one sky for all nights: stars are texture, not content
    glow = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(16):
        x, y = rng.uniform(2, 62), rng.uniform(2, 40)
        glow += np.exp(-((_X - x) ** 2 + (_Y - y) ** 2) / 1.6)
    sky = _gradient((16, 18, 58), (44, 44, 104))
    return sky + np.clip(glow, 0, 1)[..., None] * (np.float32((1, 0.97, 0.8)) - sky)


@lru_cache(maxsize=1)
def _textures() -> dict[str, np.ndarray]:
    """Every stuff segment as a full (64, 64, 3) image in [0, 1]; a scene takes its part."""
    ripple = 0.02 * np.sin(_Y * 1.1)[..., None]
    grain = 0.012 * (np.sin(_X * 0.9 + 2 * np.sin(_Y * 0.5)) * np.sin(_Y * 1.0))[..., None]
    tiles = np.clip(np.abs((_X + 0.5 * _Y) % 16 - 8) - 0.4, 0, 1)[..., None]
    return {
        "noon sky": _gradient((128, 190, 240), (206, 234, 252)),
        "grass": _gradient((176, 214, 110), (120, 176, 70)) + 2 * grain,
        "sea": _gradient((150, 214, 226), (60, 160, 186)) + 1.5 * ripple,
        "sand": _gradient((244, 226, 180), (224, 196, 140)) + grain,
        "night sky": _stars(),
        "dark hills": _gradient((50, 62, 78), (24, 34, 48)),
        "grey sky": _gradient((170, 178, 192), (208, 212, 220)),
        "snow": _gradient((214, 224, 238), (226, 234, 246)) + grain,
        "sunset sky": _gradient((226, 110, 84), (255, 206, 130)),
        "dunes": _gradient((196, 134, 84), (146, 92, 56)) + 1.5 * grain,
        "brick wall": _bricks(),
        "pavement": _gradient((150, 148, 150), (126, 124, 130)) * (0.9 + 0.1 * tiles),
    }


@dataclass(frozen=True)
class Segment:
    """One panoptic segment with its attributes."""

    label: str  # one of LABELS
    colour: str | None  # one of COLOURS, None for stuff
    pattern: str | None  # one of PATTERNS, None for stuff
    text: str  # free-form text
    mask: np.ndarray  # bool (64, 64), only what is visible

    @property
    def is_thing(self) -> bool:
        """True for an object, which has a colour and a pattern; stuff has neither."""
        return self.colour is not None

    @property
    def held_out(self) -> bool:
        """Whether its combination never appears in training."""
        return self.is_thing and held_out(self.label, self.colour, self.pattern)


@dataclass(frozen=True)
class PocketItem:
    """A rendered image, its captions and its true segments (stuff first, then by depth)."""

    split: str
    index: int
    image: np.ndarray  # uint8 (64, 64, 3)
    captions: tuple[str, ...]  # five
    segments: tuple[Segment, ...]

    @cached_property
    def scene(self) -> Scene:
        """The scene that this image shows: first caption, one mask region per segment."""
        return Scene(self.captions[0], [Region(s.text, mask=s.mask) for s in self.segments])

    @cached_property
    def layout(self) -> Scene:
        """The scene as ReCo reads it: the objects alone, as boxes."""
        things = [s for s in self.segments if s.is_thing]
        return Scene(self.captions[0], [Region(s.text, box=tight_box(s.mask)) for s in things])

    @cached_property
    def kind_map(self) -> np.ndarray:
        """uint8 (64, 64): index into LABELS at every pixel."""
        return sum(np.uint8(LABELS.index(s.label)) * s.mask for s in self.segments)

    @cached_property
    def colour_map(self) -> np.ndarray:
        """uint8 (64, 64): 0 for stuff, i for COLOURS[i - 1]."""
        things = [s for s in self.segments if s.is_thing]
        none = np.zeros((SIZE, SIZE), np.uint8)
        return sum((np.uint8(COLOURS.index(s.colour) + 1) * s.mask for s in things), none)


@dataclass(frozen=True)
class Placed:
    """An object's look and location: its square's corner and side in pixels."""

    look: Look
    x: int
    y: int
    side: int
    mirrored: bool


def random_look(rng: Random, split: str) -> Look:
    """Any allowed combination; outside training half of the objects are held-out ones."""
    want = split != "train" and rng.random() < 0.5
    while True:
        look = rng.choice(KINDS), rng.choice(COLOURS), rng.choice(PATTERNS)
        if held_out(*look) == want:
            return look


def overlap(a: Placed, b: Placed) -> float:
    """Fraction of the smaller object's square that the two squares have in common."""
    width = min(a.x + a.side, b.x + b.side) - max(a.x, b.x)
    height = min(a.y + a.side, b.y + b.side) - max(a.y, b.y)
    return max(width, 0) * max(height, 0) / min(a.side, b.side) ** 2


def _place(rng: Random, split: str) -> list[Placed]:
    """One to four objects, sides 15-45 %, overlaps up to a fifth; a fifth of scenes repeats one."""
    n, equal = rng.choices((1, 2, 3, 4), (3, 4, 3, 2))[0], rng.random() < 0.2
    look, side = random_look(rng, split), rng.randint(12, 22)
    placed: list[Placed] = []
    for _ in range(n):
        if not equal:
            look = random_look(rng, split)
        for _ in range(12):
            if not equal:
                side = round(rng.triangular(10, 29 if n < 3 else 24, 24))
            x, y = rng.randint(1, SIZE - 1 - side), rng.randint(1, SIZE - 1 - side)
            thing = Placed(look, x, y, side, rng.random() < 0.5)
            if all(overlap(thing, other) <= 0.2 for other in placed):
                placed.append(thing)
                break
    return placed


def _backdrop(rng: Random, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two segments as an image (64, 64, 3) in [0, 1], and where the lower one is."""
    upper, lower, wave = BACKDROPS[name]
    line = rng.uniform(0.38, 0.66) * SIZE + rng.uniform(0.3, 1) * wave * np.sin(
        2 * np.pi * (rng.uniform(0.4, 1.2) * _X[0] / SIZE + rng.random())
    )
    below = np.clip(_Y - line + 0.5, 0, 1)[..., None].astype(np.float32)
    textures = _textures()
    return textures[upper] + below * (textures[lower] - textures[upper]), below[..., 0] > 0.5


def _blit(image: np.ndarray, owner: np.ndarray, thing: Placed, number: int) -> None:
    kind, colour, pattern = thing.look
    art, c = sprite(kind, pattern, thing.side, thing.mirrored), COLOURS.index(colour)
    window = np.s_[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
    accent, alpha = art.accent[..., None], art.alpha[..., None]
    coat = (_RGB[c] * (1 - accent) + _ACCENT[c] * accent) * art.body[..., None] + art.detail
    image[window] = image[window] * (1 - alpha) + coat * art.light[..., None] * alpha
    owner[window][art.mask] = number


def draw(
    rng: Random, backdrop: str, place: Callable[[], Sequence[Placed]]
) -> tuple[np.ndarray, np.ndarray, Sequence[Placed]]:
    """An image uint8 (64, 64, 3), the segment at each pixel uint8 (64, 64), and the objects placed.

    In the segment map 0 and 1 are the backdrop's two segments, k + 2 is the k-th object.

    Args:
        place: returns the objects; called after the backdrop is rendered, because both may use one
            `rng`.
    """
    image, below = _backdrop(rng, backdrop)
    owner, placed = below.astype(np.uint8), place()
    for number, thing in enumerate(placed, start=2):
        _blit(image, owner, thing, number)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), owner, placed


def outline_mask(
    kind: str, box: tuple[float, float, float, float], mirrored: bool = False
) -> np.ndarray:
    """The outline of a kind of object as a mask, bool (64, 64), as large as fits in a box.

    Args:
        kind: one of KINDS.
        box: (x0, y0, x1, y1) as fractions of the image.

    Raises:
        ValueError: another kind, or a box smaller than 4 pixels or beyond the image.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; there are {', '.join(KINDS)}")
    x0, y0, x1, y1 = (side * SIZE for side in box)
    side = round(min(x1 - x0, y1 - y0))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    if side < 4 or min(left, top) < 0 or max(left, top) + side > SIZE:
        raise ValueError(f"box is {box}; pass (x0, y0, x1, y1) in [0, 1], at least 1/16 wide, high")
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = sprite(kind, "plain", side, mirrored).mask
    return mask


def pocket_item(split: str, index: int, seed: int = 0) -> PocketItem:
    """Scene `index` of `split`, rendered: the same arguments give the same image everywhere.

    Raises:
        ValueError: an unknown split or a negative index.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the pocket world has {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index is {index}; scenes are counted from 0")
    rng = Random(f"{seed}/{split}/{index}")
    return composed(rng, split, index, lambda: _place(rng, split))


def composed(
    rng: Random, split: str, index: int, place: Callable[[], Sequence[Placed]]
) -> PocketItem:
    """An item of any objects in front of a random backdrop, with texts and captions.

    Args:
        rng: chooses everything but the objects.
        split: written into the item.
        index: written into the item.
        place: returns the objects, the nearest last; called as `draw` does.
    """
    name = rng.choice(tuple(BACKDROPS))
    pixels, owner, placed = draw(rng, name, place)
    stuff = [
        Segment(label, None, None, stuff_text(rng, label), owner == i)
        for i, label in enumerate(BACKDROPS[name][:2])
    ]
    things = [
        Segment(*thing.look, thing_text(rng, thing.look), owner == i)
        for i, thing in enumerate(placed, start=2)
    ]
    looks = [thing.look for thing in placed]
    centres = [(thing.x + thing.side / 2, thing.y + thing.side / 2) for thing in placed]
    return PocketItem(split, index, pixels, captions(rng, name, looks, centres), (*stuff, *things))
