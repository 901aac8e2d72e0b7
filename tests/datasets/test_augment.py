# SPDX-License-Identifier: Apache-2.0
"""Random views against their pixels: boxes rendered as coloured rectangles and found again."""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from spatext_lab.datasets.augment import SLIVER, ZOOM, View, crop, mirrored, random_view, swap_sides
from spatext_lab.scene import Region

SIZE = 64
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
}
# (width, height) of an image, and the rectangles that are in it, in pixels
IMAGES = {
    "square": (
        (64, 64),
        {"red": (4, 6, 20, 30), "blue": (40, 10, 60, 58), "green": (2, 40, 12, 62)},
    ),
    "wide": (
        (160, 90),
        {"red": (10, 9, 60, 40), "blue": (90, 50, 150, 86), "white": (0, 60, 20, 90)},
    ),
    "tall": (
        (90, 200),
        {"red": (5, 20, 40, 90), "blue": (50, 110, 86, 190), "green": (60, 2, 80, 8)},
    ),
    "small": ((40, 32), {"red": (3, 3, 13, 25), "blue": (22, 8, 38, 30)}),
}


def rendered(name: str) -> tuple[Image.Image, list[Region]]:
    (width, height), things = IMAGES[name]
    image = np.zeros((height, width, 3), np.uint8)
    regions = []
    for colour, (x0, y0, x1, y1) in things.items():
        image[y0:y1, x0:x1] = COLOURS[colour]
        box = (x0 / width, y0 / height, x1 / width, y1 / height)
        regions.append(Region(f"the {colour} one, left", box=box))
    return Image.fromarray(image), regions


def seen(view: View, colour: str) -> tuple[int, int, int, int] | None:
    """The pixels that have more than half of this colour, as a box in pixels; None for none."""
    near = np.abs(view.image.astype(int) - COLOURS[colour]).max(2) < 128
    if not near.any():
        return None
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def views(name: str, count: int = 150) -> list[View]:
    image, regions = rendered(name)
    captions = ["the red one is left", "an image"]
    return [
        random_view(image, captions, regions, SIZE, Random(f"{name}/{k}")) for k in range(count)
    ]


# --- boxes against pixels -------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_boxes_go_where_the_pixels_go(name):
    """Every kept box is where its colour is, to a pixel; what was dropped is a sliver at most."""
    _, things = IMAGES[name]
    kept = dict.fromkeys(things, 0)
    for view in views(name):
        assert view.image.shape == (SIZE, SIZE, 3)
        boxes = {region.text.split()[1]: region.box for region in view.regions}
        for colour in things:
            found = seen(view, colour)
            if colour in boxes:
                kept[colour] += 1
                assert found is not None
                assert np.abs(np.array(found) - np.array(boxes[colour]) * SIZE).max() <= 1
            elif found is not None:
                x0, y0, x1, y1 = found
                assert min(x1 - x0, y1 - y0) <= SLIVER * SIZE + 1
    assert min(kept.values()) > 0


def test_what_leaves_the_image_is_dropped_and_the_rest_keep_text_and_order():
    _, things = IMAGES["wide"]
    texts = [f"the {colour} one, left" for colour in things]
    numbers = set()
    for view in views("wide"):
        said = [region.text for region in view.regions]
        assert said == [text for text in texts if text in said]
        numbers.add(len(said))
        for region in view.regions:
            x0, y0, x1, y1 = region.box
            assert min(x1 - x0, y1 - y0) >= SLIVER - 1e-9
    assert numbers == {1, 2, 3}


def test_a_view_without_any_region_is_one():
    image = Image.fromarray(np.zeros((20, 400, 3), np.uint8))
    corner = [Region("a corner", box=(0.8, 0, 1, 1))]
    lost = [random_view(image, ["c"], corner, 16, Random(k)).regions for k in range(40)]
    assert () in lost
    assert any(lost)


def test_half_of_the_views_are_flipped_and_captions_stay_true():
    """Red is on the left of blue in the square; where it is not, the caption says so."""
    sides = {"left": 0, "right": 0}
    for view in views("square", 400):
        red, blue = seen(view, "red"), seen(view, "blue")
        side = "left" if red[0] < blue[0] else "right"
        assert view.captions == (f"the red one is {side}", "an image")
        sides[side] += 1
    assert 160 < sides["left"] < 240


def test_half_of_the_views_are_cropped_from_an_enlarged_image():
    """By the width of what is whole in the view, which nothing but the zoom changes."""
    zooms = []
    for view in views("square", 400):
        x0, _, x1, _ = {r.text.split()[1]: r.box for r in view.regions}["blue"]
        if x0 > 0 and x1 < 1:
            zooms.append((x1 - x0) / (20 / 64))
    zooms = np.array(zooms)
    assert zooms.min() == pytest.approx(1)
    assert 1.15 < zooms.max() <= ZOOM + 1e-9
    assert 0.4 < np.isclose(zooms, 1).mean() < 0.65


