# SPDX-License-Identifier: Apache-2.0
"""ReCo's tables on tiny models: which rows there are, their values, exact errors of bins."""

import json
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from spatext_lab import zoo
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation import reco_tables as tables
from spatext_lab.evaluation.report import evaluate
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.text_encoder import INITS, grow
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import tiny_model

FEW = (3, 64)  # bins: so few that many boxes are thinner, and enough


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    tiny_model(place)
    zoo.seal(place)
    return place


@pytest.fixture(scope="module")
def variants(root, tmp_path_factory) -> Path:
    """Some of the models that are trained for the tables, two of them with a card."""
    place = tmp_path_factory.mktemp("variants")
    shutil.copytree(root / "reco-words", place / "reco-words")
    for name in ("reco-after", "reco-bins-64", "reco-init-mean", "reco-init-mean-200"):
        shutil.copytree(root / "reco", place / name)
    (place / "reco-init-mean-200" / "card.json").write_text(json.dumps({"final_loss": 0.25}))
    (place / "reco-after" / "card.json").write_text(json.dumps({"plan": {"steps": 77}}))
    base = TextToImagePipeline.from_pretrained(root / "text-to-image")
    grown = grow(base.text_encoder, base.tokenizer, 3, 154)
    parts = (base.unet, base.vae, *grown, base.scheduler)
    ReCoPipeline(*parts).save_pretrained(place / "reco-bins-3")
    return place


# --- rows -----------------------------------------------------------------------------------------


def test_rows_without_a_model_are_left_out(root, variants, tmp_path):
    always = [
        "ReCo, as shipped",
        "ReCo, caption alone",
        "text-to-image",
        "true images, decoded",
        "true images",
    ]
    for nowhere in (None, tmp_path):
        assert [name for name, _ in tables.layouts(1, str(root), nowhere)] == always
    names = {folder: what for folder, what, _ in tables.VARIANTS}
    with_some = [name for name, _ in tables.layouts(1, str(root), variants)]
    trained = [names["reco-after"], names["reco-words"]]
    assert with_some == [*always, *trained]


def test_a_row_is_the_report_of_its_own_model_by_boxes(root, variants):
    rows = dict(tables.layouts(2, str(root), variants))
    for folder, what, method in tables.VARIANTS:
        if what not in rows:
            continue
        report = evaluate(method, scenes=2, model=str(variants / folder), protocol="boxes")
        steps = {"steps": 77} if folder == "reco-after" else {}
        slow = "seconds_per_image"
        assert {**rows[what], slow: 0} == {**report, **steps, slow: 0}
    methods = [row["method"] for row in rows.values()]
    assert methods == [*tables.ROWS, "reco", "words"]
    assert {row["protocol"] for row in rows.values()} == {"boxes"}
    for row in rows.values():
        assert row.keys() >= set(tables.LAYOUT_COLUMNS.values()) - {"steps"}


def test_rows_of_initial_embeddings(variants):
    assert tables.init_row("normal", 1, variants) == {"init": "normal"}
    assert tables.init_row("mean", 1, None) == {"init": "mean"}
    row = tables.init_row("mean", 1, variants)
    assert (row["init"], row["loss_200"], row["method"]) == ("mean", 0.25, "reco")
    assert 0 <= row["ap"] <= row["ap50"]
    assert set(tables.INITS) == set(INITS)


# --- what bins cost -------------------------------------------------------------------------------


def slow_bins(bins: int, scenes: int) -> tuple[float, float, float]:
    """Largest and mean error of an edge in pixels, mean IoU; every edge against the nearest of all
    positions of the bins, in fractions (of two as near, the even bin)."""
    places = [Fraction(64 * k, bins - 1) for k in range(bins)]
    errors, overlaps = [], []
    for i in range(scenes):
        for region in pocket_item("test", i).layout.regions:
            edges = [64 * Fraction(value) for value in region.box]
            nearest = [
                places[min(range(bins), key=lambda k, e=edge: (abs(places[k] - e), k % 2))]
                for edge in edges
            ]
            errors += [abs(a - b) for a, b in zip(edges, nearest, strict=True)]
            overlaps.append(slow_iou(edges, nearest))
    mean, iou = (float(sum(each) / len(each)) for each in (errors, overlaps))
    return float(max(errors)), mean, iou


def slow_iou(a: list[Fraction], b: list[Fraction]) -> Fraction:
    """The areas in both and in either, summed over the cells that all edges make."""
    xs, ys = (sorted({box[k] for box in (a, b) for k in ends}) for ends in ((0, 2), (1, 3)))
    both = either = Fraction(0)
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            u, v, area = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * (y1 - y0)
            inside = [box[0] < u < box[2] and box[1] < v < box[3] for box in (a, b)]
            both += area * all(inside)
            either += area * any(inside)
    return both / either


@pytest.mark.parametrize("bins", [3, 8, 64, 1000])
def test_errors_of_bins_against_a_slow_loop(bins):
    row = tables.bins_row(bins, 20, None)
    largest, mean, iou = slow_bins(bins, 20)
    assert row["mean_error"] == pytest.approx(mean, abs=1e-9)
    assert row["box_iou"] == pytest.approx(iou, abs=1e-9)
    assert largest <= row["largest_error"] + 1e-9  # the largest that there can be
    assert row["largest_error"] == pytest.approx(64 / (bins - 1) / 2)
    assert row.keys() == {"bins", "largest_error", "mean_error", "box_iou"}


def test_more_bins_lose_less():
    rows = [tables.bins_row(bins, 10, None) for bins in tables.BINS]
    assert [row["bins"] for row in rows] == list(tables.BINS)
    assert [row["mean_error"] for row in rows] == sorted(r["mean_error"] for r in rows)[::-1]
    assert [row["box_iou"] for row in rows] == sorted(row["box_iou"] for row in rows)
    assert rows[0]["box_iou"] < 0.8 < 0.99 < rows[-1]["box_iou"]


def test_a_model_of_few_bins_is_measured_too(variants):
    """Though most boxes are thinner than one of its bins."""
    for bins in FEW:
        row = tables.bins_row(bins, 2, variants)
        things = sum(len(pocket_item("test", i).layout.regions) for i in range(2))
        assert (row["bins"], row["regions"], row["method"]) == (bins, things, "reco")
        assert row.keys() >= {"ap", "ap50", "mean_error", "box_iou"}


# --- files ----------------------------------------------------------------------------------------


def test_all_tables_are_written_and_hold_what_was_measured(root, variants, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BINS", FEW)
    tables.run(tmp_path / "out", scenes=2, model=str(root), variants=variants)
    columns = {
        "layouts": tables.LAYOUT_COLUMNS,
        "skills": tables.SKILL_COLUMNS,
        "bins": tables.BIN_COLUMNS,
        "init": tables.INIT_COLUMNS,
    }
    number = {"layouts": 7, "skills": 5, "bins": len(FEW), "init": len(tables.INITS)}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.{kind}" for name in columns for kind in ("md", "json")}
    for name, known in columns.items():
        rows = json.loads((tmp_path / "out" / f"{name}.json").read_text())["rows"]
        lines = (tmp_path / "out" / f"{name}.md").read_text().splitlines()
        assert len(rows) == len(lines) - 2 == number[name]
        assert lines[0] == "| | " + " | ".join(known) + " |"
        for key in set(known.values()) - {"steps", "loss_200"}:
            assert any(key in row for row in rows), f"no row of {name} has {key}"
    skills = json.loads((tmp_path / "out" / "skills.json").read_text())["rows"]
    assert [row["method"] for row in skills] == [*tables.ROWS]
    assert {row["prompts"] for row in skills} == {2}
