# SPDX-License-Identifier: Apache-2.0
"""Progress of work that takes long: a bar in a terminal, one closing line in a log."""

import sys
import time
from typing import Any

from tqdm import tqdm

PATIENCE = 2.0  # seconds without a word


class Progress(tqdm):
    """tqdm's bar, silent for two seconds; where stderr is no terminal, one line at the end.

        for chunk in Progress(chunks, desc="caching", unit="image"):
            ...

    Args:
        items: what to iterate over; None where the caller calls `update`.
        desc: what is being done, in front of the bar.
        unit: what is counted, in the singular.
        more: for tqdm, such as `total` and `initial`.
    """

    def __init__(self, items: Any = None, *, desc: str, unit: str, **more: Any) -> None:
        self.live = sys.stderr.isatty()
        quiet = {} if self.live else {"mininterval": float("inf"), "maxinterval": float("inf")}
        super().__init__(items, desc=desc, unit=unit, delay=PATIENCE, **more | quiet)
        self.began = time.monotonic()

    def close(self) -> None:
        """Ends the bar; a log gets one line with the count and the time."""
        seconds = time.monotonic() - self.began
        if not (self.live or self.disable) and seconds >= PATIENCE:
            count = f"{self.n} {self.unit}s"
            if self.unit_scale:
                count = f"{self.format_sizeof(self.n)}{self.unit}"
            print(f"{self.desc}: {count} in {seconds:.0f} s", file=sys.stderr)
        super().close()
