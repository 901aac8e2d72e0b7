# SPDX-License-Identifier: Apache-2.0
"""The command line: help with examples that work, exit codes, no traceback for a user's mistake."""

import json
import os
import shlex
import shutil
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
    *("models", "models fetch", "scene", "train", "sample", "evaluate", "ablation", "why", "tour"),
    *("study", "study make", "study collect"),
)


@pytest.fixture
def scene_file(tmp_path) -> Path:
    scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
    scene.save(tmp_path / "scene.json")
    return tmp_path / "scene.json"


def typed(line: str) -> int:
    """The exit code of what a person types after the program's name."""
    return cli.main(line.split())


def one_line(capsys) -> str:
    """What stands on stderr, which is one line and no traceback."""
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


@pytest.fixture
def printed_help(capsys, monkeypatch):
    """A function: a command's help as one line."""
    monkeypatch.setenv("COLUMNS", "10000")  # argparse breaks a line at a hyphen, too

    def printed(command: str) -> str:
        with pytest.raises(SystemExit):
            cli.main([*command.split(), "--help"])
        return " ".join(capsys.readouterr().out.split())

    return printed


def test_each_recipe_has_its_own_help_of_an_option(printed_help):
    """Defaults and meanings differ: none of them may stand for all recipes."""
    text = printed_help("train")
    assert "spatext, other-maps, pixel: images a step (16) | reco, gligen: images a step" in text
    assert "reco, gligen: images a step (64)" in text
    assert "text-to-image: the autoencoder's folder; the base's, or the shipped one, if" in text
    assert "energy: the autoencoder's folder; the shipped one" in text
    assert "prior: the folder of the CLIP whose embeddings are learned; the shipped one" in text


