# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab train` from the first step to the card, and through a real kill."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatext_lab.cli.parser import build_parser
from spatext_lab.training import checkpoint, recipes
from spatext_lab.training import run as run_module
from spatext_lab.training.card import write_card
from spatext_lab.training.loop import Plan, Trainer
from spatext_lab.training.run import run
from tests.training import toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES)
    monkeypatch.setitem(recipes.RECIPES, "toy", None)  # taken out again afterwards
    toy.install()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "line.safetensors")


def test_a_run_writes_a_model_and_its_card(tmp_path, capsys):
    out = run("toy", steps=12, seed=5, out=tmp_path / "toy", device="cpu")
    assert out == tmp_path / "toy"
    assert "toy: 12 steps, about" in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert card["recipe"] == "toy"
    assert card["plan"]["steps"] == 12
    assert card["plan"]["seed"] == 5
    assert card["plan"]["lr"] == recipes.RECIPES["toy"].plan.lr
    assert {"use", "data", "final_loss", "seconds", "hardware", "versions"} <= card.keys()
    assert card["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    text = (out / "README.md").read_text()
    for part in ("# toy", "a test", "points of a line", "--seed 5 --steps 12", "CC BY 4.0"):
        assert part in text
    assert str(tmp_path) not in text + json.dumps(card)


def test_the_model_is_the_average_of_the_run(tmp_path):
    out = run("toy", steps=12, out=tmp_path / "toy", device="cpu")
    job = toy.make(Plan(steps=12, lr=0.01, warmup=5))
    slow = Trainer(job.module, job.loss_at, job.plan, "cpu")
    list(slow.run())
    slow.ema.copy_to(slow.weights)
    for name, value in job.module.state_dict().items():
        assert torch.equal(weights(out)[name], value), name


SCRIPT = """
import sys
from pathlib import Path
from tests.training import toy
from spatext_lab.training import run as module
toy.install()
module.CHECKPOINT_SECONDS = -1.0  # after every step
module.run("toy", steps=1_000_000, out=Path(sys.argv[1]), device="cpu")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Where a run was killed by the system while it wrote checkpoint upon checkpoint."""
    out = tmp_path_factory.mktemp("run") / "toy"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        saved = out.with_name("toy.checkpoint") / checkpoint.FILE
        deadline = time.monotonic() + 900
        while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    return out


def test_a_killed_run_goes_on_with_the_curve_of_an_unbroken_one(killed):
    """SIGKILL in another process; then on, here, some steps more, against a run without a break."""
    plan = Plan(steps=1_000_000, lr=0.01, warmup=5)
    jobs = [toy.make(plan) for _ in range(2)]
    resumed, whole = (Trainer(job.module, job.loss_at, plan, "cpu") for job in jobs)
    checkpoint.load(resumed, killed.with_name("toy.checkpoint"))
    assert resumed.done >= 1
    end = resumed.done + 5
    for each in (resumed, whole):
        for _ in each.run():
            if each.done == end:
                break
    assert resumed.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights, whole.weights, strict=True))
    pairs = zip(resumed.ema.shadow_params, whole.ema.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_resuming_gives_the_files_of_an_unbroken_run(tmp_path, monkeypatch):
    """Through `run` itself: stopped by an error in step 9, gone on with, against one go."""
    whole = run("toy", steps=20, out=tmp_path / "whole", device="cpu")
    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", -1.0)
    make = toy.make

    def breaks(plan, device):
        job = make(plan, device)

        def loss_at(step, generator):
            if step == 9:
                raise KeyboardInterrupt
            return job.loss_at(step, generator)

        return type(job)(job.module, loss_at, job.save, job.plan, job.data)

    module = sys.modules[f"{recipes.__name__}.toy"]
    monkeypatch.setattr(module, "make", breaks)
    with pytest.raises(KeyboardInterrupt):
        run("toy", steps=20, out=tmp_path / "parts", device="cpu")
    monkeypatch.setattr(module, "make", make)
    parts = run("toy", steps=20, out=tmp_path / "parts", device="cpu", resume=True)
    assert all(torch.equal(weights(parts)[name], value) for name, value in weights(whole).items())
    losses = [json.loads((out / "card.json").read_text())["final_loss"] for out in (parts, whole)]
    assert losses[0] == losses[1]


def test_resuming_under_another_plan_is_refused(tmp_path):
    run("toy", steps=6, out=tmp_path / "toy", device="cpu")
    with pytest.raises(ValueError, match="plan is"):
        run("toy", steps=7, out=tmp_path / "toy", device="cpu", resume=True)


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; start without --resume"):
        run("toy", steps=6, out=tmp_path / "toy", device="cpu", resume=True)


def test_resuming_a_finished_run_gives_it_again(tmp_path):
    before = weights(run("toy", steps=6, out=tmp_path / "toy", device="cpu"))
    again = weights(run("toy", steps=6, out=tmp_path / "toy", device="cpu", resume=True))
    assert all(torch.equal(before[name], again[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "toys"}, r"recipe is 'toys'; there are autoencoder, .*judge"),
        ({"name": "toy", "steps": 0}, "steps is 0; give at least 1"),
        (
            {"name": "toy", "data": Path("coco")},
            "data is coco; toy takes none, these do: spatext, reco",
        ),
        (
            {"name": "toy", "base": "pocket"},
            "base is pocket; toy takes none, these do: text-to-image",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**arguments, out=tmp_path / "toy")


def test_a_cards_command_can_be_typed(tmp_path):
    """The command line of a card is read by the parser that it was typed for."""
    given = {"base": "reco", "variant": "after", "aided": True, "relearn": True, "bins": 16}
    facts = {"recipe": "reco", "use": "u", "data": "d", "given": given, "final_loss": 0.1}
    facts |= {"plan": {"seed": 3, "steps": 12}, "seconds": 60, "hardware": "h", "versions": {}}
    write_card(tmp_path, facts)
    (line,) = re.findall(r"Made by `spatext-lab (.+)` in", (tmp_path / "README.md").read_text())
    args = build_parser().parse_args(line.split())
    assert (args.recipe, args.seed, args.steps) == ("reco", 3, 12)
    assert {name: getattr(args, name) for name in given} == given
