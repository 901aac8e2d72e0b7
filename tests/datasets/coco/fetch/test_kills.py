# SPDX-License-Identifier: Apache-2.0
"""A fetch that is killed at 50 random moments ends in the folder of one that never was."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.datasets.coco.fetch import nursery

ROOT = Path(__file__).parents[4]
KILLS = 50


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def attributed(files: dict[str, bytes]) -> set[str]:
    table = files.get("ATTRIBUTION.csv", b"").decode()
    return {row["file_name"] for row in csv.DictReader(table.splitlines())}


@pytest.fixture
def start(server, tmp_path):
    """start(size, seconds): a fetch that is killed so long after it got so many bytes."""
    process = subprocess.Popen(
        [sys.executable, nursery.__file__, str(tmp_path / "coco"), server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    def run(size: float, more: float = 0.0) -> str:
        until = server.sent + size
        print("go", file=process.stdin, flush=True)
        pid = int(process.stdout.readline())
        while server.sent < until and is_alive(pid):
            time.sleep(0.001)
        time.sleep(more)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return process.stdout.readline().strip()

    yield run
    process.stdin.close()
    process.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_fifty_kills_the_folder_is_the_same(server, start, tmp_path):
    root, seed = tmp_path / "coco", random.randrange(10**6)
    assert start(float("inf")) == "ended 0"
    truth = content(root)
    assert len([name for name in truth if name.endswith(".jpg")]) >= 10
    shutil.rmtree(root)
    step = server.sent / 4  # so that about a dozen kills are one fetch
    server.chunk, server.delay = 300, 0.001
    server.asked.clear()
    kills, stages, rng = 0, set(), random.Random(seed)
    while kills < KILLS:
        if start(rng.choice((step, step / 8)) * rng.random(), rng.expovariate(100)) == "killed":
            kills += 1
            now = content(root) if root.exists() else {}
            stages |= {name.partition("/")[0] for name in now if name.endswith(".part")}
            assert {name for name in now if name.endswith(".jpg")} <= attributed(now)
            for name, found in now.items():
                whole = truth.get(name, found)
                assert found == whole or name == "ATTRIBUTION.csv", f"{name} is half-written"
        else:
            assert content(root) == truth, f"seed {seed}, after {kills} kills"
            shutil.rmtree(root)
    assert start(float("inf")) == "ended 0"
    assert content(root) == truth, f"seed {seed}"
    assert any("Range" in headers for _, headers in server.asked)
    assert len(stages) >= 2, "killed within photos, and within archives"
