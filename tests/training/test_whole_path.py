# SPDX-License-Identifier: Apache-2.0
"""The classroom's whole path by its commands, tiny: `models fetch`, `data fetch`, `train`, stopped
and continued, `why` and `sample`, from a hub and a web server on this machine.

Chapter 12 takes the same path with the same stand-in; `make test` executes it.
"""

import io
import json
import threading
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from spatext_lab.cli.parser import main
from spatext_lab.scene import Region, Scene
from spatext_lab.training import checkpoint, sizes
from spatext_lab.training.loop import Trainer
from tests.datasets.coco.fetch.server import Server
from tests.zoo.local_hub import OPEN_CLIP, SD, open_clip, serving, stable_diffusion

POCKET = Path(__file__).resolve().parents[2] / "data" / "pocket-coco"
SCENE = Scene("a red ball in a meadow", [Region("a red ball", box=(0.2, 0.2, 0.7, 0.8))])
PHOTOS = 16


def published() -> dict[str, bytes]:
    """What a web server has, by path: pocket scenes as JPEG, in COCO's archive of annotations."""
    files, archive = {}, io.BytesIO()
    with zipfile.ZipFile(archive, "w") as archived:
        for split in ("train2017", "val2017"):
            for kind in ("captions", "instances"):
                text = (POCKET / "annotations" / f"{kind}_{split}.json").read_text()
                records = json.loads(text.replace('.png"', '.jpg"'))
                records["images"] = records["images"][:PHOTOS]
                known = {image["id"] for image in records["images"]}
                notes = records["annotations"]
                records["annotations"] = [note for note in notes if note["image_id"] in known]
                for image in records["images"]:
                    image["coco_url"] = (
                        f"http://images.cocodataset.org/{split}/{image['file_name']}"
                    )
                archived.writestr(f"annotations/{kind}_{split}.json", json.dumps(records))
            for image in records["images"]:
                photo = io.BytesIO()
                png = POCKET / split / image["file_name"].replace(".jpg", ".png")
                Image.open(png).convert("RGB").save(photo, "JPEG", quality=95)
                files[f"/{split}/{image['file_name']}"] = photo.getvalue()
    return files | {"/annotations/annotations_trainval2017.zip": archive.getvalue()}


@pytest.fixture(scope="module")
def coco():
    with Server(published()) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    with serving({SD: stable_diffusion(root / "sd"), OPEN_CLIP: open_clip(root / "clip")}) as hub:
        yield hub


def losses(name: str) -> list[float]:
    return checkpoint.record(Path("models/sd15", f"{name}.checkpoint"))["losses"]


def stopped_after(steps: int, monkeypatch) -> None:
    """The next run is stopped by Ctrl-C after so many steps, of which each has a checkpoint."""
    whole = Trainer.run

    def run_until(trainer):
        monkeypatch.setattr(Trainer, "run", whole)
        for step in whole(trainer):
            yield step
            if trainer.done == steps:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", run_until)
    monkeypatch.setattr(sizes, "MINUTES", -1.0)


@pytest.mark.parametrize("method", ["spatext", "reco"])
def test_from_two_servers_to_an_image(method, hub, coco, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert main(["models", "fetch", "sd15", "--accept", "--endpoint", hub.endpoint]) == 0
    for split, limit in (("train", "8"), ("val", "8")):
        where = ["--root", "coco", "--split", split, "--mirror", coco.url]
        assert main(["data", "fetch", *where, "--limit", limit]) == 0
    assert len(list(Path("coco/train2017").iterdir())) == 8

    small = ["--data", "coco", "--base", "sd15", "--batch", "2", "--device", "cpu"]
    train = ["train", method, *small, "--accumulate", "2", "--steps", "4"]
    train += ["--cache", "cache", "--out"]
    assert main([*train, "models/sd15/whole"]) == 0
    asked = len(hub.asked), len(coco.asked)
    capsys.readouterr()
    stopped_after(2, monkeypatch)
    assert main([*train, "models/sd15/again"]) == 130
    assert main([*train, "models/sd15/again", "--resume"]) == 0
    assert losses("again") == losses("whole")
    assert len(list(Path("cache").glob("coco-*"))) == 1  # both read the one of the first

    why = ["why", "models/sd15/again", "--data", "coco", "--scenes", "8"]
    assert main(why) in (0, 1)  # random weights may use their layout, or not
    SCENE.save("scene.json")
    sample = ["sample", "--method", method, "--model", "models/sd15/again"]
    sample += ["--num-inference-steps", "2", "--scene", "scene.json", "--out", "image.png"]
    assert main(sample) == 0
    assert Image.open("image.png").size == (64, 64)
    assert (len(hub.asked), len(coco.asked)) == asked  # nothing was asked for after the fetches
