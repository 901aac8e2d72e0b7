# SPDX-License-Identifier: Apache-2.0
"""A comparison's images: each is kept as soon as it is there, so that a killed run goes on.

Every PNG says how it was made. One that was made otherwise than this run would make it is never
mixed with this run's: it is named, and the run stops.
"""

import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from spatext_lab import zoo
from spatext_lab.evaluation.comparison.scenes import SceneSet
from spatext_lab.evaluation.judge import BATCH
from spatext_lab.evaluation.methods import METHODS, Sampler
from spatext_lab.evaluation.tasks import Task
from spatext_lab.figures import save
from spatext_lab.figures.progress import Progress
from spatext_lab.scene import files
from spatext_lab.scene.notes import collected

COST = "cost.json"
CARDS = re.compile(rb".*(\.md|\.png|card[^/\n]*\.json)\n")  # lines of SHA256SUMS
TIMED = 5  # images, one at a time
PROCESSES = 4  # at most; each holds one model


@dataclass(frozen=True)
class Order:
    """What is to be sampled.

    Args:
        out: the folder of the comparison.
        model: "pocket", or a folder with its layout.
        identity: of the model's files, see `identity`.
        sets: the scenes.
    """

    out: Path
    model: str
    identity: str
    sets: tuple[SceneSet, ...]

    def folder(self, method: str) -> Path:
        """Where a method's images are kept."""
        return self.out / "images" / method

    def file(self, method: str, name: str, index: int) -> Path:
        """Where one image is kept."""
        return self.folder(method) / name / f"{index:04}.png"

    def made(self, method: str, task: Task, seed: int) -> dict[str, Any]:
        """How an image is made, as it is written into its PNG."""
        facts = {"method": method, "model": self.identity, "scene": task.scene.to_json()}
        return facts | {"seed": seed, "settings": METHODS[method].settings}


def identity(model: str) -> str:
    """A short name of a model's files that changes with any weight or setting, not with a card.

    Args:
        model: "pocket", or a folder with its layout.
    """
    place = zoo.folder(model)
    digest = hashlib.sha256()
    seals = sorted(place.rglob(zoo.SUMS))
    for path in seals or sorted(place.rglob("*.safetensors")):
        digest.update(f"{path.relative_to(place).as_posix()} ".encode())
        content = path.read_bytes()
        digest.update(CARDS.sub(b"", content) if seals else content)
    return digest.hexdigest()[:16]


# --- what is there --------------------------------------------------------------------------------


def missing(order: Order, method: str) -> dict[str, list[int]]:
    """The numbers of the images that a method has still to make, by set.

    Raises:
        ValueError: an image is there that was made otherwise, or is damaged; names it.
    """
    found = {}
    for one in order.sets:
        tasks = one.asked(method)
        found[one.name] = [
            k for k, task in enumerate(tasks) if not _is_there(order, method, one, k, task)
        ]
    return found


def _is_there(order: Order, method: str, one: SceneSet, index: int, task: Task) -> bool:
    path = order.file(method, one.name, index)
    if not path.is_file():
        return False
    wanted = json.loads(json.dumps(order.made(method, task, one.seed + index)))
    try:
        with Image.open(path) as image:
            kept = json.loads(image.text["Parameters"])
    except (OSError, KeyError, ValueError, AttributeError):
        raise ValueError(
            f"{path} is no image of a comparison: delete it, or pass another --out"
        ) from None
    for name, value in wanted.items():
        if kept.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {_short(kept.get(name))}, this run has "
                f"{_short(value)}: pass another --out, or delete {order.folder(method)}"
            )
    return True


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 80 else hashlib.sha256(text.encode()).hexdigest()[:16]


def read(order: Order, method: str) -> dict[str, dict[int, Image.Image]]:
    """The images of a method by set and number; those that it could not make are not there."""
    found: dict[str, dict[int, Image.Image]] = {}
    for one in order.sets:
        paths = ((k, order.file(method, one.name, k)) for k in range(len(one.todo)))
        found[one.name] = {k: _opened(path) for k, path in paths if path.is_file()}
    return found


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


# --- one method -----------------------------------------------------------------------------------


