# SPDX-License-Identifier: Apache-2.0
"""A real JupyterLab, driven by a real browser: Debian's Chromium, by playwright."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest
from jupyter_client import BlockingKernelClient

from tests.jupyterlab import jupyterlab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# For a browser without a screen, run by root in a container, that asks nobody for anything.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Questions that JupyterLab would ask in front of what is looked at
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PATIENCE = 60_000  # ms; two busy cores are slow


class Notebook:
    """A notebook that is open in a browser."""

    def __init__(self, page, kernel: BlockingKernelClient) -> None:
        self.page, self.kernel = page, kernel
        self.troubles: list[str] = []  # errors on the console, requests to other machines
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("request", self._asked)

    def _heard(self, message) -> None:
        if message.type == "error":
            self.troubles.append(f"console: {message.text}")

    def _asked(self, request) -> None:
        url = urlparse(request.url)
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1":
            self.troubles.append(f"request: {request.url}")

    def show(self, code: str) -> None:
        """Runs its only cell with this code, in place of what it showed before."""
        for source, ready in (("pass", "hidden"), (code, "visible")):
            self.page.locator(".jp-CodeCell .cm-content").first.click()
            self.page.keyboard.press("Control+A")
            self.page.keyboard.insert_text(source)
            self.page.keyboard.press("Control+Enter")
            self.page.locator(".sx").first.wait_for(state=ready, timeout=PATIENCE)

    def python(self, expression: str):
        """The value of an expression in the notebook's kernel, by way of JSON."""
        wrapped = {"it": f"__import__('json').dumps({expression})"}
        number = self.kernel.execute("", silent=True, user_expressions=wrapped)
        while (reply := self.kernel.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != number:
            pass
        answer = reply["content"]["user_expressions"]["it"]
        assert answer["status"] == "ok", answer
        return json.loads(eval(answer["data"]["text/plain"]))

    def becomes(self, expression: str, value, seconds: float = 10) -> None:
        """Waits until the expression has this value in the kernel."""
        end = time.monotonic() + seconds
        while (found := self.python(expression)) != value and time.monotonic() < end:
            time.sleep(0.05)
        assert found == value


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a JupyterLab on loopback; skipped where there is no browser for it."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; on Debian and Ubuntu: sudo apt install chromium")
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "jupyter_config_dir/lab/user-settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    (folder / "files").mkdir()
    mine = ("--ip=127.0.0.1", "--IdentityProvider.token=test")
    with jupyterlab(folder, *mine, f"--ServerApp.root_dir={folder / 'files'}") as (said, _):
        yield f"http://127.0.0.1:{said['port']}", folder


@contextmanager
def open_notebook(lab: tuple[str, Path], content: nbformat.NotebookNode) -> Iterator[Notebook]:
    """A notebook in the browser, connected to its kernel; none of its cells has been run."""
    from playwright.sync_api import sync_playwright

    address, folder = lab
    name = f"{time.monotonic_ns()}.ipynb"
    content.metadata.kernelspec = KERNEL
    nbformat.write(content, folder / "files" / name)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / f"user-{name}",
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            has_touch=True,
            viewport={"width": 1250, "height": 1000},
        )
        page = context.new_page()
        before = set((folder / "jupyter_runtime_dir").glob("kernel-*.json"))
        page.goto(f"{address}/lab/tree/{name}?reset&token=test")
        page.get_by_text(" | Idle").wait_for(timeout=PATIENCE)
        (connection,) = set((folder / "jupyter_runtime_dir").glob("kernel-*.json")) - before
        kernel = BlockingKernelClient(connection_file=str(connection))
        kernel.load_connection_file()
        kernel.start_channels()
        kernel.wait_for_ready(timeout=60)
        page.wait_for_timeout(1000)  # JupyterLab drops a cell that is run while it connects
        try:
            yield Notebook(page, kernel)
        finally:
            kernel.stop_channels()
            context.close()


@pytest.fixture(scope="module")
def opened(lab) -> Iterator[Notebook]:
    """An open notebook with one cell, and its kernel, for all tests of a file."""
    cells = [nbformat.v4.new_code_cell("pass")]
    with open_notebook(lab, nbformat.v4.new_notebook(cells=cells)) as opened:
        yield opened


@pytest.fixture
def notebook(opened) -> Iterator[Notebook]:
    """The same for one test: no error on the console, no request to another machine."""
    opened.troubles.clear()
    yield opened
    assert opened.troubles == []
