# SPDX-License-Identifier: Apache-2.0
"""The values of flags: from a word of the command line, or argparse's error that names it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

LARGEST = 10**9  # of a count
LAST_SEED = 2**32 - 1


def count(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1, LARGEST)


def seed(text: str) -> int:
    """A whole number of 32 bits."""
    return _whole(text, 0, LAST_SEED)


def licence(text: str) -> int | str:
    """A number of COCO's licences, or all."""
    return text if text == "all" else _whole(text, 1, 8)


def real(text: str) -> float:
    """A finite number."""
    try:
        value = float(text) if len(text) < 40 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a finite number")
    return value


def renamed(text: str) -> Any:
    """Refuses any value of `--steps`, the old name of `--num-inference-steps`."""
    raise argparse.ArgumentTypeError("denoising steps are --num-inference-steps")


def _whole(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number, {low} to {high}")
    return int(text)


TYPES = {"int": count, "float": real, "str": str, "Path": Path}
METAVARS = {"int": "N", "float": "X", "str": "NAME", "Path": "PATH"}
