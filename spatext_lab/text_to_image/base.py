# SPDX-License-Identifier: Apache-2.0
"""What all pipelines share: model folders in the layout of diffusers; nothing in them is run.

The `pipeline.py` of each method shows how it makes an image.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
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
from spatext_lab.diffusion import SampleStep
from spatext_lab.images import decode, to_images
from spatext_lab.zoo import INDEX

if not sys.stderr.isatty():  # their bars for loading would fill a log
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_PAIRS = ([str, str], [type(None), type(None)])  # a part of the index; one that is not there
CALLBACK_FORM = "pass f(pipeline, index, t, {'latents': x_t}) that returns such a dict or None"
# Guidance at scale 1 is off, so that nothing is subtracted.
UNUSED_NEGATIVE = (
    "negative_prompt has no effect with a guidance_scale of 1: pass a larger scale, or leave it out"
)
HUB_FILES = ("json", "txt", "safetensors")  # never a pickle
HUB_SETTINGS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class ScenePipeline(DiffusionPipeline):
    """A `DiffusionPipeline` whose input is a `Scene`: the base of every method here."""

    # modules of this package whose classes a model folder may name
    PARTS_FROM: tuple[str, ...] = ("spatext_lab.text_to_image.unet",)

    def __init__(self) -> None:
        super().__init__()
        # tqdm: nothing for the first two seconds, and nothing at all without a terminal
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
            ValueError: for a setting that would run code or that a part does not know, and for a
                damaged file; names it.
        """
        modules, _ = cls._get_signature_keys(cls)
        dtype = kwargs.pop("dtype", torch_dtype) or torch.float32
        cls._check_loading(dtype, kwargs)
        folder = _local(folder, modules, kwargs)
        index, types = _read_index(folder, modules), cls._get_signature_types()
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

        Raises:
            ValueError: for anything but a pipeline, for parts that are missing, and for names that
                are neither parts nor settings of this class.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            raise ValueError(f"pipeline is {pipeline!r:.80}; pass a pipeline that has been loaded")
        modules, settings = cls._get_signature_keys(cls)
        shared = {name: p for name, p in pipeline.components.items() if name in modules}
        known = {name: pipeline.config[name] for name in settings if name in pipeline.config}
        whole = shared | known | parts
        missing = sorted(set(modules) - set(cls._optional_components) - set(whole))
        if missing or (unknown := sorted(set(parts) - set(modules) - set(settings))):
            names, what = (missing, "lacks") if missing else (unknown, "does not take")
            raise ValueError(
                f"{cls.__name__} {what} {', '.join(names)}; pass its parts and settings by name, "
                f"such as from_pipe(base, {(missing or modules)[0]}=...)"
            )
        return cls(**whole)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes a complete model folder: every part, in the precision that it has."""
        self._check_loading(torch.float32, kwargs)
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
        """PIL images of latents, for custom sampling loops."""
        return to_images(decode(self.vae, latents))

    @classmethod
    def _check_loading(cls, dtype: Any, settings: dict) -> None:
        """Raises ValueError for settings of `from_pretrained` that cannot be followed."""
        for name in sorted({"custom_pipeline", "trust_remote_code"} & set(settings)):
            raise ValueError(f"{name} is {settings[name]!r:.60}: no code is loaded, leave it out")
        if not settings.pop("use_safetensors", True):
            raise ValueError("use_safetensors is False; weights are read from safetensors alone")
        for one in dtype.values() if isinstance(dtype, dict) else [dtype]:
            if not (isinstance(one, torch.dtype) and one.is_floating_point):
                raise ValueError(
                    f"torch_dtype is {dtype!r:.80}; pass a floating-point type of torch, such as "
                    "torch.bfloat16, or a dict with one for each part"
                )
        own_parts = set(cls.PARTS_FROM) - set(ScenePipeline.PARTS_FROM)
        for name, unknown in (("variant", None), ("device_map", "balanced")):
            value = settings.get(name)
            if own_parts and value is not None and unknown in (None, value):
                raise ValueError(
                    f"{name} is {value!r:.60}, which the parts from {', '.join(sorted(own_parts))} "
                    "do not know; use torch_dtype=..., pipeline.to(device) or "
                    "enable_model_cpu_offload() instead"
                )

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
    """The pipeline class that wrote a model folder, according to its index."""
    return _read_index(folder)["_class_name"]


def _local(folder: str | Path, parts: Iterable[str], kwargs: dict) -> Path:
    """The folder; where `folder` is a model's name on the hub, that is downloaded first."""
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
            f"{folder} is neither a folder nor a model that the hub has ({type(error).__name__})"
        ) from error


def _read_index(folder: Path, parts: Iterable[str] = ()) -> dict:
    zoo.refuse_other_families(folder)
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


def after_step(pipeline: ScenePipeline, step: SampleStep, callback: Callable[..., dict]) -> Tensor:
    """x_t after the callback of a step, which may have replaced it.

    Raises:
        ValueError: for a callback that returns anything but a dict of latents or None.
    """
    if not callable(callback):
        raise ValueError(f"callback_on_step_end is {callback!r:.60}; {CALLBACK_FORM}")
    passed = {"latents": step.x_t}
    returned = callback(pipeline, step.index, step.t, passed)
    if not (returned is None or (isinstance(returned, dict) and set(returned) <= {"latents"})):
        raise ValueError(f"callback_on_step_end returned {returned!r:.80}; {CALLBACK_FORM}")
    return (passed | (returned or {}))["latents"]


def wrong_texts(captions: Sequence[str], negative_prompt: Any) -> ValueError:
    """The error for captions and negative prompts that do not fit together, or are no texts."""
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        return ValueError(f"captions is {captions!r:.80}; pass a list of texts")
    if isinstance(negative_prompt, list | tuple) and all(
        isinstance(text, str) for text in negative_prompt
    ):
        n, b = len(negative_prompt), len(captions)
        return ValueError(f"negative_prompt holds {n} texts; pass one text, or a list of {b}")
    return ValueError(f"negative_prompt is {negative_prompt!r:.80}; pass a text, or one per scene")


def wrong_arguments(unknown: Iterable[str], output_type: str) -> Exception:
    """The error for arguments that a pipeline does not take; names today's for an older one."""
    if not unknown:
        known = ", ".join(OUTPUT_TYPES)
        return ValueError(f"output_type is {output_type!r:.60}; pass one of {known}")
    now = {"steps": "num_inference_steps", "device": "pipeline.to(device)"}
    names = [f"{name} (it is {now[name]} now)" if name in now else name for name in sorted(unknown)]
    return TypeError(f"unexpected argument {', '.join(names)}; help(pipeline.__call__) lists them")
