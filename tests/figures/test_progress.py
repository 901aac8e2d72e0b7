# SPDX-License-Identifier: Apache-2.0
"""Progress: nothing under two seconds, one line in a log, a bar in a terminal."""

import re
import time

import pytest

from spatext_lab.figures import progress
from spatext_lab.figures.progress import Progress


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)


def test_short_work_is_silent(capsys):
    assert list(Progress(range(50), desc="caching", unit="image")) == list(range(50))
    with Progress(total=3, desc="caching", unit="image") as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("iterated", [True, False])
def test_long_work_leaves_one_line_in_a_log(capsys, patience, iterated):
    if iterated:
        for _ in Progress(range(30), desc="caching", unit="image"):
            time.sleep(0.01)
    else:
        with Progress(total=30, desc="caching", unit="image", initial=10, mininterval=0.01) as bar:
            for _ in range(20):
                time.sleep(0.01)
                bar.update()
                bar.set_postfix(loss="0.1", refresh=False)
    out, error = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"caching: 30 images in \d+ s\n", error)


def test_large_counts_are_scaled_where_that_is_asked(capsys, patience):
    with Progress(total=5, desc="a.zip", unit="B", unit_scale=True) as bar:
        bar.update(252_907_541)
        time.sleep(0.1)
    assert capsys.readouterr().err == "a.zip: 253MB in 0 s\n"


def test_in_a_terminal_there_is_a_bar(capsys, patience, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in Progress(range(30), desc="caching", unit="image", mininterval=0.01):
        time.sleep(0.01)
    error = capsys.readouterr().err
    assert error.count("\r") > 5
    assert "caching: 100%" in error
    assert " images in " not in error
