# SPDX-License-Identifier: Apache-2.0
"""Widgets in JupyterLab whose kernel fails, is busy, is restarted or stops; and the page's keys."""

import json
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

CODE = """
import time, torch
from types import SimpleNamespace
from PIL import Image
from spatext_lab.widgets.live import Live
from spatext_lab.widgets.painter import Painter
class Toy:
    pause, error, unet = 0, None, torch.nn.Identity()
    def stream(self, scene, *, seed, num_inference_steps, **settings):
        for step in range(num_inference_steps):
            time.sleep(self.pause)
            if self.error: raise self.error
            yield SimpleNamespace(x_0=seed)
    def decode(self, latents):
        return [Image.new("RGB", (4, 4), (latents, 0, 0))]
toy = Toy()
live = Live(Painter(), {"toy": toy})
live.beside()
"""


@pytest.fixture
def page(notebook):
    notebook.show(CODE)
    notebook.page.locator(".sx-live").wait_for(timeout=60_000)
    return notebook.page


def api(lab, method: str, path: str):
    address, _ = lab
    with urlopen(Request(f"{address}/api/{path}?token=test", method=method)) as answer:
        return json.loads(answer.read() or "null")


def idle(page) -> bool:
    """Whether nothing on the page pretends to be generating."""
    stop = page.get_by_role("button", name="Stop generating").is_disabled()
    return stop and page.locator(".sx-live").get_attribute("aria-busy") == "false"


def generate(page) -> None:
    page.get_by_role("button", name="Generate the image").click()


def test_an_error_is_shown_and_the_next_image_is_generated(page, notebook):
    notebook.python("setattr(toy, 'error', RuntimeError('CUDA out of memory'))")
    generate(page)
    page.get_by_text("Not generated: RuntimeError: CUDA out of memory").wait_for()
    assert idle(page)
    notebook.python("setattr(toy, 'error', None)")
    generate(page)
    page.get_by_text("Done", exact=True).wait_for()
    assert idle(page)


def test_a_busy_kernel_is_told_and_generates_when_it_is_free(page, notebook):
    notebook.kernel.execute("time.sleep(9)", silent=True)
    generate(page)
    page.get_by_text("No answer yet: the kernel is busy").wait_for()
    assert idle(page)
    page.get_by_text("Done", exact=True).wait_for(timeout=60_000)


def test_a_slow_step_is_no_dead_kernel(page, notebook):
    notebook.python("[setattr(toy, 'pause', 7), setattr(live, 'steps', 2)]")
    generate(page)
    page.wait_for_timeout(13_000)
    assert page.locator(".sx-live .sx-status").inner_text() == "Generating"
    page.get_by_text("Done", exact=True).wait_for(timeout=60_000)


def test_a_painter_says_when_the_kernel_does_not_answer(page, notebook):
    notebook.kernel.execute("time.sleep(7)", silent=True)
    page.get_by_role("button", name="Begin with the scene beach").click()
    page.locator(".sx-painter").get_by_text("No answer yet").wait_for()
    notebook.becomes("len(live.painter.regions) > 0", True, seconds=30)
    page.get_by_role("button", name="Begin with the scene beach").click()  # nothing changes
    page.wait_for_timeout(6_000)
    said = page.locator(".sx-painter .sx-status").inner_text()
    assert said.startswith("No answer") is False


@pytest.mark.parametrize("where", ["The sheet to paint on", "Caption of the whole image", "Seed"])
def test_the_pages_keys_reach_the_page(page, lab, where):
    """Ctrl S saves the notebook, wherever the cursor is; the widget's own keys stay in it."""
    file = max((lab[1] / "files").glob("*.ipynb"), key=lambda path: path.stat().st_mtime)
    file.write_text(file.read_text().replace("class Toy", "class Old"))
    field = page.get_by_label(where, exact=True)
    field.focus()
    before = file.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(50):
        page.wait_for_timeout(100)
        if page.get_by_role("button", name="Overwrite").is_visible():
            page.get_by_role("button", name="Overwrite").click()
        if file.stat().st_mtime_ns > before:
            break
    assert file.stat().st_mtime_ns > before
    field.focus()
    for key in ("Control+a", "x", "Control+z", "Control+Enter", "Shift+Enter"):
        page.keyboard.press(key)
    assert page.locator(".jp-CodeCell").count() == 1
    assert page.locator(".sx-live").is_visible()


@pytest.mark.parametrize("how", ["restarted", "killed", "stopped"])
def test_a_kernel_that_has_gone_is_told(page, notebook, lab, how):
    notebook.python("[setattr(toy, 'pause', 3600)]")
    generate(page)
    page.wait_for_function("document.querySelector('.sx-live').ariaBusy === 'true'")
    kernel = Path(notebook.kernel.connection_file).stem.removeprefix("kernel-")
    if how == "restarted":
        page.get_by_role("button", name="Restart the kernel").first.click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
    elif how == "killed":
        notebook.kernel.execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    else:
        api(lab, "DELETE", f"kernels/{kernel}")
    said = "The kernel has stopped or was restarted"
    if how == "stopped":  # which JupyterLab does not tell its widgets
        said = "it was stopped or restarted"
        page.get_by_role("button", name="Save as a scene file").click()
    for widget in (".sx-live", ".sx-painter"):
        page.locator(widget).get_by_text(said).wait_for()
    assert idle(page)
    if page.locator(".jp-Dialog").is_visible():
        page.keyboard.press("Escape")
    generate(page)
    page.wait_for_timeout(6_000)
    assert idle(page)
    for _ in range(0 if how == "stopped" else 30):
        try:
            notebook.kernel.wait_for_ready(timeout=60)
            break
        except RuntimeError:  # it is not there again yet
            page.wait_for_timeout(1000)
    notebook.troubles.clear()  # JupyterLab's own lament for its connection
