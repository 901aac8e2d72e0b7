# SPDX-License-Identifier: Apache-2.0
"""A scene as a token sequence: against its construction written out, CLIP itself, the way back."""

import copy
import math
import re
import subprocess
import sys
import warnings
from fractions import Fraction
from functools import cache
from html.parser import HTMLParser

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.datasets.pocket.paintskills import SKILLS, skill_item
from spatext_lab.reco.position_tokens import (
    PositionTokens,
    TokenSequence,
    bin_ids,
    is_thin,
    snapped,
    to_bin,
    to_value,
)
from spatext_lab.reco.prompts import read, write_bins, write_numbers
from spatext_lab.scene import Region, Scene
from spatext_lab.text_to_image.tokenizer import new_tokenizer

BINS, LENGTH = 128, 154
COUNTS = (2, 3, 8, 64, 128, 999, 1000, 1001, 4096)
RED, TREE, SKY = (
    Region("a red ball", box=(0.1, 0.2, 0.5, 0.8)),
    Region("a tree", box=(0.4, 0.5, 0.9, 1)),
    Region("the evening sky", box=(0, 0, 1, 0.3)),
)
SCENE = Scene("a red ball and a tree in a meadow", [RED, TREE, SKY])


@cache
def sentences(bins: int = BINS, length: int = LENGTH, merges: int = 1500) -> PositionTokens:
    """With a tokenizer that was told its bins by hand, as they are named in published ones."""
    tokenizer = new_tokenizer(merges, length)
    tokenizer.add_tokens([f"<bin{number:03d}>" for number in range(bins)], special_tokens=True)
    return PositionTokens(tokenizer, length)


def slow_parts(position: PositionTokens, scene: Scene) -> list[list[int]]:
    """Caption and regions, each piece by the tokenizer's own `encode`, with its start and end."""
    encode, number = position.tokenizer.encode, position.tokenizer.convert_tokens_to_ids
    parts = [encode(scene.caption)]
    for region in scene.regions:
        places = [math.floor(value * (position.bins - 1) + 0.5) for value in region.box]
        parts.append([*(number(f"<bin{place:03d}>") for place in places), *encode(region.text)])
    return parts


def joined(parts: list[list[int]]) -> list[int]:
    return [token for part in parts for token in part]


def padded(position: PositionTokens, ids: list[int]) -> list[int]:
    return ids + [position.tokenizer.pad_token_id] * (position.length - len(ids))


def pocket_scenes(count: int) -> list[Scene]:
    scenes = [pocket_item("train", i).layout for i in range(count)]
    return scenes + [skill_item(skill, "val", i).scene for skill in SKILLS for i in range(10)]


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- bins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", COUNTS)
def test_every_bin_comes_back(bins):
    values = [to_value(number, bins) for number in range(bins)]
    assert [to_bin(value, bins) for value in values] == list(range(bins))
    assert (values[0], values[-1]) == (0, 1)
    assert values == sorted(set(values))


@pytest.mark.parametrize("bins", COUNTS)
def test_one_rounding_in_closed_form(bins):
    """The nearest bin, floor(v (N - 1) + 1/2), in whole numbers; 10007 is prime, so no ties."""
    for i in range(10008):
        exact = math.floor(Fraction(i, 10007) * (bins - 1) + Fraction(1, 2))
        assert to_bin(i / 10007, bins) == exact


def test_the_released_script_rounds_twice_and_moves_499_of_1000_bins():
    """It takes a prompt's number for thousandths of the image and rounds to a bin anew."""
    twice = [round(number / 1000 * 999) for number in range(1000)]
    once = [to_bin(to_value(number, 1000), 1000) for number in range(1000)]
    assert sum(a != b for a, b in zip(once, twice, strict=True)) == 499
    assert twice[:501] == once[:501]
    assert twice[501:] == once[500:-1]


