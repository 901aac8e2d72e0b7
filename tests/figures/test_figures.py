# SPDX-License-Identifier: Apache-2.0
"""Figures: the drawn pixels against the scene they show, and the alt text that goes with each."""

import ast
import json
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from spatext_lab import figures
from spatext_lab.figures import (
    PALETTE,
    colour,
    curve,
    draw_scene,
    grid,
    map_image,
    outline,
    save,
    scenes,
    show,
    token_strip,
)
from spatext_lab.figures.png import DPI, EMPTY, INK, WHITE, enlarged, to_image
from spatext_lab.scene import Region, Scene

DISC = np.hypot(*(np.indices((64, 64)) - 31.5)) < 20
MASKS = Scene(
    "c", [Region("sky", mask=np.arange(64)[:, None] < [30] * 64), Region("ball", mask=DISC)]
)
BOXES = Scene("c", [Region("a", box=(0.1, 0.1, 0.6, 0.6)), Region("b", box=(0.4, 0.4, 0.9, 0.9))])


def noise(height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# --- colours --------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB
SIGHTS = {
    "all cones": np.eye(3),
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(rgb):
    share = np.asarray(rgb) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def cielab(light):
    x, y, z = np.cbrt(TO_XYZ @ np.clip(light, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_stay_apart_for_every_eye(sight):
    seen = [cielab(np.array(SIGHTS[sight]) @ linear(rgb)) for rgb in PALETTE]
    # 2.3 is just noticeable; pure red and green are 200 apart for most eyes
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


@pytest.mark.parametrize("k", range(1, 8))
def test_numbers_can_be_read_on_their_colour(k):
    badge = np.asarray(scenes._badge(k, 40))[..., :3].reshape(-1, 3)
    ink = WHITE if (badge == INK).all(axis=1).sum() == 0 else INK
    light, dark = sorted((TO_XYZ[1] @ linear(rgb) for rgb in (ink, colour(k))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.2, 1.4.11


def test_a_region_has_one_colour():
    assert [colour(k) for k in range(1, 8)] == list(PALETTE)
    assert colour(8) == colour(1)
    assert colour(0) == EMPTY


# --- scenes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [MASKS, BOXES, Scene("nothing")])
@pytest.mark.parametrize("size", [64, 100, 256])
def test_drawn_pixels_are_the_label_map(scene, size):
    drawn = np.asarray(draw_scene(scene, size, numbers=False))
    assert drawn.shape == (size, size, 3)
    expected = np.array([EMPTY, *PALETTE], np.uint8)[scene.label_map(size, size)]
    edge = (drawn == WHITE).all(axis=2)
    np.testing.assert_array_equal(drawn[~edge], expected[~edge])
    assert edge.mean() < 0.15
    assert edge.any() == bool(scene.regions)


def test_a_scene_has_the_proportion_of_its_masks():
    wide = Scene("c", [Region("a", mask=np.ones((30, 60), bool))])
    assert draw_scene(wide, 200).size == (200, 100)
    assert draw_scene(BOXES, 200).size == (200, 200)
    assert draw_scene(BOXES, 200, background=noise(40, 80)).size == (200, 100)


def test_a_background_shines_through_regions_and_is_untouched_beside_them():
    photo = noise(256, 256)
    drawn = np.asarray(draw_scene(BOXES, 256, background=photo, numbers=False))
    free = BOXES.label_map(256, 256) == 0
    np.testing.assert_array_equal(drawn[free], photo[free])
    inside = drawn[40:90, 40:90].astype(float)
    share = np.polyfit(photo[40:90, 40:90, 0].ravel(), inside[..., 0].ravel(), 1)[0]
    assert share == pytest.approx(1 - 150 / 255, abs=0.01)


@pytest.mark.parametrize("scene", [MASKS, BOXES])
def test_numbers_stand_in_their_regions(scene):
    plain, numbered = (np.asarray(draw_scene(scene, numbers=n)) for n in (False, True))
    changed = (plain != numbered).any(axis=2)
    for k, mask in enumerate(scene.visible_masks(256, 256), start=1):
        rows, columns = np.nonzero(changed & mask)
        assert len(rows) > 50
        # all of it, as the middle of both regions has room for it
        y, x = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
        badge = np.asarray(scenes._badge(k, 10)).astype(int)[4:-4, 4:-4, :3]
        drawn = numbered[y - 6 : y + 7, x - 6 : x + 7].astype(int)
        assert np.abs(drawn - badge).mean() < 12


def test_badges_differ_in_more_than_colour():
    badges = [np.asarray(scenes._badge(k, 10).convert("L")).astype(int) for k in (1, 8)]
    assert colour(1) == colour(8)
    assert np.abs(badges[0] - badges[1]).max() > 100


def test_a_number_at_the_border_is_whole():
    corner = Scene("c", [Region("a", box=(0.97, 0.97, 1, 1))])
    drawn = np.asarray(draw_scene(corner))
    badge = np.asarray(scenes._badge(1, 10))
    whole = badge[..., 3] == 255
    part = drawn[-len(badge) :, -len(badge) :]
    np.testing.assert_array_equal(part[whole], badge[whole][:, :3])


def test_a_covered_region_has_no_number():
    covered = Scene("c", [Region("a", box=(0.4, 0.4, 0.6, 0.6)), Region("b", box=(0, 0, 1, 1))])
    differ = np.asarray(draw_scene(covered, numbers=False)) != np.asarray(draw_scene(covered))
    assert differ.any(axis=2).sum() <= 21**2


def test_the_legend_stands_below():
    plain, told = draw_scene(MASKS), draw_scene(MASKS, legend=True)
    assert told.width == plain.width
    assert told.height > plain.height + 2 * 20
    np.testing.assert_array_equal(np.asarray(told)[: plain.height], np.asarray(plain))
    long = Scene("c", [Region("a very long text " * 9, box=(0, 0, 1, 1))])
    below = np.asarray(draw_scene(long, legend=True))[256:]
    assert (below[:, -3:] == 255).all()  # cut, not run off the sheet


def test_an_outline_leaves_the_rest_of_the_picture():
    picture = noise()
    drawn = np.asarray(outline(picture, MASKS, numbers=False))
    large = picture.repeat(4, axis=0).repeat(4, axis=1)
    changed = (drawn != large).any(axis=2)
    depth = np.hypot(*(np.indices((256, 256)) - 127.5)) / 4
    on_circle = (depth > 17) & (depth < 21.5)
    on_horizon = np.abs(np.arange(256) - 120)[:, None].repeat(256, axis=1) < 6
    assert not (changed & ~on_circle & ~on_horizon).any()
    assert (drawn == colour(2)).all(axis=2)[on_circle].mean() > 0.1


def test_a_covered_box_is_outlined_whole():
    drawn = np.asarray(outline(noise(), BOXES, numbers=False))
    last = int(0.6 * 256) - 1  # the first box's lower right corner, under the second box
    assert tuple(drawn[last, last - 20]) == colour(1)
    assert tuple(drawn[last - 20, last]) == colour(1)


TEXTS = {"words": "ball " * 2_000, "spaces": "a" + 80_000 * " " + "ball", "word": "x" * 80_000}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_of_any_length_takes_one_line_of_the_legend(name, monkeypatch):
    letters, text = [], TEXTS[name]
    measured = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont,
        "getlength",
        lambda font, text, *rest: letters.append(len(text)) or measured(font, text, *rest),
    )
    scene, short = (Scene("c", [Region(t, box=(0, 0, 1, 1))]) for t in (text, "ball"))
    assert draw_scene(scene, legend=True).size == draw_scene(short, legend=True).size
    assert sum(letters) < 20 * 8 * 256  # a few looks at what a line may hold, however long it is


def test_the_legend_is_truncated_as_late_as_it_fits():
    font = ImageFont.load_default(13)
    for text in ("ball", "a ball\nand\tanother", "a red ball " * 40, "W" * 300, "i" * 300):
        shown, flat = scenes._truncated(text, font, 226), " ".join(text.split())
        assert font.getlength(shown) <= 226
        if shown != flat:
            assert flat.startswith(shown[:-1])
            assert font.getlength(flat[: len(shown)] + "…") > 226


# --- maps -----------------------------------------------------------------------------------------


def test_distances_of_colours_are_distances_of_vectors():
    # Four vectors differ in three directions at most, so the picture keeps all there is.
    vectors = np.random.default_rng(1).normal(size=(4, 32))
    corners = np.zeros((32, 2, 3))
    corners[:, 0, 0], corners[:, 0, 1], corners[:, 1, 0], corners[:, 1, 1] = vectors
    drawn = np.asarray(map_image(corners, 3)).astype(float)
    rgb = drawn[[0, 0, 1, 1], [0, 1, 0, 1]]
    assert np.abs(rgb - 128).max() == 96  # the scale is used up
    pairs = list(combinations(range(4), 2))
    seen = np.array([np.linalg.norm(rgb[i] - rgb[j]) for i, j in pairs])
    true = np.array([np.linalg.norm(vectors[i] - vectors[j]) for i, j in pairs])
    np.testing.assert_allclose(seen / true, (seen / true).mean(), rtol=0.03)
    assert (drawn[:, 2] == EMPTY).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_sign_is_fixed(seed):
    # Along one direction, red grows with the direction's largest weight.
    direction = np.random.default_rng(seed).normal(size=5)
    ramp = direction[:, None, None] * np.array([[[1, 2, 3]]])
    expected = [32, 128, 224] if direction[np.abs(direction).argmax()] > 0 else [224, 128, 32]
    assert np.asarray(map_image(ramp, 3))[0, :, 0].tolist() == expected


def test_arrays_and_tensors_give_one_picture():
    values = np.random.default_rng(2).normal(size=(16, 8, 8)).astype(np.float32)
    expected = np.asarray(map_image(values))
    assert expected.shape == (256, 256, 3)
    for twin in (torch.tensor(values, requires_grad=True), values.astype(np.float64)):
        np.testing.assert_array_equal(np.asarray(map_image(twin)), expected)
    coarse = np.asarray(map_image(torch.tensor(values).bfloat16())).astype(int)
    assert np.abs(coarse - expected).max() <= 4


def test_maps_with_nothing_to_tell_apart():
    assert (np.asarray(map_image(np.zeros((4, 2, 2)))) == EMPTY).all()
    one = np.zeros((64, 4, 4))
    one[:, :2] = np.random.default_rng(3).normal(size=(64, 1, 1))
    drawn = np.asarray(map_image(one, 4))
    assert (drawn[:2] == 128).all()
    assert (drawn[2:] == EMPTY).all()
    assert map_image(np.random.default_rng(3).normal(size=(2, 4, 6)), 60).size == (60, 40)


# --- grids and curves -----------------------------------------------------------------------------


def test_a_grid_holds_each_pixel_as_a_sharp_square():
    pictures = [noise(), None, noise(32, 64), Image.fromarray(noise(96, 96))]
    figure = grid(pictures, 2, size=192)
    sheet = np.asarray(to_image(figure))
    expected = [np.asarray(enlarged(to_image(p), 192)) for p in pictures if p is not None]
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert len(boxes) == 3
    for box, pixels in zip(boxes, expected, strict=True):
        x, y = round(box.x0), len(sheet) - round(box.y1)
        height, width, _ = pixels.shape
        np.testing.assert_array_equal(sheet[y : y + height, x : x + width], pixels)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * DPI)  # a sharper screen: squares of twice the side
    fine = np.asarray(Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(fine, fine[::2, ::2].repeat(2, axis=0).repeat(2, axis=1))


def test_titles_are_whole_and_apart():
    long = "a rosy cottage, a scarlet fish and a royal blue dotted heart in a meadow at noon"
    figure = grid([noise()] * 6, 3, [long, "short"] * 3, ["one " * 20, "two"], size=128)
    to_image(figure)
    page = figure.bbox
    extents = [text.get_window_extent() for text in figure.texts]
    assert len(extents) == 8
    for box in extents:
        assert box.x0 >= page.x0
        assert box.y0 >= page.y0
        assert box.x1 <= page.x1
        assert box.y1 <= page.y1
    boxes = extents + [axes.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize("text", [*TEXTS.values(), r"$5, or \foo$", "one\ntwo " * 40])
def test_titles_are_texts_of_a_few_lines(text):
    figure = grid([noise()], 1, [text], [text], size=64)
    assert max(to_image(figure).size) < 500
    for shown in figure.texts:
        lines = shown.get_text().splitlines()
        assert len(lines) <= 8
        letters = "".join(lines).replace(" ", "").removesuffix("…")
        assert "".join(text.split()).startswith(letters)
    names = curve({text[:40]: ([0], [0]), "b": ([0], [0])}, text[:40], text[:40], {text[:40]: 1})
    assert to_image(names).size == (560, 340)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 2), "images is empty"),
        (([noise()] * 4, 2, ["a"]), "titles has 1 texts: expected 2 or 4"),
        (([noise()] * 4, 2, None, ["a"]), "row_titles has 1 texts: expected 2"),
    ],
)
def test_a_grid_that_does_not_add_up(arguments, message):
    with pytest.raises(ValueError, match=message):
        grid(*arguments)


def test_a_curve_shows_what_it_was_given():
    x = np.arange(50)
    lines = {"SpaText": (x, x**0.5), "text to image": (x, 0 * x)}
    figure = curve(lines, "step", "local IoU", {"aim": 0.8}, size=(400, 300))
    assert to_image(figure).size == (400, 300)
    (axes,) = figure.axes
    first, second, aim = axes.lines
    np.testing.assert_array_equal(first.get_xydata(), np.stack([x, x**0.5], axis=1))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    assert first.get_marker() != second.get_marker()
    assert set(aim.get_ydata()) == {0.8}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "local IoU")
    assert curve({"PSNR": (x, x)}, "step", "dB").axes[0].get_legend() is None


def test_matplotlib_waits_and_its_state_is_left_alone():
    code = (
        "import sys; import numpy as np; from spatext_lab import figures;"
        "heavy = {'matplotlib', 'torch', 'IPython'}; print(heavy & set(sys.modules));"
        "figures.grid([np.zeros((8, 8, 3), np.uint8)], 1);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "False"]


# --- out: files and notebooks ---------------------------------------------------------------------

ALTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


class Images(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@settings(deadline=None)
@given(ALTS | st.sampled_from(['"><script>alert(1)</script>', "a & b's < c", "&quot;"]))
def test_alt_text_reaches_the_page_unharmed(alt):
    page = figures.ImageWithAlt(b"png", alt)._repr_html_()
    ((tag, attributes),) = Images(page).found
    assert (tag, attributes["alt"]) == ("img", alt)
    assert attributes["src"] == "data:image/png;base64,cG5n"


def test_show_displays_a_small_picture_enlarged(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show(noise(), alt="noise")
    show(curve({"a": ([0, 1], [0, 1])}, "x", "y", size=(300, 200)), alt="a line")
    sizes = [Image.open(BytesIO(picture.png)).size for picture in shown]
    assert sizes == [(256, 256), (300, 200)]
    assert [picture.alt for picture in shown] == ["noise", "a line"]


def test_a_saved_picture_tells_what_it_is(tmp_path):
    params = {"seed": 3, "caption": "ein Bär 🐻", "scale": 2.5, "path": tmp_path}
    path = save(noise(), str(tmp_path / "a.png"), "ein Bär im Schnee ❄", params)
    again = Image.open(path)
    np.testing.assert_array_equal(np.asarray(again), noise())
    assert again.text["Description"] == "ein Bär im Schnee ❄"
    assert json.loads(again.text["Parameters"]) == params | {"path": str(tmp_path)}
    save(draw_scene(BOXES), path, "boxes")
    assert Image.open(path).text == {"Description": "boxes"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(noise(), tmp_path / "a.png", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(draw_scene(BOXES), path, "new")
    assert Image.open(path).text == {"Description": "old"}


@pytest.mark.parametrize("alt", ["", " \n"])
def test_no_picture_without_words(tmp_path, alt):
    with pytest.raises(ValueError, match="alt is empty"):
        save(noise(), tmp_path / "a.png", alt)
    with pytest.raises(ValueError, match="alt is empty"):
        show(noise(), alt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (noise() / 255, r"float64 \(64, 64, 3\)"),
        (noise().transpose(2, 0, 1), r"uint8 \(3, 64, 64\)"),
        (torch.zeros(3, 8, 8), r"torch.float32 \(3, 8, 8\)"),
        (noise().tolist(), "list"),
    ],
)
def test_what_is_no_picture_is_told_the_right_form(wrong, named):
    with pytest.raises(
        ValueError, match=f"image is {named}: expected a PIL image .* or a uint8 array"
    ):
        to_image(wrong)


def test_every_kind_of_picture_is_taken():
    grey = noise()[..., 0]
    for picture in (grey, Image.fromarray(grey), Image.fromarray(noise()).convert("RGBA")):
        assert to_image(picture).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(to_image(grey))[..., 1], grey)


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm", "big-endian", "int32"])
def test_grey_of_16_bits_is_scaled(kind):
    deep = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
    image = Image.fromarray(deep)
    if kind == "int32":
        image = Image.fromarray(deep.astype(np.int32))
    elif kind == "big-endian":
        image = Image.frombytes("I;16B", (64, 64), deep.astype(">u2").tobytes())
    else:
        file = BytesIO()
        image.save(file, format={"pgm": "PPM"}.get(kind, kind))
        image = Image.open(file)
    shown = np.asarray(to_image(image))
    assert np.abs(shown - deep[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize("values", [np.float32([[0.2, 0.9]]), np.int32([[-1, 5]])])
def test_values_of_no_known_range_are_refused(values):
    with pytest.raises(ValueError, match=r"image has mode [FI], values from .* expected a PIL"):
        to_image(Image.fromarray(values))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright(orientation, tmp_path):
    upright = noise(6, 9)
    turned = {  # how a camera stores it, by the EXIF standard, 4.6.4
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(turned[orientation]).save(tmp_path / "phone.png", exif=exif)
    photo = Image.open(tmp_path / "phone.png")
    np.testing.assert_array_equal(np.asarray(to_image(photo)), upright)
    again = save(photo, tmp_path / "again.png", "noise")  # upright once, and not turned again
    np.testing.assert_array_equal(np.asarray(to_image(Image.open(again))), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_becomes_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (90, 90, 90, 255))
    if mode == "P":
        image = Image.fromarray(np.uint8([[0, 1]])).convert("P")
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    assert np.asarray(to_image(image)).tolist() == [[[255] * 3, [90] * 3]]


# --- tokens ---------------------------------------------------------------------------------------

TOKENS = [("a", 0, False), ("<bin003>", 1, True), ("ball", 1, False), ("<bin009>", 12, True)]


class Chips(HTMLParser):
    """The tags of a strip, the style, tooltip and text of each chip, and the note."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.chips, self.note, self.open = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open = tag
        if tag == "span":
            self.chips.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "span":
            self.chips[-1][1] += data
        if self.open == "i":
            self.note += data


def css(chip) -> dict[str, str]:
    pairs = (part.split(":") for part in chip[0]["style"].split(";") if part)
    return {name.strip(): value.strip() for name, value in pairs}


def test_tokens_are_chips_in_their_order_with_their_regions_number():
    strip = Chips(token_strip(TOKENS, "and 3 of padding"))
    assert [text for _, text in strip.chips] == [text for text, _, _ in TOKENS]
    titles = [attributes["title"] for attributes, _ in strip.chips]
    assert titles == ["caption", "region 1", "region 1", "region 12"]
    assert strip.note == "and 3 of padding"
    assert Chips(token_strip([])).chips == []


def test_tokens_have_the_colour_of_their_region_in_every_figure():
    """Positions are filled, words have a coloured edge alone."""
    for chip, (_, region, position) in zip(Chips(token_strip(TOKENS)).chips, TOKENS, strict=True):
        style, of_region = css(chip), colour(region)
        edge = EMPTY if region == 0 else of_region
        assert style["border"] == f"2px solid rgb{edge}"
        assert style["background"] == f"rgb{of_region if position else WHITE}"


def test_what_is_written_on_a_position_can_be_read():
    """Contrast by the web's guidelines, which ask for 3 of such letters, in every colour."""
    filled = [("<bin003>", region, True) for region in range(1, len(PALETTE) + 1)]
    for chip in Chips(token_strip(filled)).chips:
        style = css(chip)
        lights = (
            (TO_XYZ @ linear(ast.literal_eval(style[name].removeprefix("rgb"))))[1]
            for name in ("color", "background")
        )
        dark, light = sorted(lights)
        assert (light + 0.05) / (dark + 0.05) > 3


@settings(deadline=None)
@given(ALTS | st.sampled_from(["<script>alert(1)</script>", '" onclick="x', "a & b's < c", "&lt;"]))
def test_tokens_and_notes_are_no_markup(text):
    strip = Chips(token_strip([(text, 1, False)], text))
    assert strip.tags == ["div", "span", "i"]
    ((attributes, shown),) = strip.chips
    assert (shown, strip.note) == (text, text)
    assert attributes.keys() == {"title", "style"}
