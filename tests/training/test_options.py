# SPDX-License-Identifier: Apache-2.0
"""Options read from source, against Python's own `inspect` of the imported functions."""

import inspect
import subprocess
import sys

import pytest

from spatext_lab.datasets.coco import PhotoChoice
from spatext_lab.training.options import names, options
from spatext_lab.training.recipes import RECIPES
from tests.training import toy


def test_every_form_of_an_option():
    found = options("tests.training.toy", "make")
    forms = {name: (o.kind, o.number, o.choices, o.default) for name, o in found.items()}
    assert forms == {
        "plan": ("str", None, (), None),
        "device": ("str", None, (), "cpu"),
        "data": ("Path", None, (), None),
        "slope": ("float", None, (), 1.0),
        "shape": ("str", None, ("line", "bend"), "line"),
        "axes": ("str", "+", (), None),
        "steep": ("bool", None, (), False),
    }
    assert found["slope"].help == "of the line"
    assert found["data"].help == (
        "a folder whose number of files is the line's offset; made up if not given"
    )


@pytest.mark.parametrize(
    ("module", "function"),
    [
        *((recipe.home, "make") for recipe in RECIPES.values()),
        ("tests.training.toy", "make"),
        ("spatext_lab.training.run", "run"),
        ("spatext_lab.datasets.coco.read", "read_coco"),
        ("spatext_lab.evaluation.report", "evaluate"),
    ],
)
def test_names_and_defaults_are_pythons_own(module, function):
    __import__(module)
    parameters = inspect.signature(getattr(sys.modules[module], function)).parameters.values()
    found = options(module, function)
    plain = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    known = [p.name for p in plain]
    own = [name for name in found if name not in PhotoChoice.__annotations__ or name in known]
    assert own == known
    for parameter in plain:
        if isinstance(parameter.default, int | float | str | bool | tuple):
            assert found[parameter.name].default == parameter.default, parameter.name


def test_unpacked_fields_are_options():
    """`**choice: Unpack[PhotoChoice]` has the fields of a TypedDict that is imported."""
    found = options("spatext_lab.tour", "run")
    assert list(found) == ["out", "coco", "scene", "model", "budget", *PhotoChoice.__annotations__]
    assert (found["licences"].kind, found["licences"].number) == ("int", "+")
    assert found["min_area"].help.startswith("a region's least visible fraction")
    assert [name for name, option in found.items() if option.required] == ["out"]


def test_a_method_and_one_or_several():
    """`float | Sequence[float] | None` is one number on the command line."""
    found = options("spatext_lab.spatext.pipeline", "SpaTextPipeline.__call__")
    assert list(found)[:3] == ["self", "scenes", "seed"]
    forms = [(found[n].kind, found[n].number) for n in ("region_guidance_scale", "guidance_scale")]
    assert forms == [("float", None)] * 2
    assert found["num_inference_steps"].default == 10


def test_names_follow_imports():
    from spatext_lab.training.recipes import RECIPES

    assert names("spatext_lab.training.recipes", "RECIPES") == tuple(RECIPES)
    assert names("spatext_lab.training.run", "Device") == ("auto", "cpu", "cuda")
    with pytest.raises(LookupError, match="has no Nothing"):
        names("spatext_lab.training.run", "Nothing")


def test_recipes_are_known_without_torch():
    code = (
        "import sys; from spatext_lab.training.recipes import RECIPES; "
        "[recipe.options for recipe in RECIPES.values()]; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "diffusers"} & set(done.stdout.split()) == set()


def test_a_flag_is_written_once(capsys, monkeypatch, tmp_path):
    """The toy recipe's parameters reach the command line and the job, and are written nowhere
    else."""
    from spatext_lab.cli import parser

    monkeypatch.setitem(RECIPES, "toy", None)
    toy.install()
    calls = []
    monkeypatch.setattr(toy, "make", lambda plan, device, **given: calls.append(given) or 1 / 0)
    with pytest.raises(SystemExit):
        parser.main(["train", "--help"])
    said = capsys.readouterr().out
    for flag in ("--slope", "--shape {line,bend}", "--axes", "--steep"):
        assert flag in said
    argv = "train toy --slope 2.5 --shape bend --axes x y --steep --steps 3 --device cpu"
    with pytest.raises(ZeroDivisionError):
        parser.main([*argv.split(), "--out", str(tmp_path / "o")])
    assert calls == [{"slope": 2.5, "shape": "bend", "axes": ("x", "y"), "steep": True}]
