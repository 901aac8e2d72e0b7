# SPDX-License-Identifier: Apache-2.0
"""A cache on disk: what photos become, encoded once for every run that starts from the same."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from spatext_lab.clip import Clip
from spatext_lab.figures.progress import Progress
from spatext_lab.training import checkpoint, processes
from spatext_lab.training.ahead import Ahead
from spatext_lab.training.cache import manifest
from spatext_lab.training.cache.encode import SEGMENTS, Encoded, Encoder, Ready, chunks, joined
from spatext_lab.training.cache.examples import Photos
from spatext_lab.training.cache.memory import Cache
from spatext_lab.training.cache.shards import columns
from spatext_lab.training.plan import cores

FOLDER = Path("outputs/cache")
FORMAT = 1  # to be raised with every change of what is stored, or of how it is made
_BLOCK = 16  # photos that threads prepare ahead of the networks; a shard has whole blocks
_POLL = 1.0  # seconds between two looks at a cache that another process builds


def opened(
    photos: Photos, vae, clip: Clip | None = None, halves: bool = False, folder: Path | None = None
) -> Cache:
    """The cache of photos, from the folder where an earlier run left it, or built there now.

    Any number of processes may call this at once: one of them builds, the others wait for it.

    Args:
        clip: embeds the segments; None to keep the scenes instead.
        halves: also keep the latents of the images at half their width and height.
        folder: has a folder for each cache; `FOLDER` if not given.

    Raises:
        OSError: no space, no permission, a photo that the operating system cannot read.
        ValueError: what `Photos.items` raises, and where no photo gives an example.
    """
    encoder = Encoder(vae, clip, halves)
    made = _made(photos, encoder)
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    place = (folder or FOLDER) / f"{photos.root.resolve().name}-{photos.made['kind']}-{key}"
    with processes.first_here():
        found = manifest.read(place, made)
        if not manifest.is_whole(place, found) or manifest.left(place, found):
            with _turn(place):
                _complete(place, made, photos, encoder)
            found = manifest.read(place, made)
    total = sum(shard["examples"] for shard in found["shards"])
    if not total:
        raise ValueError(f"no photo of {photos.root} keeps a region; choose a smaller min_area")
    size = manifest.shown(manifest.size(found))
    print(f"cache of {total} examples, {size}; to remove it: rm -r {place}")
    return Cache(**columns(place / shard["file"] for shard in found["shards"]))


def _made(photos: Photos, encoder: Encoder) -> dict[str, Any]:
    """All that a cache depends on, JSON values: another value is another cache."""
    vae, clip = encoder.vae, encoder.clip
    how = {"format": FORMAT, "halves": encoder.halves, "segments": SEGMENTS}
    how |= {"vae": _network(vae.state_dict(), vae.config)}
    how |= {"clip": None if clip is None else _network(clip.state_dict(), clip.settings)}
    return json.loads(json.dumps(how | photos.identity))


def _network(weights: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """SHA-256 of a network's weights and settings, wherever it was read from."""
    plain = {key: value for key, value in settings.items() if not key.startswith("_")}
    weights = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    return checkpoint.digest(weights, json.dumps(plain, sort_keys=True, default=str))


@contextmanager
def _turn(place: Path) -> Iterator[None]:
    """Holds a cache for this process, as soon as no other one holds it; a killed one holds none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process, which builds {place}")
        lock.acquire(poll_interval=_POLL)
    try:
        yield
    finally:
        lock.release()


def _complete(place: Path, made: dict[str, Any], photos: Photos, encoder: Encoder) -> None:
    """Builds all shards that are not in the folder as they were written."""
    found = manifest.read(place, made)
    if found:
        manifest.tidy(place, found)
    if manifest.is_whole(place, found):  # now: another process may have built them meanwhile
        return
    start = manifest.new(made, [item.file_name for item in photos.items])
    if found is None or found["names"] != start["names"]:
        manifest.tidy(place, found := start)
    threads = ThreadPoolExecutor(cores())
    ahead = Ahead(_preparing(photos, encoder), _BLOCK, threads)
    bar = Progress(total=found["photos"], desc="caching", unit="photo")
    try:
        for number in range(manifest.count(found)):
            _ensure(place, found, number, ahead, encoder)
            bar.update(min(manifest.PHOTOS, found["photos"] - bar.n))
    except KeyboardInterrupt:
        kept = f"{bar.n} of {found['photos']} photos are cached"
        raise KeyboardInterrupt(f"stopped; {kept}, the same command goes on") from None
    finally:
        bar.close()
        threads.shutdown(cancel_futures=True)


def _preparing(photos: Photos, encoder: Encoder) -> Callable[[int], list[Ready]]:
    """The function that reads a photo by its number; there is nothing beyond the last one."""

    def prepared(number: int) -> list[Ready]:
        found = photos.examples(number) if number < len(photos.items) else ()
        return [encoder.prepare(example, number) for example in found]

    return prepared


def _ensure(
    place: Path, found: manifest.Manifest, number: int, ahead: Ahead, encoder: Encoder
) -> None:
    """Builds a shard, unless it is there as it was written."""
    if number < len(found["shards"]):
        if not (fault := manifest.damage(place, found["shards"][number])):
            return
        print(f"{place / found['shards'][number]['file']} {fault}: it is made again")
    manifest.add(place, found, number, _encoded(number, ahead, encoder))
    if len(found["shards"]) == 1:
        expected = manifest.shown(manifest.size(found) * manifest.count(found))
        print(f"the cache in {place} will take about {expected}")


def _encoded(number: int, ahead: Ahead, encoder: Encoder) -> Encoded:
    """The examples of a shard, through the networks."""
    each = manifest.PHOTOS // _BLOCK
    blocks = (ahead.block(k) for k in range(number * each, (number + 1) * each))
    ready = chain.from_iterable(chain.from_iterable(blocks))
    return joined([encoder.encode(chunk) for chunk in chunks(ready)])