def test_each_methods_tables_have_their_own_default(printed_help):
    text = printed_help("ablation")
    assert "spatext, reco: of the first table (512) | summaries: of the validation " in text
    assert " split (64)" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from spatext_lab.cli import parser; parser.build_parser(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "spatext_lab.cli.commands" in loaded
    assert loaded & {"torch", "numpy", "PIL", "matplotlib", "diffusers", "transformers"} == set()


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
    "no bins": "train reco --bins 0",
    "an unknown device": "train judge --device gpu",
    "a value for a switch": "train reco --resume yes",
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
    assert "nowhere.json" in one_line(capsys)


def test_a_scene_that_is_not_json_is_refused(tmp_path, capsys):
    (tmp_path / "scene.json").write_text("a red ball")
    assert sample(tmp_path / "scene.json", tmp_path / "p.png") == 2
    one_line(capsys)


def test_a_picture_must_be_png(scene_file, capsys):
    assert sample(scene_file, "picture.gif") == 2
    assert "picture.gif; it must end in .png" in one_line(capsys)


def test_a_folder_is_not_a_picture(scene_file, tmp_path, capsys):
    (tmp_path / "p.png").mkdir()
    assert sample(scene_file, tmp_path / "p.png") == 2
    assert "is a folder" in one_line(capsys)


def test_text_alone_has_no_region_guidance(scene_file, tmp_path, capsys):
    assert sample(scene_file, tmp_path / "p.png", "--region-guidance-scale", "3") == 2
    assert "--method spatext" in one_line(capsys)


def test_reco_has_no_region_guidance(scene_file, tmp_path, capsys):
    argv = ["sample", "--method", "reco", "--scene", str(scene_file), "--out"]
    assert cli.main([*argv, str(tmp_path / "p.png"), "--region-guidance-scale", "3"]) == 2
    assert "needs --method spatext: reco has no map" in one_line(capsys)


@pytest.mark.parametrize(
    "option",
    ["--variant words", "--bins 8", "--init mean"],
    ids=lambda o: o.split()[0],
)
def test_what_only_reco_takes_is_refused_by_other_recipes(option, capsys):
    assert cli.main(["train", "judge", *option.split()]) == 2
    name = option.split()[0].removeprefix("--")
    assert f"{name} is " in (said := one_line(capsys))
    assert "judge has no such option, these have: reco" in said


def test_skills_have_no_other_protocol(capsys):
    assert typed("evaluate --method reco --skills --protocol boxes --scenes 1") == 2
    assert "--protocol is boxes; --skills has its own" in one_line(capsys)


def test_a_missing_model_folder_is_named(scene_file, tmp_path, capsys):
    assert sample(scene_file, tmp_path / "p.png", "--model", str(tmp_path / "no-model")) == 2
    assert "no-model" in one_line(capsys)


def test_a_missing_coco_folder_is_named(tmp_path, capsys):
    assert cli.main(["data", "coco", "--root", str(tmp_path / "no-coco"), "--split", "val"]) == 2
    assert "no-coco" in one_line(capsys)


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
    assert words in one_line(capsys)
    if code == 2:
        with pytest.raises(type(error)):
            cli.main(["--debug", "tour", "--out", "x"])


def test_an_error_in_the_library_is_not_hidden(monkeypatch):
    def fail(args):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(commands, "tour", fail)
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main(["tour", "--out", "x"])


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


def test_sample_writes_the_pipelines_image(scene_file, tmp_path):
    from spatext_lab import zoo
    from spatext_lab.spatext.pipeline import SpaTextPipeline

    out = tmp_path / "new" / "p.png"
    argv = ["sample", "--method", "spatext", "--scene", str(scene_file), "--out", str(out)]
    argv += ["--seed", "3", "--num-inference-steps", "2", "--region-guidance-scale", "2.5"]
    assert cli.main(argv) == 0
    pipeline = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
    settings = {"seed": 3, "num_inference_steps": 2, "region_guidance_scale": 2.5}
    (expected,) = pipeline(Scene.load(scene_file), **settings).images
    with Image.open(out) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert [path.name for path in out.parent.iterdir()] == ["p.png"]


@pytest.mark.parametrize(("method", "part"), [("reco", "reco"), ("text", "text-to-image")])
def test_a_whole_model_and_one_pipeline_give_the_same_image(scene_file, tmp_path, method, part):
    from spatext_lab import zoo

    whole = zoo.folder("pocket")
    pixels = []
    for number, model in enumerate((whole, whole / part)):
        out = tmp_path / f"{number}.png"
        argv = ["sample", "--method", method, "--scene", str(scene_file), "--out", str(out)]
        assert cli.main([*argv, "--num-inference-steps", "2", "--model", str(model)]) == 0
        pixels.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*pixels)


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


def test_scores_are_printed_and_written(tmp_path, capsys):
    out = tmp_path / "scores.json"
    argv = ["evaluate", "--method", "true", "--scenes", "3", "--seed", "7", "--json", str(out)]
    assert cli.main(argv) == 0
    scores = json.loads(out.read_text())
    assert scores == json.loads(capsys.readouterr().out)
    assert (scores["method"], scores["scenes"], scores["seed"]) == ("true", 3, 7)
    assert scores["region_accuracy"] > 0.5
    assert typed("evaluate --method true --skills --scenes 2") == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 2


