# SPDX-License-Identifier: Apache-2.0
"""The commands of `spatext-lab`: call the library, print the result for a person.

Every function takes the parsed arguments and returns the exit code. The library is imported inside
it, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from spatext_lab.training import launch
from spatext_lab.training.options import options as described

SAMPLERS = ("spatext", "pixel", "reco", "text")
_LONGEST = 600  # of a message, in characters


def complain(problem: object, code: int) -> int:
    """Prints a problem as one line on stderr and returns `code`.

    Of several processes that share a run, one prints.
    """
    if launch.speaks():
        print(f"spatext-lab: {shown(' '.join(str(problem).split()))}", file=sys.stderr, flush=True)
    return code


def shown(text: str) -> str:
    """Text that is safe to print: control characters escaped (a terminal obeys them), the middle
    of a long one left out."""
    safe = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
    half = _LONGEST // 2
    return safe if len(safe) <= _LONGEST else f"{safe[:half]} [...] {safe[-half:]}"


def doctor(args: argparse.Namespace) -> int:
    """Runs every check of the doctor, and those of a class if asked to."""
    if args.shared and not args.students:
        raise ValueError(f"--shared is {args.shared[0]}; it is read with --class alone")
    from spatext_lab.cli import doctor, doctor_class

    of_class = doctor_class.checks(args.students, args.shared) if args.students else ()
    done = []
    for one in chain(doctor.checks(), of_class):
        done.append(one)
        if not args.json:
            print(doctor.line(one), flush=True)
    print(doctor.to_json(done) if args.json else doctor.verdict(done))
    return 0 if all(one.ok for one in done) else 1


def data_pocket(args: argparse.Namespace) -> int:
    """Writes pocket scenes in COCO's layout."""
    from spatext_lab.datasets.coco import write_coco
    from spatext_lab.datasets.pocket import pocket_item

    for split, count in (("train", args.train), ("val", args.val)):
        items = (pocket_item(split, index, seed=args.seed) for index in range(count))
        write_coco(args.out, split, items)
        print(f"{split}: {count} scenes")
    print(args.out)
    return 0


def data_coco(args: argparse.Namespace) -> int:
    """Selects photos of a COCO folder, prints the counts, writes their scenes."""
    _check_file(args.out)
    from spatext_lab.datasets.coco import read_coco

    subset = read_coco(**given(args))
    print(subset.report.text())
    if args.out:
        _write(args.out, "".join(_scene_lines(subset.items)))
    return 0 if subset.items else complain("no photo passes; see the counts above", 1)


