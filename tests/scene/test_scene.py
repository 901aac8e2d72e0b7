# SPDX-License-Identifier: Apache-2.0
"""Scenes: exact round trips, maps against a slow loop, an answer that teaches for each mistake."""

import copy
import math
import pickle
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatext_lab.scene import Region, Scene, rle

# A busy machine is no failure, hence no deadline.
steady = settings(max_examples=50, deadline=None)
BOX_ORDER = "box=(x0, y0, x1, y1)"
GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def spans():
    """(start, stop) with 0 <= start < stop <= 1."""
    number = st.floats(0, 1, allow_subnormal=False)
    return st.tuples(number, number).map(sorted).filter(lambda pair: pair[0] < pair[1])


BOXES = st.tuples(spans(), spans()).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


def masks(shape):
    return hnp.arrays(bool, shape).filter(np.any)


def regions(shape):
    text = TEXTS.filter(str.strip)
    with_box = st.builds(lambda t, b: Region(t, box=b), text, BOXES)
    with_mask = st.builds(lambda t, m: Region(t, mask=m), text, masks(shape))
    return with_box | with_mask


# (caption, regions), not yet a scene: the test builds it.
SCENES = GRIDS.flatmap(lambda s: st.tuples(TEXTS, st.lists(regions(s), max_size=4)))


def mask_of(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


@contextmanager
def answered(phrase):
    """Whatever is asked here works, or a ValueError tells `phrase`."""
    try:
        yield
    except ValueError as error:
        if phrase not in str(error):
            raise


# --- what a scene says ----------------------------------------------------------------------------


@steady
@given(SCENES)
def test_json_round_trip_is_exact(parts):
    scene = Scene(*parts)
    again = Scene.from_json(scene.to_json())
    assert again == scene
    assert hash(again) == hash(scene)
    assert again.to_json() == scene.to_json()


@steady
@given(SCENES, GRIDS)
def test_label_map_is_the_slow_loop(parts, grid):
    scene, (h, w) = Scene(*parts), grid
    slow = np.zeros((h, w), int)
    for k, region in enumerate(scene.regions, start=1):
        inside = np.array([[slow_inside(region, i, j, h, w) for j in range(w)] for i in range(h)])
        if not inside.any():  # too small to be hit; which pixel stays is a test of its own
            inside = region.mask_at(h, w)
            assert inside.sum() == 1
        slow[inside] = k
    labels = scene.label_map(h, w)
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, slow)
    visible = scene.visible_masks(h, w)
    assert visible.shape == (len(scene.regions), h, w)
    assert visible.dtype == bool
    for k in range(len(scene.regions)):
        np.testing.assert_array_equal(visible[k], slow == k + 1)


