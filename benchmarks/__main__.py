# SPDX-License-Identifier: Apache-2.0
"""All benchmarks in one table: `python -m benchmarks`, or `make benchmarks`."""

import argparse
import json
import os
import platform
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.timer import COLUMNS, ROUNDS, Setup, line, measure
from spatext_lab.scene import files
from spatext_lab.scene.notes import collected

NAMES = ("guidance", "diffusers_pipeline", "regions", "training", "maps", "coco", "processes")


def main() -> None:
    """Measures, prints each row as soon as it is known, and writes a JSON file if asked to."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="some of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument("--quick", action="store_true", help="small and short; no fair ratios")
    parser.add_argument("--models", default="pocket", help="a model folder; default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setup = Setup(args.models, quick=args.quick)
    rounds = 1 if args.quick else ROUNDS
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(
        f"{machine}; one thread. Median (least–most) of {rounds} in alternation, after one that "
        "does not count. Seconds are CPU time,\nwhich other processes disturb least; where threads "
        "or processes are what is compared, wall time. Below 1x, ours is faster or smaller.\n"
    )
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n", flush=True)
    rows = []
    for name in args.only:
        for case in import_module(f"benchmarks.{name}").cases(setup):
            with collected():  # a scene of 8 regions is more than the model was trained with
                rows.append(measure(case, rounds))
            print(line(rows[-1].cells()), flush=True)
    if args.json:
        facts = {"machine": machine, "threads": 1, "rounds": rounds, "quick": args.quick}
        numbers = facts | {"rows": [row.to_dict() for row in rows]}
        files.write(args.json, json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
