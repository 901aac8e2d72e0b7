# SPDX-License-Identifier: Apache-2.0
"""`make lab` opens its doors to this computer alone, and only to whoever has the token."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """What a server says of itself that was started with the flags of `make lab`, and its process.

    Only the browser and the port differ, and there is no user's configuration that could help.
    """
    folder = tmp_path_factory.mktemp("lab")
    recipe = re.search(r"-m jupyter (lab .*?) \$\(firstword", (ROOT / "Makefile").read_text())
    flags = [*shlex.split(recipe[1]), "--no-browser", "--allow-root", "--port=0"]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    places = {name: str(folder / name.lower()) for name in names}
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY"))}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", *flags],
            cwd=folder,
            env=own | places,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _said(folder / "jupyter_runtime_dir", process, folder / "log"), process
    finally:
        process.terminate()
        process.wait(30)


def _said(runtime: Path, process: subprocess.Popen, log: Path) -> dict:
    for _ in range(4 * SECONDS):
        assert process.poll() is None, log.read_text()
        for path in runtime.glob("jpserver-*.json"):
            try:
                said = json.loads(path.read_text())
                urllib.request.urlopen(f"{said['url']}api").close()
            except (ValueError, OSError):
                continue
            return said
        time.sleep(0.25)
    raise AssertionError(log.read_text())


def test_it_listens_on_loopback_alone(server):
    _, process = server
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    doors = [c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"]
    assert doors
    assert all(ip_address(door).is_loopback for door in doors)


def test_it_asks_for_a_long_token(server):
    said, _ = server
    assert re.fullmatch(r"[0-9a-f]{40,}", said["token"])
    address = f"{said['url']}api/contents"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address)
    assert refused.value.code == 403
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{address}?token={'0' * len(said['token'])}")
    urllib.request.urlopen(f"{address}?token={said['token']}").close()
