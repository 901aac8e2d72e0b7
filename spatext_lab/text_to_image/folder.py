# SPDX-License-Identifier: Apache-2.0
"""Model folders: a pipeline's parts, written and read in the layout of diffusers.

A folder has `model_index.json` and a folder per part. A part that several models share need not
lie there twice: `_shared` says which other folder has it.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import diffusers
import torch
import transformers

INDEX = "model_index.json"


class ModelFolder:
    """What can be saved as a model folder: a class whose parts are its attributes, by name."""

    PARTS: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # parts that a folder need not have
    SETTINGS: ClassVar[tuple[str, ...]] = ()  # what the index says beside the parts

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu"):
        """Reads a model folder; weights in single precision.

        Raises FileNotFoundError, naming the part, where the folder or a part of it is missing.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(f"{folder} has no {INDEX}; give a folder that a model is in")
        index = json.loads((folder / INDEX).read_text())
        parts = {name: index[name] for name in cls.SETTINGS if name in index}
        for name in cls.PARTS:
            if name not in index and name in cls.OPTIONAL:
                continue
            place = folder / index.get("_shared", {}).get(name, "") / name
            if name not in index or not place.is_dir():
                raise FileNotFoundError(f"{folder} has no part {name!r}; {cls.__name__} needs it")
            parts[name] = _load(index[name], place, device)
        return cls(**parts)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a complete model folder, all parts in it, in the precision they have."""
        folder = Path(folder)
        for name, part in self.parts().items():
            part.save_pretrained(folder / name)
        self.write_index(folder)

    def write_index(self, folder: Path, shared: str = "") -> None:
        """Writes `model_index.json`; parts that are not in `folder` are looked for in `shared`.

        shared: a model folder's path as seen from `folder`; empty where every part is in `folder`.
        """
        index = {"_class_name": type(self).__name__, "_diffusers_version": diffusers.__version__}
        for name, part in self.parts().items():
            index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
        index |= self._settings()
        if shared:
            missing = [name for name in self.parts() if not (folder / name).is_dir()]
            index["_shared"] = dict.fromkeys(missing, shared)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def parts(self) -> dict:
        """The parts that this model has, by name."""
        parts = {name: getattr(self, name) for name in self.PARTS}
        return {name: part for name, part in parts.items() if part is not None}

    def _settings(self) -> dict:
        """What the index says beside the parts."""
        return {}


def kind_of(folder: Path) -> str:
    """The class that a model folder was written by, as its index says."""
    return json.loads((folder / INDEX).read_text())["_class_name"]


# Our own parts, by class; imported only where a folder has one.
_OURS = {
    "Clip": "spatext_lab.clip",
    "DiffusionPrior": "spatext_lab.spatext.prior",
    "LinearPrior": "spatext_lab.spatext.prior",
    "PixelFold": "spatext_lab.spatext.pixel",
}


def _load(kind: Sequence[str], place: Path, device: str):
    """One part: a class of diffusers, transformers or ours, by the index's (library, class)."""
    library, name = kind
    if library == "spatext_lab":
        return getattr(import_module(_OURS[name]), name).from_pretrained(place).to(device)
    part = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    if issubclass(part, diffusers.SchedulerMixin):
        # Stable Diffusion 1.5 comes with another sampler: the schedule is kept, the loop is ours.
        # The default would cut the clean latents to [-1, 1].
        return diffusers.DDIMScheduler.from_pretrained(place, clip_sample=False)
    if not issubclass(part, torch.nn.Module):
        return part.from_pretrained(place)
    key = "torch_dtype" if library == "diffusers" else "dtype"
    # never a pickle, which could run code
    given = {key: torch.float32, "use_safetensors": True}
    return part.from_pretrained(place, **given).to(device)