def test_prompts_in_numbers_mean_what_they_mean_to_the_released_script():
    """Their coordinates are thousandths, so that all 1001 of them end in its bins."""
    for number in range(1000):
        (region,) = read(f"a ball <{number}> <{number}> <1000> <1000> a ball").regions
        assert to_bin(region.box[0], 1000) == round(number / 1000 * 999)


@given(
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3]),
    st.sampled_from(COUNTS),
)
@settings(deadline=None)
def test_an_edge_moves_by_half_a_bin_at_most(box, bins):
    for before, after in zip(box, snapped(box, bins), strict=True):
        assert abs(before - after) <= 0.5 / (bins - 1) + 1e-15


def test_the_bound_is_reached():
    assert abs(snapped((0.25, 0, 1, 1), 3)[0] - 0.25) == 0.25


def test_bins_are_found_by_their_names_in_any_order():
    tokenizer = new_tokenizer(100)
    tokenizer.add_tokens(["<bin_1>", "<cat-toy>", "<bin000>"], special_tokens=True)
    first = len(tokenizer) - 3
    assert bin_ids(tokenizer) == [first + 2, first]
    assert bin_ids(new_tokenizer(100)) == []


def test_a_gap_between_the_bins_is_refused():
    tokenizer = new_tokenizer(100)
    tokenizer.add_tokens(["<bin000>", "<bin002>", "<bin003>"], special_tokens=True)
    with pytest.raises(ValueError, match="3 bins and not <bin001>"):
        PositionTokens(tokenizer, 77)


# --- the sequence ---------------------------------------------------------------------------------


def test_the_sequence_against_the_construction_written_out(no_warnings):
    position, scenes = sentences(), [*pocket_scenes(60), SCENE, Scene(""), Scene("", [RED])]
    rows = position.encode(scenes)
    assert rows.shape == (len(scenes), LENGTH)
    assert rows.dtype == torch.int64
    for row, scene in zip(rows.tolist(), scenes, strict=True):
        assert row == padded(position, joined(slow_parts(position, scene)))


def test_a_mask_is_encoded_as_the_box_around_it():
    item = pocket_item("train", 3)
    boxes = Scene(item.scene.caption, [Region(r.text, box=r.box) for r in item.scene.regions])
    assert torch.equal(sentences().encode([item.scene]), sentences().encode([boxes]))


def test_a_caption_alone_is_padded_as_stable_diffusion_pads_it():
    captions = ["a red ball", "", "two crimson mushrooms; don't!"]
    position = sentences()
    theirs = position.tokenizer(captions, padding="max_length", truncation=True).input_ids
    assert position.encode([Scene(caption) for caption in captions]).tolist() == theirs
    assert position.tokenizer.pad_token_id == position.tokenizer.eos_token_id


def test_no_scenes_make_no_rows():
    assert sentences().encode([]).shape == (0, LENGTH)


def test_the_size_of_clip_has_the_papers_numbers():
    """49408 words and 1000 bins behind them; words as OpenAI's tokenizer numbers them."""
    position, theirs = sentences(1000, 616, 48894), open_clip.SimpleTokenizer()
    assert position.bin_ids == list(range(49408, 50408))
    row = position.encode([SCENE])[0].tolist()
    parts = [49406, *theirs.encode(SCENE.caption), 49407]
    for region in SCENE.regions:
        parts += [49408 + round(999 * value) for value in region.box]
        parts += [49406, *theirs.encode(region.text), 49407]
    assert row == parts + [49407] * (616 - len(parts))


@pytest.mark.parametrize("bins", [8, 128, 1000])
def test_the_tokenizer_itself_makes_the_same_of_the_prompt_in_bins(bins):
    """That is how published weights in the layout of diffusers are prompted."""
    position = sentences(bins)
    scenes = [s for s in pocket_scenes(150) if not any(is_thin(r.box, bins) for r in s.regions)]
    scenes += [SCENE, Scene("", [RED]), Scene("a b"), Scene("Ünder, 3 'quotes' & <b>", [TREE])]
    prompts = [write_bins(scene, bins) for scene in scenes]
    theirs = position.tokenizer(prompts, padding="max_length", truncation=True).input_ids
    assert len(scenes) > 80
    assert position.encode(scenes).tolist() == theirs


