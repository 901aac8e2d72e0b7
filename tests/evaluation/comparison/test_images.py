# SPDX-License-Identifier: Apache-2.0
"""A comparison's images: kept, gone on with after a kill, never mixed with others."""

import json
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from spatext_lab import zoo
from spatext_lab.evaluation.comparison import images
from spatext_lab.evaluation.comparison.images import Order, identity, missing, read, sample_method
from spatext_lab.evaluation.comparison.scenes import scene_sets
from spatext_lab.evaluation.methods import METHODS, Method
from spatext_lab.scene.notes import warn
from tests.tiny import tiny_model

SCENES = 40  # of the table; 32 of them three times again
TOTAL = SCENES + 3 * 32


class Fake:
    """A sampler of noise: image k is that of its seed. It may stop, or refuse some captions."""

    def __init__(self, stop_after: int = 10**9, refused: tuple[str, ...] = ()) -> None:
        self.seeds: list[int] = []
        self.stop_after, self.refused = stop_after, refused

    def __call__(self, todo, seed):
        for task in todo:
            if task.scene.caption in self.refused:
                raise ValueError(f"regions has {len(task.scene.regions)};\n  expected fewer")
        if len(todo) > 1 or seed:  # not while its cost is measured
            if len(self.seeds) >= self.stop_after:
                raise KeyboardInterrupt
            self.seeds += range(seed, seed + len(todo))
        noise = [
            np.random.default_rng(seed + k).integers(0, 256, (64, 64, 3)) for k in range(len(todo))
        ]
        return [Image.fromarray(each.astype(np.uint8)) for each in noise]


@pytest.fixture
def fake(monkeypatch):
    """Puts a sampler in place of the method `fake`."""

    def put(sampler=None, **change) -> Fake:
        sampler = sampler or Fake()
        method = Method("a fake", lambda model, settings: sampler, {"steps": 1})
        monkeypatch.setitem(METHODS, "fake", replace(method, **change))
        return sampler

    return put


@pytest.fixture
def order(tmp_path):
    return Order(tmp_path / "out", "pocket", "some-weights", tuple(scene_sets(SCENES, 0, "boxes")))


def contents(order: Order) -> dict[str, bytes]:
    folder = order.folder("fake")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_every_image_has_its_own_seed_and_says_how_it_was_made(order, fake):
    sampler = fake()
    cost = sample_method(order, "fake")
    assert len(contents(order)) == TOTAL == len(sampler.seeds) == len(set(sampler.seeds))
    path = order.file("fake", "again-2", 5)
    with Image.open(path) as image:
        made = json.loads(image.text["Parameters"])
        again = np.asarray(image.convert("RGB"))
        assert image.text["Description"].endswith(order.sets[0].todo[5].scene.caption)
    assert made["settings"] == {"steps": 1}
    expected = np.random.default_rng(made["seed"]).integers(0, 256, (64, 64, 3))
    assert np.array_equal(again, expected)
    assert cost["left_out"] is None
    assert cost["unread"] == {}
    assert cost["seconds_per_image"] < 1 < cost["peak_memory_mb"]


@pytest.mark.parametrize("stop_after", [0, 16, 48, 120])
def test_what_was_stopped_goes_on_to_the_same_bytes(order, fake, tmp_path, stop_after):
    fake()
    whole = Order(tmp_path / "whole", order.model, order.identity, order.sets)
    sample_method(whole, "fake")
    fake(Fake(stop_after))
    with pytest.raises(KeyboardInterrupt):
        sample_method(order, "fake")
    there = len(contents(order))
    assert there >= stop_after
    rest = fake()
    sample_method(order, "fake")
    assert len(rest.seeds) == TOTAL - there
    assert contents(order) == contents(whole)


def test_a_whole_batch_is_made_again_where_one_image_is_missing(order, fake):
    fake()
    sample_method(order, "fake")
    before = contents(order)
    order.file("fake", "scenes", 20).unlink()
    again = fake()
    sample_method(order, "fake")
    assert again.seeds == list(range(16, 32))
    assert contents(order) == before


def test_what_is_complete_is_not_even_loaded(order, fake):
    fake()
    first = sample_method(order, "fake")
    fake(load=lambda model, settings: pytest.fail("it was loaded"))
    assert sample_method(order, "fake") == first


@pytest.mark.parametrize("what", ["settings", "model", "seed", "scene"])
def test_images_that_were_made_otherwise_are_named(order, fake, what):
    fake()
    sample_method(order, "fake")
    sets = order.sets
    if what == "settings":
        fake(settings={"steps": 2})
    elif what == "seed":
        sets = scene_sets(SCENES, 1, "boxes")
    elif what == "scene":
        sets = scene_sets(SCENES, 0, "segments")
    model = "other-weights" if what == "model" else order.identity
    other = Order(order.out, order.model, model, tuple(sets))
    with pytest.raises(ValueError, match=f"0000.png was made with {what} .*this run has") as error:
        missing(other, "fake")
    assert f"pass another --out, or delete {order.folder('fake')}" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_damaged_image_is_named(order, fake, content):
    fake()
    sample_method(order, "fake")
    order.file("fake", "again-1", 3).write_bytes(content)
    with pytest.raises(ValueError, match=r"again-1.0003.png is no image of a comparison: delete"):
        sample_method(order, "fake")


