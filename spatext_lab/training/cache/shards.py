# SPDX-License-Identifier: Apache-2.0
"""A stored cache's shards: safetensors files, read by memory map when an example is asked for.

Numbers are kept in half precision. Coverages are counts of pixels in a cell, which loses nothing up
to 255 pixels, compressed by zlib: 0.6 kB for six masks of 64 x 64 cells, not 98. Texts are JSON.
"""

import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spatext_lab.scene import Scene, files
from spatext_lab.training.cache.encode import Encoded

AREAS = ("coverage", "painted")  # fractions of cells
LISTS: dict[str, tuple[Callable, Callable]] = {  # how a value becomes text, and back
    "captions": (json.dumps, lambda text: tuple(json.loads(text))),
    "texts": (json.dumps, lambda text: tuple(json.loads(text))),
    "scenes": (Scene.to_json, Scene.from_json),
}
_ENDS = ".ends"


def write(path: Path, rows: Encoded) -> None:
    """Writes a shard, which is there as a whole or not at all.

    Args:
        rows: what is kept of the shard's examples.

    Raises:
        OSError: it cannot be written (a full disk, say).
        FloatingPointError: a number that half precision cannot hold.
    """
    tensors, levels, shape = {}, min(rows.cell, 255), ()
    for name, values in rows.tensors.items():
        if name in AREAS:
            counts, shape = (values * levels).round().byte().numpy(), values.shape[1:]
            tensors |= _packed(name, [zlib.compress(row.tobytes()) for row in counts])
        else:
            tensors[name] = values.half().contiguous()
            if not tensors[name].isfinite().all():
                raise FloatingPointError(f"{name} of {path.name} exceed what half precision holds")
    for name, values in rows.lists.items():
        tensors |= _packed(name, [LISTS[name][0](value).encode() for value in values])
    with files.replacing(path) as beside:
        try:  # one entry, for a dictionary of several has no order in the file
            save_file(tensors, beside, {"areas": json.dumps([levels, *shape])})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from None


def _packed(name: str, pieces: list[bytes]) -> dict[str, Tensor]:
    """Pieces of different lengths as one tensor of bytes, and where in it each one ends."""
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    data = np.frombuffer(bytearray(b"".join(pieces)), np.uint8)
    return {name: torch.from_numpy(data), name + _ENDS: torch.from_numpy(ends)}


class Shard:
    """A shard's tensors over a memory map of its file: only what is looked at is read."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.levels, *self.shape = json.loads(file.metadata()["areas"])

    def __len__(self) -> int:
        return len(self.tensors["captions" + _ENDS])

    def value(self, name: str, row: int) -> Any:
        """What is kept of an example in one of LISTS."""
        return LISTS[name][1](self._piece(name, row).decode())

    def numbers(self, name: str, row: int) -> Tensor:
        """The numbers that are kept of an example, as they are kept; `scale` makes them whole."""
        if name not in AREAS:
            return self.tensors[name][row]
        counts = np.frombuffer(bytearray(zlib.decompress(self._piece(name, row))), np.uint8)
        return torch.from_numpy(counts).view(self.shape)

    def scale(self, name: str) -> float:
        """What the numbers of a name are to be divided by."""
        return self.levels if name in AREAS else 1

    def _piece(self, name: str, row: int) -> bytes:
        ends = self.tensors[name + _ENDS]
        start = ends[row - 1] if row else 0
        return self.tensors[name][start : ends[row]].numpy().tobytes()


class Column(Sequence):
    """What a stored cache has of each example under one name, read when it is indexed."""

    def __init__(self, shards: Sequence[Shard], name: str) -> None:
        self.shards, self.name = shards, name
        self.ends = list(accumulate(map(len, shards)))

    def __len__(self) -> int:
        return self.ends[-1]

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: Tensor) -> Tensor: ...

    def __getitem__(self, index):
        """The value of an example in a column of texts or scenes; of numbers, single precision,
        the rows of several examples."""
        if not isinstance(index, Tensor):
            shard, row = self._place(index)
            return shard.value(self.name, row)
        rows = [shard.numbers(self.name, row) for shard, row in map(self._place, index.tolist())]
        return torch.stack(rows).float().div_(self.shards[0].scale(self.name))

    def _place(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; there are {len(self)} examples")
        number = bisect_right(self.ends, index)
        return self.shards[number], index - (self.ends[number - 1] if number else 0)


class Mapped(Sequence):
    """A function of each value of a sequence, called when the value is asked for."""

    def __init__(self, function: Callable[[Any], Any], values: Sequence) -> None:
        self.function, self.values = function, values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.values[index])


def columns(paths: Iterable[Path]) -> dict[str, Column]:
    """The columns of a stored cache, by their names, from its shards."""
    shards = [shard for path in paths if len(shard := Shard(path))]
    names = [name for name in shards[0].tensors if not name.endswith(_ENDS)]
    return {name: Column(shards, name) for name in names}
