# SPDX-License-Identifier: Apache-2.0
"""Fetches in child processes that are killed: `python nursery.py ROOT MIRROR`.

For each line on stdin, a number of seconds, a child begins; after that time it gets SIGKILL. Prints
"killed" or "ended", and the library's modules are imported only once.
"""

import os
import signal
import sys
import time

from spatext_lab.datasets.coco.fetch import Patience, fetch_coco
from spatext_lab.datasets.coco.fetch.download import Downloader

PATIENCE = Patience(attempts=9, first=0.001, longest=0.01)


def child(root: str, mirror: str) -> None:
    code = 1
    try:
        report = fetch_coco(
            root, "val", mirror=mirror, patience=PATIENCE, panoptic=True, min_area=0.1
        )
        code = len(report.failed)
    finally:
        os._exit(code)


def main(root: str, mirror: str) -> None:
    Downloader(PATIENCE)  # the certificates are read once
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            child(root, mirror)
        until = time.monotonic() + float(line)
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.001)
        if ended == (0, 0):
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
        print("killed" if os.WIFSIGNALED(ended[1]) else f"ended {ended[1]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
