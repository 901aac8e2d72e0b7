# SPDX-License-Identifier: Apache-2.0
"""Views of photos: what they show, at which scales, and that they are functions of their number."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from spatext_lab.datasets import photo_views
from spatext_lab.datasets.coco import read_coco
from tests.photos import photo_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = photo_folder(tmp_path_factory.mktemp("views"))
    return read_coco(root, "train", regions=(0, 20), captions=False).items


def test_a_view_is_a_function_of_its_number(photos):
    one, two = (photo_views.image_view(5, photos, 16) for _ in range(2))
    assert (one == two).all()
    assert one.shape == (16, 16, 3)
    others = [photo_views.image_view(5, photos, 16, 1), photo_views.image_view(6, photos, 16)]
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
    found = [photo_views.image_view(k, photos, 8) for k in range(200)]
    monkeypatch.setattr(photo_views, "FLIP", 0)
    plain = [photo_views.image_view(k, photos, 8) for k in range(200)]
    pairs = zip(found, plain, strict=True)
    kinds = Counter("same" if (a == b).all() else (a == b[:, ::-1]).all() for a, b in pairs)
    assert set(kinds) == {"same", True}
    assert 70 < kinds["same"] < 130
