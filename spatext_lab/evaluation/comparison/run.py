# SPDX-License-Identifier: Apache-2.0
"""The command `spatext-lab compare`: from names of methods to JSON, Markdown and a page."""

import json
import platform
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from spatext_lab import zoo
from spatext_lab.clip import Clip
from spatext_lab.evaluation.comparison import images, listing, page, scores
from spatext_lab.evaluation.comparison.curves import Bin, curve_sets
from spatext_lab.evaluation.comparison.images import Order
from spatext_lab.evaluation.comparison.scenes import MAIN, SPLIT, SceneSet, scene_sets
from spatext_lab.evaluation.judge import Judge
from spatext_lab.evaluation.methods import METHODS
from spatext_lab.scene import Scene, files


def run(
    methods: Sequence[str],
    out: Path,
    scenes: int = 128,
    *,
    curves: bool = False,
    protocol: Literal["boxes", "segments"] = "boxes",
    seed: int = 0,
    model: str = "pocket",
) -> dict[str, Any]:
    """Compares methods on the same scenes and seeds; a run that was killed goes on.

    Args:
        methods: names in METHODS; the first is the one that the others are compared with.
        out: a folder, for the images, compare.json, compare.md and compare.html.
        scenes: number of scenes.
        curves: also measure against number, overlap and size of regions, and new combinations.
        protocol: "boxes", all objects of a scene; "segments", 1 to 3 of its segments.
        seed: of the first image, and of the choice of segments.
        model: "pocket", or a folder with its layout.

    Returns:
        What compare.json holds.

    Raises:
        ValueError: an unknown method, scenes < 1, images in `out` that were made otherwise, or no
            method whose model is there.
        OSError: a process that samples was killed.
    """
    methods = tuple(dict.fromkeys(methods))
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if scenes < 1:
        raise ValueError(f"scenes is {scenes}; pass at least 1")
    start, sets = time.perf_counter(), scene_sets(scenes, seed, protocol)
    harder = curve_sets(scenes, seed) if curves else []
    everything = (*sets, *(each for _, each in harder))
    order = Order(Path(out), model, images.identity(model), everything)
    found = images.sample_all(order, methods)
    left_out = {method: one["left_out"] for method, one in found.items() if one["left_out"]}
    used = [method for method in methods if method not in left_out]
    if not used:
        raise ValueError(f"no method is left: {'; '.join(left_out.values())}")
    report = {
        "command": _typed(used, scenes, curves, protocol, seed, model),
        "scenes": scenes,
        "protocol": protocol,
        "split": SPLIT,
        "seed": seed,
        "left_out": left_out,
        **_measured(order, used, found, sets, harder, protocol),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("spatext_lab", "torch", "diffusers")},
        "seconds": round(time.perf_counter() - start),
    }
    as_json, as_text, as_page = (order.out / f"compare.{end}" for end in ("json", "md", "html"))
    files.write(as_json, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    files.write(as_text, listing.text(report))
    page.write(as_page, report, sets[0], _shown(order, used))
    print(as_json, as_text, as_page, sep="\n")
    return report


def _typed(
    methods: Sequence[str], scenes: int, curves: bool, protocol: str, seed: int, model: str
) -> str:
    words = ["spatext-lab", "compare", "--methods", *methods, "--scenes", str(scenes)]
    words += ["--curves"] if curves else []
    words += ["--protocol", protocol] if protocol != "boxes" else []
    words += ["--seed", str(seed)] if seed else []
    words += ["--model", Path(model).name] if model != "pocket" else []
    return shlex.join([*words, "--out", "DIR"])


def _shown(order: Order, methods: Sequence[str]) -> dict[str, dict[int, Path]]:
    """The files of the first set's images that are there, by method and number."""
    name, count = order.sets[0].name, len(order.sets[0].todo)
    paths = {m: {k: order.file(m, name, k) for k in range(count)} for m in methods}
    return {m: {k: p for k, p in some.items() if p.is_file()} for m, some in paths.items()}


# --- measuring ------------------------------------------------------------------------------------


def _measured(
    order: Order,
    methods: Sequence[str],
    found: dict[str, dict[str, Any]],
    sets: Sequence[SceneSet],
    harder: Sequence[tuple[Bin, SceneSet]],
    protocol: str,
) -> dict[str, Any]:
    """The rows of the table, the differences from the first one, and the curves."""
    judge = Judge.from_pretrained(zoo.folder("pocket", "judge"))
    clip = Clip.from_pretrained(zoo.folder("pocket", "spatext/clip"))
    rows, apart, reference = [], [], ()
    curves = [_true(each, one, judge) for each, one in harder]
    for method in methods:
        made = images.read(order, method)
        values, extra = _values(sets, made, judge, clip, protocol, METHODS[method].settings)
        objects = _objects(sets[0], made, judge, protocol)
        extra |= scores.ap50(objects) if objects else {}
        asked = [task.scene for task in sets[0].todo]
        rows.append(_row(method, values, extra, found[method], asked))
        if reference:
            named = {"name": METHODS[method].what, "method": method}
            named |= scores.difference(values, reference[0])
            apart.append(named | scores.ap50_difference(objects, reference[1]))
        reference = reference or (values, objects)
        for curve, (_, one) in zip(curves, harder, strict=True):
            curve["methods"][method] = _success(one, made[one.name], judge)
    return {"rows": rows, "differences": apart, "curves": curves}


def _values(
    sets: Sequence[SceneSet],
    made: dict[str, dict[int, Image.Image]],
    judge: Judge,
    clip: Clip,
    protocol: str,
    settings: dict,
) -> tuple[scores.Values, dict]:
    """All scores of a method: those by region, and those of all images together."""
    main, some = sets[0], made[sets[0].name]
    values = scores.judged(main.todo, main.boxes, some, judge, protocol)
    distances, extra = scores.embedded(main.todo, some, clip)
    values |= distances
    if settings:  # without a network every seed gives the same image
        several = [made[one.name] for one in sets]
        values |= scores.diversity(main.todo, several, clip)
    return values, extra


def _objects(
    main: SceneSet, made: dict[str, dict[int, Image.Image]], judge: Judge, protocol: str
) -> scores.Objects:
    """By scene; none where scenes have objects that nobody asked for."""
    some = made[main.name] if protocol == "boxes" else {}
    return scores.objects(main.todo, main.boxes, some, judge)


def _row(
    method: str,
    values: scores.Values,
    extra: dict,
    found: dict[str, Any],
    asked: Sequence[Scene],
) -> dict[str, Any]:
    """A method's row of the table."""
    one = METHODS[method]
    unread = [key for key in found["unread"] if key.startswith(f"{MAIN} ")]
    row = {"name": one.what, "method": method, "scenes": len(asked) - len(unread)}
    row |= {"unread": len(unread), "why": next(iter(found["unread"].values()), None)}
    row |= dict(zip(("warned", "warning"), found["warnings"], strict=True))
    row |= scores.summary(values) | extra | {"passes": one.passes(asked)}
    row |= {name: found[name] for name in ("seconds_per_image", "peak_memory_mb")}
    return row | {"settings": one.settings}


def _true(each: Bin, one: SceneSet, judge: Judge) -> dict[str, Any]:
    """A point of a curve with the true images' success, which is the judge's own."""
    true = {k: Image.fromarray(task.item.image) for k, task in enumerate(one.todo)}
    point = {"curve": each.curve, "label": each.label, "x": each.x, "scenes": len(one.todo)}
    return point | {"methods": {"true images": _success(one, true, judge)}}


def _success(one: SceneSet, made: dict[int, Image.Image], judge: Judge) -> dict[str, Any]:
    """Region accuracy on the scenes of a bin, by the pixels of each region that can be seen."""
    values = scores.judged(one.todo, one.boxes, made, judge, "segments") if made else {}
    accuracy = {"region_accuracy": values.get("region_accuracy", {})}
    return scores.summary(accuracy) | {"unread": len(one.todo) - len(made)}
