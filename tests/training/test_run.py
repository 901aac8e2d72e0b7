# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab train` from the first step to the card, and through a real kill."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from spatext_lab import zoo
from spatext_lab.cli.parser import build_parser
from spatext_lab.training import checkpoint, recipes, result, sizes
from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan
from spatext_lab.training.result import card
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
    assert "toy: 12 steps of 1 micro-batch on 1 process (CPU), about" in capsys.readouterr().out
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
from spatext_lab.training import sizes
toy.install()
sizes.MINUTES = -1.0  # after every step
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
    monkeypatch.setattr(sizes, "MINUTES", -1.0)
    make = toy.make

    def breaks(plan, device, **given):
        job = make(plan, device, **given)

        def loss_at(step, generator):
            if step == 9:
                raise KeyboardInterrupt
            return job.loss_at(step, generator)

        return type(job)(job.module, loss_at, job.save, job.plan, job.data)

    module = toy
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
    with pytest.raises(ValueError, match=r"steps is 7; the run in .* has 6"):
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
        ({"name": "toy", "steps": 0}, "steps is 0; pass a whole number, 1 to 1000000000"),
        ({"name": "toy", "seed": 2**64}, "seed is 1844.*; pass a whole number, 0 to 4294967295"),
        (
            {"name": "judge", "slope": 3.0},
            "slope is 3.0; judge has no such option, these have: toy",
        ),
        ({"name": "spatext", "min_area": 0.1}, "min_area chooses photos; pass the folder"),
        ({"name": "spatext", "batch": 0}, "batch is 0; pass a whole number, 1 or more"),
        ({"name": "toy", "hue": 3}, "hue is 3; toy has no such option, nor has any other recipe"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**arguments, out=tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here; pass --device auto"):
        run("toy", steps=3, out=tmp_path / "toy", device="cuda")
    assert list(tmp_path.iterdir()) == []


# --- whose run, whose folder ----------------------------------------------------------------------


def folder(path: Path, files: int) -> Path:
    path.mkdir()
    for number in range(files):
        (path / f"{number}.json").write_text("{}")
    return path


def test_another_runs_checkpoint_is_never_resumed(tmp_path):
    """A run is finished; what is resumed into its folder must be that run."""
    one, two = folder(tmp_path / "one", 1), folder(tmp_path / "two", 2)
    given = {"steps": 6, "out": tmp_path / "toy", "device": "cpu"}
    run("toy", data=one, slope=2.0, **given)
    for change in ({"data": two}, {"data": None}, {"slope": 1.0}, {"shape": "bend"}):
        (name,) = change
        with pytest.raises(ValueError, match=rf"{name} is .*; the run in .* has "):
            run("toy", **{"data": one, "slope": 2.0} | change, **given, resume=True)
    moved = one.rename(tmp_path / "moved")  # the same data at another path is the same data
    run("toy", data=moved, slope=2.0, shape="line", **given, resume=True)


def test_a_stop_before_the_first_checkpoint_cannot_deliver_an_older_model(tmp_path, monkeypatch):
    given = {"steps": 6, "out": tmp_path / "toy", "device": "cpu"}
    run("toy", slope=2.0, **given)

    def stop(self):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stop)
        with pytest.raises(KeyboardInterrupt, match="after step 0; before the first checkpoint"):
            run("toy", slope=3.0, **given)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; start without --resume"):
        run("toy", slope=3.0, **given, resume=True)


def test_a_stop_says_from_where_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "MINUTES", -1.0)
    trained = Trainer.run

    def stop(self):
        for step in trained(self):
            yield step
            if step.index == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", stop)
    with pytest.raises(KeyboardInterrupt, match="after step 3; --resume continues after step 3"):
        run("toy", steps=6, out=tmp_path / "toy", device="cpu")


