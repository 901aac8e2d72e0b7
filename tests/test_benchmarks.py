# SPDX-License-Identifier: Apache-2.0
"""A benchmark is fair where both sides do the same: they return the same, or run as stated."""

import json
import sys
import time
from importlib import import_module

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks import __main__ as command
from benchmarks.timer import Case, Row, Setup, measure
from spatext_lab.scene.notes import collected
from spatext_lab.training.recipes.spatext import widened
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    root = tiny_model(tmp_path_factory.mktemp("models"))
    return Setup(str(root), tmp_path_factory.mktemp("kept"), quick=True)


def reads_maps(*parts):
    """Widened with random weights: those of zero would hide that maps differ."""
    model = widened(*parts)
    torch.nn.init.normal_(model.unet.conv_in.weight, std=0.3)
    return model


@pytest.mark.parametrize("name", [n for n in command.NAMES if n != "regions"])
def test_both_sides_return_the_same(name, setup, monkeypatch):
    if name == "coco":
        pytest.importorskip("pycocotools")
    monkeypatch.setattr("benchmarks.training.widened", reads_maps)
    compared = 0
    for case in import_module(f"benchmarks.{name}").cases(setup):
        for _ in range(case.same * (4 if name == "training" else 1)):  # each step changes weights
            ours, peer = (torch.as_tensor(side()).float() for side in (case.ours, case.peer))
            assert ours.abs().max() > 0
            assert torch.allclose(ours, peer, atol=1e-4, rtol=1e-4), case.what
            compared += 1
    assert compared


def test_the_rivals_run_the_passes_that_their_methods_have(setup, monkeypatch):
    """SpaText and GLIGEN two for each step, whatever K; MultiDiffusion 2 (K + 1)."""
    seen = []
    forward = UNet2DConditionModel.forward

    def counted(self, sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    for case in import_module("benchmarks.regions").cases(setup):
        passes = []
        for side in (case.ours, case.peer):
            seen.clear()
            with collected():  # 8 regions are more than it was trained with
                image = side()
            assert image.shape[0] == 1
            passes.append(sum(seen) / setup.steps)
        k = int(case.what.split("K = ")[1].split()[0])
        rival = 2 * (k + 1) if "MultiDiffusion" in case.what else 2
        assert passes == [2, rival], case.what


# --- the clock ------------------------------------------------------------------------------------


def test_rounds_alternate_and_the_first_does_not_count():
    calls = []

    def side(name: str, gigabytes: list[float]):
        def call():
            calls.append(name)
            call.peak = gigabytes[calls.count(name) - 1]

        return call

    ours, peer = side("ours", [99.0, 1.0, 3.0, 2.0]), side("peer", [99.0, 4.0, 8.0, 5.0])
    row = measure(Case("memory", ours, peer, 0.4, "memory"), rounds=3)
    assert calls == ["ours", "peer"] * 4
    assert (row.ours, row.peer) == ([1.0, 3.0, 2.0], [4.0, 8.0, 5.0])
    assert row.ratio == 2 / 5
    assert row.met
    assert row.cells()[1:4] == ["2 (1–3) GB", "5 (4–8) GB", "0.40x"]


def test_cpu_and_wall_time_are_told_apart():
    def busy():
        sum(range(3_000_000))

    def waits():
        time.sleep(0.2)

    row = measure(Case("", busy, waits, 1.0), rounds=1)
    assert row.ratio > 2
    assert measure(Case("", waits, waits, clock="wall"), rounds=1).ours[0] >= 0.2


def test_a_goal_that_is_missed_is_told():
    row = Row("", "CPU", [2.0], [1.0], 2.0, 1.0)
    assert row.met is False
    assert row.cells()[3:] == ["2.00x", "2.00x", "≤ 1.00x", "no"]
    assert Row("", "CPU", [2.0], [1.0], 2.0, None).met is None


def test_the_command_prints_a_table_and_writes_its_numbers(setup, tmp_path, monkeypatch, capsys):
    file = tmp_path / "numbers.json"
    words = ["benchmarks", "--quick", "--only", "maps", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    command.main()
    table = [text for text in capsys.readouterr().out.splitlines() if text.startswith("| map")]
    rows = json.loads(file.read_text())["rows"]
    assert len(table) == len(rows) == 2
    for text, row in zip(table, rows, strict=True):
        assert f"{row['ratio']:.2f}x" in text