def data_fetch(args: argparse.Namespace) -> int:
    """Fetches a subset of COCO; exit code 1 if a part of it could not be had."""
    from spatext_lab.datasets.coco.fetch import TransferError, fetch_coco

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    again = shlex.join(["spatext-lab", *args.words])
    try:
        report = fetch_coco(**given(args))
    except TransferError as error:
        return complain(f"{error}; to go on: {again}", 1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; to go on: {again}") from None
    print(report.text())
    if report.failed:
        return complain(f"{len(report.failed)} photos are missing; to try them again: {again}", 1)
    return 0 if report.subset.items else complain("no photo passes; see the counts above", 1)


def _scene_lines(items: Sequence[Any]) -> Iterator[str]:
    for item in items:
        known = {"file_name": item.file_name, "split": item.split, "licence": item.licence}
        scene = json.loads(item.scene.to_json())
        yield json.dumps({**known, "captions": list(item.captions), "scene": scene}) + "\n"


def models_fetch(args: argparse.Namespace) -> int:
    """Downloads a known model."""
    from spatext_lab.zoo.fetch import fetch

    fetch(args.name, **given(args))
    return 0


def scene(args: argparse.Namespace) -> int:
    """Writes the scene of a photo, its regions found by a segmenter."""
    if args.draw and args.draw.suffix.lower() != ".png":
        raise ValueError(f"--draw is {args.draw}; it must end in .png")
    _check_file(args.out)
    _check_file(args.draw)
    from spatext_lab.evaluation.photos import photo_scene
    from spatext_lab.figures import draw_scene
    from spatext_lab.figures.png import png

    photo, made = photo_scene(args.photo, **given(args))
    print(f"caption  {made.caption}")
    for region in made.regions:
        print(f"{region.mask.mean():6.1%}  {region.text}")
    if args.draw:
        drawn = draw_scene(made, 768, photo, legend=True)
        _write(args.draw, png(drawn, f"Photo: {made.caption}, with its regions in colours"))
    _write(args.out, made.to_json())
    return 0 if made.regions else complain(f"{args.photo}: no segment was found", 1)


def train(args: argparse.Namespace) -> int:
    """Trains a recipe, or all of them."""
    options = given(args)
    if args.recipe != "all":
        from spatext_lab.training import processes
        from spatext_lab.training import run as training

        training.run(args.recipe, **options)
        processes.leave()
        return 0
    from spatext_lab.training import everything

    known = described("spatext_lab.training.everything", "train_all")
    if wrong := sorted(options.keys() - known.keys()):
        flag = wrong[0].replace("_", "-")
        raise ValueError(f"--{flag} is an option of single recipes; leave it out with all")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops its runs too, as Ctrl-C does
    failed = everything.train_all(options.pop("out", Path("outputs/models")), **options)
    return 1 if failed else 0


def sample(args: argparse.Namespace) -> int:
    """Generates one image of a scene."""
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out is {args.out}; it must end in .png")
    settings = given(args)
    if args.method in ("text", "reco") and "region_guidance_scale" in settings:
        raise ValueError(
            f"--region-guidance-scale needs --method spatext: {args.method} has no map"
        )
    _check_file(args.out)
    from spatext_lab.scene import Scene

    asked = Scene.load(args.scene)
    from spatext_lab import zoo
    from spatext_lab.figures.png import png
    from spatext_lab.reco.pipeline import ReCoPipeline
    from spatext_lab.spatext.pipeline import SpaTextPipeline
    from spatext_lab.text_to_image.pipeline import TextToImagePipeline

    kinds = (SpaTextPipeline, SpaTextPipeline, ReCoPipeline, TextToImagePipeline)
    parts = ("spatext", "spatext-pixel", "reco", "text-to-image")
    kind, part = dict(zip(SAMPLERS, zip(kinds, parts, strict=True), strict=True))[args.method]
    image = kind.from_pretrained(zoo.folder(args.model, part))(asked, **settings).images[0]
    made = {"method": args.method, "scene": asked.to_json()} | settings
    _write(args.out, png(image, f"{args.method}: {asked.caption}", made))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Prints a method's scores as JSON."""
    asked = given(args)
    if args.skills and "protocol" in asked:
        raise ValueError(f"--protocol is {args.protocol}; --skills has its own, leave it out")
    if args.prompts and not args.skills:
        raise ValueError(f"--prompts is {args.prompts}; it is read with --skills alone")
    _check_file(args.json)
    if args.skills:
        from spatext_lab.evaluation.skills import evaluate_skills as evaluated

        asked = {"prompts" if name == "scenes" else name: v for name, v in asked.items()}
        asked["published"] = args.prompts
    else:
        from spatext_lab.evaluation.report import evaluate as evaluated
    text = json.dumps(evaluated(**asked), indent=2)
    print(text)
    if args.json:
        _write(args.json, f"{text}\n", quiet=True)
    return 0


def compare(args: argparse.Namespace) -> int:
    """Compares methods on the same scenes."""
    from spatext_lab.evaluation.comparison import run as comparison

    comparison.run(**given(args))
    return 0


def ablation(args: argparse.Namespace) -> int:
    """Writes the tables of a method."""
    if args.method == "reco":
        from spatext_lab.evaluation import reco_tables as tables
    elif args.method == "summaries":
        from spatext_lab.evaluation import summaries_tables as tables
    else:
        from spatext_lab.evaluation import spatext_tables as tables

    tables.run(**given(args))
    return 0


def why(args: argparse.Namespace) -> int:
    """Says whether a model uses its layout, and why not; exit code 1 where it does not."""
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    from spatext_lab.evaluation.why import why

    report = why(args.folder, **given(args))
    print(report.markdown(), end="")
    if args.out:
        report.write(args.out)
        print(args.out / "why.md")
    return 0 if report.used else 1


def tour(args: argparse.Namespace) -> int:
    """Takes the tour."""
    from spatext_lab import tour

    tour.run(**given(args))
    return 0


def study_make(args: argparse.Namespace) -> int:
    """Writes the page of a blind study, and its key."""
    from spatext_lab.widgets import study_page

    pairs = study_page.make(**given(args))
    questions = sum(len(pair.questions) for pair in pairs)
    print(f"{len(pairs)} pairs, {questions} questions")
    print(f"{args.out / 'study.html'}: for the raters")
    print(f"{args.out / 'key.json'}: for you alone")
    return 0


def study_collect(args: argparse.Namespace) -> int:
    """Prints what the raters of a blind study preferred."""
    from spatext_lab.evaluation.study.report import collect

    report = collect(args.paths, **given(args))
    print(report.to_markdown(), end="")
    if args.out:
        report.save(args.out)
        print(args.out / "study.md")
    return 0 if report.reading.answers else complain("no answer to this study; see above", 1)


# --- helpers --------------------------------------------------------------------------------------


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The library's options that the user passed; the defaults are the library's own."""
    found = {name: getattr(args, name) for name in args.flags if hasattr(args, name)}
    if "all" in found.get("licences", ()):
        found["licences"] = None
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def _check_file(path: Path | None) -> None:
    """Refuses a path that no file can be written at before the work is done, not after."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass the path of a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder; pass another path")
    path.parent.mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: str | bytes, quiet: bool = False) -> None:
    from spatext_lab.scene import files

    files.write(path, content)
    if not quiet:
        print(path)
