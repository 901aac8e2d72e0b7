# SPDX-License-Identifier: Apache-2.0
"""What the summary's systems cost: cells against counting by hand, and the written table."""

import json

import pytest

from spatext_lab import zoo
from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.evaluation import summaries_tables as tables
from spatext_lab.evaluation.tasks import tasks
from spatext_lab.spatext.pipeline import SpaTextPipeline
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tiny_model(tmp_path_factory.mktemp("model"))
    zoo.seal(place)
    return place


def test_cells_are_counted_as_by_hand(root, monkeypatch):
    """Halved latents have a fourth of the cells; of a mask that names nothing, one step is left."""
    chosen = {0: 1, 2: 0.5, 7: 0.5 + 0.5 / 4, 9: 0.1 + 0.1 / 4, 10: 0.1, 12: 0.1, 14: 0.1}
    few = [list(tables.ways())[k] for k in chosen]
    monkeypatch.setattr(tables, "ways", lambda: iter(few))
    monkeypatch.setattr(tables, "ALONE", 1)
    spatext = SpaTextPipeline.from_pretrained(root / "spatext")
    mask = UpdateMaskNetwork.from_pretrained(root / "update-mask")
    mask.conv_out.bias.data -= 50
    rows = tables.costs(spatext, mask, list(tasks(2, split="val")))
    assert [row["cells"] for row in rows] == pytest.approx(list(chosen.values()), abs=1e-3)
    assert [row["line"] for row in rows] == [way.line for way in few]
    assert rows[0]["time"] == rows[0]["time_alone"] == 1
    assert all(0 <= row["local_iou"] <= 1 for row in rows)
    few[:] = [few[1], few[-1]]
    without = tables.costs(spatext, None, list(tasks(1, split="val")))
    assert [row["line"] for row in without] == ["fewer steps"]


@pytest.mark.parametrize("own", ["the model's", "the variants'", "not the variants'"])
def test_the_table_is_written(root, tmp_path, monkeypatch, own):
    few = [list(tables.ways())[k] for k in (0, 2, -1)]
    monkeypatch.setattr(tables, "ways", lambda: iter(few))
    variants = {"the model's": None, "the variants'": root, "not the variants'": tmp_path}[own]
    tables.run(tmp_path, scenes=2, model=str(root), variants=variants)
    rows = json.loads((tmp_path / "summaries.json").read_text())["rows"]
    names = ["fewer steps, 10 steps", "fewer steps, 5 steps"]
    names += ["update mask, cells, 10 steps, cells from p = 0.5"]
    assert [row["name"] for row in rows] == names
    assert len((tmp_path / "summaries.md").read_text().splitlines()) == 5
    for cost in ("cells", "time"):
        assert (tmp_path / f"summaries-{cost}.png").stat().st_size > 1000
