# SPDX-License-Identifier: Apache-2.0
"""A fetch that is killed at 50 random moments ends in the folder of one that never was."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets.coco.fetch import nursery

ROOT = Path(__file__).parents[4]
KILLS = 50


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def start(server, tmp_path):
    """start(seconds): a fetch that is killed then, if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, nursery.__file__, str(tmp_path / "coco"), server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    def run(seconds: float) -> str:
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    yield run
    process.stdin.close()
    process.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_fifty_kills_the_folder_is_the_same(server, start, tmp_path):
    root, seed = tmp_path / "coco", random.randrange(10**6)
    assert start(60) == "ended 0"
    truth = content(root)
    assert len([name for name in truth if name.endswith(".jpg")]) >= 10
    shutil.rmtree(root)
    server.chunk, server.delay = 300, 0.003
    server.asked.clear()
    kills, ends, rng = 0, 0, random.Random(seed)
    while kills < KILLS:
        if start(rng.uniform(0, 0.2)) == "killed":
            kills += 1
            for name, found in content(root).items() if root.exists() else ():
                whole = truth.get(name, found)
                assert found == whole or name == "ATTRIBUTION.csv", f"{name} is half-written"
        else:
            ends += 1
            assert content(root) == truth, f"seed {seed}, after {kills} kills"
            shutil.rmtree(root)
    assert start(60) == "ended 0"
    assert content(root) == truth, f"seed {seed}"
    assert any("Range" in headers for _, headers in server.asked)
    print(kills, ends, len(server.asked))
