# SPDX-License-Identifier: Apache-2.0
"""A class is what one student needs, times the students; a shared folder is what others can do."""

import os
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from spatext_lab.cli import doctor, doctor_class
from spatext_lab.cli.doctor_class import PATIENCE, checks
from spatext_lab.cli.parser import main
from spatext_lab.course.needs import Machine, Student

STUDENT = Student(
    own_gb=1.0,
    shared_gb=0.5,
    written_gb=0.1,
    image_seconds=2.0,
    files=(100, 150),
    tasks=40,
    gpu_gb=6,
)
LARGE = Machine(
    memory_gb=64, disk_gb=100, cores=8, open_files=1024, all_files=10**6, tasks=10**5, gpu=None
)


def failed(students, machine=LARGE, shared=()):
    return {c.name: c for c in checks(students, shared, machine, STUDENT) if not c.ok}


def test_a_large_machine_carries_thirty():
    assert failed(30) == {}


def test_memory_is_needed_once_for_all_and_once_for_each():
    """Thirty students: 30 x 1.0 + 0.5 + 1 for the system."""
    assert failed(30, replace(LARGE, memory_gb=31.6)) == {}
    short = failed(30, replace(LARGE, memory_gb=31.4))["class memory"]
    assert "30 x 1.00 GB + 0.5 GB shared + 1 GB for the system = 31.5 GB" in short.detail
    assert "a machine with 32 GB free" in short.fix


@pytest.mark.parametrize("memory_gb", [0.5, 4.0, 17.3, 30.9])
def test_as_many_as_the_repair_says_do_fit(memory_gb):
    machine = replace(LARGE, memory_gb=memory_gb)
    fit = int(re.search(r"at most (\d+) students", failed(30, machine)["class memory"].fix)[1])
    assert not fit or failed(fit, machine) == {}
    assert set(failed(fit + 1, machine)) == {"class memory"}


def test_disk():
    assert set(failed(30, replace(LARGE, disk_gb=2.9))) == {"class disk"}
    assert failed(30, replace(LARGE, disk_gb=3.1)) == {}


@pytest.mark.parametrize("cores", [0.5, 1, 1.9])
def test_the_cores_that_the_repair_names_are_enough(cores):
    slow = failed(30, replace(LARGE, cores=cores))["class cores"]
    assert f"{30 * 2.0 / cores:.0f} s on" in slow.detail
    wanted, groups = map(int, re.search(r"^(\d+) cores .* groups of (\d+)$", slow.fix).groups())
    assert failed(30, replace(LARGE, cores=wanted)) == {}
    assert wanted == 30 * 2 / PATIENCE
    assert failed(groups, replace(LARGE, cores=cores)) == {}


def test_open_files_of_a_process_and_of_all():
    assert "ulimit -n" in failed(30, replace(LARGE, open_files=99))["open files"].fix
    short = failed(30, replace(LARGE, all_files=4499))["open files"]
    assert "fs.file-max=9000" in short.fix
    assert "all: 4500 of 4499" in short.detail
    assert failed(30, replace(LARGE, all_files=4500, open_files=None)) == {}


def test_threads():
    assert "1200" in failed(30, replace(LARGE, tasks=1199))["threads"].fix
    assert failed(30, replace(LARGE, tasks=None)) == {}


def test_one_gpu_is_for_turns():
    (one,) = (
        c for c in checks(30, (), replace(LARGE, gpu=("A card", 24.0)), STUDENT) if "GPU" in c.name
    )
    assert one.ok
    assert "at most 4 of 30 students" in one.detail
    assert "nvidia-smi" in failed(30, replace(LARGE, gpu=("A card", 5.9)))["class GPU"].fix


# --- shared folders -------------------------------------------------------------------------------

READ = "ls . part && cat config part/weights"
WRITE = ("mkdir new", "mkdir part/new", ": >> config", ": >> part/weights")


def stranger(command: str, folder: Path) -> bool:
    """Whether another user can do it."""
    line = f"cd {folder} && {{ {command}; }}"
    run = subprocess.run(
        ["sh", "-c", line], user=65534, group=65534, extra_groups=(), capture_output=True
    )
    return run.returncode == 0


@pytest.fixture
def folder():
    """A folder in a place that everybody reaches, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        made = Path(above, "models")
        (made / "part").mkdir(parents=True)
        (made / "part" / "weights").write_text("1")
        (made / "config").write_text("2")
        for path in (made, made / "part"):
            path.chmod(0o755)
        for path in (made / "part" / "weights", made / "config"):
            path.chmod(0o644)
        yield made


HARMS = {
    "none": ("config", 0o644),
    "a file that is closed": ("config", 0o640),
    "a folder that is closed": ("part", 0o754),
    "a folder that lists nothing": (".", 0o751),
    "a folder above it": ("..", 0o750),
    "a file that everybody changes": ("part/weights", 0o646),
    "a folder that everybody changes": ("part", 0o757),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_what_is_said_of_a_folder_is_what_a_stranger_can_do(folder, harm):
    """The truth is a process of another user that tries."""
    name, mode = HARMS[harm]
    (folder / name).chmod(mode)
    reads, writes = stranger(READ, folder), any(stranger(one, folder) for one in WRITE)
    found = failed(30, shared=[folder])
    assert ("shared" in found) == (not reads or writes)
    if found:
        assert ("closed to students" in found["shared"].detail) == (not reads)
        assert ("can be changed" in found["shared"].detail) == writes


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm != "none"])
def test_its_repair_repairs_it(folder, harm):
    name, mode = HARMS[harm]
    (folder / name).chmod(mode)
    fix = failed(30, shared=[folder])["shared"].fix
    subprocess.run(fix.replace("sudo ", ""), shell=True, check=True)
    assert failed(30, shared=[folder]) == {}


def test_a_file_of_a_group_is_not_only_its_owners(folder):
    (folder / "config").chmod(0o664)
    assert "1 can be changed by its group" in failed(30, shared=[folder])["shared"].detail


def test_a_folder_that_is_not_there_is_named_before_anything_is_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shared is .*nowhere"):
        checks(30, [tmp_path / "nowhere"], LARGE, STUDENT)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", doctor.CHECKS[:1])
    monkeypatch.setattr(Machine, "this", classmethod(lambda cls: LARGE))
    monkeypatch.setattr(Student, "measured", classmethod(lambda cls: STUDENT))


def test_the_command_checks_the_class_after_the_machine(here, capsys, folder):
    assert main(["doctor", "--class", "30", "--shared", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "30 x 1.00 GB" in said
    assert said.endswith("all 8 checks passed\n")
    assert main(["doctor", "--class", "300"]) == 1
    assert "FAIL  class memory" in capsys.readouterr().out


def test_without_a_class_nothing_is_multiplied(here, capsys):
    assert main(["doctor"]) == 0
    assert "class" not in capsys.readouterr().out
    assert main(["doctor", "--shared", "models"]) == 2
    assert "--shared is models; it is read with --class alone" in capsys.readouterr().err


def test_names_fit_into_their_column():
    width = max(len(name) for name, _, _ in doctor.CHECKS)
    names = [check.name for check in doctor_class.checks(1, (), LARGE, STUDENT)]
    assert max(map(len, names)) <= width
