# SPDX-License-Identifier: Apache-2.0
"""The command line `spatext-lab`: its commands and their flags.

A flag is a parameter of the library's function that the command calls; its values, its default and
its help are read from there (`training.options`), and nothing of the library is imported before a
command runs. Exit codes: 0 done, 1 the work or a check failed, 2 the input was wrong, 130 stopped
by Ctrl-C, 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatext_lab import __version__
from spatext_lab.cli import commands, values
from spatext_lab.cli.commands import complain, shown
from spatext_lab.training import launch
from spatext_lab.training.options import Option, names, options
from spatext_lab.training.recipes import RECIPES

CHOICE = "licences min_area regions categories limit seed"  # of photos, as read_coco takes it


class Parser(argparse.ArgumentParser):
    """argparse's, with messages that are safe to print; "--flag=--" is refused as no value."""

    def error(self, message: str) -> Any:
        """Leaves with exit code 2 after the usage and the message."""
        if not launch.speaks():
            raise SystemExit(2)
        super().error(shown(message))

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parses the command line; raises SystemExit(2) for a wrong one."""
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"argument {word.removesuffix('=--')}: '--' is not a value")
        return super().parse_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the words after the program's name; those of this process if not given.

    Raises:
        SystemExit: with code 2, for a wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that lacks a letter shows "?" for it
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    if not sys.stderr.isatty():  # bars for loading would fill a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _check_shared(args)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        return complain(str(stop) or "stopped", 130)
    except BrokenPipeError:  # `| head` has read enough; Python would complain of it at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError, FloatingPointError) as error:  # what a user can mend
        if args.debug:
            raise
        named = isinstance(error, OSError) and error.filename and error.strerror
        problem = f"{error.filename}: {error.strerror}" if named else error
        return complain(
            problem, 1 if isinstance(error, FloatingPointError | ConnectionError) else 2
        )


def _check_shared(args: argparse.Namespace) -> None:
    """Raises ValueError where torchrun would do the same work several times."""
    if launch.count() > 1 and (args.run is not commands.train or args.recipe == "all"):
        raise ValueError("of all commands, torchrun shares out the work of train RECIPE alone")


def build_parser() -> Parser:
    """The whole command line; the help of every command ends with an example."""
    parser = Parser(
        prog="spatext-lab",
        description="Images that follow a scene: what goes where.",
        epilog="example:\n  spatext-lab doctor\n\n"
        "exit codes: 0 done, 1 the work or a check failed, 2 wrong input, 130 stopped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"spatext-lab {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    to = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_doctor(to)
    data = to.add_parser("data", help="make or read data sets", **_epilog("data pocket --help"))
    sources = data.add_subparsers(metavar="SOURCE", required=True)
    _add_data_pocket(sources)
    _add_data_coco(sources)
    _add_data_fetch(sources)
    models = to.add_parser("models", help="fetch models", **_epilog("models fetch --help"))
    _add_models_fetch(models.add_subparsers(metavar="ACTION", required=True))
    for add in (
        _add_scene,
        _add_train,
        _add_sample,
        _add_evaluate,
        _add_compare,
        _add_ablation,
        _add_why,
        _add_tour,
    ):
        add(to)
    study = to.add_parser("study", help="a blind study", **_epilog("study make --help"))
    _add_study(study.add_subparsers(metavar="STEP", required=True))
    return parser


# --- commands -------------------------------------------------------------------------------------


def _add_doctor(to: Any) -> None:
    what = "call everything the course needs; name the repair with every FAIL (exit code 1)"
    command = _command(to, commands.doctor, "doctor", what, "doctor --json")
    add = command.add_argument
    add("--json", action="store_true", help="for programs")
    students = "also: does this machine carry N students at once?"
    add("--class", dest="students", type=values.count, metavar="N", help=students)
    shared = "with --class: folders for all, to be read by everybody and changed by nobody"
    add("--shared", type=Path, nargs="+", default=(), metavar="DIR", help=shared)


def _add_data_pocket(to: Any) -> None:
    what = "render pocket scenes and write them in COCO's layout"
    example = "data pocket --out outputs/pocket-coco --train 256 --val 64"
    add = _command(to, commands.data_pocket, "pocket", what, example).add_argument
    add("--out", type=Path, required=True, metavar="DIR")
    add("--train", type=values.count, default=256, metavar="N", help="training scenes (256)")
    add("--val", type=values.count, default=64, metavar="N", help="validation scenes (64)")
    add("--seed", type=values.seed, default=0, metavar="N", help="another seed, other scenes (0)")


def _add_data_coco(to: Any) -> None:
    what = "select photos of a COCO folder, count what was left out and why, write their scenes"
    example = (
        "data coco --root coco --split val --licences 4 7 --categories dog cat --out dogs.jsonl"
    )
    command = _command(to, commands.data_coco, "coco", what, example)
    found = _of("spatext_lab.datasets.coco.read", "read_coco", f"root split {CHOICE}")
    _add_flags(command, found)
    command.add_argument("--out", type=Path, metavar="FILE", help="write one JSON line per photo")


def _add_data_fetch(to: Any) -> None:
    what = "fetch a subset of COCO 2017: annotations, then only its photos; goes on if interrupted"
    example = "data fetch --root coco --split val --limit 100"
    command = _command(to, commands.data_fetch, "fetch", what, example)
    module = "spatext_lab.datasets.coco.fetch.run"
    found = _of(module, "fetch_coco", "root split")
    found |= _of("spatext_lab.datasets.coco.read", "read_coco", CHOICE)
    _add_flags(command, found | _of(module, "fetch_coco", "panoptic mirror"))


def _add_models_fetch(to: Any) -> None:
    what = "download a model from the Hugging Face hub, whole and checked, into ./models"
    command = _command(to, commands.models_fetch, "fetch", what, "models fetch sd15 --accept")
    module = "spatext_lab.zoo.fetch"
    known = names(module, "MODELS")
    command.add_argument("name", choices=known, metavar="MODEL", help=", ".join(known))
    _add_flags(command, _of(module, "fetch", "out accept endpoint revision"))


def _add_scene(to: Any) -> None:
    what = "find the segments of a photo and write them as a scene"
    example = "scene photo.jpg --segmenter mask2former --out scene.json --draw scene.png"
    command = _command(to, commands.scene, "scene", what, example)
    add = command.add_argument
    add("photo", type=Path, metavar="PHOTO")
    wanted = "segmenter caption captioner names clip"
    _add_flags(command, _of("spatext_lab.evaluation.photos", "photo_scene", wanted))
    add("--out", type=Path, required=True, metavar="FILE", help="JSON, for sample and tour")
    add("--draw", type=Path, metavar="PNG", help="the regions over the photo, for the eye")


def _add_train(to: Any) -> None:
    what = "train a model by its recipe; shows the expected time first"
    example = "train spatext --steps 200 --out outputs/spatext"
    command = _command(to, commands.train, "train", what, example)
    known = [*RECIPES, "all"]
    command.add_argument("recipe", choices=known, metavar="RECIPE", help=", ".join(known))
    wanted = "steps seed out resume device accumulate lr checkpointing average adamw save_every"
    wanted += " log control segmenter"
    found = _of("spatext_lab.training.run", "run", wanted)
    wanted = "only workers data licences min_area categories"
    own = {"all": _of("spatext_lab.training.everything", "train_all", wanted)}
    own |= {recipe.name: recipe.options for recipe in RECIPES.values()}
    _add_flags(command, found | _joined(own))


def _add_sample(to: Any) -> None:
    what = "generate one image of a scene"
    example = "sample --method spatext --scene scene.json --seed 3 --out image.png"
    command = _command(to, commands.sample, "sample", what, example)
    add = command.add_argument
    add("--method", required=True, choices=commands.SAMPLERS, help="text uses the caption only")
    add("--scene", type=Path, required=True, metavar="FILE", help="JSON, as Scene.save writes it")
    add("--out", type=Path, required=True, metavar="PNG")
    wanted = "seed num_inference_steps guidance_scale region_guidance_scale"
    _add_flags(command, _of("spatext_lab.spatext.pipeline", "SpaTextPipeline.__call__", wanted))
    add("--steps", type=values.renamed, help=argparse.SUPPRESS)
    _add_model(add)


def _add_evaluate(to: Any) -> None:
    what = "measure a method on scenes that no training used"
    example = "evaluate --method spatext --scenes 64 --json scores.json"
    command = _command(to, commands.evaluate, "evaluate", what, example)
    found = _of("spatext_lab.evaluation.report", "evaluate", "method protocol scenes seed model")
    for name in ("method", "protocol"):
        module = "spatext_lab.evaluation." + ("methods" if name == "method" else "report")
        found[name] = replace(found[name], choices=names(module, f"{name.upper()}S"))
    _add_flags(command, found)
    add = command.add_argument
    add("--skills", action="store_true", help="PaintSkills: object, count, colour, spatial")
    prompts = "with --skills: published prompts, ROOT/count/scenes/count_val.json"
    add("--prompts", type=Path, metavar="FILE", help=prompts)
    add("--json", type=Path, metavar="FILE", help="also write the scores here")


def _add_compare(to: Any) -> None:
    what = "compare methods on the same scenes: a table, curves, a page of images"
    example = "compare --methods spatext reco text --scenes 32 --out outputs/compare"
    command = _command(to, commands.compare, "compare", what, example)
    found = options("spatext_lab.evaluation.comparison.run", "run")
    choices = names("spatext_lab.evaluation.methods", "METHODS")
    _add_flags(command, found | {"methods": replace(found["methods"], choices=choices)})


def _add_ablation(to: Any) -> None:
    what = "a method's tables: what each part of it contributes, and what it cannot do"
    example = "ablation --method reco --out outputs/ablation --variants outputs/train"
    command = _command(to, commands.ablation, "ablation", what, example)
    methods = ("spatext", "reco", "summaries")
    command.add_argument("--method", choices=methods, default="spatext", help="(spatext)")
    module = "spatext_lab.evaluation.{}_tables"
    _add_flags(command, _joined({each: options(module.format(each), "run") for each in methods}))


def _add_why(to: Any) -> None:
    what = "is the layout used at all? The loss with and without it, and why not (exit code 1)"
    command = _command(to, commands.why, "why", what, "why data/pocket/reco --out outputs/why")
    add = command.add_argument
    add("folder", metavar="FOLDER", help="of a SpaText or ReCo model")
    _add_flags(command, _of("spatext_lab.evaluation.why", "why", "scenes seed data"))
    add("--out", type=Path, metavar="DIR", help="also write why.md, why.json and why.png here")


def _add_tour(to: Any) -> None:
    what = "everything once, as a page of images and numbers; under 5 minutes on two cores"
    command = _command(to, commands.tour, "tour", what, "tour --out outputs/tour")
    found = options("spatext_lab.tour", "run")
    _add_flags(command, {name: each for name, each in found.items() if name != "budget"})


def _add_study(to: Any) -> None:
    what = "write study.html for the raters, and key.json, which they do not get"
    example = "study make --methods spatext text --scenes 32 --out outputs/study"
    make = _command(to, commands.study_make, "make", what, example)
    found = options("spatext_lab.widgets.study_page", "make")
    _add_flags(make, found)
    what = "sum up answers: shares with intervals, majorities, agreement, answers needed"
    example = "study collect anna.json ben.json --key outputs/study/key.json --out outputs/result"
    collect = _command(to, commands.study_collect, "collect", what, example)
    collect.add_argument("paths", type=Path, nargs="+", metavar="FILE", help="of answers")
    _add_flags(collect, _of("spatext_lab.evaluation.study.report", "collect", "key width"))
    collect.add_argument("--out", type=Path, metavar="DIR", help="also write study.md and .json")


def _add_model(add: Any) -> None:
    add("--model", default="pocket", metavar="FOLDER", help="your own training (pocket)")


# --- flags ----------------------------------------------------------------------------------------


def _epilog(example: str) -> dict[str, Any]:
    return {
        "epilog": f"example:\n  spatext-lab {example}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _command(to: Any, run: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    command = to.add_parser(name, help=what, description=what, **_epilog(example))
    command.set_defaults(run=run)
    return command


def _of(module: str, function: str, wanted: str) -> dict[str, Option]:
    """Some parameters of a function, by name."""
    found = options(module, function)
    return {name: found[name] for name in wanted.split()}


def _joined(own: dict[str, dict[str, Option]]) -> dict[str, Option]:
    """The options of several owners. An option's help says what it is to each owner that has it."""
    found: dict[str, Option] = {}
    owners: dict[str, dict[str, list[str]]] = {}
    for owner, some in own.items():
        for name, option in some.items():
            found.setdefault(name, option)
            owners.setdefault(name, {}).setdefault(_text(option), []).append(owner)
    for name, option in found.items():
        texts = [
            text if len(who) == len(own) else f"{', '.join(who)}: {text}"
            for text, who in owners[name].items()
        ]
        found[name] = replace(option, help=" | ".join(texts), default=None)
    return found


def _text(option: Option) -> str:
    """An option's help with its default."""
    if option.default in (None, False, ()):
        return option.help
    usual = option.default if isinstance(option.default, tuple) else (option.default,)
    return f"{option.help} ({' '.join(map(str, usual))})"


def _add_flags(command: argparse.ArgumentParser, found: dict[str, Option]) -> None:
    """A flag for each option. One that is not used stays out of the parsed arguments, so that the
    library's own default holds; `commands.given` collects the others."""
    for name, option in found.items():
        how: dict[str, Any] = {"help": _text(option).replace("%", "%%")}
        how["default"] = argparse.SUPPRESS
        how["required"] = option.required
        if option.kind == "bool":
            how |= {"action": "store_true"}
        else:
            how |= {"type": values.TYPES[option.kind], "nargs": option.number}
            if option.choices:
                how["choices"] = option.choices
            elif option.number != 2:
                how["metavar"] = values.METAVARS[option.kind]
            else:
                how["metavar"] = ("MIN", "MAX")
        if name == "seed":
            how["type"] = values.seed
        elif name == "licences":
            how["type"] = values.licence
        command.add_argument(f"--{name.replace('_', '-')}", **how)
    command.set_defaults(flags=tuple(found))
