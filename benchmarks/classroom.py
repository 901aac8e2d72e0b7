# SPDX-License-Identifier: Apache-2.0
"""What a student needs of a shared machine: `python -m benchmarks.classroom`.

Memory, processor time, open files and threads of a JupyterLab server, of two chapters' kernels and
of a training run, and how long an image takes when several processes sample at once. What is
written to docs/measured/classroom.json is what `spatext-lab doctor --class` multiplies.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import nbformat
import open_clip
import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from nbclient import NotebookClient
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.processes import Crowd
from spatext_lab import zoo
from spatext_lab.scene import files

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("00_start_here", "05_finetune_spatext")
AT_ONCE = (1, 4)
TRAIN = ["train", "spatext", "--steps", "20", "--data", str(ROOT / "data" / "pocket-coco")]


COMMAND = "import sys; from spatext_lab.cli.parser import main; sys.exit(main(sys.argv[1:]))"


class Watch(Thread):
    """The most that a process holds at one time, looked at twenty times a second.

    `own` is the memory that no other process can share: without the pages of files, such as torch's
    libraries, of which a machine keeps one copy for all students.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.ended = psutil.Process(pid), Event()
        self.most = {"peak_gb": 0.0, "own_gb": 0.0, "cpu_seconds": 0.0, "files": 0, "threads": 0}

    def run(self) -> None:
        """Looks until the process ends."""
        with suppress(psutil.NoSuchProcess):
            while not self.ended.wait(0.05):
                self.look()

    def look(self) -> None:
        """Looks once."""
        process = self.process
        with process.oneshot():
            memory, spent = process.memory_info(), process.cpu_times()
            seen = {
                "peak_gb": memory.rss / 1e9,
                "own_gb": (memory.rss - getattr(memory, "shared", 0)) / 1e9,
                "cpu_seconds": spent.user + spent.system,
                "files": process.num_fds(),
                "threads": process.num_threads(),
            }
        for name, value in seen.items():
            self.most[name] = max(self.most[name], value)


@contextmanager
def watched(row: dict[str, Any], pid: int, folder: str) -> Iterator[None]:
    """Adds to a row what a process held, and what it wrote below a folder."""
    watch, begin = Watch(pid), time.perf_counter()
    watch.start()
    yield
    watch.ended.set()
    watch.join()
    written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    row |= watch.most | {"seconds": time.perf_counter() - begin, "written_gb": written / 1e9}


def chapter(name: str) -> dict[str, Any]:
    """A chapter, from its first cell to its last, in a kernel of its own.

    Its assertions on times may fail on a busy machine; the cells after them run all the same.
    """
    row: dict[str, Any] = {"name": name, "what": "kernel"}
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=None, resources={"metadata": {"path": folder}}, allow_errors=True
        )
        with client.setup_kernel(), watched(row, client.km.provisioner.pid, folder):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            files.write(Path(folder) / f"{name}.ipynb", nbformat.writes(notebook))
    return row


def training() -> dict[str, Any]:
    """Twenty steps of SpaText's fine-tune, as a command."""
    row: dict[str, Any] = {"name": "`train spatext`, 20 steps, 320 scenes", "what": "command"}
    with TemporaryDirectory() as folder:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = subprocess.Popen([sys.executable, "-c", COMMAND, *TRAIN], cwd=folder, **quiet)
        with watched(row, run.pid, folder):
            if run.wait():
                raise RuntimeError("spatext-lab train spatext failed")
    return row


def server() -> dict[str, Any]:
    """A student's JupyterLab before any notebook is open."""
    row: dict[str, Any] = {"name": "JupyterLab", "what": "server"}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    with TemporaryDirectory() as folder:
        run = subprocess.Popen(
            [*command, "--ServerApp.port=0"], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        with watched(row, run.pid, folder):
            next(line for line in run.stderr if "is running at" in line)
            time.sleep(1)
            run.terminate()
            run.communicate()
    return row


def sampling(count: int, rounds: int = 3) -> dict[str, Any]:
    """An image in each of some processes at once; seconds until all are there, and CPU seconds."""
    with Crowd(count, str(zoo.folder("pocket", "spatext")), 10, {}) as crowd:
        workers = [psutil.Process(worker.pid) for worker in crowd.workers]
        crowd()  # what is done once does not count
        wall, cpu = [], []
        for _ in range(rounds):
            before, begin = _spent(workers), time.perf_counter()
            crowd()
            wall.append(time.perf_counter() - begin)
            cpu.append((_spent(workers) - before) / count)
    name = "1 process" if count == 1 else f"{count} processes at once"
    return {"name": name, "seconds": median(wall), "cpu_seconds_each": median(cpu)}


def stable_diffusion_gb() -> float:
    """Weights of Stable Diffusion 1.5 and of its map's OpenCLIP ViT-L/14, in float32: computed from
    their classes on torch's meta device, which holds shapes and no numbers."""
    levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    levels |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "latent_channels": 4}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    with torch.device("meta"):
        parts = (
            UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            AutoencoderKL(up_block_types=("UpDecoderBlock2D",) * 4, **levels),
            CLIPTextModel(CLIPTextConfig(**text, num_attention_heads=12)),
            open_clip.create_model("ViT-L-14", device="meta"),
        )
    return 4e-9 * sum(weight.numel() for part in parts for weight in part.parameters())


def _spent(workers: Sequence[psutil.Process]) -> float:
    return sum(sum(worker.cpu_times()[:2]) for worker in workers)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: round(value, 3) if isinstance(value, float) else value for k, value in row.items()}


def main() -> None:
    """Measures, and writes the file."""
    parser = argparse.ArgumentParser("python -m benchmarks.classroom", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/measured/classroom.json")
    out = parser.parse_args().out
    found: dict[str, Any] = {
        "command": "python -m benchmarks.classroom",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    found["stable_diffusion_gb"] = round(stable_diffusion_gb(), 3)
    found["sampling"] = [_rounded(sampling(count)) for count in AT_ONCE]
    found["rows"] = []
    for measured in (server, training, *(partial(chapter, name) for name in CHAPTERS)):
        found["rows"].append(_rounded(measured()))
        print(found["rows"][-1], flush=True)
    files.write(out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
