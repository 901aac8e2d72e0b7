# SPDX-License-Identifier: Apache-2.0
"""An interrupted training run on disk: one safetensors file, with a checksum, of a known run."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spatext_lab.scene import files
from spatext_lab.training import launch, processes
from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan

FILE = "state.safetensors"
EARLIER = "earlier.safetensors"  # the state of a run that was there before a fresh start
LOCK = "writer.json"
_IMAGES = {".jpg", ".jpeg", ".png"}


def save(trainer: Trainer, folder: Path, made: dict | None = None) -> None:
    """Writes weights, average, optimiser moments, losses and plan as one file of `folder`.

    Whenever the process is killed, the old file or the new one is there, whole. Of several
    processes that share a run, process 0 writes; nothing in the file says how many there were.

    Args:
        made: what the run was made from (recipe, options, fingerprints), JSON values; `load`
            refuses a run that was made from something else.

    Raises:
        OSError: the file cannot be written (a full disk, say).
    """
    if launch.rank() > 0:
        return
    optimiser = trainer.optimizer.state_dict()["state"]
    tensors = {f"weight.{i}": w.detach() for i, w in enumerate(trainer.weights)}
    tensors |= {f"average.{i}": w for i, w in enumerate(trainer.ema.shadow_params)}
    for i, moments in optimiser.items():
        tensors |= {f"{m}.{i}": torch.as_tensor(value) for m, value in moments.items()}
    tensors |= {f"buffer.{name}": b for name, b in trainer.module.named_buffers()}
    tensors = {k: v.to("cpu").contiguous().clone() for k, v in tensors.items()}
    record = {"done": trainer.done, "losses": trainer.losses, "seconds": trainer.seconds}
    record |= {"plan": asdict(trainer.plan), "average_steps": trainer.ema.optimization_step}
    text = json.dumps(record | {"made": made or {}})
    with files.replacing(folder / FILE) as beside:
        try:
            save_file(tensors, beside, {"record": text, "sha256": digest(tensors, text)})
        except SafetensorError as error:
            raise OSError(f"{folder / FILE} cannot be written: {error}") from None


def load(trainer: Trainer, folder: Path, made: dict | None = None) -> None:
    """Puts a saved run into a trainer that was built the same way.

    Of several processes, process 0 reads and tells the others: one machine has the file.

    Args:
        made: as for `save`.

    Raises:
        FileNotFoundError: nothing was saved.
        ValueError: a damaged file, one that is not a checkpoint, or another run's: going on with
            that would give a model that no single run has.
    """
    record, tensors = _from_first(folder, trainer.plan, made)
    state = trainer.optimizer.state_dict()
    targets = {f"weight.{i}": w for i, w in enumerate(trainer.weights)}
    targets |= {f"average.{i}": w for i, w in enumerate(trainer.ema.shadow_params)}
    targets |= {f"buffer.{name}": b for name, b in trainer.module.named_buffers()}
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            raise ValueError(f"{folder / FILE} has no {name} of shape {tuple(target.shape)}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    taken = targets.keys()
    state["state"] = _moments({n: t for n, t in tensors.items() if n not in taken})
    trainer.optimizer.load_state_dict(state)
    trainer.ema.optimization_step = record["average_steps"]
    trainer.done, trainer.losses = record["done"], record["losses"]
    trainer.seconds = record["seconds"]


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
    """The optimiser's state of each weight. AdamW counts steps in a tensor, bitsandbytes in an
    int."""
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        moment, _, weight = name.rpartition(".")
        whole = tensor.dtype == torch.int64
        found.setdefault(int(weight), {})[moment] = tensor.item() if whole else tensor
    return found


def _from_first(folder: Path, plan: Plan, made: dict | None) -> tuple[dict, dict[str, Tensor]]:
    """What `check` finds in process 0."""
    record, tensors = check(folder, plan, made) if launch.rank() == 0 else ({}, {})
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    record, kinds = processes.told((record, kinds))
    if launch.rank() > 0:
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
    processes.copy_from_first(tensors.values())
    return record, tensors


def check(folder: Path, plan: Plan, made: dict | None = None) -> tuple[dict, dict[str, Tensor]]:
    """The record and the tensors of the checkpoint in a folder, if it is this run's.

    Raises:
        FileNotFoundError, ValueError: as `load` does.
    """
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint; start without --resume")
    record, tensors = _read(folder / FILE)
    if unknown := sorted(record["plan"].keys() - asdict(plan).keys()):
        raise ValueError(
            f"the run in {folder} was made by an earlier version, its plan has {unknown[0]}: "
            "start without --resume"
        )
    old = Plan(**record["plan"])
    known, asked = record["made"] | asdict(old), (made or {}) | asdict(plan)
    if all(old.rate(step) == plan.rate(step) for step in range(record["done"])):
        del asked["steps"]  # so far it is the run of so many steps, too
    for name, value in asked.items():
        if known.get(name) != value:
            raise ValueError(
                f"{name} is {_shown(value)}; the run in {folder} has {_shown(known.get(name))}: "
                "pass the same, or start without --resume"
            )
    return record, tensors


def record(folder: Path) -> dict | None:
    """What is noted of a run: done, losses, seconds, plan; None without a readable checkpoint."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            return json.loads((file.metadata() or {}).get("record", "null"))
    except (OSError, SafetensorError, ValueError):
        return None


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The record and the tensors of a checkpoint whose checksum is right."""
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); start without --resume") from None
    if "record" not in known or known.get("sha256") != digest(tensors, known["record"]):
        raise ValueError(
            f"{path} is damaged or not a checkpoint, for its checksum is wrong; "
            "start without --resume"
        )
    return json.loads(known["record"]), tensors


def digest(tensors: dict[str, Tensor], record: str) -> str:
    """SHA-256 of tensors on the CPU (names, types, shapes, values) and of a text beside them."""
    whole = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def _shown(value: object) -> str:
    return "not given" if value is None else f"{value!r:.60}"


def set_aside(folder: Path) -> None:
    """Renames an earlier run's checkpoint, so that `load` never takes it for this run's."""
    if (folder / FILE).exists():
        (folder / FILE).replace(folder / EARLIER)


def fingerprint(place: Path) -> str:
    """SHA-256 of a folder of data or a model: every file's name and content, of images the size.

    A sealed model folder is known by its SHA256SUMS.
    """
    sums = place / "SHA256SUMS"
    names = [sums] if sums.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    whole = hashlib.sha256()
    for path in names:
        size = path.stat().st_size
        whole.update(f"{path.relative_to(place).as_posix()} {size}\n".encode())
        if path.suffix.lower() not in _IMAGES:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds a checkpoint folder for this process: a second run into it is refused.

    Raises:
        ValueError: a running process holds it; the message names the process and its start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    me = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
    while True:
        try:
            with lock.open("x") as file:
                json.dump(me, file)
            break
        except FileExistsError:
            _check_ended(lock)
            lock.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _check_ended(lock: Path) -> None:
    """Raises ValueError if the process that holds a lock may still be running."""
    try:
        made, holder = lock.stat().st_mtime, json.loads(lock.read_text())
    except FileNotFoundError:
        return
    except ValueError:  # killed while it wrote the lock, or writing it now
        made, holder = lock.stat().st_mtime, {}
        if time.time() - made > 5:
            return
    try:
        began = psutil.Process(holder.get("process")).create_time()
        ended = holder.get("host") == platform.node() and began > made + 1
    except psutil.NoSuchProcess:
        ended = holder.get("host") == platform.node()
    if not ended:
        raise ValueError(
            f"{lock.parent} is written by process {holder.get('process')} of "
            f"{holder.get('host')} since {holder.get('since')}: let it end, or pass another "
            f"--out; if it has ended, delete {lock}"
        )
