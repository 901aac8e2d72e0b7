# SPDX-License-Identifier: Apache-2.0
"""Several processes on one machine, as a class on one server: an image each, at the same time.

The library's choice of threads (one for a pocket model) against torch's own, all cores in each.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.timer import Case, Setup
from spatext_lab import zoo

COUNTS = (1, 4, 16)
WORKER = """
import sys
from spatext_lab import Region, Scene, SpaTextPipeline

pipeline = SpaTextPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
print("ready", flush=True)
for line in sys.stdin:  # one image for each line
    image = pipeline(scene, output_type="pt", num_inference_steps=int(line)).images
    print(image[0, :, ::8, ::8].tolist(), flush=True)
"""


def cases(setup: Setup) -> Iterator[Case]:
    """All processes of both sides are there from the start; those of one side wait."""
    folder = str(zoo.folder(setup.models, "spatext"))
    cores = {"OMP_NUM_THREADS": str(os.cpu_count())}
    for count in (1,) if setup.quick else COUNTS:
        with ExitStack() as stack:
            ours, peer = (
                stack.enter_context(Crowd(count, folder, setup.steps, threads))
                for threads in ({}, cores)
            )
            what = f"{count} process{'es' * (count > 1)}, an image each / with all cores each"
            yield Case(what, ours, peer, clock="wall")


class Crowd:
    """Some processes that generate an image each when called."""

    def __init__(self, count: int, folder: str, steps: int, threads: dict[str, str]) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | threads
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", WORKER, folder]
        self.steps = steps
        self.workers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]

    def __enter__(self) -> "Crowd":
        for worker in self.workers:
            worker.stdout.readline()
        return self

    def __exit__(self, *_) -> None:
        for worker in self.workers:
            worker.communicate()  # without a line more, it ends

    def __call__(self) -> list:
        """Some pixels of each image."""
        for worker in self.workers:
            worker.stdin.write(f"{self.steps}\n")
            worker.stdin.flush()
        return [json.loads(worker.stdout.readline()) for worker in self.workers]
