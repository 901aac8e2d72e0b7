# SPDX-License-Identifier: Apache-2.0
"""Fetches in child processes that may be killed: `python nursery.py ROOT MIRROR`.

For each line on stdin a child begins, and its number is printed; when it has ended, "killed" or
"ended CODE". The library's modules are imported only once.
"""

import os
import sys

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
    for _ in sys.stdin:
        if (pid := os.fork()) == 0:
            child(root, mirror)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("killed" if os.WIFSIGNALED(status) else f"ended {status}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
