# SPDX-License-Identifier: Apache-2.0
"""The pocket world against slow loops, supersampling, and a small reader of its own texts."""

import hashlib
import re
import time
from collections import Counter
from functools import cache
from itertools import combinations, pairwise, product
from random import Random

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from spatext_lab.datasets.pocket import (
    BACKDROPS,
    COLOURS,
    KINDS,
    LABELS,
    PATTERNS,
    SIZE,
    STUFF,
    held_out,
    outline_mask,
    pocket_item,
)
from spatext_lab.datasets.pocket import shapes as pocket_shapes
from spatext_lab.datasets.pocket import world as pocket
from spatext_lab.datasets.pocket.shapes import SHAPES, polygon, sprite
from spatext_lab.datasets.pocket.texts import (
    COLOUR_WORDS,
    KIND_WORDS,
    NUMBERS,
    PATTERN_NOUNS,
    PATTERN_WORDS,
    PLACE_WORDS,
    STUFF_WORDS,
    captions,
    thing_text,
)
from spatext_lab.text_to_image.tokenizer import new_tokenizer

LOOKS = list(product(KINDS, COLOURS, PATTERNS))


@pytest.fixture(scope="module")
def train():
    return [pocket_item("train", i) for i in range(2000)]


@pytest.fixture(scope="module")
def unseen():
    return [pocket_item("test", i) for i in range(600)]


def things(item):
    return [s for s in item.segments if s.is_thing]


