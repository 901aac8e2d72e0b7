# SPDX-License-Identifier: Apache-2.0
"""What one student needs of a shared machine, as measured, and what a machine can give.

The needs are those of docs/measured/classroom.json, which `python -m benchmarks.classroom` wrote.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_MEASURED = (_PACKAGE.parent / "docs" / "measured", _PACKAGE / "_data")  # a checkout, a wheel
# Where Linux says what it gives; elsewhere these are missing, and nothing is known.
FILES, THREADS = Path("/proc/sys/fs/file-nr"), Path("/proc/sys/kernel/threads-max")
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Student:
    """What one student needs: a JupyterLab server, and a kernel that runs the largest chapter.

    Args:
        own_gb: memory that cannot be shared.
        shared_gb: memory that all students share: the pages of libraries.
        written_gb: what the measured chapters and a training run leave on the disk.
        image_seconds: time of one core that an image takes.
        files: open files of a process at most, and of both together.
        tasks: threads of both together.
        gpu_gb: weights of Stable Diffusion 1.5 with its map's CLIP, in float32; computed.
    """

    own_gb: float
    shared_gb: float
    written_gb: float
    image_seconds: float
    files: tuple[int, int]
    tasks: int
    gpu_gb: float

    @classmethod
    def measured(cls) -> Student:
        """The numbers of classroom.json.

        Raises:
            FileNotFoundError: it is missing.
        """
        found = [place / "classroom.json" for place in _MEASURED]
        path = next((each for each in found if each.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{found[0]} is missing: run `python -m benchmarks.classroom`")
        known = json.loads(path.read_text(encoding="utf-8"))
        rows = known["rows"]
        server = next(row for row in rows if row["what"] == "server")
        kernels = [row for row in rows if row["what"] != "server"]

        def both(name: str) -> float:
            return server[name] + max(row[name] for row in kernels)

        return cls(
            own_gb=both("own_gb"),
            shared_gb=max(row["peak_gb"] - row["own_gb"] for row in rows),
            written_gb=sum(row["written_gb"] for row in rows),
            image_seconds=max(row["cpu_seconds_each"] for row in known["sampling"]),
            files=(max(row["files"] for row in rows), int(both("files"))),
            tasks=int(both("threads")),
            gpu_gb=known["stable_diffusion_gb"],
        )


@dataclass(frozen=True)
class Machine:
    """What this machine can give, to this process; None where it is not known or not limited."""

    memory_gb: float
    disk_gb: float
    cores: float
    open_files: int | None  # of one process
    all_files: int | None
    tasks: int | None
    gpu: tuple[str, float] | None  # its name and free memory in GB

    @classmethod
    def this(cls) -> Machine:
        """This machine now; a container's or a student's own limits count as well."""
        import psutil

        processors = (
            psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else ()
        )
        return cls(
            memory_gb=min([psutil.virtual_memory().available, *_memory_left()]) / 1e9,
            disk_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
            cores=min([len(processors) or os.cpu_count() or 1, *_quotas()]),
            open_files=_soft_limit(),
            all_files=_free_handles(),
            tasks=min(_tasks_left(), default=None),
            gpu=_gpu(),
        )


# --- what the machine says ------------------------------------------------------------------------


def _soft_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _free_handles() -> int | None:
    """Files that may still be opened; Linux gives those in use, the unused and the limit."""
    if not FILES.is_file():
        return None
    used, unused, limit = map(int, FILES.read_text().split())
    return limit - used + unused


def _cgroups(name: str) -> Iterator[tuple[str, Path]]:
    """A limit's text in this process's control group and in each one above it, and the folder."""
    lines = CGROUP.read_text().splitlines() if CGROUP.is_file() else ()
    inside = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    place = CGROUPS / inside
    for folder in (place, *place.parents):
        if folder.is_relative_to(CGROUPS) and (folder / name).is_file():
            yield (folder / name).read_text().strip(), folder


def _memory_left() -> list[int]:
    return [
        int(limit) - int((folder / "memory.current").read_text())
        for limit, folder in _cgroups("memory.max")
        if limit != "max"
    ]


def _quotas() -> list[float]:
    """Cores that a control group may use."""
    quotas = [text.split() for text, _ in _cgroups("cpu.max")]
    return [int(quota) / int(period) for quota, period in quotas if quota != "max"]


def _tasks_left() -> list[int]:
    limits = [
        int(limit) - int((folder / "pids.current").read_text())
        for limit, folder in _cgroups("pids.max")
        if limit != "max"
    ]
    return [*limits, *([int(THREADS.read_text())] if THREADS.is_file() else [])]


def _gpu() -> tuple[str, float] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0] / 1e9
