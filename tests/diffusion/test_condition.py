# SPDX-License-Identifier: Apache-2.0
"""Conditions taken apart, batched, repeated and dropped in part, against slow loops."""

from dataclasses import replace

import pytest
import torch

from spatext_lab.diffusion import Condition, drop_conditions
from tests.conditions import some_condition


def test_single_conditions_turn_on_one_part_each():
    condition = some_condition(2)
    caption, st_map = condition.single_conditions()
    assert torch.equal(caption.text, condition.text)
    assert not caption.st_map.any()
    assert torch.equal(st_map.text, condition.null_text)
    assert torch.equal(st_map.st_map, condition.st_map)
    null = condition.null()
    assert torch.equal(null.text, condition.null_text)
    assert not null.st_map.any()


def test_a_condition_without_map_has_one_single():
    condition = some_condition(2, with_map=False)
    (caption,) = condition.single_conditions()
    assert torch.equal(caption.text, condition.text)
    assert caption.st_map is None
    assert condition.null().st_map is None


@pytest.mark.parametrize("with_map", [True, False])
def test_batch_puts_conditions_one_after_the_other(with_map):
    parts = [some_condition(b, with_map) for b in (1, 3, 2)]
    whole = Condition.batch(parts)
    assert len(whole) == 6
    for name in ("text", "null_text", "st_map") if with_map else ("text", "null_text"):
        rows = [row for part in parts for row in getattr(part, name)]
        assert all(map(torch.equal, getattr(whole, name), rows))
    assert (whole.st_map is None) == (not with_map)


def test_to_changes_every_part():
    moved = some_condition(1).to(dtype=torch.float64)
    assert {moved.text.dtype, moved.null_text.dtype, moved.st_map.dtype} == {torch.float64}
    assert some_condition(1, with_map=False).to("cpu").st_map is None


def test_conditions_that_do_not_fit_are_refused():
    text = torch.zeros(2, 4, 6)
    with pytest.raises(ValueError, match="null_text has shape"):
        Condition(text, torch.zeros(1, 4, 6))
    with pytest.raises(ValueError, match="one map per caption"):
        Condition(text, text, torch.zeros(3, 5, 3, 3))
    with pytest.raises(ValueError, match=r"1 of 2 have st_map; .* in all of them or in none"):
        Condition.batch([some_condition(1), some_condition(1, with_map=False)])
    with pytest.raises(ValueError, match="at least one condition"):
        Condition.batch([])


def test_repeat_puts_each_image_n_times_in_a_row():
    condition = replace(some_condition(3), region_maps=(torch.randn(3, 5, 3, 3),) * 2)
    twice = condition.repeat(2)
    assert len(twice) == 6
    for k in range(6):
        for name in ("text", "null_text", "st_map"):
            assert torch.equal(getattr(twice, name)[k], getattr(condition, name)[k // 2])
        for ours, theirs in zip(twice.region_maps, condition.region_maps, strict=True):
            assert torch.equal(ours[k], theirs[k // 2])
    assert some_condition(1, with_map=False).repeat(3).st_map is None


def test_drop_conditions_equals_a_slow_loop():
    condition = some_condition(4)
    drop_text = torch.tensor([False, True, False, True])
    drop_map = torch.tensor([False, False, True, True])
    dropped = drop_conditions(condition, drop_text, drop_map)
    for k in range(4):
        text = condition.null_text[k] if drop_text[k] else condition.text[k]
        st_map = torch.zeros(5, 3, 3) if drop_map[k] else condition.st_map[k]
        assert torch.equal(dropped.text[k], text)
        assert torch.equal(dropped.st_map[k], st_map)
        assert torch.equal(dropped.null_text[k], condition.null_text[k])


def test_drop_conditions_without_map_drops_captions():
    condition = some_condition(2, with_map=False)
    dropped = drop_conditions(condition, torch.tensor([True, False]), torch.tensor([True, True]))
    assert torch.equal(dropped.text[0], condition.null_text[0])
    assert torch.equal(dropped.text[1], condition.text[1])
    assert dropped.st_map is None


# --- objects --------------------------------------------------------------------------------------


def test_objects_go_with_their_image_and_are_zeros_in_the_null():
    """In a batch, repeated, moved; alone with the caption they are null too."""
    parts = [replace(some_condition(b), objects=torch.randn(b, 3, 7)) for b in (1, 2)]
    whole = Condition.batch([parts[0], parts[1].null()])
    assert torch.equal(whole.objects, torch.cat([parts[0].objects, torch.zeros(2, 3, 7)]))
    twice = parts[1].repeat(2)
    assert all(torch.equal(twice.objects[k], parts[1].objects[k // 2]) for k in range(4))
    assert parts[0].to("meta", torch.float64).objects.dtype == torch.float64
    assert not any(one.objects.any() for one in parts[1].single_conditions())
    assert some_condition(1).null().objects is None
    with pytest.raises(ValueError, match="1 of 2 have objects"):
        Condition.batch([parts[0], some_condition(1)])