def tight(mask: np.ndarray) -> np.ndarray:
    """The mask cut to its smallest box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


# --- a reader of the texts, written from the words alone ------------------------------------------

RELATIONS = {
    **dict.fromkeys(("to the left of", "left of"), (1, 0)),
    **dict.fromkeys(("to the right of", "right of"), (-1, 0)),
    **dict.fromkeys(("above", "over"), (0, 1)),
    **dict.fromkeys(("below", "under"), (0, -1)),
}


def finder(words: dict[str, tuple[str, ...]]):
    """A function: the names of which a word stands in a text; the plural too."""
    names = {word: name for name, synonyms in words.items() for word in synonyms}
    longest_first = "|".join(sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"\b({longest_first})(?:e?s)?\b")
    return lambda text: {names[word] for word in pattern.findall(text)}


kinds_in, colours_in, patterns_in = map(finder, (KIND_WORDS, COLOUR_WORDS, PATTERN_WORDS))


@cache
def read_thing(text: str) -> tuple[int, str, str | None, str | None]:
    """(how many, kind, colour, pattern) of a noun phrase; None for what it does not say."""
    kinds, colours = kinds_in(text), colours_in(text)
    patterns = patterns_in(text) | {n for n, w in PATTERN_NOUNS.items() if w in text}
    patterns |= {"plain"} if "plain" in text else set()
    assert len(kinds) == 1, text
    assert len(colours) < 2, text
    assert len(patterns) < 2, text
    numbers = [n for n, word in enumerate(NUMBERS) if text.startswith(word + " ")]
    return (numbers or [1])[0], *kinds, *(colours or {None}), *(patterns or {None})


@cache
def read_caption(caption: str):
    """([(how many, kind, colour, pattern), ...], relation vector or None) without the place."""
    places = sorted((p for words in PLACE_WORDS.values() for p in words), key=len, reverse=True)
    (place,) = [p for p in places if caption.endswith(" " + p) or caption.startswith(p + ", ")]
    text = caption.removesuffix(" " + place).removeprefix(place + ", ")
    for words, vector in RELATIONS.items():
        if f" {words} " in text:
            return [read_thing(part) for part in text.split(f" {words} ")], vector
    return [read_thing(part) for part in re.split(", | and ", text)], None


def fits(segment, read) -> bool:
    """Whether a segment is what a phrase says; what the phrase leaves out is free."""
    _, kind, colour, pattern = read
    return (
        segment.label == kind
        and colour in (None, segment.colour)
        and pattern in (None, segment.pattern)
    )


# --- items ----------------------------------------------------------------------------------------


def same(a, b) -> bool:
    masks = (np.array_equal(x.mask, y.mask) for x, y in zip(a.segments, b.segments, strict=True))
    texts = [x.text for x in a.segments] == [y.text for y in b.segments]
    return np.array_equal(a.image, b.image) and all(masks) and texts and a.captions == b.captions


@pytest.mark.parametrize("split", pocket.SPLITS)
def test_an_item_is_the_same_whenever_it_is_rendered(split):
    there = [pocket_item(split, i) for i in range(20)]
    back = [pocket_item(split, i) for i in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(there, back, strict=True))
    assert there[3].scene == back[3].scene


def test_drawing_leaves_earlier_items_alone():
    item = pocket_item("train", 5)
    before = item.image.copy(), [s.mask.copy() for s in item.segments]
    for i in range(30):
        pocket_item("train", i)
    assert np.array_equal(item.image, before[0])
    assert all(np.array_equal(s.mask, m) for s, m in zip(item.segments, before[1], strict=True))


def test_splits_seeds_and_indices_are_different_images():
    arguments = list(product(pocket.SPLITS, range(20), range(3)))
    images = {pocket_item(split, i, seed).image.tobytes() for split, i, seed in arguments}
    assert len(images) == len(arguments)


# Weights, reports and the shipped data set were all made from these very bytes: whoever changes
# them must train and measure again. The digest also holds machines and versions together.
GOLDEN = {
    "train": "87281cb1c012564f9eb6934bb5d7459d77dc82d0107e1a3fb2466206c338f597",
    "val": "9ccd9696f29908d550df1c030fcd88686eb4fdc306ee9b224a7ce50d19041cfb",
    "test": "6f46702fd6ce0620386ab4766c71235dc40ee241fa708af67ff5c6ccc571b17b",
}


def digest(split: str) -> str:
    total = hashlib.sha256()
    for i in range(8):
        item = pocket_item(split, i)
        total.update(item.image.tobytes())
        total.update(item.kind_map.tobytes())
        total.update(item.colour_map.tobytes())
        total.update("\n".join((*item.captions, *(s.text for s in item.segments))).encode())
    return total.hexdigest()


@pytest.mark.parametrize("split", pocket.SPLITS)
def test_the_world_is_the_one_that_the_models_learned(split):
    assert digest(split) == GOLDEN[split]


def test_every_pixel_belongs_to_one_segment(train, unseen):
    for item in train + unseen:
        assert item.image.shape == (SIZE, SIZE, 3)
        assert item.image.dtype == np.uint8
        masks = np.stack([s.mask for s in item.segments])
        assert masks.dtype == np.bool_
        assert (masks.sum(0) == 1).all()
        assert masks.any((1, 2)).all(), "an empty segment"


def test_maps_against_a_loop_over_the_pixels(train):
    for item in train[:12]:
        for y, x in product(range(SIZE), range(SIZE)):
            (segment,) = [s for s in item.segments if s.mask[y, x]]
            colour = 1 + COLOURS.index(segment.colour) if segment.is_thing else 0
            assert LABELS[item.kind_map[y, x]] == segment.label
            assert item.colour_map[y, x] == colour
        assert item.kind_map.dtype == item.colour_map.dtype == np.uint8


def test_segments_are_two_of_a_backdrop_and_then_objects(train, unseen):
    pairs = {backdrop[:2] for backdrop in BACKDROPS.values()}
    for item in train + unseen:
        upper, lower, *rest = item.segments
        assert (upper.label, lower.label) in pairs
        assert 1 <= len(rest) <= 4
        assert [s.is_thing for s in item.segments] == [False, False] + [True] * len(rest)
        rows = np.arange(SIZE)[:, None] * np.ones(SIZE, int)
        assert rows[upper.mask].mean() < rows[lower.mask].mean()


def test_the_scene_tells_the_segments(train):
    for item in train[:50]:
        assert item.scene.caption == item.captions[0]
        numbers = item.scene.label_map(SIZE, SIZE)
        for i, (region, segment) in enumerate(zip(item.scene.regions, item.segments, strict=True)):
            assert region.text == segment.text
            assert np.array_equal(numbers == i + 1, segment.mask)


def test_a_nearer_object_hides_a_farther_one(train):
    """The whole, unhidden mask of the last thing is there; earlier ones may have lost pixels."""
    for item in train[:100]:
        last = things(item)[-1]
        wholes = (
            sprite(last.label, last.pattern, side, mirrored).mask
            for side, mirrored in product(range(10, 30), (False, True))
        )
        assert any(np.array_equal(tight(last.mask), tight(whole)) for whole in wholes)


def test_plain_objects_have_the_colour_of_their_texts(train):
    """The hue of a ball's inside, whatever the light, is nearest to its own colour's."""
    found = set()
    for item in train:
        for s in things(item):
            if s.label == "ball" and s.pattern == "plain" and s.mask.sum() > 100:
                pixels = np.median(item.image[s.mask], axis=0) / 255
                unit = pixels / np.linalg.norm(pixels)
                hues = pocket._RGB / np.linalg.norm(pocket._RGB, axis=1, keepdims=True)
                assert COLOURS[int(np.argmax(hues @ unit))] == s.colour
                found.add(s.colour)
    assert found == {c for c in COLOURS if not held_out("ball", c, "plain")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("training", 0), "split is 'training'; .* train, val, test"), (("val", -1), "index is -1")],
)
def test_what_is_not_there_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pocket_item(*arguments)


def test_speed(train, capsys):
    """Time of this process, so that a busy machine does not fail it; the goal is 1,000."""
    start = time.process_time()
    for i in range(500):
        pocket_item("train", i)
    rate = 500 / (time.process_time() - start)
    with capsys.disabled():
        print(f"\n{rate:.0f} pocket scenes a second of one core")
    assert rate > 300


# --- what is held out -----------------------------------------------------------------------------


def test_a_fifth_is_held_out_and_no_pair_goes_with_it():
    out = {look for look in LOOKS if held_out(*look)}
    assert 0.18 < len(out) / len(LOOKS) < 0.22
    kept = [look for look in LOOKS if look not in out]
    for i, j in combinations(range(3), 2):
        assert {(k[i], k[j]) for k in kept} == {(k[i], k[j]) for k in LOOKS}


def test_training_shows_all_that_is_allowed_and_nothing_held_out(train):
    shown = {(s.label, s.colour, s.pattern) for item in train for s in things(item)}
    assert shown == {look for look in LOOKS if not held_out(*look)}
    assert {s.label for item in train for s in item.segments} == set(LABELS)
    assert not any(s.held_out for item in train for s in item.segments)


def test_training_texts_never_name_a_held_out_combination(train):
    for item in train:
        texts = [read_thing(s.text) for s in things(item)]
        texts += [part for caption in item.captions for part in read_caption(caption)[0]]
        for _, kind, colour, pattern in texts:
            assert None in (colour, pattern) or not held_out(kind, colour, pattern)


def test_about_half_of_the_unseen_objects_are_held_out(unseen):
    marks = [s.held_out for item in unseen for s in things(item)]
    assert 0.4 < np.mean(marks) < 0.6
    shown = {(s.label, s.colour, s.pattern) for item in unseen for s in things(item)}
    assert {look for look in LOOKS if held_out(*look)} <= shown
    for item in unseen:
        for s in item.segments:
            assert s.held_out == (s.is_thing and held_out(s.label, s.colour, s.pattern))


# --- layout ---------------------------------------------------------------------------------------


def test_sides_and_overlaps():
    """Sides 15-45 % of the image, to the pixel; overlaps counted pixel by pixel."""
    sides, overlaps = set(), []
    for k in range(600):
        placed = pocket._place(Random(k), "train")
        squares = []
        for thing in placed:
            sides.add(thing.side)
            square = np.zeros((SIZE, SIZE), bool)
            square[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side] = True
            assert square.sum() == thing.side**2, "reaches off the image"
            squares.append(square)
        overlaps += [(a & b).sum() / min(a.sum(), b.sum()) for a, b in combinations(squares, 2)]
    assert min(sides) >= round(0.15 * SIZE)
    assert max(sides) <= round(0.45 * SIZE)
    assert max(overlaps) <= 0.2
    assert np.mean(np.array(overlaps) > 0) > 0.05, "nothing ever overlaps"


def test_counts_of_objects(train):
    counts = Counter(len(things(item)) for item in train)
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 100
    equal = [
        len(things(item)) > 1 and len({(s.label, s.colour, s.pattern) for s in things(item)}) == 1
        for item in train
    ]
    assert 0.05 < np.mean(equal) < 0.25, "scenes of equal things, for counting"


# --- texts ----------------------------------------------------------------------------------------


def test_region_texts_say_what_is_there(train, unseen):
    for item in train + unseen:
        for s in item.segments:
            if not s.is_thing:
                assert s.text in STUFF_WORDS[s.label]
                continue
            number, kind, colour, pattern = read_thing(s.text)
            assert (number, kind, colour) == (1, s.label, s.colour)
            assert pattern == s.pattern or (pattern is None and s.pattern == "plain")


def test_every_scene_has_five_captions_of_what_is_there(train, unseen):
    for item in train + unseen:
        assert len(item.captions) == 5
        (place,) = [n for n, b in BACKDROPS.items() if b[0] == item.segments[0].label]
        for caption in item.captions:
            assert any(words in caption for words in PLACE_WORDS[place])
            for read in read_caption(caption)[0]:
                assert any(fits(s, read) for s in things(item)), caption


def test_count_words_are_the_numbers_of_objects(train, unseen):
    numbers = Counter()
    for item in train + unseen:
        for caption in item.captions:
            parts, relation = read_caption(caption)
            if relation:
                continue
            assert sum(part[0] for part in parts) == len(things(item)), caption
            only_kinds = all(part[2] is None for part in parts)
            for part in parts:
                there = sum(fits(s, part) for s in things(item))
                assert part[0] == there if only_kinds else part[0] <= there, caption
                numbers[part[0]] += 1
    assert set(numbers) == {1, 2, 3, 4}


def test_relation_words_are_true_of_the_positions(train, unseen):
    """By the middles of the visible pixels; the words start at 12 pixels between the centres."""
    words = Counter()
    for item in train + unseen:
        for caption in item.captions:
            (first, *others), relation = read_caption(caption)
            if relation is None:
                continue
            words[relation] += 1
            shifts = [
                np.argwhere(b.mask).mean(0)[::-1] - np.argwhere(a.mask).mean(0)[::-1]
                for a, b in product(things(item), things(item))
                if a is not b and fits(a, first) and fits(b, others[0])
            ]
            assert any(shift @ relation > 6 for shift in shifts), caption
    assert min(words[r] for r in set(RELATIONS.values())) > 50


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ((40, 10), {"left of"}),
        ((-40, 10), {"right of"}),
        ((10, 40), {"above", "over"}),
        ((10, -40), {"below", "under"}),
    ],
)
def test_the_clearest_relation_of_known_positions(other, words):
    """A ball at the origin, a tree at `other` (x to the right, y down)."""
    looks = [("ball", "red", "plain"), ("tree", "blue", "plain")]
    opposite = {"left of": "right of", "above": "below", "over": "under"}
    opposite |= {b: a for a, b in opposite.items()}
    for k in range(30):
        texts = captions(Random(k), "beach", looks, [(0, 0), other])
        (text,) = [t for t in texts if read_caption(t)[1]]
        (word,) = [w for w in opposite if f" {w} " in text]
        ball_first = re.search("ball|sphere", text).start() < re.search("tree", text).start()
        assert (word if ball_first else opposite[word]) in words


def test_texts_vary():
    for look in LOOKS[::7]:
        texts = {thing_text(Random(k), look) for k in range(200)}
        assert len(texts) > (10 if look[2] != "plain" else 2), look


def test_articles_and_plurals(train):
    for item in train:
        for text in (*item.captions, *(s.text for s in item.segments)):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
            assert not re.search(r"\b(two|three|four) (?!.*(s\b|fish\b))", text), text


def test_the_tokenizer_keeps_every_text(train):
    """Decoded, a text is itself again; and none is longer than the text encoder reads."""
    tokenizer = new_tokenizer()
    texts = {t for item in train[:300] for t in (*item.captions, *(s.text for s in item.segments))}
    for text in texts:
        ids = tokenizer(text).input_ids
        assert len(ids) <= tokenizer.model_max_length
        again = tokenizer.decode(ids, skip_special_tokens=True)
        assert again.replace(" ,", ",").strip() == text


# --- shapes ---------------------------------------------------------------------------------------


def scalar(sdf, x: float, y: float) -> float:
    return float(sdf(np.array([x]), np.array([y]))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_sprites_against_supersampling(kind):
    """Mask: is the pixel's centre inside? Alpha: which share of 8 x 8 points of it is inside?"""
    side, fine = 15, 8
    shape = SHAPES[kind]
    parts = [*(s for s, _ in shape.behind), shape.body, *(s for s, _ in shape.over)]
    rendered, errors = sprite(kind, "plain", side, False), []
    for row, column in product(range(side), range(side)):
        centre = (2 * column + 1) / side - 1, (2 * row + 1) / side - 1
        assert rendered.mask[row, column] == any(scalar(part, *centre) < 0 for part in parts)
        steps = (np.arange(fine) + 0.5) / fine
        u, v = np.meshgrid(2 * (column + steps) / side - 1, 2 * (row + steps) / side - 1)
        inside = np.logical_or.reduce([part(u, v) < 0 for part in parts])
        errors.append(abs(inside.mean() - rendered.alpha[row, column]))
    # A sharp tip is thinner than its distance to the pixel's centre, a notch between parts wider.
    sharp = kind in ("heart", "house", "boat")
    assert max(errors) < (0.45 if sharp else 0.35)
    assert np.mean(errors) < (0.025 if sharp else 0.015)


