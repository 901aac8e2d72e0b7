# SPDX-License-Identifier: Apache-2.0
"""Does this machine carry a class? What one student was measured to need, times the students."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from math import ceil
from pathlib import Path
from stat import S_ISDIR

from spatext_lab.cli.doctor import Check
from spatext_lab.course.needs import Machine, Student

SYSTEM_GB = 1.0  # for the operating system and the hub
PATIENCE = 30  # seconds that a class waits for an image when all of it asks at once


def checks(
    students: int,
    shared: Sequence[Path] = (),
    machine: Machine | None = None,
    student: Student | None = None,
) -> Iterator[Check]:
    """Whether a machine carries a class; every check that fails has its repair.

    Args:
        students: how many work at the same time.
        shared: folders with models and data for all: to be read by everybody, changed by nobody.
        machine: this machine if not given.
        student: the measured needs if not given.

    Raises:
        FileNotFoundError: a shared folder is not there.
    """
    for folder in shared:
        if not folder.is_dir():
            raise FileNotFoundError(f"shared is {folder}: there is no such folder")
    machine, student = machine or Machine.this(), student or Student.measured()
    each = (_memory, _disk, _cores, _files, _tasks, _gpu)
    return chain((check(students, machine, student) for check in each), map(_shared, shared))


# --- one check each -------------------------------------------------------------------------------


def _memory(students: int, machine: Machine, one: Student) -> Check:
    needed = SYSTEM_GB + one.shared_gb + students * one.own_gb
    fit = max(0, int((machine.memory_gb - SYSTEM_GB - one.shared_gb) / one.own_gb))
    return Check(
        "class memory",
        machine.memory_gb >= needed,
        f"{students} x {one.own_gb:.2f} GB + {one.shared_gb:.1f} GB shared + {SYSTEM_GB:.0f} GB "
        f"for the system = {needed:.1f} GB; {machine.memory_gb:.1f} GB free",
        f"a machine with {ceil(needed)} GB free, or at most {fit} students at once (in a student's "
        "own server this is that student's limit: ask on the machine itself)",
    )


def _disk(students: int, machine: Machine, one: Student) -> Check:
    needed = students * one.written_gb
    return Check(
        "class disk",
        machine.disk_gb >= needed,
        f"{students} x {one.written_gb:.2f} GB = {needed:.1f} GB; {machine.disk_gb:.1f} GB free in "
        f"{Path.cwd()}",
        "free some space, or run this where the students' folders are",
    )


def _cores(students: int, machine: Machine, one: Student) -> Check:
    wait = students * one.image_seconds / machine.cores
    return Check(
        "class cores",
        wait <= PATIENCE,
        f"an image takes {one.image_seconds:.1f} s of one core; when all {students} ask at once, "
        f"{wait:.0f} s on {machine.cores:g} cores",
        f"{ceil(students * one.image_seconds / PATIENCE)} cores keep it under {PATIENCE} s; or "
        f"groups of {int(PATIENCE * machine.cores / one.image_seconds)}",
    )


def _files(students: int, machine: Machine, one: Student) -> Check:
    each, both = one.files
    known = {"a process": (machine.open_files, each), "all": (machine.all_files, students * both)}
    short = [who for who, (limit, needed) in known.items() if limit is not None and limit < needed]
    detail = "; ".join(
        f"{who}: {needed} of {'any number' if limit is None else limit}"
        for who, (limit, needed) in known.items()
    )
    fix = "ulimit -n 4096 (for a service of systemd: LimitNOFILE=4096)"
    if short == ["all"]:
        fix = f"sudo sysctl fs.file-max={2 * students * both}"
    return Check("open files", not short, detail, fix)


def _tasks(students: int, machine: Machine, one: Student) -> Check:
    needed = students * one.tasks
    limit = "any number" if machine.tasks is None else machine.tasks
    return Check(
        "threads",
        machine.tasks is None or machine.tasks >= needed,
        f"{students} x {one.tasks} = {needed} of {limit}",
        f"raise the limit of processes above {needed} (systemd: TasksMax, containers: pids.max)",
    )


def _gpu(students: int, machine: Machine, one: Student) -> Check:
    if machine.gpu is None:
        return Check("class GPU", True, "none; the pocket models need none, chapter 12 needs one")
    name, free = machine.gpu
    fit = int(free / one.gpu_gb)
    return Check(
        "class GPU",
        fit > 0,
        f"{name}, {free:.1f} GB free: the weights of Stable Diffusion 1.5 take {one.gpu_gb:.1f} GB "
        f"(computed), so at most {fit} of {students} students hold them at once",
        "end the processes that hold it (nvidia-smi lists them); the pocket models need none",
    )


def _shared(folder: Path) -> Check:
    """Everybody may read it, nobody but its owner may change it, all the way down from the root."""
    modes = {path: path.stat().st_mode for path in _everything(folder)}
    above = [path for path in folder.resolve().parents if not path.stat().st_mode & 0o001]
    wanted = {path: 0o005 if S_ISDIR(mode) else 0o004 for path, mode in modes.items()}
    closed = above + [path for path, mode in modes.items() if wanted[path] & ~mode]
    changed = [path for path, mode in modes.items() if mode & 0o022]
    found = {"closed to students": closed, "can be changed by its group or by everybody": changed}
    seen = [f"{len(paths)} {what}, such as {paths[0]}" for what, paths in found.items() if paths]
    return Check(
        "shared",
        not seen,
        f"{folder}: " + ("; ".join(seen) or f"{len(modes)} files and folders, for reading alone"),
        " && ".join(
            [f"sudo chmod -R a+rX,go-w {folder}", *(f"sudo chmod o+x {path}" for path in above)]
        ),
    )


def _everything(folder: Path) -> Iterator[Path]:
    """The folder and all that is in it. A link to nowhere is not there for students either."""
    yield folder
    for place, folders, names in os.walk(folder, followlinks=False):
        for name in (*folders, *names):
            if (path := Path(place, name)).exists():
                yield path
