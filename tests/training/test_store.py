# SPDX-License-Identifier: Apache-2.0
"""A cache on disk: the numbers of the one in memory, whatever kills, damages or changes it."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spatext_lab.clip import Clip
from spatext_lab.datasets.coco import read_coco, write_coco
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.training import cache
from spatext_lab.training.cache import encode, manifest, shards, store
from spatext_lab.training.plan import Plan
from spatext_lab.training.recipes import reco, spatext
from spatext_lab.training.recipes.reco import views
from spatext_lab.training.run import run
from tests.training.pooling import Pooling, content
from tests.training.steps import losses

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Shards of four photos, which pass through the networks at once."""
    monkeypatch.setattr(manifest, "PHOTOS", 4)
    monkeypatch.setattr(store, "_BLOCK", 2)
    monkeypatch.setattr(encode, "_CHUNK", 4)


@pytest.fixture
def coco(tmp_path) -> Path:
    """A folder in COCO layout, 10 photos."""
    write_coco(tmp_path / "photos", "train", [pocket_item("train", i) for i in range(10)])
    return tmp_path / "photos"


def squares(root: Path, size: int = 64, **choice) -> cache.Photos:
    return cache.squares(root, size, {"min_area": 0.02, "regions": (1, 6)} | choice)


def in_memory(photos: cache.Photos, *networks, **more) -> cache.Cache:
    """What the cache on disk rounds to half precision, in memory."""
    found = list(chain.from_iterable(map(photos.examples, range(len(photos.items)))))
    built = vars(cache.build(found, len(found), *networks, **more))
    tensors = {k: v.half().float() for k, v in built.items() if isinstance(v, torch.Tensor)}
    return cache.Cache(**built | tensors)


def only(folder: Path) -> Path:
    """The one cache in a folder."""
    (place,) = caches(folder)
    return place


