# SPDX-License-Identifier: Apache-2.0
"""The tables that are made of reports."""

import json
import shutil

import pytest

from spatext_lab import zoo
from spatext_lab.datasets.corrupted_masks import CORRUPTIONS
from spatext_lab.evaluation import spatext_tables as tables
from tests.tiny import tiny_model


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
    few = shutil.ignore_patterns("update-mask", "energy", zoo.SUMS)
    shutil.copytree(root, tmp_path / "few", ignore=few)
    for model, without in ((root, set()), (tmp_path / "few", {"update-mask", "energy"})):
        methods = [row["method"] for row in tables.ablation(1, str(model), tmp_path)]
        assert methods == [m for m in tables.ABLATION if m not in {*tables.VARIANTS, *without}]