def slow_inside(region, i, j, h, w):
    if region.mask is None:
        x0, y0, x1, y1 = region.box
        return slow_between(x0, x1, j, w) and slow_between(y0, y1, i, h)
    height, width = region.mask.shape
    return region.mask[(2 * i + 1) * height // (2 * h), (2 * j + 1) * width // (2 * w)]


def slow_between(start, stop, i, count):
    hits = [n for n in range(count) if start <= (n + 0.5) / count < stop]
    return i in (hits or [min(math.floor((start + stop) / 2 * count), count - 1)])


@steady
@given(SCENES, GRIDS)
def test_no_region_vanishes_on_a_coarse_grid(parts, grid):
    assert all(region.mask_at(*grid).any() for region in parts[1])


@pytest.mark.parametrize(
    ("pixel", "expected"), [((1, 6), (0, 1)), ((6, 1), (1, 0)), ((7, 7), (1, 1))]
)
def test_a_tiny_region_keeps_the_pixel_it_lies_in(pixel, expected):
    row, column = pixel
    mask = np.zeros((8, 8), bool)
    mask[row, column] = True
    box = (column / 8, row / 8, (column + 1) / 8, (row + 1) / 8)
    for region in (Region("a", mask=mask), Region("a", box=box)):
        np.testing.assert_array_equal(np.argwhere(region.mask_at(2, 2)), [expected])


@steady
@given(GRIDS.flatmap(masks))
def test_tight_box_of_a_mask(mask):
    h, w = mask.shape
    x0, y0, x1, y1 = Region("a", mask=mask).box
    rows, columns = np.nonzero(mask)
    assert (x0 * w, x1 * w) == pytest.approx((columns.min(), columns.max() + 1))
    assert (y0 * h, y1 * h) == pytest.approx((rows.min(), rows.max() + 1))
    filled = np.zeros_like(mask)
    filled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    np.testing.assert_array_equal(Region("a", box=(x0, y0, x1, y1)).mask_at(h, w), filled)


def test_neighbouring_boxes_share_no_pixel():
    left, right = Region("a", box=(0, 0, 0.5, 1)), Region("b", box=(0.5, 0, 1, 1))
    for w in (2, 3, 7, 8):
        assert (left.mask_at(4, w) ^ right.mask_at(4, w)).all()


def test_a_mask_of_the_same_size_is_itself():
    region = Region("a", mask=mask_of("#..", ".##"))
    assert region.mask_at(2, 3) is region.mask
    assert region.is_mask
    assert not Region("a", box=(0, 0, 1, 1)).is_mask
    assert Region("a", box=(0, 0, 1, 1)).mask is None


def test_a_scene_may_be_silent_about_the_whole_or_the_parts():
    assert Scene("").label_map(2, 2).sum() == 0
    assert Scene("a beach").visible_masks(2, 3).shape == (0, 2, 3)


# --- run lengths against pycocotools --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@steady
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda s: hnp.arrays(bool, s)))
def test_run_lengths_agree_with_pycocotools(mask):
    coco_mask = pytest.importorskip("pycocotools.mask")
    encoded = rle.encode(mask)
    np.testing.assert_array_equal(coco_mask.decode(encoded), mask)
    np.testing.assert_array_equal(rle.decode(encoded), mask)


def test_long_runs_take_several_characters():
    mask = np.zeros((300, 400), bool)
    mask[250:, 399] = True
    np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)


@steady
@given(st.text(st.characters(min_codepoint=40, max_codepoint=130), max_size=12))
def test_any_counts_give_a_mask_or_a_value_error(counts):
    with answered("mask.counts"):
        assert rle.decode({"size": [3, 4], "counts": counts}).shape == (3, 4)


# --- immutable, equal by value --------------------------------------------------------------------


def test_nothing_can_be_changed():
    mask = mask_of("#.", "..")
    region = Region("a", mask=mask)
    scene = Scene("c", [region])
    mask[:] = True  # the caller's own array stays the caller's
    assert region.mask.sum() == 1
    for change in (
        lambda: setattr(region, "text", "b"),
        lambda: setattr(region, "other", 1),
        lambda: setattr(scene, "caption", "d"),
        lambda: region.mask.__setitem__((0, 1), True),
        lambda: region.mask.setflags(write=True),
        lambda: copy.deepcopy(region).mask.__setitem__((0, 1), True),
    ):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            change()


@steady
@given(SCENES)
def test_copies_are_equal(parts):
    scene = Scene(*parts)
    for twin in (copy.deepcopy(scene), pickle.loads(pickle.dumps(scene))):
        assert twin == scene
        assert hash(twin) == hash(scene)