# --- what does not fit ----------------------------------------------------------------------------


def test_regions_that_do_not_fit_are_dropped_whole_and_last_first():
    """For every length: as many whole parts as fit, then padding alone."""
    regions = [RED, TREE, SKY, Region("a snow white dotted crate", box=(0.2, 0.2, 0.4, 0.4)), TREE]
    scene = Scene("a meadow", regions)
    whole = slow_parts(sentences(), scene)
    seen = set()
    for length in range(len(whole[0]), len(joined(whole)) + 3):
        position = PositionTokens(sentences().tokenizer, length)
        fitting = max(n for n in range(1, 7) if len(joined(whole[:n])) <= length)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (row,) = position.encode([scene]).tolist()
        assert row == padded(position, joined(whole[:fitting]))
        left_out = [f"regions[{k}] ({regions[k].text!r})" for k in range(fitting - 1, 5)]
        assert [str(w.message) for w in caught] == (
            [
                f"regions dropped: {', '.join(left_out)}; the scene has more than "
                f"{length} tokens: shorten the texts"
            ]
            if left_out
            else []
        )
        work = position.show_work(scene)
        assert work.ids == row
        assert work.dropped == tuple(range(fitting - 1, 5))
        assert position.decode(row).regions == tuple(
            Region(r.text, box=snapped(r.box, BINS)) for r in regions[: fitting - 1]
        )
        seen.add(fitting)
    assert seen == set(range(1, 7))


def test_a_short_region_does_not_jump_the_queue():
    """It would fit in the place of the long one before it."""
    long = Region("a ball and " * 9, box=RED.box)
    position = PositionTokens(sentences().tokenizer, 40)
    with pytest.warns(UserWarning, match=r"regions\[1\] \('a ball .*\), regions\[2\] \('a tree'\)"):
        row = position.encode([Scene("a wood", [RED, long, TREE])])[0].tolist()
    assert row == padded(position, joined(slow_parts(position, Scene("a wood", [RED]))))


@pytest.mark.filterwarnings("ignore:regions dropped")
def test_a_caption_that_is_too_long_is_truncated_as_in_stable_diffusion():
    position, caption = sentences(), "a ball and a tree " * 60
    theirs = position.tokenizer(caption, padding="max_length", truncation=True).input_ids
    for scene in (Scene(caption), Scene(caption, [RED])):
        with pytest.warns(UserWarning, match="caption is longer than 154 tokens: '.* is truncated"):
            assert position.encode([scene])[0].tolist() == theirs
    with pytest.warns(UserWarning, match="caption is longer"):
        assert position.show_work(Scene(caption, [RED])).dropped == (0,)


# --- the way back ---------------------------------------------------------------------------------


def test_a_sequence_is_read_back():
    position = sentences()
    for scene, row in zip(scenes := pocket_scenes(60), position.encode(scenes), strict=True):
        back = position.decode(row)
        assert back == position.decode(row.tolist())
        assert back.caption.replace(" ", "") == scene.caption.lower().replace(" ", "")
        for ours, region in zip(back.regions, scene.regions, strict=True):
            assert ours.text == region.text
            assert ours.box == snapped(region.box, BINS)
        assert torch.equal(position.encode([back])[0], row)


MARK = re.compile(r"<(bin_?)?\d+>|<\|(start|end)oftext\|>")
# Python takes these four for space, and tokenizers do not.
STRANGE = "\x1c\x1d\x1e\x1f"
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=STRANGE), max_size=20),
    st.text("aAbx 'st!.,;-#<>|/\\&\"_07éÉßİ́日🐟", max_size=30),
    st.sampled_from(["a red ball", "don't!", "<bin", "bin001>", "< 5 >", "<|EndOfText|>"]),
).filter(lambda text: not MARK.search(text))
EDGES = st.tuples(st.integers(0, 126), st.integers(1, 127)).map(
    lambda pair: (min(pair[0], pair[1] - 1), pair[1])
)