@pytest.mark.parametrize("kind", KINDS)
def test_mirrored_sprites(kind):
    """All but the light and the pattern turn around, and the light is the same on both sides."""
    one, two = (sprite(kind, "striped", 20, mirrored) for mirrored in (False, True))
    for name in ("alpha", "mask", "body", "detail", "light"):
        np.testing.assert_allclose(
            getattr(one, name), getattr(two, name)[:, ::-1], atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_fills_its_square(kind):
    """So that the sides of the layout are what is seen; and every pixel is paint or detail."""
    rendered = sprite(kind, "plain", 29, False)
    assert max(tight(rendered.mask).shape) >= 0.85 * 29
    assert ((rendered.body >= 0) & (rendered.body <= 1 + 1e-5)).all()
    assert rendered.body[rendered.mask].sum() > 0.25 * rendered.mask.sum(), "hardly any colour"


def test_patterns_can_be_seen():
    for kind in KINDS:
        plain, striped, dotted = (sprite(kind, p, 20, False).accent for p in PATTERNS)
        mask = sprite(kind, "plain", 20, False).mask
        assert not plain.any()
        for accent in (striped, dotted):
            assert 0.05 < accent[mask].mean() < 0.95
            assert accent[mask].max() > 0.8
            assert accent[mask].min() < 0.1


STAR = pocket_shapes._star_points(5, 0.98, 0.44)
POLYGONS = {
    "triangle": [(-0.9, -0.14), (0.9, -0.14), (0.0, 0.92)],
    "hull of a boat": [(-0.96, 0.28), (0.96, 0.28), (0.56, 0.86), (-0.56, 0.86)],
    "star, which is not convex": [(float(x), float(y)) for x, y in STAR],
    "the other way round": [(0.0, 0.92), (0.9, -0.14), (-0.9, -0.14)],
}


@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_against_matplotlib_and_points_along_the_edge(name):
    points = POLYGONS[name]
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 4000))
    distance = polygon(*points)(x, y)
    inside = Outline([*points, points[0]], closed=True).contains_points(np.stack([x, y], 1))
    assert np.array_equal(distance < 0, inside)
    corners = np.array([*points, points[0]])
    share = np.linspace(0, 1, 1000)[:, None]
    edge = np.concatenate([a + share * (b - a) for a, b in pairwise(corners)])
    few = slice(0, 200)
    slow = [np.hypot(*(edge - p).T).min() for p in np.stack([x, y], 1)[few]]
    np.testing.assert_allclose(np.abs(distance[few]), slow, atol=2e-3)