def test_different_regions_differ():
    box, mask = Region("a", box=(0, 0, 1, 1)), Region("a", mask=np.ones((2, 2), bool))
    others = [
        Region("b", box=(0, 0, 1, 1)),
        Region("a", box=(0, 0, 1, 0.5)),
        Region("a", mask=mask_of("#.", "##")),
        Region("a", mask=np.ones((1, 4), bool)),
        "a",
    ]
    assert box != mask  # the same place, said in another way
    assert all(box != other and mask != other for other in others)
    assert Scene("c", [box, mask]) != Scene("c", [mask, box])


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "phrases"),
    [
        (
            (120, 40, 300, 200),
            ["(120, 40, 300, 200)", "pixels", "box=(0.2344, 0.07812, 0.5859, 0.3906)"],
        ),
        (
            (400, 300, 50, 60),
            ["pixels", "(x, y, width, height) = (400, 300, 50, 60)", "box=(0.7812, 0.5859, "],
        ),
        ((-5, 0, 100, 50), ["(-5, 0, 100, 50)", "pixels", "divide x by the image's width"]),
        (
            (0.5, 0.5, 0.2, 0.3),
            ["if you meant (x, y, width, height), it is box=(0.5, 0.5, 0.7, 0.8)"],
        ),
        (
            (0.9, 0.5, 0.2, 0.8),
            ["(0.9, 0.5, 0.2, 0.8)", "changed places, it is box=(0.2, 0.5, 0.9, 0.8)"],
        ),
        ((0.2, 0.2, 0.2, 0.8), ["(0.2, 0.2, 0.2, 0.8)"]),
        (
            (0.5, 0.5, 1.2, 0.9),
            ["extends beyond the image", "clamped to the image it is box=(0.5, 0.5, 1, 0.9)"],
        ),
        (
            (-0.1, 0, 0.5, 0.5),
            ["extends beyond the image", "(-0.1, 0, 0.5, 0.5)", "box=(0, 0, 0.5, 0.5)"],
        ),
        ((1.2, 0, 1.5, 1), ["extends beyond the image", "(1.2, 0, 1.5, 1)"]),
        ((math.nan, 0, 1, 1), ["(nan, 0, 1, 1)", "finite"]),
        ((0, 0, math.inf, 1), ["(0, 0, inf, 1)", "finite"]),
        ((0, 0, 1), ["(0, 0, 1)", "four numbers"]),
        (("0", 0, 1, 1), ["four numbers"]),
        ("0, 0, 1, 1", ["'0, 0, 1, 1'", "four numbers"]),
        (0.5, ["0.5", "four numbers"]),
    ],
)
def test_a_wrong_box_is_told_the_right_form(box, phrases):
    with pytest.raises(ValueError, match=r"^box is ") as caught:
        Region("a", box=box)
    for phrase in [BOX_ORDER, "in [0, 1]", "x0 < x1", *phrases]:
        assert phrase in str(caught.value)


@steady
@given(st.lists(st.floats() | st.integers(-9, 999), min_size=4, max_size=4))
def test_any_four_numbers_give_a_box_or_a_value_error(numbers):
    with answered(BOX_ORDER):
        x0, y0, x1, y1 = Region("a", box=numbers).box
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1


def test_boxes_are_taken_in_every_usual_shape():
    expected = Region("a", box=(0.0, 0.25, 0.5, 1.0))
    for box in (
        [0, 0.25, 0.5, 1],
        np.array([0, 0.25, 0.5, 1], np.float32),
        (-1e-9, 0.25, 0.5, 1 + 1e-9),
    ):
        assert Region("a", box=box) == expected


@pytest.mark.parametrize(
    ("mask", "phrases"),
    [
        (np.ones((2, 2), np.uint8), ["dtype uint8", "mask=mask > 0"]),
        (np.ones((2, 2), np.float32), ["dtype float32"]),
        (np.ones((1, 2, 2), bool), ["shape (1, 2, 2)"]),
        (np.ones(4, bool), ["shape (4,)"]),
        (np.zeros((2, 3), bool), ["empty", "(2, 3)"]),
        (np.ones((0, 3), bool), ["empty", "(0, 3)"]),
        ([[True]], ["list"]),
    ],
)
def test_a_wrong_mask_is_told_the_right_form(mask, phrases):
    with pytest.raises(ValueError, match=r"^mask ") as caught:
        Region("a", mask=mask)
    for phrase in ["numpy array of bool, shape (height, width)", *phrases]:
        assert phrase in str(caught.value)


def test_exactly_one_place():
    with pytest.raises(
        ValueError, match=r"exactly one of box and mask, got neither.*x0, y0, x1, y1"
    ):
        Region("a")
    with pytest.raises(ValueError, match="got both: write box="):
        Region("a", box=(0, 0, 1, 1), mask=np.ones((2, 2), bool))


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_empty_text(text):
    with pytest.raises(ValueError, match=r"^text is empty \('.*'\): name what it shows"):
        Region(text, box=(0, 0, 1, 1))