@st.composite
def encoded_regions(draw) -> Region:
    (x0, x1), (y0, y1) = draw(EDGES), draw(EDGES)
    nudge = draw(st.floats(-0.49, 0.49))
    box = [min(max((edge + nudge) / 127, 0), 1) for edge in (x0, y0, x1, y1)]
    return Region(draw(TEXTS.filter(str.strip)), box=box)


@given(TEXTS, st.lists(encoded_regions(), max_size=4))
@settings(deadline=None, max_examples=300)
def test_any_scene_can_be_encoded_and_what_is_decoded_encodes_the_same(caption, regions):
    scene, position = Scene(caption, regions), sentences(BINS, 616)
    row = position.encode([scene])[0]
    assert row.tolist() == padded(position, joined(slow_parts(position, scene)))
    back = position.decode(row)
    assert [region.box for region in back.regions] == [
        snapped(region.box, BINS) for region in scene.regions
    ]
    assert torch.equal(position.encode([back])[0], row)


@given(TEXTS, st.lists(encoded_regions(), max_size=4))
@settings(deadline=None, max_examples=200)
def test_any_scene_can_be_written_and_read(caption, regions):
    """Both forms, texts to the letter but for space around them, boxes to the mark."""
    scene = Scene(caption, regions)
    exact = sentences(BINS, 616).tokenizer(write_bins(scene, BINS), padding="max_length").input_ids
    assert sentences(BINS, 616).encode([scene])[0].tolist() == exact
    forms = (read(write_bins(scene, BINS), BINS), 127), (read(write_numbers(scene)), 1000)
    for back, last in forms:
        assert back.caption == scene.caption.strip()
        for ours, region in zip(back.regions, scene.regions, strict=True):
            assert ours.text == region.text.strip()
            assert ours.box == tuple(round(value * last) / last for value in region.box)


# --- the two written forms ------------------------------------------------------------------------

BOATS = Scene(
    "two boats",
    [
        Region("a red boat", box=(0.1, 0.4, 0.35, 0.8)),
        Region("a blue boat", box=(0.6, 0.42, 0.9, 0.79)),
    ],
)
AS_NUMBERS = "two boats <100> <400> <350> <800> a red boat <600> <420> <900> <790> a blue boat"
AS_BINS = (
    "two boats <|endoftext|> <bin001> <bin003> <bin002> <bin006> <|startoftext|> a red boat "
    "<|endoftext|> <bin004> <bin003> <bin006> <bin006> <|startoftext|> a blue boat"
)


def test_the_two_forms_to_the_letter():
    assert write_numbers(BOATS) == AS_NUMBERS
    assert write_bins(BOATS, 8) == AS_BINS
    odd = Scene("", [Region("a kite", box=(0.0006, 0.2, 0.5004, 1))])
    assert write_numbers(odd) == "<1> <200> <500> <1000> a kite"
    assert read(AS_NUMBERS) == BOATS
    boxes = [snapped(region.box, 8) for region in BOATS.regions]
    assert [region.box for region in read(AS_BINS, 8).regions] == boxes
    assert read("<bin_514> <bin_575> <bin_741> <bin_765> a donut").regions[0].box == tuple(
        number / 999 for number in (514, 575, 741, 765)
    )
    assert read("  a wood ") == Scene("a wood")
    assert read("") == Scene("")


def test_a_prompt_may_leave_out_space():
    assert read(AS_NUMBERS.replace(" <", "<").replace("> ", ">")) == BOATS


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("c <800> <100> <200> <300> t", r"regions\[0\] is <800> <100> <200> <300>: .*x0 < x1"),
        ("c <0> <0> <9> <9> t <1> <300> <9> <300> t", r"regions\[1\] is .*y0 < y1"),
        ("c <100> <100> <200> <1001> t", r"regions\[0\] .* <1001> is beyond the last, 1000"),
        ("c <bin000> <bin000> <bin100> <bin1000> t", "<bin1000> is beyond the last, 999"),
        ("c <100> <100> <200> <300>", r"regions\[0\].text is ''; name what is there"),
        ("c <1> <1> <2> <3> <4> <4> <5> <6> t", r"regions\[0\].text is ''"),
        ("c <100> <100> <200> t", "caption is .* which holds '<100>', a token"),
        ("c <1> <1> <2> <3> <4> t", r"regions\[0\].text is '<4> t', which holds '<4>'"),
        ("c <100> <100> and <200> <300> t", "caption is .* which holds '<100>'"),
    ],
)
def test_prompts_that_are_none(prompt, message):
    with pytest.raises(ValueError, match=message):
        read(prompt)


