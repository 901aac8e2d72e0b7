# SPDX-License-Identifier: Apache-2.0
"""The log of a run: a table beside its checkpoint, which a resumed run continues without a seam."""

import csv
import io
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from spatext_lab.scene import files
from spatext_lab.training.loop import Trainer

Kind = Literal["csv", "tensorboard"]
FILE, BOARD = "log.csv", "tensorboard"
EVERY = 50  # steps between rows
COLUMNS = ("step", "seconds", "loss", "rate", "images_per_second", "control")


def check(kind: Kind | None) -> None:
    """Checks that a log can be written here.

    Raises:
        ValueError: tensorboard is asked for and is not installed.
    """
    if kind == "tensorboard" and not find_spec("tensorboard"):
        raise ValueError(
            "log is 'tensorboard', which is not installed: python -m pip install tensorboard; "
            "or pass --log csv"
        )


class Log:
    """Rows of numbers: the loss is the mean since the row before.

    Args:
        folder: of the run's checkpoint. What an interrupted run wrote after its last checkpoint is
            left out, for those steps are taken again.
        trainer: before its first step, or with a checkpoint loaded.
        images: of a step; None where that is not known.
        kind: "csv", or "tensorboard" for event files beside the table.
    """

    def __init__(self, folder: Path, trainer: Trainer, images: int | None, kind: Kind) -> None:
        check(kind)
        self.path, self.trainer, self.images = folder / FILE, trainer, images
        kept = read(self.path) if trainer.done else []
        self.rows = [row for row in kept if row["step"] <= trainer.done]
        files.write(self.path, "".join([_line(COLUMNS), *map(_values, self.rows)]))
        self.board = _board(folder / BOARD, trainer.done) if kind == "tensorboard" else None

    def add(self, control: float | None = None) -> dict[str, Any]:
        """Writes the row of the last step, and returns it."""
        trainer, plan = self.trainer, self.trainer.plan
        before = self.rows[-1] if self.rows else {"step": 0, "seconds": 0.0}
        losses = trainer.losses[before["step"] : trainer.done]
        seconds = trainer.seconds - before["seconds"]
        row = {"step": trainer.done, "seconds": round(trainer.seconds, 2), "control": control}
        if losses:
            row |= {"loss": sum(losses) / len(losses), "rate": plan.rate(trainer.done - 1)}
            if self.images and seconds > 0:
                row["images_per_second"] = round(self.images * len(losses) / seconds, 2)
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_values(row))
        if self.board:
            for name in COLUMNS[2:]:
                if row.get(name) is not None:
                    self.board.add_scalar(name, row[name], trainer.done)
            self.board.flush()
        return row


def read(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log; none where there is no file. What is blank is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a row
    return [_parsed(row) for row in csv.DictReader(io.StringIO(whole))]


def _parsed(row: dict[str, str]) -> dict[str, Any]:
    return {k: int(v) if k == "step" else float(v) for k, v in row.items() if v}


def _values(row: dict[str, Any]) -> str:
    return _line(row.get(name) for name in COLUMNS)


def _line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _board(folder: Path, done: int) -> Any:
    writer = import_module("torch.utils.tensorboard").SummaryWriter
    return writer(str(folder), purge_step=done + 1)


def control_rows(rows: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """(step, control) of the rows that have it."""
    return ((row["step"], row["control"]) for row in rows if row.get("control") is not None)
