# SPDX-License-Identifier: Apache-2.0
"""A JupyterLab as `make lab` starts it, for tests."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 60  # two busy cores are slow
FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")


@contextmanager
def jupyterlab(folder: Path, *flags: str) -> Iterator[tuple[dict, subprocess.Popen]]:
    """What a server says of itself that has the flags of `make lab` and these, and its process.

    Its configuration, and all that it writes down, is in `folder`, nothing of the user's. Only the
    browser, which is not opened, and the port, any free one, differ from `make lab`.
    """
    recipe = re.search(r"-m jupyter (lab .*?) \$\(firstword", (ROOT / "Makefile").read_text())
    flags = (*shlex.split(recipe[1]), "--no-browser", "--allow-root", "--port=0", *flags)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY"))}
    places = {name: str(folder / name.lower()) for name in FOLDERS} | {"PYTHONPATH": str(ROOT)}
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", *flags],
            cwd=folder,
            env=own | places,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _said(folder / "jupyter_runtime_dir", process, log), process
    finally:
        process.terminate()
        process.wait(30)


def _said(runtime: Path, process: subprocess.Popen, log: Path) -> dict:
    """The server's own note, once it answers."""
    for _ in range(4 * SECONDS):
        assert process.poll() is None, log.read_text()
        for path in runtime.glob("jpserver-*.json"):
            try:
                said = json.loads(path.read_text())
                urllib.request.urlopen(f"{said['url']}api").close()
            except (ValueError, OSError):  # half written, or not listening yet
                continue
            return said
        time.sleep(0.25)
    raise AssertionError(log.read_text())