def test_a_prompts_bins_are_the_vocabularys():
    prompt = "c <bin000> <bin000> <bin064> <bin063> t"
    with pytest.raises(ValueError, match=r"regions\[0\] .* <bin064> is beyond the last, 63"):
        read(prompt, bins=64)
    assert read(prompt, bins=65).regions[0].box == (0, 0, 1, 63 / 64)


@pytest.mark.parametrize("mark", ["<bin005>", "<bin_5>", "<750>", "<|endoftext|>"])
def test_a_text_that_holds_a_mark_is_refused_by_name(mark):
    text = f"a ball {mark} and a tree"
    cases = {
        "caption": Scene(text, [RED]),
        r"regions\[1\].text": Scene("a wood", [RED, Region(text, box=TREE.box)]),
    }
    for field, scene in cases.items():
        message = f"{field} is '{re.escape(text)}', which holds '{re.escape(mark)}'"
        for say in (
            lambda s: sentences().encode([SCENE, s]),
            sentences().show_work,
            lambda s: write_bins(s, BINS),
            write_numbers,
        ):
            with pytest.raises(ValueError, match=message):
                say(scene)


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="text is empty"):
        Region(" ", box=RED.box)


def test_a_box_that_is_thinner_than_a_bin_is_refused_by_name():
    flat, slim = (0.2, 0.5, 0.8, 0.502), (0.5, 0.2, 0.502, 0.8)
    for box in (flat, slim):
        scene = Scene("c", [RED, Region("a line", box=box)])
        for say in (lambda s: sentences().encode([s]), lambda s: write_bins(s, BINS)):
            with pytest.raises(
                ValueError, match=r"regions\[1\].box is \(0\.[25], .* make it larger"
            ):
                say(scene)
        assert sentences(1000).encode([scene]).shape == (1, LENGTH)
        assert (is_thin(box, BINS), is_thin(box, 1000)) == (True, False)
    hair = Scene("c", [Region("a hair", box=(0.2, 0.2, 0.2001, 0.8))])
    with pytest.raises(ValueError, match=r"regions\[0\].box .* \(<200> <200> <200> <800>\)"):
        write_numbers(hair)


def test_without_bins_captions_alone_can_be_encoded():
    plain = PositionTokens(new_tokenizer(200), 77)
    theirs = plain.tokenizer("a wood", padding="max_length").input_ids
    assert plain.encode([Scene("a wood")])[0].tolist() == theirs
    assert plain.decode(theirs) == Scene("a wood")
    with pytest.raises(ValueError, match=r"regions\[0\]: the tokenizer has no position tokens"):
        plain.encode([SCENE])


