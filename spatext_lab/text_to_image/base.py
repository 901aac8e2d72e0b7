# SPDX-License-Identifier: Apache-2.0
"""What all pipelines share: model folders in the layout of diffusers; nothing in them is run.

How an image is made stands in each method's own `pipeline.py`.
"""

import json
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from spatext_lab.images import decode, to_images

if not sys.stderr.isatty():  # their bars for loading would fill a log
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()

INDEX = "model_index.json"
# Settings of transformers, diffusers and open_clip that name code or models from elsewhere.
CODE_KEYS = {"auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "_module"}
LOADABLE = (ModelMixin, SchedulerMixin, PreTrainedModel, PreTrainedTokenizerBase)
HUB_FILES = ["*.json", "*.txt", "*.safetensors"]  # never a pickle


class ScenePipeline(DiffusionPipeline):
    """A `DiffusionPipeline` whose input is a `Scene`: the base of every method here."""

    # modules of this package that a folder's parts may come from
    PARTS_FROM: tuple[str, ...] = ("spatext_lab.text_to_image.unet",)

    def __init__(self) -> None:
        super().__init__()
        # tqdm: nothing before two seconds, and nothing at all where the output is no terminal
        self.set_progress_bar_config(delay=2, disable=None)
        self.image_processor = VaeImageProcessor(do_resize=False)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **kwargs: Any
    ):
        """Reads a model folder; safetensors only, and nothing in it is executed.

        Args:
            folder: a path, or the id of a model on the Hugging Face hub ("user/model"), which is
                downloaded first.
            torch_dtype: precision of the weights; single by default. `dtype` means the same.
            kwargs: parts to use in place of the folder's (`scheduler=...`), and further arguments
                of `DiffusionPipeline.from_pretrained` (`variant`, `device_map`, ...).

        Raises:
            FileNotFoundError: where the folder, or a part of it, is missing; names the part.
            ValueError: for a setting that would run code, and for a damaged file; names it.
        """
        folder = _local(folder)
        modules, _ = cls._get_signature_keys(cls)
        index = _read_index(folder, modules)
        for name in sorted(set(modules) - set(kwargs)):
            library, kind = index.get(name) or (None, None)
            if library is None and name in cls._optional_components:
                continue
            if library is None or not (folder / name).is_dir():
                raise FileNotFoundError(f"{folder} has no part {name!r}; {cls.__name__} needs it")
            cls._check_part(folder / name, library, kind)
        dtype = {"dtype": kwargs.pop("dtype", torch_dtype) or torch.float32}
        pipeline = super().from_pretrained(folder, **dtype, use_safetensors=True, **kwargs)
        for part in pipeline.components.values():
            if hasattr(part, "register_to_config"):  # a path of one machine does not belong there
                part.register_to_config(_name_or_path="")
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts: Any):
        """A pipeline of this class from another one's parts: nothing is loaded twice or converted.

        Args:
            pipeline: the pipeline that has the parts, such as the text-to-image base.
            parts: what it lacks (`clip=...`), what replaces a part (`unet=...`), and settings.
        """
        modules, settings = cls._get_signature_keys(cls)
        shared = {name: p for name, p in pipeline.components.items() if name in modules}
        known = {name: pipeline.config[name] for name in settings if name in pipeline.config}
        return cls(**shared | known | parts)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes a complete model folder: every part, in the precision that it has."""
        super().save_pretrained(folder, **kwargs)
        tidy_config(Path(folder) / "vae")

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.unet.config.sample_size

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        # each level of the VAE after the first doubles the resolution
        return self.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """PIL images of latents, for those who run the sampling loop by hand."""
        return to_images(decode(self.vae, latents))

    @classmethod
    def _check_part(cls, place: Path, library: str, kind: str) -> None:
        """Raises ValueError, naming it, for what is not a plain part in safetensors."""
        named = f"{place.parent / INDEX}: {place.name} is [{library!r}, {kind!r}]"
        if library not in ("diffusers", "transformers", *cls.PARTS_FROM):
            known = ", ".join(("diffusers", "transformers", *cls.PARTS_FROM))
            raise ValueError(f"{named}; {cls.__name__} takes parts from {known}")
        found = getattr(import_module(library), kind, None)
        if not (isinstance(found, type) and issubclass(found, LOADABLE)):
            raise ValueError(
                f"{named}; {library} has no model, tokenizer or scheduler of that name"
            )
        if issubclass(found, PreTrainedTokenizerBase) and not (
            (place / "tokenizer.json").is_file()
            or ((place / "vocab.json").is_file() and (place / "merges.txt").is_file())
        ):
            raise FileNotFoundError(f"{place / 'tokenizer.json'} is missing; copy the folder anew")
        for file in sorted(place.rglob("*config.json")):
            _refuse_code(file, _read_json(file))
        for file in sorted(place.rglob("*.safetensors")):
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged ({error}): copy it anew") from None


def tidy_config(folder: Path) -> None:
    """Removes a key that `AutoencoderTiny` writes and complains of whenever it is read."""
    file = folder / "config.json"
    if file.is_file() and (config := json.loads(file.read_text()))["_class_name"] == (
        "AutoencoderTiny"
    ):
        config.pop("block_out_channels", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def class_name(folder: Path) -> str:
    """The pipeline class that a model folder was written by, as its index says."""
    return _read_index(folder)["_class_name"]


def _local(folder: str | Path) -> Path:
    """The folder, downloaded first where the name of a model on the hub is given."""
    if Path(folder).is_dir() or not isinstance(folder, str) or folder.count("/") != 1:
        return Path(folder)
    try:
        return Path(snapshot_download(folder, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{folder} is no folder here, and was not found on the hub ({type(error).__name__})"
        ) from error


def _read_index(folder: Path, parts: Iterable[str] = ()) -> dict:
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} has no {INDEX}; pass a folder that a model is in")
    index = _read_json(folder / INDEX)
    _refuse_code(folder / INDEX, index)
    for name, value in index.items():
        wanted = isinstance(value, str) if name == "_class_name" else True
        if name in parts and value is not None:
            strings = isinstance(value, list) and all(isinstance(v, str | None) for v in value)
            wanted = strings and len(value) == 2
        if not wanted:
            raise ValueError(
                f"{folder / INDEX}: {name} is {value!r:.80}; expected a class's name, "
                '["library", "Class"] for a part'
            )
    return index


def _read_json(file: Path) -> dict:
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged, no JSON ({error}): copy it anew") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds {value!r:.60}; expected a JSON object")
    return value


def _refuse_code(file: Path, value: Any) -> None:
    """Raises ValueError for a setting that would run code, wherever in the file it stands."""
    children = value.items() if isinstance(value, dict) else ()
    for key, child in children:
        if key in CODE_KEYS:
            raise ValueError(f"{file}: {key} is {child!r:.60}; it would run code, take it out")
        _refuse_code(file, child)
    for child in value if isinstance(value, list) else ():
        _refuse_code(file, child)


def unknown_arguments(names: Iterable[str]) -> TypeError:
    """The error for arguments that a pipeline does not take; names today's for an older one."""
    now = {"steps": "num_inference_steps", "device": "pipeline.to(device)"}
    told = [f"{name} (it is {now[name]} now)" if name in now else name for name in sorted(names)]
    return TypeError(f"unexpected argument {', '.join(told)}; help(pipeline.__call__) lists them")