# --- words that cannot be printed, readers that leave ---------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "coco", "--root", ".", "--split", "val", "--min-area=--"],
        ["data", "coco", "--root", ".", "--split", "val", "--licences=--"],
        ["data", "coco", "--root", ".", "--split", "val", "--regions", "1", "--"],
        ["train", "judge", "--out=--"],
        ["train", "judge", "--seed=--"],
        ["train", "--", "--seed"],
        ["sample", "--method=--"],
        ["tour", "--out", "--"],
    ],
    ids=" ".join,
)
def test_a_bare_dash_dash_is_no_value(argv, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    assert left.value.code == 2
    assert "usage: spatext-lab" in capsys.readouterr().err


NUMBERS = ["nan", "inf", "-inf", "1e999", "9" * 400, "9" * 5000, "0x10", "", " ", "²"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{n:.9}")
@pytest.mark.parametrize(
    "flag", ["--seed", "--num-inference-steps", "--guidance-scale", "--region-guidance-scale"]
)
def test_numbers_that_are_none_are_refused(flag, number, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["sample", "--method", "text", "--scene", "s", "--out", "p.png", flag, number])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {flag}: " in error
    assert len(error) < 1500


def test_seeds_end_at_32_bits(capsys):
    for seed in (2**32, 2**64):
        with pytest.raises(SystemExit):
            typed(f"train judge --seed {seed}")
        assert "is not a whole number, 0 to 4294967295" in capsys.readouterr().err


def test_the_old_name_of_denoising_steps_names_the_new_one(capsys):
    with pytest.raises(SystemExit):
        typed("sample --method text --scene s --out p.png --steps 5")
    assert "denoising steps are --num-inference-steps" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["\x1b[31m", "\x1b]0;title\x07", "\u202e", "\x9b2J", "\udc80"])
def test_terminal_commands_in_names_are_escaped(bad, tmp_path, capsys):
    assert sample(f"{tmp_path}/{bad}.json", tmp_path / "p.png") == 2
    error = one_line(capsys)
    assert bad not in error
    assert bad.encode("unicode_escape").decode() in error
    with pytest.raises(SystemExit):
        cli.main(["doctor", bad])
    assert bad not in capsys.readouterr().err


def test_a_long_input_is_not_echoed(tmp_path, capsys):
    (tmp_path / "scene.json").write_text('{"format": "' + "x" * 10_000_000 + '"}')
    assert sample(tmp_path / "scene.json", tmp_path / "p.png") == 2
    assert len(one_line(capsys)) < 700
    with pytest.raises(SystemExit):
        cli.main(["y" * 100_000])
    assert len(capsys.readouterr().err) < 1500


def outside(line: str, tail: str = "", **env: str) -> subprocess.CompletedProcess:
    """The command in a shell of its own."""
    program = f"{shlex.quote(sys.executable)} -c "
    program += "'import sys; from spatext_lab.cli.parser import main; sys.exit(main())' "
    return subprocess.run(
        ["bash", "-c", f"{program}{line} {tail}"],
        capture_output=True,
        env=os.environ | env,
        cwd=Path(__file__).parents[2],
        check=False,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_a_narrow_console_shows_replacements(tmp_path, encoding):
    name = shlex.quote(str(tmp_path / "犬.json"))
    line = f"sample --method text --scene {name} --out {tmp_path}/p.png"
    done = outside(line, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"?.json: No such file" in done.stderr


def test_a_report_in_a_narrow_console_is_not_lost(tmp_path):
    from spatext_lab.datasets.coco import write_coco
    from spatext_lab.datasets.pocket import pocket_item

    root = tmp_path / "写真"
    write_coco(root, "val", [pocket_item("val", 0)])
    line = f"data coco --root {shlex.quote(str(root))} --split val --licences all --min-area 0"
    done = outside(line, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0
    assert b"??" in done.stdout
    assert done.stderr == b""


def test_a_reader_that_leaves_is_no_error():
    done = outside("doctor", "| head -1; echo ${PIPESTATUS[0]} >&2")
    assert done.stdout.count(b"\n") == 1
    assert done.stderr in (b"141\n", b"0\n", b"1\n")  # a doctor that finds a fault says 1


# --- targets and sources that are no files --------------------------------------------------------


def test_a_device_is_no_target_for_scores(capsys):
    assert typed("evaluate --method true --scenes 1 --json /dev/null") == 2
    assert "/dev/null is neither a file nor a folder" in one_line(capsys)
    assert Path("/dev/null").is_char_device()


def test_a_circle_of_links_is_named(tmp_path, capsys):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert sample(tmp_path / "a", tmp_path / "p.png") == 2
    assert "symbolic links" in one_line(capsys)
    argv = ["data", "coco", "--root", str(tmp_path / "a"), "--split", "val"]
    assert cli.main([*argv, "--out", str(tmp_path / "x")]) == 2
    one_line(capsys)
    argv[3] = str(tmp_path)
    assert cli.main([*argv, "--out", str(tmp_path / "a" / "x")]) == 2
    one_line(capsys)


def test_train_keeps_to_its_own_folder(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert cli.main(["train", "judge", "--steps", "1", "--out", str(tmp_path)]) == 2
    assert "is not a model of the recipe judge" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    "line", ["train clip --steps 1 --device cuda --out {0}/o", "train reco --device cuda"]
)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys, tmp_path, line):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert typed(line.format(tmp_path)) == 2
    assert "pass --device auto" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_told_as_the_run_tells_it(monkeypatch, capsys):
    def stop(name, **given):
        raise KeyboardInterrupt("stopped after step 3; before the first checkpoint")

    monkeypatch.setattr("spatext_lab.training.run.run", stop)
    assert cli.main(["train", "judge"]) == 130
    assert one_line(capsys) == "spatext-lab: stopped after step 3; before the first checkpoint\n"


def test_only_options_that_were_used_reach_the_library(monkeypatch):
    calls = []
    monkeypatch.setattr("spatext_lab.training.run.run", lambda name, **k: calls.append((name, k)))
    monkeypatch.setattr("spatext_lab.tour.run", lambda **k: calls.append(("tour", k)))
    every = "spatext_lab.training.everything.train_all"
    monkeypatch.setattr(every, lambda out, **k: calls.append((str(out), k)))
    read = "spatext_lab.datasets.coco.read_coco"
    monkeypatch.setattr(read, lambda **k: calls.append(("coco", k)) or 1 / 0)
    typed("train clip")
    typed("train reco --bins 64 --variant after --base b --data d --seed 3")
    typed("train all --out o --data d --licences 4 7 --only clip")
    typed("tour --out o --model m --coco c --licences all --min-area 0.1 --categories a b")
    with pytest.raises(ZeroDivisionError):
        typed("data coco --root r --split val --licences all --regions 1 9 --categories a b")
    reco = {"bins": 64, "variant": "after", "base": "b", "data": Path("d"), "seed": 3}
    chosen = {"licences": None, "min_area": 0.1, "categories": ("a", "b")}
    coco = {"root": "r", "split": "val", "licences": None, "regions": (1, 9)}
    assert calls == [
        ("clip", {}),
        ("reco", reco),
        ("o", {"data": Path("d"), "licences": (4, 7), "only": ("clip",)}),
        ("tour", {"out": Path("o"), "model": "m", "coco": Path("c")} | chosen),
        ("coco", coco | {"categories": ("a", "b")}),
    ]


# --- damaged models -------------------------------------------------------------------------------


@pytest.fixture
def own_model(tmp_path) -> Path:
    """A text-to-image model as `train` leaves it, sealed, alone and as part of a whole model."""
    from spatext_lab import zoo

    part = tmp_path / "mine" / "text-to-image"
    shutil.copytree(zoo.folder("pocket", "text-to-image"), part)
    zoo.seal(part)
    return part


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, shorten, Path.unlink], ids=["flip", "shorten", "lose"])
@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"]
)
def test_damage_of_an_own_model_is_named(own_model, scene_file, tmp_path, capsys, harm, name):
    harm(own_model / name)
    for model in (own_model, own_model.parent):  # the one pipeline, and a whole model
        if model == own_model and name == "model_index.json" and harm is Path.unlink:
            continue  # then it is no pipeline's folder
        assert sample(scene_file, tmp_path / "p.png", "--model", str(model)) == 2
        assert Path(name).name in one_line(capsys)
    assert not (tmp_path / "p.png").exists()


