# SPDX-License-Identifier: Apache-2.0
"""Warnings that a thread collects: its own, and without a trace in the process."""

import subprocess
import sys
import threading
import warnings

import pytest

from spatext_lab.scene.notes import collected, warn


def test_alone_it_is_a_warning_at_the_callers_line(tmp_path):
    # In a process of its own: the tests' type checks put a frame between.
    (tmp_path / "script.py").write_text(
        "from spatext_lab.scene.notes import warn\n\nwarn('look out')\n"
    )
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{tmp_path / 'script.py'}:3: UserWarning: look out" in done.stderr


def test_collected_once_each_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with collected() as texts:
            for text in ("one", "two", "one"):
                warn(text)
    assert texts == ["one", "two"]


def test_threads_hear_themselves_alone():
    """Twelve, overlapping in an order that would leave recorded filters changed."""
    before, texts = list(warnings.filters), {}
    gates = [threading.Event() for _ in range(12)]
    inside = threading.Barrier(13)

    def work(k: int) -> None:
        with collected() as heard:
            inside.wait()
            gates[k].wait()
            warn(f"note {k}")
        texts[k] = heard

    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    inside.wait()
    for gate in gates:
        gate.set()
    for thread in threads:
        thread.join()
    with pytest.warns(UserWarning, match="of the session"):
        warn("of the session")
    assert texts == {k: [f"note {k}"] for k in range(12)}
    assert warnings.filters == before
