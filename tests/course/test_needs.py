# SPDX-License-Identifier: Apache-2.0
"""What a student needs is what was measured; what a machine gives is what its files say."""

import json
import os
import shutil
from pathlib import Path

import psutil
import pytest

from spatext_lab.course import needs
from spatext_lab.course.needs import Machine, Student

MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "classroom.json"


def test_a_student_is_a_server_and_the_largest_kernel():
    rows = {row["name"]: row for row in json.loads(MEASURED.read_text())["rows"]}
    one, server = Student.measured(), rows.pop("JupyterLab")
    assert one.own_gb == pytest.approx(server["own_gb"] + max(r["own_gb"] for r in rows.values()))
    assert one.files[1] == server["files"] + max(row["files"] for row in rows.values())
    assert 0.1 < one.own_gb < 8
    assert one.shared_gb > 0
    assert one.image_seconds > 0


def test_without_the_measurements_their_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "_MEASURED", (tmp_path,))
    with pytest.raises(FileNotFoundError, match=r"classroom.json is missing: run `python -m bench"):
        Student.measured()


def test_this_machine_as_others_see_it():
    here = Machine.this()
    assert 0 < here.memory_gb <= psutil.virtual_memory().total / 1e9
    assert here.disk_gb == pytest.approx(shutil.disk_usage(".").free / 1e9, rel=0.05)
    assert 0 < here.cores <= (os.cpu_count() or 1)
    assert here.tasks is None or here.tasks > 0


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A control group within another, and this process in it."""
    own = tmp_path / "cgroup"
    own.write_text("1:name=systemd:/old\n0::/user.slice/anna\n")
    place = tmp_path / "fs" / "user.slice" / "anna"
    place.mkdir(parents=True)
    found = {
        place / "memory.max": "2000000000",
        place / "memory.current": "500000000",
        place / "cpu.max": "max 100000",
        place / "pids.max": "max",
        place.parent / "memory.max": "max",
        place.parent / "memory.current": "9",
        place.parent / "cpu.max": "150000 100000",
        place.parent / "pids.max": "300",
        place.parent / "pids.current": "100",
    }
    for path, text in found.items():
        path.write_text(text + "\n")
    monkeypatch.setattr(needs, "CGROUP", own)
    monkeypatch.setattr(needs, "CGROUPS", tmp_path / "fs")


def test_the_limits_of_a_students_server_count(group):
    here = Machine.this()
    assert here.memory_gb == pytest.approx(
        min(1.5, psutil.virtual_memory().available / 1e9), rel=0.1
    )
    assert here.cores == min(1.5, os.cpu_count())
    assert here.tasks == 200


def test_open_files_of_the_whole_machine(tmp_path, monkeypatch):
    (tmp_path / "file-nr").write_text("2000\t500\t10000\n")
    monkeypatch.setattr(needs, "FILES", tmp_path / "file-nr")
    assert Machine.this().all_files == 8500
    monkeypatch.setattr(needs, "FILES", tmp_path / "not on this system")
    assert Machine.this().all_files is None
