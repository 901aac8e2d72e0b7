# SPDX-License-Identifier: Apache-2.0
"""The log of a run that was broken off is the log of one that was not."""

import csv

import pytest

from spatext_lab.training import log
from spatext_lab.training.loop import Trainer
from spatext_lab.training.plan import Plan
from tests.training import toy

PLAN = Plan(steps=12, lr=0.02, warmup=2)


@pytest.fixture
def trainer() -> Trainer:
    job = toy.make(PLAN)
    return Trainer(job.module, job.loss_at, PLAN, "cpu")


def rows(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_means_since_the_row_before(tmp_path, trainer):
    table = log.Log(tmp_path, trainer, 8, "csv")
    table.add(control=0.25)
    for step in trainer.run():
        if step.index in (3, 11):
            table.add()
    first, middle, last = rows(tmp_path / log.FILE)
    assert (first["step"], first["control"], first["loss"]) == ("0", "0.25", "")
    assert float(middle["loss"]) == pytest.approx(sum(trainer.losses[:4]) / 4)
    assert float(last["loss"]) == pytest.approx(sum(trainer.losses[4:]) / 8)
    assert float(last["rate"]) == PLAN.rate(11)
    assert float(last["images_per_second"]) > 0
    assert last["control"] == ""
    assert log.read(tmp_path / log.FILE)[0] == {"step": 0, "seconds": 0.0, "control": 0.25}


def test_a_resumed_log_leaves_out_what_will_be_trained_again(tmp_path, trainer):
    table = log.Log(tmp_path, trainer, None, "csv")
    for step in trainer.run():
        if step.index % 2:
            table.add()
    whole = rows(tmp_path / log.FILE)
    with (tmp_path / log.FILE).open("a") as file:
        file.write("1")  # killed as it wrote 14
    trainer.done, losses = 6, list(trainer.losses)
    trainer.losses = losses[:6]
    table = log.Log(tmp_path, trainer, None, "csv")
    assert [row["step"] for row in rows(tmp_path / log.FILE)] == ["2", "4", "6"]
    for end in (8, 10, 12):
        trainer.done, trainer.losses = end, losses[:end]
        table.add()
    again = rows(tmp_path / log.FILE)
    assert [(r["step"], r["loss"], r["rate"]) for r in again] == (
        [(r["step"], r["loss"], r["rate"]) for r in whole]
    )


def test_a_new_run_begins_a_new_log(tmp_path, trainer):
    log.Log(tmp_path, trainer, None, "csv").add(control=0.5)
    assert log.Log(tmp_path, trainer, None, "csv").rows == []
    assert rows(tmp_path / log.FILE) == []


def test_tensorboard_says_how_to_install_it(monkeypatch, tmp_path, trainer):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="python -m pip install tensorboard"):
        log.Log(tmp_path, trainer, None, "tensorboard")


def test_tensorboard_gets_the_same_numbers(monkeypatch, tmp_path, trainer):
    written = []

    class Board:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, *row) -> None:
            written.append(row)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(log, "find_spec", lambda name: name)
    monkeypatch.setattr(log, "_board", lambda folder, done: Board(str(folder), done + 1))
    table = log.Log(tmp_path, trainer, None, "tensorboard")
    next(trainer.run())
    row = table.add(control=0.75)
    assert written[0] == (str(tmp_path / "tensorboard"), 1)
    assert set(written[1:]) == {
        ("loss", row["loss"], 1),
        ("rate", row["rate"], 1),
        ("control", 0.75, 1),
    }
