# SPDX-License-Identifier: Apache-2.0
"""Views of photos: what they show, at which scales, and that they are functions of their number."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets import photo_views
from spatext_lab.datasets.coco import read_coco
from tests.photos import HEIGHT, OBJECTS, photo_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = photo_folder(tmp_path_factory.mktemp("views"))
    return read_coco(root, "train", regions=(0, 20), captions=False).items


def test_a_view_is_a_function_of_its_number(photos):
    one, two = (photo_views.image_view(5, 0, photos, 16) for _ in range(2))
    assert (one == two).all()
    assert one.shape == (16, 16, 3)
    others = [photo_views.image_view(5, 1, photos, 16), photo_views.image_view(6, 0, photos, 16)]
    assert all((one != other).any() for other in others)


def test_squares_lie_in_the_photo_at_every_scale():
    """Half of the sides are wide; the logarithms of the others are spread evenly."""
    rng = Random(0)
    sides = np.array([photo_views.side(480, 64, rng) for _ in range(4000)])
    wide = sides >= 0.75 * 480
    octaves = np.log(480 / 96)  # from 1.5 pixels for one of the view
    beyond = 0.5 + 0.5 * np.log(1 / 0.75) / octaves  # some of any scale are wide as well
    assert wide.mean() == pytest.approx(beyond, abs=0.03)
    assert 96 <= sides.min() < 100
    assert sides.max() <= 480
    middle = (sides > 120) & (sides < 240)
    assert middle.mean() == pytest.approx(0.5 * np.log(2) / octaves, abs=0.03)
    assert photo_views.side(40, 64, rng) <= 40  # smaller than a view: as large as it can be
    for length in sides[:200]:
        x0, y0, x1, y1 = photo_views.square((640, 480), length, rng)
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 480
        assert x1 - x0 == pytest.approx(y1 - y0, abs=1e-6)


def test_a_cut_is_the_photo_itself_where_no_pixel_is_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    found = photo_views.cut(Image.fromarray(pixels), (7, 5, 23, 21), 16)
    np.testing.assert_array_equal(found, pixels[5:21, 7:23])


def test_half_of_the_views_are_flipped(photos, monkeypatch):
    """Against the same views that are never flipped."""
    found = [photo_views.image_view(k, 0, photos, 8) for k in range(200)]
    monkeypatch.setattr(photo_views, "FLIP", 0)
    plain = [photo_views.image_view(k, 0, photos, 8) for k in range(200)]
    pairs = zip(found, plain, strict=True)
    kinds = Counter("same" if (a == b).all() else (a == b[:, ::-1]).all() for a, b in pairs)
    assert set(kinds) == {"same", True}
    assert 70 < kinds["same"] < 130


KINDS = [photo_views.wide_view, photo_views.close_view]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_view_is_the_mirrored_one_with_all_that_belongs_to_it(kind, photos, monkeypatch):
    monkeypatch.setattr(photo_views, "FLIP", 0)
    plain = [kind(k, 0, photos, 24) for k in range(8)]
    monkeypatch.setattr(photo_views, "FLIP", 1)
    flipped = [kind(k, 0, photos, 24) for k in range(8)]
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(a.image, b.image[:, ::-1])
        np.testing.assert_array_equal(a.labels, b.labels[:, ::-1])
        assert b.window == (1 - a.window[2], a.window[1], 1 - a.window[0], a.window[3])
        assert [text.replace("left", "right") for text in a.captions] == list(b.captions)
        assert (a.texts, a.photo) == (b.texts, b.photo)


def test_labels_are_the_masks_of_the_scene(photos):
    for item in photos:
        found = photo_views.labels(item)
        for k, region in enumerate(item.scene.regions, start=1):
            np.testing.assert_array_equal(found == k, region.mask)


def test_a_close_up_shows_all_of_a_segment_in_its_middle(photos, monkeypatch):
    """Of the dog all 30 x 45 pixels, the view 1.1 to 1.6 times as high; its text is the caption."""
    monkeypatch.setattr(photo_views, "FLIP", 0)
    seen = Counter()
    for k in range(30):
        view = photo_views.close_view(k, 0, photos[:1], 32)
        text = view.captions[0]
        seen[text] += 1
        label = view.texts.index(text) + 1
        x0, y0, x1, y1 = OBJECTS[text.removeprefix("a ")]
        side = (view.window[2] - view.window[0]) * HEIGHT
        longest = max(x1 - x0, y1 - y0)
        assert 1.1 * longest <= side <= 1.6 * longest + 1e-6
        area = (x1 - x0) * (y1 - y0) * (32 / side) ** 2
        assert (view.labels == label).sum() == pytest.approx(area, rel=0.12)
        assert view.captions == (text, f"a photo of {text}")
    assert set(seen) == {"a dog", "a car"}


def test_a_photo_without_segments_is_shown_as_a_whole(photos, monkeypatch):
    monkeypatch.setattr(photo_views, "FLIP", 0)
    bare = [item for item in photos if not item.regions]
    view = photo_views.close_view(0, 0, bare, 16)
    assert view.captions == bare[0].captions
    assert not view.labels.any()


def test_windows_in_closed_form():
    """In a photo of 200 x 100 pixels: the square around a box has it in the middle, or an edge."""
    assert photo_views.window_of((60, 0, 160, 100), (200, 100)) == (0, 0, 1, 1)
    assert photo_views.window_of((80, 20, 120, 60), (200, 100)) == (0.3, 0.2, 0.7, 0.6)
    assert photo_views.window_of((0, 10, 50, 60), (200, 100)) == (0, 0.1, 0.5, 0.6)
    assert photo_views.window_of((10, 170, 40, 200), (100, 200))[1] == 0.7