# --- somebody's own export ------------------------------------------------------------------------


@pytest.fixture
def own_export(tmp_path) -> Path:
    """A folder in COCO's layout whose images have no licence, as labelling tools write it."""
    from spatext_lab.datasets.coco import write_coco
    from spatext_lab.datasets.pocket import pocket_item

    root = tmp_path / "own"
    write_coco(root, "train", [pocket_item("train", i) for i in range(2)])
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content.pop("licenses", None)
        for image in content.get("images", ()):
            image.pop("license", None)
        path.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("recipe", ["spatext", "reco", "other-maps"])
def test_a_recipe_reads_an_own_export_when_all_licences_are_allowed(
    recipe, own_export, tmp_path, capsys, monkeypatch
):
    from spatext_lab.training import cache

    line = f"train {recipe} --steps 1 --device cpu --data {own_export} --out {tmp_path}/o"
    line += f" --cache {tmp_path}/c"
    assert typed(line) == 2
    assert "own passes, of 2: 2 x no licence in its record" in one_line(capsys)
    built = []

    def opened(photos, *parts, **more):
        built.append(len(photos.items))
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "opened", opened)
    assert typed(f"{line} --licences all --min-area 0") == 130
    assert built[0] >= 2
    assert typed(f"{line} --licences all --categories unicorn") == 2