def test_masks_of_two_sizes():
    one, two = Region("a", mask=np.ones((4, 4), bool)), Region("b", mask=np.ones((4, 8), bool))
    box = Region("c", box=(0, 0, 1, 1))
    with pytest.raises(
        ValueError,
        match=r"regions\[2\].mask has size .*\(4, 8\), but regions\[1\].mask has \(4, 4\)",
    ):
        Scene("c", [box, one, two])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Region(5, box=(0, 0, 1, 1))", "text is 5, not a text"),
        ("Scene(5)", "caption is 5, not a text"),
        ("Scene('c', 5)", "regions is 5, not a list: write Region(text, box=...)"),
        ("Scene('c', ['a ball'])", "regions[0] is 'a ball': write Region(text, box=...)"),
    ],
)
def test_wrong_types_are_values_too(call, message):
    # In a process of its own: here the annotations are checked before the constructors are.
    code = f"""
from spatext_lab import Region, Scene
try:
    {call}
except ValueError as error:
    print(error)
"""
    assert message in fresh_python(code)


@pytest.mark.parametrize(("h", "w"), [(0, 4), (4, -1)])
def test_a_grid_without_pixels(h, w):
    for ask in (
        Region("a", box=(0, 0, 1, 1)).mask_at,
        Scene("").label_map,
        Scene("").visible_masks,
    ):
        with pytest.raises(ValueError, match=r"size \(h, w\) is .* at least 1"):
            ask(h, w)


# --- files ----------------------------------------------------------------------------------------


@steady
@given(SCENES)
def test_file_round_trip(tmp_path_factory, parts):
    scene, path = Scene(*parts), tmp_path_factory.mktemp("scenes") / "scene.json"
    scene.save(path)
    scene.save(str(path))
    assert Scene.load(path) == Scene.load(str(path)) == scene
    assert [entry.name for entry in path.parent.iterdir()] == ["scene.json"]


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "scene.json"
    path.write_bytes(b"\xef\xbb\xbf" + Scene("c").to_json().encode())
    assert Scene.load(path) == Scene("c")


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n", Scene("c?").to_json().encode().replace(b"?", b"\xff")]
)
def test_a_file_that_is_not_utf8_is_named(tmp_path, content):
    path = tmp_path / "scene.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scene\.json: (not JSON|caption is)"):
        Scene.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scene.json"
    Scene("old").save(path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Scene("new").save(path)
    assert Scene.load(path) == Scene("old")


# --- cost -----------------------------------------------------------------------------------------


def fresh_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_six_masks_cost_less_than_60_microseconds():
    code = (
        "import numpy as np, timeit; from spatext_lab import Scene, Region;"
        "masks = [np.eye(64) > 0 for _ in range(6)];"
        "make = lambda: Scene('c', [Region('a ball', mask=m) for m in masks]);"
        "print(min(timeit.repeat(make, number=10, repeat=500)) / 10)"
    )
    assert float(fresh_python(code)) < 60e-6


def test_import_is_quick_and_loads_nothing_heavy():
    heavy = ["torch", "diffusers", "transformers", "open_clip", "matplotlib", "numpy", "PIL"]
    code = (
        "import sys, time; start = time.process_time(); import spatext_lab;"
        f"print(time.process_time() - start, [name for name in {heavy} if name in sys.modules])"
    )
    took, loaded = fresh_python(code).split(" ", 1)
    assert float(took) < 0.3
    assert loaded == "[]"


def test_scene_needs_numpy_alone():
    heavy = ["torch", "diffusers", "matplotlib", "PIL", "pycocotools", "jaxtyping"]
    code = (
        "import sys; from spatext_lab import Scene; Scene('c').label_map(2, 2);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert fresh_python(code) == "[]"


def test_names_of_the_package():
    import spatext_lab

    assert spatext_lab.Scene is Scene
    assert set(spatext_lab.__all__) <= set(dir(spatext_lab))
    with pytest.raises(AttributeError, match=r"no attribute 'Scenes'; it has .*Scene"):
        _ = spatext_lab.Scenes