@pytest.mark.parametrize("kind", ["README.md", "another recipe's", "a broken card", "a file"])
def test_what_is_not_a_model_of_this_recipe_is_not_overwritten(tmp_path, kind):
    out = tmp_path / "notes"
    if kind == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "README.md").write_text("mine")
        cards = {"another recipe's": '{"recipe": "judge"}', "a broken card": "["}
        (out / "card.json").write_text(cards.get(kind, "{}"))
    before = sorted(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    with pytest.raises(ValueError, match="is not a model of the recipe toy: pass a new folder"):
        run("toy", steps=3, out=out, device="cpu")
    assert sorted(p.read_text() for p in tmp_path.rglob("*") if p.is_file()) == before


def test_a_model_is_replaced_as_a_whole_and_sealed(tmp_path):
    out = run("toy", steps=3, out=tmp_path / "toy", device="cpu")
    (out / "README.md").write_text("read and changed by its owner")
    (out / "extra").mkdir()
    (out / "extra" / "notes.txt").write_text("mine")
    (out / "table.md").write_text("| a |")
    assert zoo.verify(out) == []
    first = weights(out)
    run("toy", steps=6, out=out, device="cpu")
    assert zoo.verify(out) == []
    assert not torch.equal(weights(out)["first.weight"], first["first.weight"])
    assert (out / "extra" / "notes.txt").read_text() == "mine"
    assert "## Table\n\n| a |" in (out / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy", "toy.checkpoint"]
    flipped = bytearray((out / "line.safetensors").read_bytes())
    flipped[-3] ^= 1
    (out / "line.safetensors").write_bytes(flipped)
    assert any("line.safetensors is damaged" in problem for problem in zoo.verify(out))


def test_a_save_that_fails_leaves_the_older_model(tmp_path, monkeypatch):
    out = run("toy", steps=3, out=tmp_path / "toy", device="cpu")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(place):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(zoo, "seal", full)
    with pytest.raises(SafetensorError):
        run("toy", steps=6, out=out, device="cpu")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy", "toy.checkpoint"]


def test_two_runs_into_one_folder_are_refused(tmp_path):
    out = tmp_path / "toy"
    said = pytest.raises(ValueError, match=r"toy.checkpoint is written by process \d+ of")
    with checkpoint.writing(tmp_path / "toy.checkpoint"), said:
        run("toy", steps=3, out=out, device="cpu")
    run("toy", steps=3, out=out, device="cpu")


def test_a_cards_command_can_be_typed():
    """The command line of a card is read by the parser that it was typed for."""
    given = {"shape": "bend", "slope": 2.5, "steep": True, "axes": ["x axis", "y"]}
    facts = {"recipe": "toy", "use": "u", "data": "d", "given": given, "final_loss": 0.1}
    facts |= {"plan": {"seed": 3, "steps": 12}, "seconds": 60, "hardware": "h", "versions": {}}
    (line,) = re.findall(r"Made by `spatext-lab (.+)` in", card(facts, []))
    args = build_parser().parse_args(shlex.split(line))
    assert (args.recipe, args.seed, args.steps) == ("toy", 3, 12)
    assert {name: getattr(args, name) for name in given} == given


def test_a_cards_command_leaves_out_a_model_beside_it(tmp_path):
    """A folder's bare name resolves only where it lies; data and other models keep theirs."""
    homes = {"base": "models/first", "other": "elsewhere/first", "data": "models/photos"}
    for name in homes.values():
        (tmp_path / name).mkdir(parents=True)
    for name in ("models/first", "elsewhere/first"):
        (tmp_path / name / "card.json").write_text("{}")
    options = {"base": str(tmp_path / homes["base"]), "slope": 2.0, "shape": "line"}
    options |= {name: tmp_path / homes[name] for name in ("other", "data")}
    assert result._beside(options, tmp_path / "models" / "toy") == {"base": "first"}


def test_the_card_of_a_chain_names_its_parts_and_no_folder(tmp_path):
    """As `train all` does it."""
    first = run("toy", steps=3, out=tmp_path / "first", device="cpu")
    out = run("toy", steps=3, out=tmp_path / "second", device="cpu", data=first)
    facts = json.loads((out / "card.json").read_text())
    assert (facts["given"], facts["beside"]) == ({}, {"data": "first"})
    text = (out / "README.md").read_text()
    assert "`spatext-lab train toy --seed 0 --steps 3`" in text
    assert "* From models beside this one: first (`--data`).\n" in text