def test_round_shapes_against_their_formulas():
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 4000))
    round_one = pocket_shapes.ellipse(-0.2, 0.1, 0.74, 0.5)(x, y)
    assert np.array_equal(round_one < 0, ((x + 0.2) / 0.74) ** 2 + ((y - 0.1) / 0.5) ** 2 < 1)
    near = np.abs(round_one) < 0.02  # a step against the distance leads to the zero set
    assert near.sum() > 50
    square = pocket_shapes.rectangle(-0.5, -0.3, 0.7, 0.6)(x, y)
    assert np.array_equal(square < 0, (x > -0.5) & (x < 0.7) & (y > -0.3) & (y < 0.6))
    ring = pocket_shapes.cut(pocket_shapes.circle(0, 0, 0.8), pocket_shapes.circle(0, 0, 0.4))
    assert np.array_equal(ring(x, y) < 0, (x**2 + y**2 < 0.64) & (x**2 + y**2 > 0.16))


def test_a_rounded_corner_is_a_circle():
    box = pocket_shapes.rectangle(0, 0, 1, 1, 0.2)
    assert scalar(box, 0.2 - 0.2 * np.sqrt(0.5), 0.2 - 0.2 * np.sqrt(0.5)) == pytest.approx(0)
    assert scalar(box, 0.5, -0.3) == pytest.approx(0.3)