def sample_method(order: Order, method: str) -> dict[str, Any]:
    """Makes the images of a method that are not there yet, and measures what one of them costs.

    Returns:
        left_out, why the method was, or None; and what is kept in its cost.json:
        seconds_per_image (median of TIMED images, one at a time), peak_memory_mb (of a process
        that makes one image), unread (the scenes it refused, by "SET NUMBER"), warnings (how many
        batches had one, and the first).
    """
    todo, kept = missing(order, method), order.folder(method) / COST
    cost = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    refused = {key.rpartition(" ")[::2] for key in cost.get("unread", {})}
    left = any((name, str(k)) not in refused for name, some in todo.items() for k in some)
    if cost and not left:
        return {"left_out": None} | cost
    try:
        sampler = METHODS[method].load(order.model, METHODS[method].settings)
    except FileNotFoundError as error:  # the report does not say where folders are on this machine
        why = " ".join(str(error).split())
        return {"left_out": why.replace(str(zoo.folder(order.model)), order.model)}
    cost = {"unread": {}, "warnings": [0, ""]} | cost | _cost(sampler, order.sets[0].asked(method))
    files.write(kept, json.dumps(cost, indent=2) + "\n")
    for one in order.sets:
        _sample_set(order, method, sampler, one, todo[one.name], cost)
    return {"left_out": None} | cost


def _cost(sampler: Sampler, tasks: Sequence[Task]) -> dict[str, Any]:
    """Seconds and memory of one image; empty where the first scenes cannot be read."""
    times = []
    with collected():
        for task in [tasks[0], *tasks[:TIMED]]:  # the first one warms up
            start = time.perf_counter()
            try:
                sampler([task], 0)
            except ValueError:  # counted when its set is sampled
                continue
            times.append(time.perf_counter() - start)
    # of this process until now: kilobytes on Linux, bytes on macOS
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    seconds = round(median(times[1:] or times), 3) if times else None
    return {"seconds_per_image": seconds, "peak_memory_mb": round(peak)}


def _sample_set(
    order: Order,
    method: str,
    sampler: Sampler,
    one: SceneSet,
    todo: Sequence[int],
    cost: dict[str, Any],
) -> None:
    """Whole batches from the first on, so that a run that goes on makes the images it would have
    made."""
    tasks = one.asked(method)
    for start in sorted({k - k % BATCH for k in todo}):
        batch = tasks[start : start + BATCH]
        with collected() as texts:
            images = list(_sampled(sampler, batch, one.seed + start))
        if texts:
            cost["warnings"] = [cost["warnings"][0] + 1, cost["warnings"][1] or texts[0]]
        for k, (task, image) in enumerate(zip(batch, images, strict=True), start=start):
            if isinstance(image, Image.Image):
                made = order.made(method, task, one.seed + k)
                alt = f"{METHODS[method].what}: {task.scene.caption}"
                save(image, order.file(method, one.name, k), alt, made)
            else:
                cost["unread"][f"{one.name} {k}"] = image
        # after each batch: a run that goes on does not sample it again, and would miss its warnings
        files.write(order.folder(method) / COST, json.dumps(cost, indent=2) + "\n")


def _sampled(sampler: Sampler, batch: Sequence[Task], seed: int) -> Iterator[Image.Image | str]:
    """An image of each task, or why the method cannot read its scene."""
    try:
        yield from sampler(batch, seed)
    except ValueError as error:
        if len(batch) == 1:
            yield " ".join(str(error).split())
        else:
            for k, task in enumerate(batch):
                yield from _sampled(sampler, [task], seed + k)


# --- all methods ----------------------------------------------------------------------------------


def sample_all(order: Order, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `sample_method` returns for each method, each in a process of its own with one thread.

    Raises:
        ValueError: what `missing` raises, before anything is sampled.
        OSError: a process was killed.
    """
    counts = {method: sum(map(len, missing(order, method).values())) for method in methods}
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, PROCESSES)
    # A process's peak memory never falls, so a process that made one method's images would report
    # that method's peak for the next one too; `_cost` needs a new one for each.
    pool = ProcessPoolExecutor(
        cores, get_context("spawn"), initializer=_alone, max_tasks_per_child=1
    )
    with pool, Progress(total=sum(counts.values()), desc="sampling", unit="image") as bar:
        running = {pool.submit(sample_method, order, method): method for method in methods}
        try:
            _watch(running, order, bar)
            return {method: future.result() for future, method in running.items()}
        except BrokenProcessPool:
            raise OSError(
                "a process that sampled was killed, perhaps for memory; its images are kept: run "
                "the same command again"
            ) from None
        finally:
            for future in running:  # after Ctrl-C, what has not begun is not begun
                future.cancel()


def _alone() -> None:
    """Of a process for one method: one thread, and Ctrl-C ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def _watch(running: dict[Future, str], order: Order, bar: Progress) -> None:
    """Counts the images as they come, and says when a method has all of its own."""
    before, pending = _count(order, running.values()), set(running)
    while pending:
        done, pending = wait(pending, timeout=1, return_when="FIRST_COMPLETED")
        bar.update(_count(order, running.values()) - before - bar.n)
        for future in done:
            if future.exception() is None and (why := future.result()["left_out"]):
                print(f"{running[future]} is left out: {why}", file=sys.stderr)


def _count(order: Order, methods: Iterable[str]) -> int:
    return sum(len(list(order.folder(method).glob("*/*.png"))) for method in methods)
