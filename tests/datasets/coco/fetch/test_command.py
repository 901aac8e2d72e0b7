# SPDX-License-Identifier: Apache-2.0
"""The command `spatext-lab data fetch`: what it prints, its exit codes, and how it is stopped."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatext_lab.cli.parser import main
from spatext_lab.datasets.coco.fetch import Patience, run

ROOT = Path(__file__).parents[4]
PROGRAM = "from spatext_lab.cli.parser import main; raise SystemExit(main())"


@pytest.fixture
def command(server, tmp_path, monkeypatch):
    """The words of a fetch into tmp_path/my coco from the server."""
    quick = Patience(attempts=2, first=0.01)
    monkeypatch.setattr(run, "Patience", lambda: quick)
    place = ["--root", str(tmp_path / "my coco"), "--split", "val", "--limit", "6"]
    return ["data", "fetch", *place, "--mirror", server.url]


@pytest.fixture(autouse=True)
def usual_signals():
    usual = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, usual)


def test_what_was_fetched_is_printed(command, capsys, tmp_path):
    assert main(command) == 0
    out, error = capsys.readouterr()
    assert re.search(r"^val2017 in .*my coco: 24 images, kept 6 with 6 regions$", out, re.M)
    assert re.search(r"^photos: 0 were there, 6 fetched \(\d+ kB\), 0 failed$", out, re.M)
    assert error == ""
    assert main(command) == 0
    assert "photos: 6 were there, 0 fetched (0 bytes), 0 failed\n" in capsys.readouterr().out


def test_a_failure_is_named_with_the_command_that_tries_it_again(command, capsys, server):
    main(command)
    gone = sorted(path for path in server.files if path.startswith("/val2017"))
    kept, server.files = server.files, {p: c for p, c in server.files.items() if p not in gone}
    larger = [word if word != "6" else "9" for word in command]
    assert main(larger) == 1
    out, error = capsys.readouterr()
    assert out.count("      http://127.0.0.1") == 3
    assert "3 x 404 Not Found" in out
    found = re.fullmatch(
        r"spatext-lab: 3 photos are missing; to try them again: spatext-lab (.*)\n", error
    )
    assert shlex.split(found[1]) == larger
    server.files = kept
    assert main(shlex.split(found[1])) == 0


def test_annotations_that_cannot_be_had_are_one_line(command, capsys, server):
    server.files.clear()
    assert main(command) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"spatext-lab: http://\S+/annotations_trainval2017.zip: 404 Not Found; "
        r"to go on: spatext-lab data fetch .*'.*my coco' .*\n",
        error,
    )


def test_a_wrong_address_is_the_users_to_mend(command, capsys):
    assert main([*command[:-1], "mirror.example.org"]) == 2
    assert "mirror is 'mirror.example.org': write the http" in capsys.readouterr().err


def test_a_subset_of_nothing_is_said(command, capsys):
    assert main([*command, "--min-area", "0.99"]) == 1
    assert "no photo passes; see the counts above" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
@pytest.mark.parametrize(
    ("how", "moment"),
    [(signal.SIGINT, "archive"), (signal.SIGINT, "photos"), (signal.SIGTERM, "photos")],
)
def test_it_stops_at_once_and_goes_on_later(command, server, tmp_path, how, moment):
    root = tmp_path / "my coco"
    server.chunk, server.slow = 100, "annotations" if moment == "archive" else "val2017"
    server.delay = 0.3
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 30
    while not any(part.stat().st_size for part in root.rglob("*.part")):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(how)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == f"spatext-lab: stopped; to go on: spatext-lab {shlex.join(command)}\n"
    assert len(list(root.rglob("*.part"))) in (range(1, 2) if moment == "archive" else range(1, 9))
    server.delay, server.asked[:] = 0.0, []
    assert main(command) == 0
    assert any("Range" in headers for _, headers in server.asked)
    assert list(root.rglob("*.part*")) == []


def test_neither_its_help_nor_its_work_imports_torch(command, tmp_path):
    code = f"import sys; {PROGRAM.replace('raise SystemExit(main())', 'code = main()')}; "
    code += "raise SystemExit(code or ('torch' in sys.modules) or ('httpx' not in sys.modules))"
    subprocess.run(
        [sys.executable, "-c", code, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert len(list((tmp_path / "my coco" / "val2017").iterdir())) == 6