def test_names_are_many_and_differ():
    assert len(KINDS) >= 12
    assert (len(COLOURS), len(PATTERNS), len(BACKDROPS), len(STUFF)) == (8, 3, 6, 12)
    assert len(set(LABELS)) == len(LABELS)


# --- outlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_outline_is_that_of_a_rendered_thing_and_stays_in_its_box(kind):
    box = (0.25, 0.125, 0.75, 0.5)  # 32 x 24 pixels: a square of 24 in its middle
    mask = outline_mask(kind, box)
    rows, columns = np.where(mask)
    assert 8 <= rows.min() <= rows.max() < 32
    assert 20 <= columns.min() <= columns.max() < 44
    assert max(np.ptp(rows), np.ptp(columns)) >= 20
    rendered = [
        s.mask for i in range(400) for s in pocket_item("val", i).segments if s.label == kind
    ]

    def fill(mask):
        """Share of the smallest square around it."""
        return mask.sum() / (np.ptp(np.where(mask), axis=1).max() + 1) ** 2

    assert min(abs(fill(one) - fill(mask)) for one in rendered) < 0.05
    assert np.array_equal(
        outline_mask(kind, (0.25, 0.125, 0.625, 0.5), mirrored=True)[:, 16:40],
        outline_mask(kind, (0.25, 0.125, 0.625, 0.5))[:, 39:15:-1],
    )


@pytest.mark.parametrize(
    ("kind", "box", "message"),
    [
        ("dog", (0, 0, 1, 1), "kind is 'dog'; there are ball, box"),
        ("ball", (0.5, 0.5, 0.52, 0.9), "at least 1/16 wide"),
        ("ball", (0.8, 0.5, 1.2, 0.9), r"box is \(0.8, 0.5, 1.2, 0.9\); pass"),
    ],
)
def test_an_outline_that_cannot_be_is_refused(kind, box, message):
    with pytest.raises(ValueError, match=message):
        outline_mask(kind, box)