def broken_sequences() -> dict[str, tuple[list[int], str]]:
    """What is no sequence, and its message."""
    position = sentences()
    start, end, first = (position.tokenizer.bos_token_id, position.tokenizer.eos_token_id, 2014)
    caption, text = [start, 320, end], [start, 321, end]
    box = [first + number for number in (3, 4, 90, 127)]
    turned = [first + number for number in (90, 4, 3, 127)]
    beyond = [*box[:3], first + BINS]
    return {
        "nothing": ([], r"ids\[0\] is nothing; a text begins with the start token, 2012"),
        "padding alone": ([end, end], r"ids\[0\] is 2013; a text begins with the start token"),
        "no start": ([320, end], r"ids\[0\] is 320"),
        "no end": ([start, 320], r"ids\[0\] begins a text without an end token, 2013"),
        "a place in the caption": ([start, 320, *box, end], rf"ids\[2\] is {box[0]}; a text holds"),
        "a start in the caption": ([start, 320, start, end], r"ids\[2\] is 2012; a text holds"),
        "an unknown word": (
            [start, 9999, end],
            r"ids\[1\] is 9999; a text holds ids from 0 to 2141",
        ),
        "a negative word": ([start, -1, end], r"ids\[1\] is -1"),
        "three corners": ([*caption, *box[:3], *text], r"ids\[3:7\] is .*; a region begins with"),
        "five corners": ([*caption, *box, box[0], *text], rf"ids\[7\] is {box[0]}; a text begins"),
        "an unknown corner": ([*caption, *beyond, *text], r"ids\[3:7\] is .*2142\]; a region"),
        "an unknown first corner": ([*caption, first + BINS, *box], r"ids\[3\] is 2142; after"),
        "cut within the corners": ([*caption, *box[:2]], r"ids\[3:7\] is .*four bins"),
        "cut behind the corners": ([*caption, *box], r"ids\[7\] is nothing"),
        "cut within the text": ([*caption, *box, start, 321], r"ids\[7\] begins a text without"),
        "corners in another order": ([*caption, *turned, *text], r"ids\[3:7\] is .*x0 < x1"),
        "no area": ([*caption, *[box[0]] * 4, *text], r"ids\[3:7\] is .*x0 < x1"),
        "an empty text": ([*caption, *box, start, end], r"ids\[3:7\] is .*text is empty"),
        "words behind the end": ([*caption, end, 320], r"ids\[4\] is 320; after an end token"),
        "a region behind padding": ([*caption, end, *box, *text], rf"ids\[4\] is {box[0]}; after"),
    }


@pytest.mark.parametrize("what", broken_sequences())
def test_sequences_that_are_none(what):
    ids, message = broken_sequences()[what]
    with pytest.raises(ValueError, match=message):
        sentences().decode(ids)


def test_the_broken_sequences_are_broken_where_their_message_says():
    """What they were broken from is read."""
    ids = broken_sequences()
    whole = [*ids["cut behind the corners"][0], *ids["five corners"][0][-3:]]
    back = sentences().decode(whole)
    assert back == Scene("a", [Region("b", box=(3 / 127, 4 / 127, 90 / 127, 1))])


