# SPDX-License-Identifier: Apache-2.0
"""A class shares models and data that it cannot write to; a student's own folder gets the rest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spatext_lab.cli.parser import main
from tests.tiny import tiny_model

# What a student does, with every file noted that is opened for writing, made, moved or removed.
SESSION = """
import os
import sys

CHANGES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2}
changed = []

def note(event, given):
    if event == "open" and isinstance(given[0], str | bytes | os.PathLike):
        mode, flags = given[1] or "", given[2] or 0
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            changed.append(os.fsdecode(given[0]))
    if event in CHANGES:
        changed.extend(os.fsdecode(each) for each in given[:CHANGES[event]])

sys.addaudithook(note)
from spatext_lab import ReCoPipeline, Scene, SpaTextPipeline, zoo
from spatext_lab.cli.parser import main
from spatext_lab.datasets.coco import read_coco

coco = sys.argv[1]
(item,) = read_coco(coco, "val", limit=1).items
item.square(64)
for kind, part in ((SpaTextPipeline, "spatext"), (ReCoPipeline, "reco")):
    pipeline = kind.from_pretrained(zoo.folder("shared", part))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(item.scene, seed=0, num_inference_steps=1).images[0].save(f"{part}.png")
assert main(["data", "coco", "--root", coco, "--split", "val", "--out", "scenes.jsonl"]) == 0
train = ["train", "spatext", "--base", "shared", "--data", coco, "--steps", "1", "--out", "own"]
assert main(train) == 0
for path in changed:
    print("CHANGED", os.path.realpath(path))
"""


def as_a_student() -> list[str]:
    """Permissions bind everybody but root, unless it gives that power away."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to change that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def shared(tmp_path):
    """A model and a COCO folder, whole, that nobody may write to."""
    folder = tmp_path / "srv"
    tiny_model(folder / "models" / "shared")
    command = ["data", "pocket", "--out", str(folder / "coco"), "--train", "4", "--val", "2"]
    assert main(command) == 0
    for place, _, names in os.walk(folder, topdown=False):
        for name in (*names, "."):
            path = Path(place, name)
            path.chmod(path.stat().st_mode & ~0o222)
    yield folder
    for place, _, _ in os.walk(folder):
        Path(place).chmod(0o755)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def test_a_student_reads_what_is_shared_and_writes_to_the_own_folder_alone(shared, tmp_path):
    student = as_a_student()
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    (home / "models").symlink_to(shared / "models")
    before = contents(shared)
    denied = subprocess.run([*student, "touch", shared / "coco" / "new"], capture_output=True)
    assert denied.returncode, "the shared folder can be written to: this test would show nothing"
    names = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "OMP_NUM_THREADS": "1"}
    names |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*student, sys.executable, "-c", SESSION, shared / "coco"],
        cwd=home,
        env={k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"} | names,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert contents(shared) == before
    changed = [line[8:] for line in run.stdout.splitlines() if line.startswith("CHANGED ")]
    outside = [p for p in changed if not f"{p}/".startswith((f"{home}/", "/dev/", "/proc/"))]
    assert outside == []
    assert {"spatext.png", "reco.png", "scenes.jsonl", "own"} <= {p.name for p in home.iterdir()}
    assert json.loads((home / "scenes.jsonl").read_text().splitlines()[0])["split"] == "val"
