# SPDX-License-Identifier: Apache-2.0
"""The guidance explorer without a browser: its images, its file, its page."""

import copy
import io
import json
from functools import partial
from html.parser import HTMLParser
from operator import attrgetter

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from spatext_lab import Region, Scene, SpaTextPipeline, zoo
from spatext_lab.diffusion import UNetDenoiser, initial_noise
from spatext_lab.widgets import explorer
from spatext_lab.widgets.explorer import directions, explore, fingerprint
from spatext_lab.widgets.grids import Grid
from tests.tiny import tiny_model

EVIL = "</script><img src=x onerror=alert(1)>&amp;\u2028"
SCENE = Scene(EVIL, [Region("a red ball", box=(0.25, 0.25, 0.75, 0.75))])
AXES = {"captions": (0, 2), "maps": (1, 4), "steps": (2, 3), "seeds": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny")) / "spatext"


@pytest.fixture
def spatext(folder) -> SpaTextPipeline:
    return SpaTextPipeline.from_pretrained(folder)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "grid.json"


@pytest.fixture
def grid(path, spatext) -> Grid:
    return explore(path, spatext, SCENE, **AXES)


def test_each_picture_is_the_pipelines(grid, spatext):
    assert len(grid.images) == 2 * 2 * 2 * 2
    for (s, r, steps, seed), data in grid.images.items():
        settings = {"guidance_scale": s, "region_guidance_scale": r}
        want = spatext(SCENE, seed=seed, num_inference_steps=steps, **settings).images[0]
        want.save(buffer := io.BytesIO(), format="WEBP", quality=80, method=6)
        assert data == buffer.getvalue(), (s, r, steps, seed)
        assert np.array_equal(grid.image(s, r, steps, seed), Image.open(buffer).convert("RGB"))
    assert grid.image(2, 4) == grid.image(2, 4, steps=3, seed=0)


def test_a_setting_that_was_not_drawn_is_named(grid):
    with pytest.raises(ValueError, match=r"are \(3, 4, 3, 0\); sampled are .*\[0.0, 2.0\]"):
        grid.image(3, 4)


def test_the_file_is_read_back(grid, path):
    assert Grid.load(path) == grid


@pytest.mark.parametrize("text", ["", "{}", '{"format": "spatext-grid", "version": 2}', "[]"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ValueError, match=r"grid.json is not a grid"):
        Grid.load(tmp_path / "grid.json")


def test_a_fresh_file_is_used_and_a_stale_one_drawn_anew(grid, path, spatext, monkeypatch):
    calls = []
    compute = explorer._compute
    monkeypatch.setattr(explorer, "_compute", lambda *args: calls.append(args) or compute(*args))
    assert explore(path, spatext, SCENE, **AXES) == grid
    assert calls == []
    scene = Scene("another", SCENE.regions)
    assert explore(path, spatext, scene, **AXES).parameters["scene"] == scene.to_json()
    for name, other in {"captions": (0, 3), "maps": (1, 5), "steps": (2,), "seeds": 1}.items():
        found = explore(path, spatext, scene, **AXES | {name: other})
        assert found == Grid.load(path)
    assert len(calls) == 5
    with torch.no_grad():
        next(spatext.unet.parameters()).view(-1)[0] += 1
    explore(path, spatext, scene, **AXES)
    assert len(calls) == 6


@pytest.mark.parametrize(
    "part",
    ["unet", "vae", "text_encoder", "clip.model", "prior.transformer", "prior.linear"],
)
def test_the_fingerprint_sees_every_part(spatext, folder, part):
    before = fingerprint(spatext)
    assert before == fingerprint(SpaTextPipeline.from_pretrained(folder))
    module = attrgetter(part)(spatext)
    weight = module.weight if part == "prior.linear" else next(module.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert fingerprint(spatext) != before


def test_the_directions_are_differences_of_what_is_seen():
    """Against diffusers' own step from a prediction to the clean picture, with the shipped model:
    to a caption, random weights turn a deaf ear."""
    pocket = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
    scene = Scene("a starry night", SCENE.regions)
    film = directions(pocket, scene, seed=3, steps=2)
    scheduler = copy.deepcopy(pocket.scheduler)
    scheduler.set_timesteps(2)
    shape = (pocket.unet.config.out_channels, pocket.latent_size, pocket.latent_size)
    x_t, t = initial_noise([3], shape), int(scheduler.timesteps[0])
    condition, seen = pocket.condition([scene]), []
    for question in (condition.null(), *condition.single_conditions()):
        with torch.no_grad():
            prediction = UNetDenoiser(pocket.unet)(x_t, torch.tensor([t]), question)
        x_0 = scheduler.step(prediction, t, x_t).pred_original_sample
        seen.append(np.asarray(pocket.decode(x_0)[0], int))
    null, caption, map_ = seen
    assert np.abs(np.asarray(film[0]["null"], int) - null).max() <= 1
    for name, alone in (("caption", caption), ("map", map_)):
        assert np.ptp(alone - null) > 20
        want = (128 + alone - null).clip(0, 255)
        assert np.abs(np.asarray(film[0][name], int) - want).max() <= 2
    settings = {"guidance_scale": 2.0, "region_guidance_scale": 2.0}
    last = pocket(scene, seed=3, num_inference_steps=2, **settings).images[0]
    assert np.array_equal(film[-1]["seen"], last)


def test_as_text_it_is_short(grid):
    assert repr(grid) == "<Grid: 16 images, 3 steps of directions>"


def test_an_empty_axis_is_refused(path, spatext):
    with pytest.raises(ValueError, match="maps is empty"):
        explore(path, spatext, SCENE, maps=())
    assert not path.exists()


def test_the_bar_is_silent_where_CI_is_set(path, spatext, monkeypatch, capsys):
    # without the two seconds that the library waits where it is imported before tqdm
    monkeypatch.setattr("tqdm.auto.tqdm", partial(tqdm, delay=0))
    monkeypatch.setenv("CI", "1")
    explore(path, spatext, SCENE, **AXES)
    assert "sampling the grid" not in "".join(capsys.readouterr())
    monkeypatch.delenv("CI")
    explore(path, spatext, Scene("another"), **AXES)
    assert "sampling the grid" in "".join(capsys.readouterr())


class Page(HTMLParser):
    """The tags of a page with their attributes, and what its scripts say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.script = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1][0] == "script":
            self.script += data


def test_no_text_becomes_markup(grid):
    page = Page(grid._repr_html_())
    assert [tag for tag, _ in page.tags] == ["style", "div", "img", "script"]
    assert page.tags[2][1]["alt"] == EVIL
    assert set(page.tags[2][1]) == {"alt", "src"}
    begin = page.script.index("{", page.script.rindex("begin("))
    data = json.JSONDecoder().raw_decode(page.script[begin:])[0]
    assert data["caption"] == EVIL
    assert data["parameters"] == grid.parameters


def test_a_file_of_an_earlier_release_is_made_anew(tmp_path):
    """Students keep the file that chapter 06 wrote; it has no images by today's names."""
    old = tmp_path / "grid.json"
    old.write_text('{"format": "spatext-grid", "version": 1, "parameters": {}, "pictures": []}')
    assert Grid.load(old).parameters == {}