def test_more_scenes_use_those_that_are_there(fake, tmp_path):
    fake()
    few = Order(tmp_path, "pocket", "w", tuple(scene_sets(16, 0, "boxes")))
    sample_method(few, "fake")
    more = Order(tmp_path, "pocket", "w", tuple(scene_sets(32, 0, "boxes")))
    found = missing(more, "fake")
    assert found == {one.name: list(range(16, 32)) for one in more.sets}


# --- what cannot be read --------------------------------------------------------------------------


def test_a_scene_that_a_method_refuses_is_left_out_and_counted(order, fake):
    bad = order.sets[0].todo[3].scene.caption
    numbers = [k for k, t in enumerate(order.sets[0].todo) if t.scene.caption == bad]
    sampler = fake(Fake(refused=(bad,)))
    cost = sample_method(order, "fake")
    names = {f"{one.name} {k}" for one in order.sets for k in numbers if k < len(one.todo)}
    assert set(cost["unread"]) == names
    assert "; expected fewer" in cost["unread"]["scenes 3"]
    assert len(contents(order)) == TOTAL - len(names)
    assert sorted(read(order, "fake")["scenes"]) == [k for k in range(SCENES) if k not in numbers]
    sampler.seeds = []
    assert sample_method(order, "fake") == cost
    assert sampler.seeds == []  # it is not asked again


def test_a_method_whose_model_is_not_there_is_left_out(order):
    found = sample_method(order, "words")
    assert found == {"left_out": "pocket has no folder 'reco-words'"}
    assert not order.folder("words").exists()


def test_warnings_are_counted(order, fake):
    def sampler(todo, seed):
        warn(f"caption {seed} is too long")
        return Fake()(todo, seed)

    fake(sampler)
    assert sample_method(order, "fake")["warnings"] == [9, "caption 0 is too long"]


def test_warnings_of_a_stopped_run_count_too(order, fake):
    for one in (Fake(stop_after=48), Fake()):
        fake(lambda todo, seed, one=one: warn("too long") or one(todo, seed))
        with suppress(KeyboardInterrupt):
            sample_method(order, "fake")
    assert sample_method(order, "fake")["warnings"] == [9, "too long"]


def test_methods_of_boxes_get_boxes(order, fake):
    for protocol in ("boxes", "segments"):
        fake(protocol=protocol)
        scene = order.sets[0].asked("fake")[0].scene
        assert {region.is_mask for region in scene.regions} == {protocol == "segments"}
    masks = order.sets[0].todo[0].masks
    for mask, box in zip(masks, order.sets[0].boxes[0], strict=True):
        rows, columns = np.where(mask)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box == pytest.approx([edge / 64 for edge in edges])


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tiny_model(tmp_path_factory.mktemp("model"))
    shutil.rmtree(place / "reco-words")
    return place


def test_the_identity_changes_with_every_weight(root, tmp_path):
    before = identity(str(root))
    assert identity(str(root)) == before
    weights = root / "reco" / "unet" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert identity(str(root)) != before
    weights.write_bytes(kept)
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / "a").write_text("1")
    zoo.seal(tmp_path / "sealed")
    sealed = identity(str(tmp_path / "sealed"))
    (tmp_path / "sealed" / "a").write_text("2")
    zoo.seal(tmp_path / "sealed")
    changed = identity(str(tmp_path / "sealed"))
    assert changed != sealed
    for card in ("README.md", "card.json", "masks.png"):
        (tmp_path / "sealed" / card).write_text("1")
    zoo.seal(tmp_path / "sealed")
    assert identity(str(tmp_path / "sealed")) == changed


def test_a_killed_process_is_gone_on_with(root, tmp_path, monkeypatch):
    """SIGKILL as soon as some images are there; the rest comes from a process of its own.

    The processes come from one that has the library already; a new one takes ten seconds for it.
    """
    ready = get_context("forkserver")
    ready.set_forkserver_preload([images.__name__])
    monkeypatch.setattr(images, "get_context", lambda _: ready)
    sets = scene_sets(33, 0, "boxes")[:1]
    order = Order(tmp_path / "out", str(root), identity(str(root)), tuple(sets))
    process = get_context("fork").Process(target=sample_method, args=(order, "reco"))
    process.start()
    while process.is_alive() and len(list(order.folder("reco").glob("*/*.png"))) < 17:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in order.folder("reco").glob("*/*.png")}
    assert 17 <= len(kept) < 33
    found = images.sample_all(order, ["reco", "words"])
    assert found["reco"]["unread"] == {}
    assert found["words"]["left_out"].endswith("has no folder 'reco-words'")
    assert sorted(read(order, "reco")["scenes"]) == list(range(33))
    first = [path for path in kept if int(path.stem) < 16]  # a whole batch stays as it was
    assert all(path.stat().st_mtime_ns == kept[path] for path in first)
