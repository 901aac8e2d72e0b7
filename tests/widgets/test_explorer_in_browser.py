# SPDX-License-Identifier: Apache-2.0
"""The guidance explorer in JupyterLab, and as a page of its own with no kernel and no network."""

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

CODE = """
from spatext_lab import Region, Scene, SpaTextPipeline, zoo
from spatext_lab.widgets.explorer import explore
spatext = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
scene = Scene("a red ball at the beach", [Region("a red ball", box=(0.2, 0.5, 0.5, 0.8))])
axes = {"captions": (0, 2), "maps": (0, 2, 4), "steps": (2, 3), "seeds": 2}
grid = explore("grid.json", spatext, scene, **axes)
grid
"""
# Moves a slider by a key and says how long, in ms, until the picture is there to be painted.
MOVE = """async (label) => {
    const frame = document.querySelector(".sx-top .sx-frame");
    const slider = document.querySelector(`input[aria-label="${label}"]`);
    const start = performance.now();
    slider.value = Number(slider.value) + (slider.value === slider.max ? -1 : 1);
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    await frame.querySelector("img").decode();
    await new Promise(requestAnimationFrame);
    return performance.now() - start;
}"""
SCALES = ("Guidance scale of the caption", "Guidance scale of the map")


def picture(page) -> str:
    return page.locator(".sx-top img").get_attribute("src")


def alt(page) -> str:
    return page.locator(".sx-top img").get_attribute("alt")


def keys_show_what_the_grid_has(page, shown) -> None:
    """By keys alone: each move shows the picture that `shown` says for the settings."""
    seen = set()
    page.get_by_role("slider", name=SCALES[0]).focus()
    for tabs, key, expected in [
        (0, "Home", (0, 2, 3, 0)),
        (1, "End", (0, 4, 3, 0)),
        (1, "Home", (0, 4, 2, 0)),
        (1, "End", (0, 4, 2, 1)),
    ]:
        for _ in range(tabs):
            page.keyboard.press("Tab")
        page.keyboard.press(key)
        c, m, steps, seed = expected
        assert alt(page).endswith(f"caption scale {c}, map scale {m}, {steps} steps, seed {seed}")
        assert picture(page).endswith(shown(expected))
        seen.add(picture(page))
    assert len(seen) == 4


@pytest.fixture
def page(notebook):
    notebook.show(CODE)
    notebook.page.locator(".sx-explorer[data-on]").wait_for(timeout=60_000)
    return notebook.page


def test_sliders_in_the_notebook(page, notebook):
    keys_show_what_the_grid_has(
        page,
        lambda key: notebook.python(
            f"__import__('base64').b64encode(grid.images[{tuple(map(float, key))}]).decode()"
        ),
    )


def test_a_move_shows_its_picture_in_time(page):
    times = [page.evaluate(MOVE, label) for label in SCALES * 10]
    print(f"slider to picture: {max(times):.0f} ms at most, of {len(times)}")
    assert sorted(times)[-2] < 100  # one may fall into something else that the machine does


def test_the_film(page):
    slider = page.get_by_role("slider", name="Denoising step", exact=True)
    frames = page.locator(".sx-frames img")
    slider.press("Home")
    first = [image.get_attribute("src") for image in frames.all()]
    slider.press("End")
    last = [image.get_attribute("src") for image in frames.all()]
    assert len(first) == 4
    assert all(a != b for a, b in zip(first, last, strict=True))
    assert frames.nth(2).get_attribute("alt") == "Step 3: what the caption changes"


def test_an_exported_page_needs_no_kernel(page, notebook, tmp_path):
    html = notebook.python("grid._repr_html_()")
    output = new_output("display_data", {"text/html": html, "text/plain": "a grid"})
    exported = new_notebook(cells=[new_code_cell("grid", outputs=[output])])
    nbformat.validate(exported)
    (tmp_path / "page.html").write_text(HTMLExporter().from_notebook_node(exported)[0])
    stored = "__import__('json').load(open('grid.json'))['images']"
    pictures = notebook.python(stored)
    alone = page.context.new_page()
    # This page alone is without a network: JupyterLab, in the same browser, asks its server on.
    alone.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    try:
        alone.goto((tmp_path / "page.html").as_uri())

        def shown(key) -> str:
            c, m, steps, seed = key
            return pictures[(((0, 2).index(c) * 3 + (0, 2, 4).index(m)) * 2 + steps - 2) * 2 + seed]

        keys_show_what_the_grid_has(alone, shown)
    finally:
        alone.close()
