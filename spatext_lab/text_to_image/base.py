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
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from spatext_lab import zoo
from spatext_lab.images import decode, to_images

if not sys.stderr.isatty():  # their bars for loading would fill a log
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()

INDEX = "model_index.json"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_PAIRS = ([str, str], [type(None), type(None)])  # a part of the index; one that is not there
HUB_FILES = ("json", "txt", "safetensors")  # never a pickle
HUB_SETTINGS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


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
                of `DiffusionPipeline.from_pretrained` (`variant`, `revision`, ...).

        Raises:
            FileNotFoundError: where the folder, or a part of it, is missing; names the part.
            ValueError: for a setting that would run code, and for a damaged file; names it.
        """
        for name in sorted({"custom_pipeline", "trust_remote_code"} & set(kwargs)):
            raise ValueError(f"{name} is {kwargs[name]!r:.60}: no code is loaded, leave it out")
        modules, _ = cls._get_signature_keys(cls)
        folder = _local(folder, modules, kwargs)
        index, types = _read_index(folder, modules), cls._get_signature_types()
        dtype = kwargs.pop("dtype", torch_dtype) or torch.float32
        for name in sorted(set(modules) - set(kwargs)):
            library, kind = index.get(name) or (None, None)
            if library is None and name in cls._optional_components:
                continue
            if library is None or not (folder / name).is_dir():
                raise FileNotFoundError(f"{folder} has no part {name!r}; {cls.__name__} needs it")
            wanted = tuple(one for one in types[name] if one is not type(None))
            found = cls._check_part(folder / name, library, kind, wanted)
            if _has_weights(found) and not {"device_map", "quantization_config"} & set(kwargs):
                kwargs[name] = read_weights(folder / name, found, dtype, kwargs.get("variant"))
        with zoo.named(folder):
            pipeline = super().from_pretrained(folder, dtype=dtype, use_safetensors=True, **kwargs)
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
    def _check_part(cls, place: Path, library: str, kind: str, types: tuple[type, ...]) -> type:
        """The class of a part; raises, naming it, for what is not a whole one of `types`."""
        known = library in ("diffusers", "transformers", *cls.PARTS_FROM)
        found = getattr(import_module(library), kind, None) if known else None
        if not (isinstance(found, type) and issubclass(found, types)):
            raise ValueError(
                f"{place.parent / INDEX}: {place.name} is [{library!r}, {kind!r}]; "
                f"{cls.__name__} takes {' or '.join(one.__name__ for one in types)}"
            )
        needed = ["config.json"] if _has_weights(found) else []
        if issubclass(found, SchedulerMixin):
            needed = ["scheduler_config.json"]
        if issubclass(found, PreTrainedTokenizerBase):
            slow = (place / "vocab.json").is_file() and (place / "merges.txt").is_file()
            needed = ["tokenizer_config.json", *([] if slow else ["tokenizer.json"])]
        zoo.check_files(place, *needed)
        if _has_weights(found) and not any(place.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{place} has no weights in safetensors; other formats are not read"
            )
        if issubclass(found, PreTrainedTokenizerBase):  # else texts are neither cut off nor padded
            length = zoo.read_json(place / needed[0]).get("model_max_length")
            if not (isinstance(length, int) and 2 < length < 100_000):
                raise ValueError(
                    f"{place / needed[0]}: model_max_length is {length!r:.60}; expected the number "
                    "of tokens that the text encoder reads"
                )
        return found


def _has_weights(part: type) -> bool:
    """Whether diffusers or transformers reads the part's weights; this package's parts do it."""
    return issubclass(part, ModelMixin | PreTrainedModel) and "from_pretrained" not in vars(part)


def read_weights(
    place: Path, part: type, dtype: torch.dtype | dict, variant: str | None = None
) -> torch.nn.Module:
    """Reads a network of diffusers or transformers, in safetensors alone.

    Args:
        place: its folder.
        part: its class.
        dtype: precision of the weights, or a dict with one for each part.
        variant: as in "model.fp16.safetensors".

    Raises:
        ValueError: where weights are missing, which would be random ones, or do not fit the
            settings; names the folder.
    """
    dtype = dtype.get(place.name, torch.float32) if isinstance(dtype, dict) else dtype
    key = "dtype" if issubclass(part, PreTrainedModel) else "torch_dtype"
    settings = {key: dtype, "variant": variant, "use_safetensors": True}
    with zoo.named(place):
        model, report = part.from_pretrained(place, output_loading_info=True, **settings)
    if missing := sorted(report["missing_keys"]):
        names = ", ".join(missing[:3])
        raise ValueError(
            f"{place}: {len(missing)} weights are missing ({names:.200}): copy it anew"
        )
    return model


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


def _local(folder: str | Path, parts: Iterable[str], kwargs: dict) -> Path:
    """The folder, downloaded first where the name of a model on the hub is given."""
    if Path(folder).is_dir() or not isinstance(folder, str) or folder.count("/") != 1:
        return Path(folder)
    wanted = [f"{part}/*.{suffix}" for part in parts for suffix in HUB_FILES]
    try:
        return Path(
            snapshot_download(
                folder,
                allow_patterns=[INDEX, *wanted],
                # the same weights in another precision: model.fp16.safetensors
                ignore_patterns=[] if kwargs.get("variant") else ["*.*.safetensors"],
                **{name: kwargs[name] for name in HUB_SETTINGS if name in kwargs},
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{folder} is no folder here, and was not found on the hub ({type(error).__name__})"
        ) from error


def _read_index(folder: Path, parts: Iterable[str] = ()) -> dict:
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} has no {INDEX}; pass a folder that a model is in")
    index = zoo.check_settings(folder / INDEX)
    for name in ("_class_name", *(name for name in parts if index.get(name) is not None)):
        value = index.get(name)
        pair = isinstance(value, list) and [type(one) for one in value]
        if not (isinstance(value, str) if name == "_class_name" else pair in _PAIRS):
            raise ValueError(
                f"{folder / INDEX}: {name} is {value!r:.80}; expected a class's name, "
                '["library", "Class"] for a part'
            )
    return index


def wrong_arguments(unknown: Iterable[str], output_type: str) -> Exception:
    """The error for arguments that a pipeline does not take; names today's for an older one."""
    if not unknown:
        known = ", ".join(OUTPUT_TYPES)
        return ValueError(f"output_type is {output_type!r:.60}; pass one of {known}")
    now = {"steps": "num_inference_steps", "device": "pipeline.to(device)"}
    names = [f"{name} (it is {now[name]} now)" if name in now else name for name in sorted(unknown)]
    return TypeError(f"unexpected argument {', '.join(names)}; help(pipeline.__call__) lists them")