def caches(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


# --- the same numbers -----------------------------------------------------------------------------


def test_all_rows_are_those_of_the_cache_in_memory(root, coco, tmp_path):
    """To the last bit, and the texts as they are."""
    vae = TextToImagePipeline.from_pretrained(root / "text-to-image").vae
    clip = Clip.from_pretrained(root / "spatext" / "clip")
    want = in_memory(squares(coco), vae, clip, halves=True)
    got = cache.opened(squares(coco), vae, clip, halves=True, folder=tmp_path / "c")
    assert len(got) == len(want) == 10
    index = torch.tensor([9, 0, 3, 4, 4, 8])
    for field in fields(cache.Cache):
        a, b = getattr(want, field.name), getattr(got, field.name)
        if isinstance(a, torch.Tensor):
            assert b[index].dtype == torch.float32
            assert torch.equal(b[index], a[index])
        else:
            assert a is b is None or list(b) == a
    with pytest.raises(IndexError, match="index is 10; there are 10 examples"):
        got.captions[10]


def test_coverages_lose_nothing_where_a_cell_has_up_to_255_pixels(root, coco, tmp_path):
    clip = Clip.from_pretrained(root / "spatext" / "clip")
    for side, error in ((8, 0), (32, 1 / 510)):
        vae = Pooling(side)
        want = cache.build(cache.coco_examples(subset(coco), 64), 10, vae, clip).painted
        got = cache.opened(squares(coco), vae, clip, folder=tmp_path / "c").painted
        assert (got[torch.arange(10)] - want).abs().max() <= error


def subset(root: Path):
    return read_coco(root, "train", min_area=0.02, regions=(1, 6))


def test_views_are_those_of_the_cache_in_memory(root, coco, tmp_path):
    """Four of a photo, with their boxes to the last digit."""
    vae = TextToImagePipeline.from_pretrained(root / "text-to-image").vae
    photos = views.coco_views(coco, 64, 0)
    want, got = in_memory(photos, vae), cache.opened(photos, vae, folder=tmp_path / "c")
    assert len(got) == len(want) == 40
    assert list(got.scenes) == want.scenes
    assert list(got.captions) == want.captions
    assert torch.equal(got.latents[torch.arange(40)], want.latents)


@pytest.mark.parametrize("recipe", [spatext, reco])
@pytest.mark.usefixtures("small")
def test_a_run_learns_the_same_from_disk_as_from_memory(recipe, coco, monkeypatch, tmp_path):
    """The losses of a run that builds the cache, of one that reads it, of one without, are equal:
    to the last bit."""
    given = {"data": coco, "batch": 4, "cache": tmp_path / "c"}
    plan = Plan(steps=4, lr=2e-3)
    first, again = (losses(recipe.make(plan, "cpu", **given), same_data=False) for _ in range(2))
    assert first == again

    def memory(photos, vae, clip=None, halves=False, folder=None):
        return in_memory(photos, vae, clip, halves=halves)

    monkeypatch.setattr(cache, "opened", memory)
    assert losses(recipe.make(plan, "cpu", **given), same_data=False) == first


@pytest.mark.usefixtures("small")
def test_the_command_has_a_folder_for_caches_and_the_card_does_not_name_it(coco, tmp_path, capsys):
    given = {"steps": 2, "device": "cpu", "data": coco, "cache": tmp_path / "here"}
    out = run("spatext", out=tmp_path / "model", **given)
    place = only(tmp_path / "here")
    assert place.name.startswith("photos-squares-")
    assert f" kB; to remove it: rm -r {place}\n" in capsys.readouterr().out
    facts = json.loads((out / "card.json").read_text())
    assert facts["given"] == {"data": "photos"}
    assert facts["data"].startswith("10 photos of photos, train2017;")
    with pytest.raises(ValueError, match="cache keeps what is made of photos; pass the folder"):
        run("spatext", cache=tmp_path / "here")
    place.rename(tmp_path / "elsewhere")  # the same run goes on with its cache somewhere else
    assert run("spatext", out=out, resume=True, **given | {"cache": tmp_path / "new"}) == out


# --- when it is built anew ------------------------------------------------------------------------


def test_a_cache_is_built_once(coco, tmp_path):
    """Whatever the folder is called, and where the autoencoder came from."""
    first, second = Pooling(), Pooling()
    before = cache.opened(squares(coco), first, folder=tmp_path / "c")
    assert first.calls == 3
    photos = squares(coco.rename(tmp_path / "photos2").rename(coco))
    after = cache.opened(photos, second, folder=tmp_path / "c")
    assert second.calls == 0
    assert "items" not in vars(photos)  # not even the annotations were read
    assert torch.equal(after.latents[torch.arange(10)], before.latents[torch.arange(10)])


def other_photo(coco: Path) -> None:
    path = sorted((coco / "train2017").iterdir())[3]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # neither its name nor its size is another
    path.write_bytes(content)


def other_annotation(coco: Path) -> None:
    path = coco / "annotations" / "captions_train2017.json"
    text = path.read_text()
    path.write_text(text.replace('"caption": "', '"caption": "Look: ', 1))
    assert path.read_text() != text


def another_annotation_of_val(coco: Path) -> None:
    (coco / "annotations" / "captions_val2017.json").write_text("{}")


CHANGES = {
    "weights": {"vae": Pooling(weight=0.5)},
    "settings": {"vae": Pooling(side=4)},
    "size": {"size": 32},
    "area": {"min_area": 0.03},
    "licences": {"licences": None},
    "categories": {"categories": {"ball", "tree"}},
    "halves": {"halves": True},
    "photo": {"change": other_photo},
    "annotation": {"change": other_annotation},
    "nothing": {"change": another_annotation_of_val},
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_input_is_another_cache(what, coco, tmp_path):
    """Beside the old one, which stays as it was and is found again."""
    cache.opened(squares(coco), Pooling(), folder=tmp_path / "c")
    old = content(tmp_path / "c")
    given = {"vae": Pooling(), "halves": False} | CHANGES[what]
    given.pop("change", lambda _: None)(coco)
    vae, halves = given.pop("vae"), given.pop("halves")
    vae.calls = 0
    cache.opened(squares(coco, **given), vae, halves=halves, folder=tmp_path / "c")
    assert len(caches(tmp_path / "c")) == (1 if what == "nothing" else 2)
    assert (vae.calls > 0) == (what != "nothing")
    now = content(tmp_path / "c")
    assert {name: now[name] for name in old} == old


def test_views_of_another_seed_are_another_cache(coco, tmp_path, monkeypatch):
    for count, (seed, number) in enumerate([(0, 4), (1, 4), (1, 2), (1, 2)], start=1):
        monkeypatch.setattr(views, "VIEWS", number)
        pool = cache.opened(views.coco_views(coco, 64, seed), Pooling(), folder=tmp_path / "c")
        assert len(pool) == 10 * number
        assert len(caches(tmp_path / "c")) == min(count, 3)


# --- kills, damage, no space ----------------------------------------------------------------------


def test_fifty_kills_lose_nothing_and_several_processes_build_one_cache(tmp_path):
    """In another process: whatever moment a build is killed at, the folder is in the end that of a
    build that ran through, byte for byte; and what was noted before is never lost."""
    command = [sys.executable, "-m", "tests.training.pooling", str(tmp_path), "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    killed, both = done.stdout.splitlines()
    assert killed.startswith("killed 50 rounds ")
    assert int(killed.split()[-1]) > 3  # not one build alone
    assert both == "several at once"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    path.write_bytes((path.parent / "shard-00002.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, r"has \d+ bytes, not \d+"),
        (flip, "has another checksum"),
        (swap, r"has \d+ bytes, not \d+"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_damaged_shard_is_made_again_and_no_other(harm, words, coco, tmp_path, capsys):
    cache.opened(squares(coco), Pooling(), folder=tmp_path / "c")
    old, vae = content(tmp_path / "c"), Pooling()
    harm(path := only(tmp_path / "c") / "shard-00001.safetensors")
    assert content(tmp_path / "c") != old
    capsys.readouterr()
    cache.opened(squares(coco), vae, folder=tmp_path / "c")
    assert content(tmp_path / "c") == old
    assert vae.calls == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "made again" in line)
    assert re.match(rf"{re.escape(str(path))} {words}", line)


def test_a_damaged_manifest_and_strange_shards_are_replaced(coco, tmp_path):
    cache.opened(squares(coco), Pooling(), folder=tmp_path / "c")
    old, place = content(tmp_path / "c"), only(tmp_path / "c")
    (place / "shard-00007.safetensors").write_bytes(b"of another cache")
    (place / ".shard-00001.safetensors.1-x.part").mkdir()
    for text in (None, "{", "[]", '{"made": 1}'):
        if text:
            (place / manifest.NAME).write_text(text)
        cache.opened(squares(coco), Pooling(), folder=tmp_path / "c")
        assert content(tmp_path / "c") == old


def test_a_damaged_photo_is_left_out_by_name(coco, tmp_path, capsys):
    path = sorted((coco / "train2017").iterdir())[3]
    path.write_bytes(path.read_bytes()[:300])
    pool = cache.opened(squares(coco), Pooling(), folder=tmp_path / "c")
    assert f"{path.name} is damaged and left out" in capsys.readouterr().out
    assert len(pool) == 9
    assert len(list(pool.captions)) == 9


def test_photos_without_a_region_leave_no_gap(coco, tmp_path):
    """A shard without examples, one with some; none at all is an error."""
    photos = squares(coco)
    wanted = {photos.items[k].image_id for k in (1, 8, 9)}
    read = lambda item: photos.read(item) if item.image_id in wanted else []  # noqa: E731
    some = cache.Photos(coco, photos.choice, {"kind": "some"}, read)
    pool = cache.opened(some, Pooling(), folder=tmp_path / "c")
    assert list(pool.captions) == [photos.items[k].captions for k in (1, 8, 9)]
    assert torch.isfinite(pool.latents[torch.arange(3)]).all()
    none = cache.Photos(coco, photos.choice, {"kind": "none"}, lambda item: [])
    with pytest.raises(ValueError, match=r"no photo of .*photos keeps a region"):
        cache.opened(none, Pooling(), folder=tmp_path / "c")


def test_a_disk_that_is_too_small_is_seen_after_the_first_shard(coco, tmp_path, monkeypatch):
    """One line; then, with room, the build goes on."""
    vae = Pooling()
    with monkeypatch.context() as patch:
        patch.setattr(manifest.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(OSError, match=r"needs .* kB more and the disk has 0\.1 kB: free some"):
            cache.opened(squares(coco), vae, folder=tmp_path / "c")
    names = {path.name for path in only(tmp_path / "c").iterdir()}
    assert names == {"shard-00000.safetensors", manifest.NAME}
    assert len(cache.opened(squares(coco), vae, folder=tmp_path / "c")) == 10
    assert vae.calls == 3


def test_a_shard_that_cannot_be_written_leaves_nothing_half_written(coco, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(OSError, match=r"shard-00000\.safetensors cannot be written"):
            cache.opened(squares(coco), Pooling(), folder=tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(only(tmp_path / "c").iterdir()) == []


def test_numbers_beyond_half_precision_are_refused(coco, tmp_path):
    with pytest.raises(FloatingPointError, match="latents of shard-00000"):
        cache.opened(squares(coco), Pooling(weight=1e6), folder=tmp_path / "c")


# --- memory ---------------------------------------------------------------------------------------


def own_memory() -> int:
    """kB of this process's memory that is not a map of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says it")
def test_drawing_reads_the_file_and_keeps_nothing(tmp_path):
    """1,280 draws from 134 MB of latents: the process's own memory grows by a few batches."""
    rows = torch.randn(256, 4, 32, 32)
    shards.write(tmp_path / "0", encode.Encoded({"latents": rows}, {"captions": [["a"]] * 256}, 64))
    for number in range(1, 64):
        os.link(tmp_path / "0", tmp_path / str(number))
    before = own_memory()
    latents = shards.columns(sorted(tmp_path.iterdir()))["latents"]
    for _ in range(20):
        assert latents[torch.randint(len(latents), (64,))].shape == (64, 4, 32, 32)
    assert own_memory() - before < 20_000
