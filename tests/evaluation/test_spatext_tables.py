# SPDX-License-Identifier: Apache-2.0
"""Corrupted masks against loops, and the tables that are made of reports."""

import json
from itertools import product

import numpy as np
import pytest

from spatext_lab import zoo
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation import spatext_tables as tables
from spatext_lab.evaluation.corrupted_masks import CORRUPTIONS, blob, boxed, dilated, eroded
from tests.tiny import tiny_model

MASKS = [s.mask for s in pocket_item("val", 3).segments] + [np.eye(9, dtype=bool)]


def near(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Every pixel that has one of the mask within a distance."""
    found = np.zeros_like(mask)
    reach = range(-pixels, pixels + 1)
    for y, x in np.argwhere(mask):
        for dy, dx in product(reach, reach):
            inside = 0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1]
            if inside and dy * dy + dx * dx <= pixels * pixels:
                found[y + dy, x + dx] = True
    return found


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pixels", [1, 2])
def test_rims_against_a_loop(mask, pixels):
    assert np.array_equal(dilated(mask, pixels), near(mask, pixels))
    inner = mask & ~near(~mask, pixels)
    if inner.any():
        assert np.array_equal(eroded(mask, pixels), inner)
    else:
        assert (eroded(mask, pixels) & ~mask).sum() == 0 < eroded(mask, pixels).sum()


def test_a_box_against_its_corners():
    for mask in MASKS:
        rows, columns = np.where(mask)
        box = boxed(mask)
        assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (box | mask).sum() == box.sum()


def test_a_blob_has_the_masks_place_and_size():
    for mask in MASKS[:-1]:
        round_one = blob(mask)
        assert round_one.sum() == pytest.approx(mask.sum(), rel=0.2)  # less where it is cropped
        if round_one[[0, -1]].any() or round_one[:, [0, -1]].any():
            continue
        centres = (np.argwhere(m).mean(0) for m in (mask, round_one))
        assert np.abs(next(centres) - next(centres)).max() < 0.5


def test_a_blob_of_an_ellipse_is_the_ellipse():
    y, x = np.indices((64, 64)) - 31.5
    ellipse = (x + 0.5 * y) ** 2 / 300 + (y - 0.2 * x) ** 2 / 90 <= 1
    assert (blob(ellipse) ^ ellipse).sum() <= 0.02 * ellipse.sum()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tiny_model(tmp_path_factory.mktemp("model"))
    zoo.seal(place)
    return place


def test_the_tables_are_written_and_hold_what_was_measured(root, tmp_path, monkeypatch):
    few = {name: CORRUPTIONS[name] for name in ("exact", "a box")}
    monkeypatch.setattr(tables, "CORRUPTIONS", few)
    tables.run(tmp_path / "out", scenes=2, model=str(root), variants=root)
    rows = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(tables.ABLATION)
    lines = (tmp_path / "out" / "ablation.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(line.count("|") == len(tables.COLUMNS) + 2 for line in lines)
    for line, row in zip(lines[2:], rows, strict=True):
        assert f"| {row['local_iou']:.3f} [" in line
        assert f"| {row['passes']} |" in line
    masks = json.loads((tmp_path / "out" / "masks.json").read_text())["rows"]
    assert [row["masks"] for row in masks] == ["exact", "a box"]
    assert masks[0]["mask_quality"] == 1.0 > masks[1]["mask_quality"] > 0
    assert (tmp_path / "out" / "masks.png").stat().st_size > 1000


def test_rows_without_a_model_are_left_out(root, tmp_path):
    methods = [row["method"] for row in tables.ablation(1, str(root), tmp_path)]
    assert methods == [m for m in tables.ABLATION if m not in tables.VARIANTS]
