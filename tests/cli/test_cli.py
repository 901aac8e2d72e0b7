# SPDX-License-Identifier: Apache-2.0
"""The command line: help with examples that work, exit codes, no traceback for a user's mistake."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext_lab.cli import commands
from spatext_lab.cli import parser as cli
from spatext_lab.scene import Region, Scene

COMMANDS = (
    *("", "doctor", "data", "data pocket", "data coco"),
    *("train", "sample", "evaluate", "ablation", "tour"),
)


@pytest.fixture
def scene_file(tmp_path) -> Path:
    scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
    scene.save(tmp_path / "scene.json")
    return tmp_path / "scene.json"


def typed(line: str) -> int:
    """The exit code of what a person types after the program's name."""
    return cli.main(line.split())


def spoken(capsys) -> str:
    """What was said on stderr, which is one line and no traceback."""
    error = capsys.readouterr().err
    assert error.startswith("spatext-lab: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_is_accepted(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), "--help"])
    assert left.value.code == 0
    example = capsys.readouterr().out.partition("example:\n")[2].strip().partition("\n")[0]
    program, *argv = shlex.split(example)
    assert program == "spatext-lab"
    assert " ".join(argv).startswith(command)
    if "--help" not in argv:
        assert callable(cli.build_parser().parse_args(argv).run)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from spatext_lab.cli import parser; parser.build_parser(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "spatext_lab.cli.commands" in loaded
    assert loaded & {"torch", "numpy", "PIL", "matplotlib", "diffusers", "transformers"} == set()


def test_what_can_be_chosen_is_the_librarys():
    from spatext_lab.evaluation import methods, report
    from spatext_lab.reco import text_encoder
    from spatext_lab.spatext import representation
    from spatext_lab.training import recipes
    from spatext_lab.training.recipes import reco

    pairs = {
        cli.RECIPES: recipes.RECIPES,
        cli.METHODS: methods.METHODS,
        cli.PROTOCOLS: report.PROTOCOLS,
        cli.VARIANTS: reco.VARIANTS,
        cli.INITS: text_encoder.INITS,
        cli.REPRESENTATIONS: representation.KINDS,
    }
    for ours, librarys in pairs.items():
        assert sorted(ours) == sorted(librarys)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("spatext-lab 0.")


# --- a user's mistakes ----------------------------------------------------------------------------

USAGE = {
    "no command": "",
    "an unknown command": "paint",
    "no source": "data",
    "an unknown recipe": "train cat",
    "no scenes": "evaluate --method text --scenes 0",
    "a word for a number": "tour --out x --coco",
    "a negative seed": "sample --method text --scene s --out p.png --seed -1",
    "half a step": "train judge --steps 0.5",
    "one region count": "data coco --root . --split val --regions 1",
    "an unknown variant": "train reco --variant plain",
    "no bins": "train reco --bins 0",
    "an unknown beginning": "train reco --init zero",
    "a value for a switch": "train reco --aided yes",
    "an unknown protocol": "evaluate --method reco --protocol words",
    "an unknown method's tables": "ablation --method pixel --out x",
    "an unknown licence": "data coco --root . --split val --licences 12",
}


@pytest.mark.parametrize("mistake", USAGE)
def test_wrong_usage_is_exit_2_and_a_usage_line(mistake, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(USAGE[mistake].split())
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "usage: spatext-lab" in error
    assert "Traceback" not in error


def sample(scene, out, *more):
    return cli.main(["sample", "--method", "text", "--scene", str(scene), "--out", str(out), *more])


def test_a_missing_scene_is_named(tmp_path, capsys):
    assert sample(tmp_path / "nowhere.json", tmp_path / "p.png") == 2
    assert "nowhere.json" in spoken(capsys)


def test_a_scene_that_is_not_json_is_refused(tmp_path, capsys):
    (tmp_path / "scene.json").write_text("a red ball")
    assert sample(tmp_path / "scene.json", tmp_path / "p.png") == 2
    spoken(capsys)


def test_a_picture_must_be_png(scene_file, capsys):
    assert sample(scene_file, "picture.gif") == 2
    assert "picture.gif; it must end in .png" in spoken(capsys)


def test_a_folder_is_not_a_picture(scene_file, tmp_path, capsys):
    (tmp_path / "p.png").mkdir()
    assert sample(scene_file, tmp_path / "p.png") == 2
    assert "is a folder" in spoken(capsys)


def test_text_alone_has_no_region_guidance(scene_file, tmp_path, capsys):
    assert sample(scene_file, tmp_path / "p.png", "--region-guidance-scale", "3") == 2
    assert "--method spatext" in spoken(capsys)


def test_reco_has_no_region_guidance(scene_file, tmp_path, capsys):
    argv = ["sample", "--method", "reco", "--scene", str(scene_file), "--out"]
    assert cli.main([*argv, str(tmp_path / "p.png"), "--region-guidance-scale", "3"]) == 2
    assert "needs --method spatext: reco has no map" in spoken(capsys)


@pytest.mark.parametrize(
    "option",
    ["--variant words", "--bins 8", "--init mean", "--aided", "--relearn"],
    ids=lambda o: o.split()[0],
)
def test_what_only_reco_takes_is_refused_by_other_recipes(option, capsys):
    assert cli.main(["train", "judge", *option.split()]) == 2
    name = option.split()[0].removeprefix("--")
    assert f"{name} is " in (said := spoken(capsys))
    assert "judge takes none, these do: reco" in said


def test_skills_have_no_other_protocol(capsys):
    assert typed("evaluate --method reco --skills --protocol boxes --scenes 1") == 2
    assert "--protocol is boxes; --skills has its own" in spoken(capsys)


def test_a_missing_model_folder_is_named(scene_file, tmp_path, capsys):
    assert sample(scene_file, tmp_path / "p.png", "--model", str(tmp_path / "no-model")) == 2
    assert "no-model" in spoken(capsys)


def test_a_missing_coco_folder_is_named(tmp_path, capsys):
    assert cli.main(["data", "coco", "--root", str(tmp_path / "no-coco"), "--split", "val"]) == 2
    assert "no-coco" in spoken(capsys)


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("scale is -1;\n  it must be positive"), 2, "scale is -1; it must be positive"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "a.json: No such file"),
        (OSError("disk full"), 2, "disk full"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_one_line(monkeypatch, capsys, error, code, words):
    def fail(args):
        raise error

    monkeypatch.setattr(commands, "tour", fail)
    assert cli.main(["tour", "--out", "x"]) == code
    assert words in spoken(capsys)
    if code == 2:
        with pytest.raises(type(error)):
            cli.main(["--debug", "tour", "--out", "x"])


def test_an_error_in_the_library_is_not_hidden(monkeypatch):
    def fail(args):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(commands, "tour", fail)
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main(["tour", "--out", "x"])


def test_a_stopped_training_says_how_to_go_on(monkeypatch, capsys):
    def stop(name, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr("spatext_lab.training.run.run", stop)
    assert cli.main(["train", "judge"]) == 130
    assert "--resume" in spoken(capsys)


def test_doctor_exit_code_is_its_verdict(monkeypatch, capsys):
    from spatext_lab.cli import doctor

    good, bad = doctor.Check("sky", True, "blue"), doctor.Check("sea", False, "dry", "add water")
    monkeypatch.setattr(doctor, "checks", lambda: iter([good]))
    assert cli.main(["doctor"]) == 0
    assert "all 1 checks passed" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "checks", lambda: iter([good, bad]))
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"][1]["fix"] == "add water"


# --- what is handed on, what is written -----------------------------------------------------------


def test_only_what_was_said_is_handed_on(monkeypatch):
    calls = []
    monkeypatch.setattr("spatext_lab.training.run.run", lambda name, **k: calls.append((name, k)))
    cli.main(["train", "clip"])
    cli.main(["train", "clip", "--steps", "5", "--resume", "--device", "cpu", "--out", "o"])
    plain = {"seed": 0, "resume": False, "device": "auto"}
    more = {"steps": 5, "resume": True, "device": "cpu", "out": Path("o")}
    assert calls == [("clip", plain), ("clip", plain | more)]


def test_what_is_said_of_reco_is_handed_on(monkeypatch):
    calls = []
    monkeypatch.setattr("spatext_lab.training.run.run", lambda name, **k: calls.append((name, k)))
    typed("train reco --variant after --bins 64 --init mean --aided --relearn --base b --data d")
    cli.main(["train", "reco"])
    plain = {"seed": 0, "resume": False, "device": "auto"}
    said = {"variant": "after", "bins": 64, "init": "mean", "aided": True, "relearn": True}
    assert calls == [("reco", plain | said | {"base": "b", "data": Path("d")}), ("reco", plain)]


def test_sample_writes_the_pipelines_picture(scene_file, tmp_path):
    from spatext_lab import zoo
    from spatext_lab.spatext.pipeline import SpaTextPipeline

    out = tmp_path / "new" / "p.png"
    argv = ["sample", "--method", "spatext", "--scene", str(scene_file), "--out", str(out)]
    assert cli.main([*argv, "--seed", "3", "--steps", "2", "--region-guidance-scale", "2.5"]) == 0
    pipeline = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
    expected = pipeline(Scene.load(scene_file), seed=3, steps=2, region_guidance_scale=2.5)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    assert [path.name for path in out.parent.iterdir()] == ["p.png"]


def test_sample_writes_recos_picture(scene_file, tmp_path):
    from spatext_lab.reco.pipeline import ReCoPipeline
    from tests.tiny import tiny_model

    model, out = tiny_model(tmp_path / "model"), tmp_path / "p.png"
    argv = ["sample", "--method", "reco", "--scene", str(scene_file), "--out", str(out)]
    settings = ["--seed", "3", "--steps", "2", "--guidance-scale", "3"]
    scene, given = Scene.load(scene_file), {"seed": 3, "steps": 2, "guidance_scale": 3.0}
    expected = ReCoPipeline.from_pretrained(model / "reco")(scene, **given)
    for place in (model, model / "reco"):  # a whole model, and the one pipeline
        assert cli.main([*argv, *settings, "--model", str(place)]) == 0
        with Image.open(out) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_data_pocket_is_read_by_data_coco(tmp_path, capsys):
    root, lines = tmp_path / "pocket", tmp_path / "scenes.jsonl"
    assert cli.main(["data", "pocket", "--out", str(root), "--train", "4", "--val", "2"]) == 0
    argv = ["data", "coco", "--root", str(root), "--split", "train", "--out", str(lines)]
    assert cli.main([*argv, "--licences", "all", "--regions", "1", "9", "--min-area", "0"]) == 0
    capsys.readouterr()
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(found) == 4
    for each in found:
        scene = Scene.from_json(json.dumps(each["scene"]))
        assert scene.regions
        assert scene.caption in each["captions"]
    assert len({each["file_name"] for each in found}) == 4


def test_data_coco_where_nothing_passes_is_exit_1(tmp_path, capsys):
    cli.main(["data", "pocket", "--out", str(tmp_path), "--train", "1", "--val", "1"])
    argv = ["data", "coco", "--root", str(tmp_path), "--split", "val", "--licences", "all"]
    assert cli.main([*argv, "--min-area", "0.999"]) == 1
    assert "no photo passes" in capsys.readouterr().err


def test_scores_are_printed_and_written(monkeypatch, tmp_path, capsys):
    scores = {"method": "true", "scenes": 3, "seed": 7, "local_iou": 1.0}
    asked = []

    def evaluate(method, **given):
        asked.append((method, given))
        return scores

    monkeypatch.setattr("spatext_lab.evaluation.report.evaluate", evaluate)
    out = tmp_path / "scores.json"
    argv = ["evaluate", "--method", "true", "--scenes", "3", "--seed", "7", "--json", str(out)]
    assert cli.main(argv) == 0
    assert asked == [("true", {"scenes": 3, "seed": 7, "model": "pocket"})]
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out) == scores


def test_a_protocol_and_skills_reach_their_reports(monkeypatch, capsys):
    asked = []

    def watch(name, scores):
        return lambda method, **given: asked.append((name, method, given)) or scores

    monkeypatch.setattr("spatext_lab.evaluation.report.evaluate", watch("report", {"ap": 0.5}))
    monkeypatch.setattr(
        "spatext_lab.evaluation.skills.evaluate_skills", watch("skills", {"count": 0.25})
    )
    assert typed("evaluate --method text --protocol boxes --scenes 2") == 0
    assert json.loads(capsys.readouterr().out) == {"ap": 0.5}
    assert typed("evaluate --method reco --skills --scenes 3 --seed 5 --model m") == 0
    assert json.loads(capsys.readouterr().out) == {"count": 0.25}
    assert asked == [
        ("report", "text", {"scenes": 2, "seed": 0, "model": "pocket", "protocol": "boxes"}),
        ("skills", "reco", {"prompts": 3, "seed": 5, "model": "m"}),
    ]


@pytest.mark.parametrize("method", ["spatext", "reco"])
def test_ablation_writes_the_methods_own_tables(monkeypatch, method):
    asked = []
    for name in ("spatext", "reco"):
        monkeypatch.setattr(
            f"spatext_lab.evaluation.{name}_tables.run",
            lambda out, name=name, **given: asked.append((name, out, given)),
        )
    argv = ["ablation", "--method", method, "--out", "o", "--scenes", "7", "--variants", "v"]
    assert cli.main([*argv, "--model", "m"]) == 0
    assert asked == [(method, Path("o"), {"scenes": 7, "model": "m", "variants": Path("v")})]
    assert cli.main(["ablation", "--out", "o"]) == 0
    assert asked[1:] == [
        ("spatext", Path("o"), {"scenes": 512, "model": "pocket", "variants": None})
    ]


def test_tour_hands_on_what_was_said(monkeypatch):
    calls = []
    monkeypatch.setattr("spatext_lab.tour.run", lambda out, **given: calls.append((out, given)))
    assert cli.main(["tour", "--out", "o", "--coco", "c", "--model", "m", "--scene", "s"]) == 0
    assert cli.main(["tour", "--out", "o"]) == 0
    said = {"coco": Path("c"), "scene": Path("s"), "model": "m"}
    nothing = {"coco": None, "scene": None, "model": "pocket"}
    assert calls == [(Path("o"), said), (Path("o"), nothing)]


def test_a_write_that_fails_leaves_the_old_file_whole(monkeypatch, tmp_path):
    target = tmp_path / "scores.json"
    target.write_text("old")

    def replace(self, other):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        commands._write(target, b"new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