# --- scenes of photos, published prompts ----------------------------------------------------------


def test_a_photos_scene_can_be_sampled(tmp_path, capsys):
    from spatext_lab.datasets.pocket import pocket_item

    item, out = pocket_item("val", 1), tmp_path / "new" / "scene.json"
    Image.fromarray(item.image).save(tmp_path / "photo.png")
    line = f"scene {tmp_path}/photo.png --segmenter judge --out {out}"
    assert typed(line) == 0
    made = Scene.load(out)
    assert made.caption == "A realistic image"
    told = capsys.readouterr().out
    assert all(region.text in told for region in made.regions)
    assert cli.main([*line.split(), "--caption", "two words"]) == 0
    assert Scene.load(out).caption == "two words"


@pytest.mark.parametrize(
    ("photo", "segmenter", "words"),
    [
        ("nowhere.png", "judge", "nowhere.png: No such file"),
        ("text.png", "judge", "text.png cannot be read as an image"),
        ("grey.png", "maskformer", "segmenter is 'maskformer'; pass judge, or a segmenter's"),
        ("grey.png", "empty", "empty has no config.json; pass a segmenter's folder"),
    ],
)
def test_photos_and_segmenters_that_are_none(
    tmp_path, monkeypatch, capsys, photo, segmenter, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    assert typed(f"scene {photo} --segmenter {segmenter} --out scene.json") == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "scene.json").exists()


def test_prompts_are_of_skills(capsys):
    assert typed("evaluate --method text --prompts count_val.json") == 2
    assert "--prompts is count_val.json; it is read with --skills alone" in one_line(capsys)
    assert typed("evaluate --method text --skills --prompts count_val.json") == 2
    assert "pass ROOT/count/scenes/count_val.json" in one_line(capsys)


def test_why_has_the_verdict_as_exit_code(tmp_path, monkeypatch, capsys):
    from spatext_lab.evaluation import why

    class Report:
        used = True

        def markdown(self):
            return "The boxes are used.\n"

        def write(self, out):
            (out / "why.md").write_text(self.markdown())

    asked = []
    monkeypatch.setattr(why, "why", lambda *a, **k: asked.append((a, k)) or Report())
    line = f"why models/reco --scenes 16 --out {tmp_path / 'new'}"
    assert typed(line) == 0
    assert asked == [(("models/reco",), {"scenes": 16})]
    assert capsys.readouterr().out == f"The boxes are used.\n{tmp_path / 'new' / 'why.md'}\n"
    monkeypatch.setattr(Report, "used", False)
    assert typed("why models/reco") == 1


def test_why_names_a_folder_that_is_no_model(tmp_path, capsys):
    assert typed(f"why {tmp_path}") == 2
    assert "has no model_index.json: it is no model" in one_line(capsys)