# --- content and padding -------------------------------------------------------------


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!</w>"])
def test_the_attention_mask_against_a_slow_loop(pad):
    """CLIP pads with end tokens, of which the sequence's own is the last of the content; others pad
    with a word, and then that token within a sequence is none of the padding."""
    tokenizer = copy.deepcopy(sentences().tokenizer)
    tokenizer.pad_token = pad
    position = PositionTokens(tokenizer, LENGTH)
    assert (tokenizer.pad_token_id == tokenizer.eos_token_id) == (pad == "<|endoftext|>")
    scenes = [SCENE, Scene(""), Scene("look! a ball!", [RED]), *pocket_scenes(10)]
    scenes.append(Scene("a ball " * 200))  # which leaves no room for padding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = position.encode(scenes)
        lengths = [sum(t.region >= 0 for t in position.show_work(s).tokens) for s in scenes]
    want = torch.zeros(len(scenes), LENGTH, dtype=torch.bool)
    for row, (said, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
        for place in range(LENGTH):
            want[row, place] = place < length
        assert said[length - 1] == tokenizer.eos_token_id
        assert set(said[length:]) <= {tokenizer.pad_token_id}
    assert torch.equal(position.attention_mask(ids), want)
    assert lengths[1] == 2
    assert lengths[-1] == LENGTH
    assert tokenizer.pad_token_id in ids[2, : lengths[2] - 1]
    longest = max(lengths[:-1])  # also where what all pad is cut off
    assert torch.equal(position.attention_mask(ids[:-1, :longest]), want[:-1, :longest])


def test_each_tokens_region_against_the_sequence_that_shows_it():
    """Also for a region that begins with one bin twice, and where a region did not fit."""
    square = Region("a red ball", box=(0.25, 0.25, 0.75, 0.75))
    scenes = [SCENE, Scene(""), Scene("c", [square] * 2), *pocket_scenes(10)]
    position, short = sentences(), PositionTokens(sentences().tokenizer, 24)
    want = [[token.region for token in position.show_work(scene).tokens] for scene in scenes]
    assert position.token_regions(position.encode(scenes)).tolist() == want
    with pytest.warns(UserWarning, match="regions dropped"):
        ids = short.encode([SCENE])
    assert short.token_regions(ids).tolist() == [[t.region for t in short.show_work(SCENE).tokens]]


# --- a sequence that shows its work ---------------------------------------------------------------


def test_a_sequence_is_a_row_of_the_batch():
    position, scenes = sentences(), [*pocket_scenes(40), Scene(""), SCENE]
    for scene, row in zip(scenes, position.encode(scenes).tolist(), strict=True):
        assert position.show_work(scene).ids == row


def test_each_token_knows_its_region_and_its_text():
    sequence = sentences().show_work(Scene("a tree", [RED, TREE]))
    said = [(t.text, t.region, t.is_position) for t in sequence.tokens if t.region >= 0]
    start, end = "<|startoftext|>", "<|endoftext|>"
    assert said == [
        *((word, 0, False) for word in (start, "a", "tre", "e", end)),
        *((f"<bin{number:03d}>", 1, True) for number in (13, 25, 64, 102)),
        *((word, 1, False) for word in (start, "a", "red", "ball", end)),
        *((f"<bin{number:03d}>", 2, True) for number in (51, 64, 114, 127)),
        *((word, 2, False) for word in (start, "a", "tre", "e", end)),
    ]
    assert str(sequence) == " ".join(word for word, _, _ in said)
    rest = sequence.tokens[len(said) :]
    assert {(t.id, t.region, t.is_position) for t in rest} == {(2013, -1, False)}
    assert len(sequence.tokens) == LENGTH


# --- speed ----------------------------------------------------------------------------------------


SPEED = f"""
import time
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.reco.position_tokens import PositionTokens
from spatext_lab.text_to_image.tokenizer import new_tokenizer

scenes = [pocket_item("train", i).layout for i in range(10_000)]
tokenizer = new_tokenizer(length={LENGTH})
tokenizer.add_tokens([f"<bin{{n:03d}}>" for n in range({BINS})], special_tokens=True)
position = PositionTokens(tokenizer, {LENGTH})
start = time.process_time()
rows = position.encode(scenes)
print(time.process_time() - start, *rows.shape)
"""


def test_ten_thousand_scenes_in_two_seconds_of_one_core():
    """Time of the processor, all threads together, with a tokenizer that has seen no text yet; in a
    process of its own, where shapes are not checked as the code runs."""
    done = subprocess.run([sys.executable, "-c", SPEED], capture_output=True, text=True, check=True)
    seconds, *shape = done.stdout.split()
    assert shape == ["10000", str(LENGTH)]
    assert float(seconds) < 2


# --- in a notebook --------------------------------------------------------------------------------


class Reader(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.texts = set(), []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)

    def handle_data(self, data) -> None:
        self.texts.append(data)


def test_a_sequence_shows_itself_and_its_texts_are_no_markup():
    nasty = '<script>alert("1 & 2")</script>'
    scene = Scene(f"a moon {nasty}", [Region("a <b>red</b> ball", box=RED.box)])
    sequence = sentences().show_work(scene)
    assert isinstance(sequence, TokenSequence)
    reader = Reader()
    reader.feed(sequence._repr_html_())
    assert reader.tags <= {"div", "span", "i"}
    shown = [text for text in reader.texts if text.strip()]
    said = [t.text for t in sequence.tokens if t.region >= 0]
    assert shown[:-1] == said
    assert shown[-1] == f"and {LENGTH - len(said)} of padding; {len(said)} of {LENGTH} used"
