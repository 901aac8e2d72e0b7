# SPDX-License-Identifier: Apache-2.0
"""The live picture without a browser: what the buttons ask for and what is sent back."""

import io
import json
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

from spatext_lab import Region, Scene, SpaTextPipeline, TextToImagePipeline
from spatext_lab.diffusion import SampleStep
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.text_encoder import grow
from spatext_lab.scene.notes import warn
from spatext_lab.widgets.live import KEPT, Live, frames
from spatext_lab.widgets.painter import Painter
from tests.tiny import tiny_model

SCENE = Scene("a meadow", [Region("a red ball", box=(0.25, 0.25, 0.75, 0.75))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def spatext(folder) -> SpaTextPipeline:
    return SpaTextPipeline.from_pretrained(folder / "spatext")


class Toy(TextToImagePipeline):
    """Its picture is the seed; it counts its steps and can be made to wait."""

    def __init__(self) -> None:
        self.drawn, self.go, self.at = [], threading.Event(), threading.Semaphore(0)
        self.go.set()
        self.unet = torch.nn.Identity()

    def stream(self, scene, *, seed, num_inference_steps, guidance_scale):
        if seed == 13:
            raise ValueError("seed 13 is unlucky: take another")
        if seed == 98:
            warn("seed 98 is large")
        for step in range(num_inference_steps):
            self.at.release()
            self.go.wait()
            x = torch.full((1, 1, 1, 1), float(seed))
            self.drawn.append((seed, step))
            yield SampleStep(step, 0, x, x)

    def decode(self, latents):
        return [Image.new("RGB", (4, 4), (int(latents), 0, 0))]


class Seen(Live):
    """Keeps what it sends."""

    def __init__(self, *args) -> None:
        self.sent = []
        super().__init__(*args)

    def send(self, content, buffers=None):
        self.sent.append((content, buffers))

    def press(self, what: str) -> None:
        self._handle_custom_msg({what: True}, [])

    def wait(self) -> list[dict]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return [content for content, _ in self.sent]


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def live(toy) -> Seen:
    return Seen(Painter(SCENE), {"toy": toy})


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("scale", [None, 3.0])
def test_it_generates_what_the_pipeline_does(spatext, scale):
    live = Seen(Painter(SCENE), {"SpaText": spatext})
    live.seed, live.steps, live.guidance_scale, live.region_guidance_scale = 5, 3, 1.5, scale
    want = np.asarray(
        spatext(
            SCENE,
            seed=5,
            num_inference_steps=3,
            guidance_scale=1.5,
            region_guidance_scale=scale,
        ).images[0]
    )
    live.press("generate")
    *steps, last = live.wait()
    assert [step["done"] for step in steps] == [1, 2, 3]
    assert last == {"finished": True, "notes": []}
    assert np.array_equal(pixels(live.sent[2][1][0]), want)
    assert np.array_equal(pixels(live.image), want)


def test_code_and_button_agree(spatext):
    button, code = (Seen(Painter(SCENE), {"SpaText": spatext}) for _ in range(2))
    button.press("generate")
    button.wait()
    assert np.array_equal(np.asarray(code.generate()), pixels(button.image))
    assert bytes(code.image) == bytes(button.image)
    assert code.alt == button.alt
    assert "a red ball" in code.alt


def test_the_file_says_how_it_was_made(live):
    live.generate()
    about = Image.open(io.BytesIO(live.image)).text
    made = json.loads(about["Parameters"])
    assert Scene.from_json(made.pop("scene")) == SCENE
    settings = {"num_inference_steps": 10, "guidance_scale": 2.0}
    assert made == {"method": "toy", "seed": 0} | settings


def test_an_equal_request_is_not_sampled_twice(live, toy):
    live.generate()
    count = len(toy.drawn)
    live.press("generate")
    assert live.wait()[-1]["finished"]
    assert len(toy.drawn) == count
    live.seed = 1
    live.generate()
    assert len(toy.drawn) == 2 * count
    live.painter.caption = "another"
    live.generate()
    assert len(toy.drawn) == 3 * count
    live.steps = 1
    for live.seed in range(100, 101 + KEPT):
        live.generate()
    assert len(live._finished) == KEPT


def test_a_stop_comes_between_two_steps(live, toy):
    toy.go.clear()
    live.press("generate")
    toy.at.acquire()  # it is within the first step
    live.press("stop")
    toy.go.set()
    assert live.wait()[-1] == {"stopped": True}
    assert len(toy.drawn) == 1
    assert not live.image
    live.press("generate")  # what was broken off is not remembered as finished
    assert live.wait()[-1]["finished"]
    assert len(toy.drawn) == 1 + live.steps


def test_sampling_has_few_threads_until_it_ends_or_is_stopped(live, toy, monkeypatch):
    seen = []

    @contextmanager
    def few_threads(network):
        assert network is toy.unet
        seen.append(len(toy.drawn))
        try:
            yield
        finally:
            seen.append(len(toy.drawn))

    monkeypatch.setattr("spatext_lab.widgets.live.few_threads", few_threads)
    live.generate()
    assert seen == [0, live.steps]
    toy.go.clear()
    live.seed = 1
    while toy.at.acquire(blocking=False):  # those of the first image
        pass
    live.press("generate")
    toy.at.acquire()
    live.press("stop")
    toy.go.set()
    assert live.wait()[-1] == {"stopped": True}
    assert seen[2:] == [live.steps, live.steps + 1]


def test_a_second_request_ends_the_first(live, toy):
    toy.go.clear()
    live.press("generate")
    toy.at.acquire()
    live.seed = 7
    live.press("generate")
    assert not toy.at.acquire(timeout=0.3)  # the second has not begun
    toy.go.set()
    assert live.wait()[-1]["finished"]
    assert [seed for seed, _ in toy.drawn] == [0] + [7] * live.steps  # never side by side
    assert pixels(live.image)[0, 0, 0] == 7


def test_a_problem_is_told(live):
    live.seed = 13
    live.press("generate")
    assert live.wait() == [{"problem": "seed 13 is unlucky: take another"}]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory.\nTried to"), KeyError(3)])
@pytest.mark.parametrize("where", ["stream", "decode", "scene"])
def test_every_error_reaches_the_page(live, toy, monkeypatch, error, where):
    def fail(*_, **__):
        raise error

    if where == "scene":
        monkeypatch.setattr(Painter, "scene", property(fail))
    else:
        monkeypatch.setattr(toy, where, fail)
    live.press("generate")
    if where != "scene":
        live.wait()
    ((answer, _),) = live.sent
    text = " ".join(str(error).split())
    assert answer == {"problem": f"{type(error).__name__}: {text}; live.generate() shows where"}
    live.sent.clear()
    monkeypatch.undo()
    live.press("generate")
    assert live.wait()[-1]["finished"]


def test_an_end_of_the_process_reaches_the_page_too(live, toy, monkeypatch):
    monkeypatch.setattr(toy, "decode", lambda _: exit("no more"))
    live.press("generate")
    assert live.wait()[-1]["problem"].startswith("SystemExit: no more")


def test_a_long_error_is_truncated(live, toy, monkeypatch):
    def fail(*_, **__):
        raise ValueError("x" * 10_000)

    monkeypatch.setattr(toy, "stream", fail)
    live.press("generate")
    assert live.wait() == [{"problem": "x" * 300 + "…"}]


def test_the_page_can_ask_whether_it_works(live, toy):
    live.press("ping")
    assert live.sent.pop() == ({"working": False}, None)
    toy.go.clear()
    live.press("generate")
    toy.at.acquire()
    live.press("ping")
    assert live.sent.pop() == ({"working": True}, None)
    toy.go.set()
    assert live.wait()[-1]["finished"]  # a question is no stop


def test_two_at_once_hear_their_own_warnings(toy):
    """The first one ends last, as would leave the filters of the process changed."""
    other, before = Toy(), list(warnings.filters)
    lives = [Seen(Painter(SCENE), {"toy": pipeline}) for pipeline in (toy, other)]
    lives[1].seed = 98
    for live, pipeline in zip(lives, (toy, other), strict=True):
        pipeline.go.clear()
        live.press("generate")
        pipeline.at.acquire()
    for live, pipeline in zip(lives[::-1], (other, toy), strict=True):
        pipeline.go.set()
        live.wait()
    notes = [live.sent[-1][0]["notes"] for live in lives]
    assert notes == [[], ["seed 98 is large"]]
    assert warnings.filters == before


def test_a_warning_is_told(live):
    live.seed = 98
    live.press("generate")
    assert live.wait()[-1] == {"finished": True, "notes": ["seed 98 is large"]}


def test_only_a_method_with_a_map_is_given_its_scale(spatext, toy):
    live = Seen(Painter(SCENE), {"SpaText": spatext, "toy": toy})
    assert live.methods == [{"name": "SpaText", "map": True}, {"name": "toy", "map": False}]
    live.region_guidance_scale = 4.0
    assert live.request.region_guidance_scale == 4.0
    live.method = "toy"
    assert live.request.region_guidance_scale is None


def test_bad_input_is_named(live):
    with pytest.raises(ValueError, match="pipelines is empty"):
        Live(Painter(), {})
    with pytest.raises(traitlets.TraitError, match="expected one of toy"):
        live.method = "magic"
    with pytest.raises(traitlets.TraitError):
        live.steps = 0


def test_the_last_frame_is_the_picture(spatext):
    request = Live(Painter(SCENE), {"SpaText": spatext}).request
    *_, (done, last) = frames(spatext, request)
    assert done == request.steps
    want = spatext(SCENE, **request.settings).images[0]
    assert np.array_equal(np.asarray(last), np.asarray(want))


def test_side_by_side(live):
    assert live.beside().children == (live.painter, live)


def test_reco_too(folder, spatext):
    encoder, tokenizer = grow(spatext.text_encoder, spatext.tokenizer, 16, 77)
    unet = TextToImagePipeline.from_pretrained(folder / "text-to-image").unet
    reco = ReCoPipeline(unet, spatext.vae, encoder, tokenizer, spatext.scheduler)
    live = Live(Painter(SCENE), {"SpaText": spatext, "ReCo": reco})
    live.method, live.steps, live.region_guidance_scale = "ReCo", 2, 3.0
    assert np.array_equal(live.generate(), reco(SCENE, seed=0, num_inference_steps=2).images[0])


def test_a_text_model_has_no_map(spatext):
    parts = (spatext.unet, spatext.vae, spatext.text_encoder, spatext.tokenizer, spatext.scheduler)
    live = Live(Painter(), {"text": TextToImagePipeline(*parts)})
    assert live.methods == [{"name": "text", "map": False}]
