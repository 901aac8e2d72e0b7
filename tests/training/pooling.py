# SPDX-License-Identifier: Apache-2.0
"""An autoencoder that answers at once, photos for it, and a script that builds their cache again
and again, killed by the system at random moments."""

import io
import json
import os
import random
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from torch import nn

from spatext_lab.datasets.coco import write_coco
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.training import cache
from spatext_lab.training.cache import manifest, store


class Pooling(nn.Module):
    """The mean colours of cells of `side` x `side` pixels, times a weight; counts its calls."""

    device = torch.device("cpu")

    def __init__(self, side: int = 8, weight: float = 1.0) -> None:
        super().__init__()
        self.config = FrozenDict(side=side, scaling_factor=1.0)
        self.weight, self.calls = nn.Parameter(torch.tensor(weight)), 0

    def encode(self, images: torch.Tensor) -> "Pooling.Out":
        self.calls += 1
        return Pooling.Out(latents=F.avg_pool2d(images, self.config["side"]) * self.weight)

    class Out(dict):
        latents = property(lambda self: self["latents"])


def photos(root: Path, count: int) -> cache.Photos:
    """Views of so many new photos in COCO layout."""
    from spatext_lab.training.recipes.reco.views import coco_views

    if not root.exists():
        write_coco(root, "train", [pocket_item("train", i) for i in range(count)])
    return coco_views(root, 64, 0)


def begin(root: Path, folder: Path) -> int:
    """Forks a process that opens the cache of photos; it exits with the number of its calls."""
    if number := os.fork():
        return number
    vae, code = Pooling(), 99
    try:
        with redirect_stdout(io.StringIO()):
            cache.opened(photos(root, 0), vae, folder=folder)
        code = vae.calls
    finally:
        os._exit(code)


def kill_again_and_again(scratch: Path, times: int) -> None:
    """Builds caches until so many processes have been killed; checks what each one left."""
    for whole in (scratch / "warm-up", scratch / "whole"):
        start = time.monotonic()
        assert os.waitpid(begin(scratch / "photos", whole), 0)[1] == 6 << 8
    takes, rng, killed, rounds, noted = time.monotonic() - start, random.Random(0), 0, 0, 0
    while killed < times:
        folder = scratch / f"round-{rounds}"
        child = begin(scratch / "photos", folder)
        time.sleep(rng.uniform(0, 0.8 * takes))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            killed += 1
            noted = check_left(folder, noted)
        else:
            assert content(folder) == content(whole)
            rounds, noted = rounds + 1, 0
    os.waitpid(begin(scratch / "photos", folder), 0)
    assert content(folder) == content(whole)
    print("killed", killed, "rounds", rounds + 1)


def check_left(folder: Path, before: int) -> int:
    """The number of shards noted, none fewer than before, all of them whole."""
    found = list(folder.glob(f"*/{manifest.NAME}"))
    shards = json.loads(found[0].read_text())["shards"] if found else []
    assert len(shards) >= before
    assert [manifest.damage(found[0].parent, shard) for shard in shards] == [""] * len(shards)
    return len(shards)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their path, and what killed builds left; locks are no files."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.suffix == ".part")
    found = (path for path in found if path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def several_at_once(scratch: Path, count: int) -> None:
    """Processes open a cache that a killed one left unfinished: one builds it, the others read."""
    child = begin(scratch / "photos", scratch / "both")
    while not list((scratch / "both").glob(f"*/{manifest.NAME}")):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = 6 - check_left(scratch / "both", 1)
    children = [begin(scratch / "photos", scratch / "both") for _ in range(count)]
    ends = sorted(os.waitpid(child, 0)[1] for child in children)
    assert ends == [0] * (count - 1) + [left << 8], ends
    assert content(scratch / "both") == content(scratch / "whole")
    print("several at once")


if __name__ == "__main__":
    torch.set_num_threads(1)
    manifest.PHOTOS = store._BLOCK = 2
    store._POLL = 0.01
    place = Path(sys.argv[1])
    photos(place / "photos", 12)
    kill_again_and_again(place, int(sys.argv[2]))
    several_at_once(place, 4)
