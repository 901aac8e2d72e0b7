# SPDX-License-Identifier: Apache-2.0
"""The command `spatext-lab`: doctor, data, train, sample, evaluate, ablation, tour.

Each command is a thin function around the library, which is imported only when the command runs, so
that `--help` answers at once. Exit codes: 0 done, 1 the work or a check failed, 2 the input was
wrong, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatext_lab import __version__
from spatext_lab.cli import commands
from spatext_lab.cli.commands import complain

# Named here too, so that --help imports nothing; the tests compare them with the library's own.
RECIPES = (
    "autoencoder",
    "decoder",
    "clip",
    "judge",
    "prior",
    "text-to-image",
    "spatext",
    "pixel",
    "reco",
)
SAMPLERS = ("spatext", "pixel", "reco", "text")
METHODS = (
    *("spatext", "multi-scale", "no-prior", "linear-prior", "true-vectors", "pixel"),
    *("vectors", "binary", "caption", "similarity"),
    *("reco", "reco-caption", "words"),
    *("text", "autoencoder", "true"),
)
REPRESENTATIONS = ("vectors", "binary", "caption", "similarity")
VARIANTS = ("reco", "after", "contrastive", "words")
INITS = ("mean", "normal", "smooth")
PROTOCOLS = ("segments", "boxes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (wrong usage leaves by argparse's `SystemExit(2)`)."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return complain("stopped", 130)
    except OSError as error:
        if args.debug:
            raise
        return complain(f"{error.filename}: {error.strerror}" if error.filename else error, 2)
    except ValueError as error:  # how the library speaks of a wrong input
        if args.debug:
            raise
        return complain(error, 2)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; every command's help ends with an example."""
    parser = argparse.ArgumentParser(
        prog="spatext-lab",
        description="Pictures that follow a scene: what goes where.",
        epilog="example:\n  spatext-lab doctor\n\n"
        "exit codes: 0 done, 1 the work or a check failed, 2 wrong input, 130 stopped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"spatext-lab {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    to = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_doctor(to)
    data = to.add_parser("data", help="make or read data sets", **_epilog("data pocket --help"))
    sources = data.add_subparsers(metavar="SOURCE", required=True)
    _add_data_pocket(sources)
    _add_data_coco(sources)
    for add in (_add_train, _add_sample, _add_evaluate, _add_ablation, _add_tour):
        add(to)
    return parser


def _epilog(example: str) -> dict[str, Any]:
    return {
        "epilog": f"example:\n  spatext-lab {example}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _command(to: Any, run: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    command = to.add_parser(name, help=what, description=what, **_epilog(example))
    command.set_defaults(run=run)
    return command


def _add_doctor(to: Any) -> None:
    what = "call everything the course needs; say the repair with every FAIL (exit code 1)"
    command = _command(to, commands.doctor, "doctor", what, "doctor --json")
    command.add_argument("--json", action="store_true", help="for programs")


def _add_data_pocket(to: Any) -> None:
    what = "draw pocket scenes and write them in COCO's layout"
    example = "data pocket --out outputs/pocket-coco --train 256 --val 64"
    add = _command(to, commands.data_pocket, "pocket", what, example).add_argument
    add("--out", type=Path, required=True, metavar="DIR")
    add("--train", type=_count, default=256, metavar="N", help="training scenes (256)")
    add("--val", type=_count, default=64, metavar="N", help="validation scenes (64)")
    add("--seed", type=_seed, default=0, metavar="N", help="another world for another seed (0)")


def _add_data_coco(to: Any) -> None:
    what = "choose photos of a COCO folder, count what was left out and why, write their scenes"
    example = (
        "data coco --root coco --split val --licences 4 7 --categories dog cat --out dogs.jsonl"
    )
    add = _command(to, commands.data_coco, "coco", what, example).add_argument
    add("--root", type=Path, required=True, metavar="DIR", help="the folder with annotations/")
    add("--split", required=True, choices=("train", "val"))
    add(
        "--licences",
        type=_licence,
        nargs="+",
        default=[4, 5, 7, 8],
        metavar="N",
        help="COCO's numbers of allowed photo licences, or 'all' (4 5 7 8)",
    )
    add("--min-area", type=float, default=0.05, metavar="A", help="of the photo, 0 to 1 (0.05)")
    add("--regions", type=int, nargs=2, default=(1, 3), metavar=("MIN", "MAX"), help="(1 3)")
    add("--categories", nargs="+", metavar="NAME", help="only regions of these (all)")
    add("--limit", type=_count, metavar="N", help="at most so many photos")
    add("--seed", type=_seed, default=0, metavar="N", help="which photos, where --limit cuts (0)")
    add("--out", type=Path, metavar="FILE", help="write one JSON line a photo")


def _add_train(to: Any) -> None:
    what = "train a pocket model by its recipe; shows the expected time first"
    example = "train spatext --steps 200 --out outputs/spatext"
    add = _command(to, commands.train, "train", what, example).add_argument
    add("recipe", choices=RECIPES, metavar="RECIPE", help=", ".join(RECIPES))
    add("--steps", type=_count, metavar="N", help="optimiser steps (the recipe's own)")
    add("--seed", type=_seed, default=0, metavar="N")
    add("--out", type=Path, metavar="DIR", help="for checkpoints and the model")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--data", type=Path, metavar="ROOT", help="a folder in COCO's layout (drawn scenes)")
    add("--base", metavar="MODEL", help="the model to start from: pocket, or your own folder")
    add("--representation", choices=REPRESENTATIONS, help="what SpaText's map holds (vectors)")
    add("--variant", choices=VARIANTS, help="of ReCo (reco)")
    add(
        "--bins",
        type=_count,
        metavar="N",
        help="position tokens of ReCo (two a pixel, 1000 at most)",
    )
    add("--init", choices=INITS, help="how the rows of ReCo's new tokens begin (smooth)")
    # None where it was not said, so that it is handed on only to recipes that take it
    add("--aided", action="store_true", default=None, help="ReCo for a small base")
    relearn = "forget the position tokens of a ReCo base first, to learn others"
    add("--relearn", action="store_true", default=None, help=relearn)


def _add_sample(to: Any) -> None:
    what = "draw one picture of a scene"
    example = "sample --method spatext --scene scene.json --seed 3 --out picture.png"
    add = _command(to, commands.sample, "sample", what, example).add_argument
    add("--method", required=True, choices=SAMPLERS, help="text reads the caption only")
    add("--scene", type=Path, required=True, metavar="FILE", help="JSON, as Scene.save writes it")
    add("--seed", type=_seed, default=0, metavar="N", help="another picture for another seed (0)")
    add("--out", type=Path, required=True, metavar="PNG")
    add("--steps", type=_count, metavar="N", help="denoising steps")
    add("--guidance-scale", type=float, metavar="S", help="how loud the caption is; 1 is off")
    add("--region-guidance-scale", type=float, metavar="S", help="how loud the map is; 1 is off")
    _add_model(add)


def _add_evaluate(to: Any) -> None:
    what = "measure a method on scenes that no training saw"
    example = "evaluate --method spatext --scenes 64 --json scores.json"
    add = _command(to, commands.evaluate, "evaluate", what, example).add_argument
    add("--method", required=True, choices=METHODS, help="true and autoencoder are the ceilings")
    add("--protocol", choices=PROTOCOLS, help="what the method is given (what it reads)")
    add("--skills", action="store_true", help="PaintSkills: object, count, colour, spatial instead")
    add("--scenes", type=_count, default=512, metavar="N", help="or prompts of each skill (512)")
    add("--seed", type=_seed, default=0, metavar="N")
    add("--json", type=Path, metavar="FILE", help="also write the scores here")
    _add_model(add)


def _add_ablation(to: Any) -> None:
    what = "a method's tables: what each part of it is worth, and what it cannot do"
    example = "ablation --method reco --out outputs/ablation --variants outputs/train"
    add = _command(to, commands.ablation, "ablation", what, example).add_argument
    add("--method", choices=("spatext", "reco"), default="spatext", help="(spatext)")
    add("--out", type=Path, required=True, metavar="DIR", help="for Markdown, JSON and a figure")
    add("--scenes", type=_count, default=512, metavar="N", help="of the first table (512)")
    add(
        "--variants",
        type=Path,
        metavar="DIR",
        help="has spatext-binary, reco-words ... (no such rows)",
    )
    _add_model(add)


def _add_tour(to: Any) -> None:
    what = "everything once, as a page of pictures and numbers; under 5 minutes on two cores"
    add = _command(to, commands.tour, "tour", what, "tour --out outputs/tour").add_argument
    add("--out", type=Path, required=True, metavar="DIR")
    add("--coco", type=Path, metavar="DIR", help="a COCO folder: do it with real photos too")
    add("--scene", type=Path, metavar="FILE", help="your own, as Scene.save writes it")
    _add_model(add)


def _add_model(add: Any) -> None:
    add("--model", default="pocket", metavar="FOLDER", help="your own training (the shipped one)")


def _whole(text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, 1, 10**9)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)


def _licence(text: str) -> int | str:
    return text if text == "all" else _whole(text, 0, 8)