def test_the_square_is_one_and_lies_anywhere():
    """In an image whose pixels say where they are: red by column, green by row."""
    h, w = 48, 200
    image = np.zeros((h, w, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(w), 5 * np.arange(h)[:, None]
    corners = []
    for k in range(200):
        view = random_view(Image.fromarray(image), ["left"], [], 96, Random(k))
        columns, rows = view.image[48, :, 0].astype(int), view.image[:, 48, 1] / 5
        left, right = sorted((columns[0], columns[-1]))
        top, bottom = rows[0], rows[-1]
        assert (columns[0] > columns[-1]) == (view.captions == ("right",))
        assert abs((right - left) - (bottom - top)) <= 2
        assert h / ZOOM - 2 <= right - left <= h
        corners.append((left, top))
    lefts, tops = np.array(corners).T
    assert lefts.min() < 8
    assert lefts.max() > w - h - 8
    assert 70 < lefts.mean() < 90
    assert tops.min() < 1
    assert 5 < tops.max() <= h - h / ZOOM


def test_a_mask_goes_along_as_its_box():
    image, regions = rendered("square")
    mask = np.zeros((64, 64), bool)
    mask[6:30, 4:20] = True
    as_mask = [Region(regions[0].text, mask=mask), *regions[1:]]
    for k in range(10):
        one, two = (
            random_view(image, ["c"], given, SIZE, Random(k)) for given in (regions, as_mask)
        )
        assert one.regions == two.regions


def test_a_view_comes_from_its_random_numbers_alone():
    image, regions = rendered("wide")
    before = np.array(image)

    def view(seed: int) -> View:
        return random_view(image, ["left"], regions, SIZE, Random(seed))

    for seed in range(5):
        one, two, other = view(seed), view(seed), view(seed + 100)
        assert np.array_equal(one.image, two.image)
        assert (one.captions, one.regions) == (two.captions, two.regions)
        assert not np.array_equal(one.image, other.image)
    assert np.array_equal(np.array(image), before)


def test_images_of_other_modes_are_read_as_rgb():
    grey = Image.fromarray(np.full((20, 20), 77, np.uint8))
    assert (random_view(grey, ["c"], [], 8, Random(0)).image == 77).all()
    deep = Image.fromarray(np.full((20, 20), 77 * 257, np.uint16))
    assert (random_view(deep, ["c"], [], 8, Random(0)).image == 77).all()


# --- one box --------------------------------------------------------------------------------------


def test_a_box_is_mirrored_and_back():
    assert mirrored((0.125, 0.25, 0.5, 1.0)) == (0.5, 0.25, 0.875, 1.0)
    assert mirrored(mirrored((0.125, 0.25, 0.5, 1.0))) == (0.125, 0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0.5, 0.5, 0.75, 0.75), (0.5, 0.5, 1.0, 1.0)),
        ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)),
        ((0.3125, 0.25, 0.375, 0.5), (0.125, 0.0, 0.25, 0.5)),
        ((0.0, 0.5, 0.25 + 1 / 64, 1.0), (0.0, 0.5, 1 / 32, 1.0)),  # a sliver, just wide enough
        ((0.0, 0.5, 0.25 + 1 / 65, 1.0), None),
        ((0.5, 0.75 - 1 / 65, 0.7, 1.0), None),
        ((0.0, 0.0, 0.25, 1.0), None),  # it touches the window
        ((0.8, 0.8, 1.0, 1.0), None),
    ],
)
def test_a_box_in_a_window(box, inside):
    """The window is the middle of the image, half as wide and high."""
    assert crop(box, (0.25, 0.25, 0.75, 0.75)) == inside


# --- left and right -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "swapped"),
    [
        ("a ball left of a tree", "a ball right of a tree"),
        ("Left, right. LEFT! Right?", "Right, left. RIGHT! Left?"),
        ("left-handed (right)", "right-handed (left)"),
        ("a bright, uprighted leftover; lefts", "a bright, uprighted leftover; lefts"),
        ("leftright left_right", "leftright left_right"),
        ("", ""),
        ("sağ r\u0131ght R\u0130GHT", "sağ r\u0131ght R\u0130GHT"),  # with and without a dot
        ("éleft lefté", "éleft lefté"),
    ],
)
def test_left_and_right_change_places_as_whole_words(caption, swapped):
    assert swap_sides(caption) == swapped


SAID = [*("left", "right", "Left", "RIGHT", "leftover", "bright"), *" .-'éıa"]


@given(st.lists(st.sampled_from(SAID)).map("".join))
@settings(deadline=None)
def test_swapped_twice_it_is_the_caption(caption):
    assert swap_sides(swap_sides(caption)) == caption


@given(st.text())
@example("leFt rIGHT")
@settings(deadline=None)
def test_any_text_can_be_swapped(caption):
    assert swap_sides(swap_sides(caption)).lower() == caption.lower()
