# SPDX-License-Identifier: Apache-2.0
"""How long one image takes on a quiet machine and beside two busy processes.

    python benchmarks/busy_machine.py

Prints, for the library's own choice of threads, for one thread and for all cores, the median time
of an image of the pocket SpaText model and the ratio of busy to quiet; it should be at most 3 for
the library's choice. Run it while nothing else runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

IMAGE = """
import sys, time
import torch
from spatext_lab import Region, Scene, SpaTextPipeline, zoo

pipeline = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
pipeline(scene)
print(torch.get_num_threads(), flush=True)
for line in sys.stdin:  # one image for each line
    start = time.perf_counter()
    pipeline(scene)
    print(time.perf_counter() - start, flush=True)
"""
BUSY = "while True: pass"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=7, help="images for each median")
    images = parser.parse_args().images
    for name, threads in (("library", None), ("one thread", 1), ("all cores", os.cpu_count())):
        quiet, busy = measure(threads, images)
        print(f"{name:10}  quiet {quiet:.2f} s  busy {busy:.2f} s  ratio {busy / quiet:.1f}")


def measure(threads: int | None, images: int) -> tuple[float, float]:
    """Median seconds of an image, quiet and beside two busy processes."""
    plain = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", IMAGE], env=plain | chosen, **pipe) as worker:
        worker.stdout.readline()
        quiet = median(worker, images)
        others = [subprocess.Popen([sys.executable, "-c", BUSY], env=plain) for _ in range(2)]
        try:
            time.sleep(1)
            busy = median(worker, images)
        finally:
            for other in others:
                other.kill()
                other.wait()
        worker.stdin.close()
    return quiet, busy


def median(worker: subprocess.Popen, images: int) -> float:
    """Median seconds of several images."""
    seconds = []
    for _ in range(images):
        worker.stdin.write("\n")
        worker.stdin.flush()
        seconds.append(float(worker.stdout.readline()))
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
