# SPDX-License-Identifier: Apache-2.0
"""What each command of `spatext-lab` does: call the library, print what a person needs.

Every function takes the parsed arguments and returns the exit code. The library is imported inside
it, for a command should not wait for what it does not use.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def complain(problem: object, code: int) -> int:
    """Say `problem` in one line on stderr and give `code` back."""
    print(f"spatext-lab: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


def doctor(args: argparse.Namespace) -> int:
    from spatext_lab.cli import doctor

    done = []
    for one in doctor.checks():
        done.append(one)
        if not args.json:
            print(doctor.line(one), flush=True)
    print(doctor.to_json(done) if args.json else doctor.verdict(done))
    return 0 if all(one.ok for one in done) else 1


def data_pocket(args: argparse.Namespace) -> int:
    from spatext_lab.datasets.coco import write_coco
    from spatext_lab.datasets.pocket import pocket_item

    for split, count in (("train", args.train), ("val", args.val)):
        items = (pocket_item(split, index, seed=args.seed) for index in range(count))
        write_coco(args.out, split, items)
        print(f"{split}: {count} scenes")
    print(args.out)
    return 0


def data_coco(args: argparse.Namespace) -> int:
    if args.out:
        _make_room(args.out)
    from spatext_lab.datasets.coco import read_coco

    subset = read_coco(
        args.root,
        args.split,
        licences=None if "all" in args.licences else tuple(args.licences),
        min_area=args.min_area,
        regions=tuple(args.regions),
        categories=args.categories,
        limit=args.limit,
        seed=args.seed,
    )
    print(subset.report.text())
    if args.out:
        _write(args.out, "".join(_scene_lines(subset.items)).encode())
        print(args.out)
    return 0 if subset.items else complain("no photo passes; see the counts above", 1)


def _scene_lines(items: Sequence[Any]) -> Iterator[str]:
    for item in items:
        known = {"file_name": item.file_name, "split": item.split, "licence": item.licence}
        scene = json.loads(item.scene.to_json())
        yield json.dumps({**known, "captions": list(item.captions), "scene": scene}) + "\n"


def train(args: argparse.Namespace) -> int:
    from spatext_lab.training import run as training

    names = ("steps", "seed", "out", "resume", "device", "data", "base", "representation")
    names += ("variant", "bins", "init", "aided", "relearn")
    try:
        training.run(args.recipe, **_given(args, *names))
    except KeyboardInterrupt:
        return complain("stopped; --resume goes on from the last checkpoint", 130)
    return 0


def sample(args: argparse.Namespace) -> int:
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out is {args.out}; it must end in .png")
    if args.method in ("text", "reco") and args.region_guidance_scale is not None:
        raise ValueError(
            f"--region-guidance-scale needs --method spatext: {args.method} has no map"
        )
    _make_room(args.out)
    from spatext_lab.scene import Scene

    scene = Scene.load(args.scene)
    from spatext_lab import zoo
    from spatext_lab.reco.pipeline import ReCoPipeline
    from spatext_lab.spatext.pipeline import SpaTextPipeline
    from spatext_lab.text_to_image.pipeline import TextToImagePipeline

    methods = {
        "spatext": (SpaTextPipeline, "spatext"),
        "pixel": (SpaTextPipeline, "spatext-pixel"),
        "reco": (ReCoPipeline, "reco"),
        "text": (TextToImagePipeline, "text-to-image"),
    }
    pipeline, part = methods[args.method]
    given = _given(args, "seed", "steps", "guidance_scale", "region_guidance_scale")
    picture = pipeline.from_pretrained(zoo.part(args.model, part))(scene, **given)
    picture.save(png := io.BytesIO(), format="PNG")
    _write(args.out, png.getvalue())
    print(args.out)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    if args.skills and args.protocol:
        raise ValueError(f"--protocol is {args.protocol}; --skills has its own, leave it out")
    if args.json:
        _make_room(args.json)
    given = {"seed": args.seed, "model": args.model}
    if args.skills:
        from spatext_lab.evaluation.skills import evaluate_skills

        scores = evaluate_skills(args.method, prompts=args.scenes, **given)
    else:
        from spatext_lab.evaluation import report

        given |= _given(args, "protocol")
        scores = report.evaluate(args.method, scenes=args.scenes, **given)
    text = json.dumps(scores, indent=2)
    print(text)
    if args.json:
        _write(args.json, f"{text}\n".encode())
    return 0


def ablation(args: argparse.Namespace) -> int:
    if args.method == "reco":
        from spatext_lab.evaluation import reco_tables as tables
    else:
        from spatext_lab.evaluation import spatext_tables as tables

    tables.run(args.out, scenes=args.scenes, model=args.model, variants=args.variants)
    return 0


def tour(args: argparse.Namespace) -> int:
    from spatext_lab import tour

    tour.run(args.out, coco=args.coco, scene=args.scene, model=args.model)
    return 0


# --- helpers --------------------------------------------------------------------------------------


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What the user said; the rest is the library's own defaults, written there alone."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _make_room(path: Path) -> None:
    """Refuse a target that cannot be written before the work is done, not after."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file to write in it")
    path.parent.mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Write beside the target and rename: a reader finds the old file or the new, never half."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
