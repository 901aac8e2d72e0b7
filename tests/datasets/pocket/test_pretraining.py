# SPDX-License-Identifier: Apache-2.0
"""What the text-to-image model learns from: images that show what their captions say."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from spatext_lab.datasets.pocket import SIZE, Placed, held_out, pretraining
from spatext_lab.datasets.pocket.pretraining import large_view, prompt_of, small_view, where
from spatext_lab.datasets.pocket.texts import KIND_WORDS


@pytest.mark.parametrize("view", [small_view, large_view])
def test_a_view_is_the_same_each_time_and_another_for_another_number_or_seed(view):
    one, same, next_one, other = view(3), view(3), view(4), view(3, seed=1)
    assert np.array_equal(one.image, same.image)
    assert (one.captions, one.window) == (same.captions, same.window)
    assert np.array_equal(one.objects, same.objects)
    for different in (next_one, other):
        assert different.image.shape != one.image.shape or (different.image != one.image).any()


def test_small_views_are_crops_and_halves_by_turns():
    for number in range(40):
        view = small_view(number)
        assert view.image.shape == (32, 32, 3)
        assert view.image.dtype == np.uint8
        assert view.objects.shape == (32, 32)
        x0, y0, x1, y1 = view.window
        if number % 2:
            assert (x1 - x0, y1 - y0) == (0.5, 0.5)
            assert 0 <= min(x0, y0) <= max(x1, y1) <= 1
        else:
            assert view.window == (0.0, 0.0, 1.0, 1.0)


def rendered(monkeypatch) -> list:
    """Collects what is rendered, whole."""
    seen, render = [], pretraining._rendered

    def watched(rng, placed, located=True):
        seen.append((placed, render(rng, placed, located)))
        return seen[-1][1]

    monkeypatch.setattr(pretraining, "_rendered", watched)
    return seen


def test_a_crop_is_its_window_of_the_whole_and_has_all_of_the_object(monkeypatch):
    seen = rendered(monkeypatch)
    for number in range(1, 80, 2):
        view = small_view(number)
        _, whole = seen[-1]
        left, top = (round(v * SIZE) for v in view.window[:2])
        part = np.s_[top : top + 32, left : left + 32]
        assert np.array_equal(view.image, whole.image[part])
        assert view.objects.sum() == whole.objects.sum() > 0
        assert view.captions == whole.captions
        # where an object is, a caption of the whole image would say wrongly of the crop
        assert not any(word in c for c in view.captions for word in (" on the left", " at the top"))


def test_a_half_is_the_mean_of_four_pixels(monkeypatch):
    seen = rendered(monkeypatch)
    view, (_, whole) = small_view(8), seen[-1]
    for y, x in [(0, 0), (3, 17), (31, 31), (16, 9)]:
        four = whole.image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(float).mean((0, 1))
        assert np.abs(view.image[y, x] - four).max() <= 0.5


def test_large_objects_are_apart_inside_and_never_held_out(monkeypatch):
    seen, sides, numbers = rendered(monkeypatch), [], Counter()
    for number in range(0, 400, 2):
        small_view(number)
        placed, view = seen[-1]
        numbers[len(placed)] += 1
        for i, a in enumerate(placed):
            assert not held_out(*a.look)
            assert min(a.x, a.y) >= 0
            assert max(a.x, a.y) + a.side <= SIZE
            assert all(pretraining.gap(a, b) >= 2 for b in placed[:i])
        if len(placed) == 1:
            sides.append(placed[0].side)
        assert view.objects.sum() >= 60 * len(placed)
    assert set(numbers) == {1, 2, 3, 4}
    assert min(sides) < 32 < 50 < max(sides) <= 56


def test_large_views_are_skills_scenes_and_large_objects():
    views = [large_view(number) for number in range(120)]
    for number, view in enumerate(views):
        assert view.image.shape == (SIZE, SIZE, 3)
        assert view.objects.any()
        assert len(view.captions) == (1 if number % 6 < 3 else 7 if number % 6 < 5 else 6)
    prompts = Counter()
    for view in views:
        if len(view.captions) == 1:
            (text,) = view.captions
            assert text.startswith("a photo of ")
            prompts["spatial" if ";" in text else "other"] += 1
    assert 10 <= prompts["spatial"] <= 30  # a third of sixty


def test_captions_of_several_objects_are_true_of_the_image(monkeypatch):
    """Every kind that is rendered is named in the rich caption, as often as it is there."""
    seen = rendered(monkeypatch)
    for k in range(0, 60, 2):
        view, (placed, _) = small_view(k), seen[-1]
        rich = view.captions[3]
        kinds = Counter(thing.look[0] for thing in placed)
        for kind, count in kinds.items():
            words = sorted(KIND_WORDS[kind], key=len, reverse=True)
            named, text = 0, rich
            for word in words:
                named += text.count(word)
                text = text.replace(word, "")
            assert named == count, (rich, kinds)


def test_prompts_speak_as_paintskills_does():
    fish, tree = ("fish", "red", "plain"), ("tree", "blue", "striped")

    def said(*placed: Placed) -> set[str]:
        return {prompt_of(Random(k), placed) for k in range(60)}

    left, right = Placed(fish, 2, 20, 12, False), Placed(fish, 40, 20, 12, False)
    assert said(left) == {"a photo of a fish", "a photo of a red fish"}
    assert said(left, right) == {"a photo of two fish", "a photo of two red fish"}
    assert said(left, Placed(tree, 40, 20, 12, False)) == {
        "a photo of a fish and a tree; the tree is right of the fish",
        "a photo of a red fish and a blue tree; the blue tree is right of the red fish",
    }
    across = Placed(tree, 40, 56, 8, False)  # neither right of nor below
    assert said(left, across) == {
        "a photo of a fish and a tree",
        "a photo of a red fish and a blue tree",
    }


def test_where_a_point_is_said_to_be():
    said = [[where(x, y) for x in (5, 32, 60)] for y in (5, 32, 60)]
    assert said == [
        ["at the top left", "at the top", "at the top right"],
        ["on the left", "in the middle", "on the right"],
        ["at the bottom left", "at the bottom", "at the bottom right"],
    ]
