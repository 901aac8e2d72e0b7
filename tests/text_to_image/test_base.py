# SPDX-License-Identifier: Apache-2.0
"""Model folders of others: nothing in them is run or fetched, and what is wrong is named.

Every way in is tried: beside each changed setting lies a module that would leave a mark.
"""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatext_lab.clip import Clip
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.pixel import PixelFold
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from tests.tiny import SCENE, tiny_model

MARK = "mark"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(root, tmp_path, monkeypatch) -> Path:
    """A SpaText model of one's own; the network is not there."""

    def refused(*_):
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "spatext", tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, changes: dict) -> None:
    """Sets values of a JSON file; a path of keys is joined by dots."""
    content = json.loads(file.read_text())
    for path, value in changes.items():
        *keys, last = path.split(".")
        part = content
        for key in keys:
            part = part[key]
        part[last] = value
    file.write_text(json.dumps(content))


def plant(folder: Path, name: str) -> None:
    """A module that leaves a mark where it is executed, with classes of every likely name."""
    mark = folder.parent / MARK
    names = ("Evil", "Clip", "UNet2DConditionModel", "SpaTextPipeline", "CLIPTokenizer")
    classes = "\n".join(f"class {one}: pass" for one in names)
    (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n{classes}\n")


def refuse(folder: Path, error: type[Exception], message: str) -> None:
    """The folder cannot be read, with this message, and nothing was executed."""
    with pytest.raises(error, match=message) as caught:
        SpaTextPipeline.from_pretrained(folder)
    assert not (folder.parent / MARK).exists(), "something was executed"
    assert len(str(caught.value)) < 800


# --- code -----------------------------------------------------------------------------------------

REMOTE = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoModel": "evil.Evil"}
CODE = {
    "tokenizer: auto_map": ("tokenizer/tokenizer_config.json", {"auto_map": REMOTE}, "auto_map"),
    "tokenizer: trust_remote_code": (
        "tokenizer/tokenizer_config.json",
        {"trust_remote_code": True},
        "trust_remote_code",
    ),
    "text encoder: auto_map": ("text_encoder/config.json", {"auto_map": REMOTE}, "auto_map"),
    "text encoder: nested": (
        "text_encoder/config.json",
        {"text_config": {"deep": [{"trust_remote_code": True}]}},
        "trust_remote_code",
    ),
    "unet: auto_map": ("unet/config.json", {"auto_map": REMOTE}, "auto_map"),
    "vae: auto_map": ("vae/config.json", {"auto_map": REMOTE}, "auto_map"),
    "scheduler: auto_map": (
        "scheduler/scheduler_config.json",
        {"auto_map": {"AutoScheduler": "evil.Evil"}},
        "auto_map",
    ),
    "prior: auto_map": ("prior/config.json", {"auto_map": REMOTE}, "auto_map"),
    "prior's scheduler: auto_map": (
        "prior/scheduler/scheduler_config.json",
        {"auto_map": REMOTE},
        "auto_map",
    ),
    "clip: tokenizer_kwargs": (
        "clip/open_clip_config.json",
        {"model_cfg.text_cfg.tokenizer_kwargs": {"trust_remote_code": True}},
        "trust_remote_code",
    ),
    "clip: other tokenizer_kwargs": (
        "clip/open_clip_config.json",
        {"model_cfg.text_cfg.tokenizer_kwargs": {"clean": "lower"}},
        r"model_cfg.text_cfg.tokenizer_kwargs is",
    ),
    "clip: hf_model_name": (
        "clip/open_clip_config.json",
        {"model_cfg.text_cfg.hf_model_name": "somebody/model"},
        r"model_cfg.text_cfg.hf_model_name is 'somebody/model'",
    ),
    "clip: timm": (
        "clip/open_clip_config.json",
        {"model_cfg.vision_cfg.timm_model_name": "vit", "model_cfg.vision_cfg.timm_pool": "avg"},
        r"model_cfg.vision_cfg.timm_model_name is 'vit'",
    ),
    "clip: custom_text": (
        "clip/open_clip_config.json",
        {"model_cfg.custom_text": True},
        "model_cfg.custom_text is True",
    ),
    "clip: multimodal": (
        "clip/open_clip_config.json",
        {"model_cfg.multimodal_cfg": {"hf_model_name": "somebody/model"}},
        "model_cfg.multimodal_cfg is",
    ),
    "clip's tokenizer: auto_map": ("clip/tokenizer_config.json", {"auto_map": REMOTE}, "auto_map"),
    "index: custom_pipeline": ("model_index.json", {"custom_pipeline": "evil"}, "custom_pipeline"),
    "index: a list for the class": (
        "model_index.json",
        {"_class_name": ["evil", "SpaTextPipeline"]},
        r"_class_name is \['evil', 'SpaTextPipeline'\]; expected a class's name",
    ),
    "index: a module beside": ("model_index.json", {"unet": ["evil", "Evil"]}, "unet is .*'evil'"),
    "index: a module of the folder": (
        "model_index.json",
        {"unet": ["unet.evil", "Evil"]},
        r"unet is \['unet.evil', 'Evil'\]; SpaTextPipeline takes UNet2DConditionModel",
    ),
    "index: a builtin": ("model_index.json", {"unet": ["os", "system"]}, r"unet is \['os'"),
    "index: a pipeline of diffusers": (
        "model_index.json",
        {"unet": ["diffusers", "StableDiffusionPipeline"]},
        "unet is .*StableDiffusionPipeline",
    ),
    "index: a pipeline's module": (
        "model_index.json",
        {"unet": ["stable_diffusion", "StableDiffusionSafetyChecker"]},
        r"unet is \['stable_diffusion'",
    ),
    "index: an automatic class": (
        "model_index.json",
        {"text_encoder": ["transformers", "AutoModel"]},
        "text_encoder is .*'AutoModel'.* takes CLIPTextModel",
    ),
    "index: a class that fetches its backbone": (
        "model_index.json",
        {"text_encoder": ["transformers", "TimmWrapperModel"]},
        "text_encoder is .*TimmWrapperModel",
    ),
    "index: another module here": (
        "model_index.json",
        {"clip": ["spatext_lab.cli.parser", "main"]},
        "clip is .*spatext_lab.cli.parser",
    ),
    "index: a function of the right module": (
        "model_index.json",
        {"clip": ["spatext_lab.clip", "load_file"]},
        "clip is .*'load_file'",
    ),
    "index: a dotted class": (
        "model_index.json",
        {"unet": ["diffusers", "utils.get_class_from_dynamic_module"]},
        "unet is",
    ),
    "index: one name": ("model_index.json", {"unet": ["diffusers"]}, r"unet is \['diffusers'\]"),
    "index: null": ("model_index.json", {"unet": ["diffusers", None]}, "unet is"),
    "index: a text": ("model_index.json", {"unet": "diffusers"}, "unet is 'diffusers'; expected"),
    "index: numbers": ("model_index.json", {"unet": [1, 2]}, r"unet is \[1, 2\]"),
    "adapter: a hub id": (
        "unet/adapter_config.json",
        {"base_model_name_or_path": "somebody/model"},
        "base_model_name_or_path",
    ),
    "adapter of the text encoder": (
        "text_encoder/adapter_config.json",
        {"base_model_name_or_path": "somebody/model", "peft_type": "LORA"},
        "base_model_name_or_path",
    ),
}


@pytest.mark.parametrize("way", CODE)
def test_settings_that_run_code_or_load_from_elsewhere_are_refused_by_name(folder, way):
    name, changes, message = CODE[way]
    file = folder / name
    if not file.exists():
        file.write_text("{}")
    change(file, changes)
    refuse(folder, ValueError, message)
    for place in {folder, file.parent}:
        plant(place, "evil")
    refuse(folder, ValueError, "")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler", "clip", "prior"])
@pytest.mark.parametrize("name", ["diffusers", "transformers", "spatext_lab.clip", "config"])
def test_a_module_beside_a_part_is_refused(folder, part, name):
    """diffusers takes LIBRARY.py in a part's folder for the library that the index names."""
    plant(folder / part, name)
    refuse(folder, ValueError, rf"{name}.py is code, and nothing in a model folder is run")


@pytest.mark.parametrize("name", ["SpaTextPipeline", "pipeline", "diffusers", "evil"])
def test_a_module_beside_the_index_is_not_run(folder, name):
    plant(folder, name)
    pipeline = SpaTextPipeline.from_pretrained(folder)
    assert pipeline(SCENE, num_inference_steps=1).images[0].size == (64, 64)
    assert not (folder.parent / MARK).exists()


def test_hub_ids_in_settings_are_not_followed(folder):
    """Names of where a model came from; the weights are the folder's."""
    somebody = {"_name_or_path": "somebody/model", "name_or_path": "somebody/model"}
    for file in ("tokenizer/tokenizer_config.json", "text_encoder/config.json", "unet/config.json"):
        change(folder / file, somebody)
    change(folder / "clip/open_clip_config.json", {"model_cfg.text_cfg.hf_tokenizer_name": "a/b"})
    change(folder / "clip/tokenizer_config.json", somebody)
    change(folder / "model_index.json", {"_name_or_path": "somebody/model"})
    pipeline = SpaTextPipeline.from_pretrained(folder)
    assert pipeline(SCENE, num_inference_steps=1).images[0].size == (64, 64)


def test_parts_that_the_pipeline_does_not_have_are_not_read(folder):
    """As of Stable Diffusion's folder, which has a safety checker."""
    change(folder / "model_index.json", {"safety_checker": ["evil", "Evil"]})
    (folder / "safety_checker").mkdir()
    plant(folder / "safety_checker", "evil")
    assert SpaTextPipeline.from_pretrained(folder).clip is not None
    assert not (folder.parent / MARK).exists()


@pytest.mark.parametrize("argument", ["custom_pipeline", "trust_remote_code"])
def test_no_argument_allows_code(folder, argument):
    plant(folder, "pipeline")
    with pytest.raises(ValueError, match=f"{argument} is .*: no code is loaded"):
        SpaTextPipeline.from_pretrained(folder, **{argument: str(folder)})
    assert not (folder.parent / MARK).exists()


# --- pickles --------------------------------------------------------------------------------------

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "clip": "open_clip_model",
    "prior": "diffusion_pytorch_model",
}
PICKLES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "open_clip_pytorch_model.bin")


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_are_never_read_from_a_pickle(folder, part):
    """They are missing, whatever lies beside; where both are there, the pickle is left alone."""
    weights = folder / part / f"{WEIGHTS[part]}.safetensors"
    state = load_file(weights)
    for name in (*PICKLES, "model.pt", "weights.pth", f"{WEIGHTS[part]}.ckpt", "linear.bin"):
        torch.save({k: torch.zeros_like(v) for k, v in state.items()}, folder / part / name)
    pipeline = SpaTextPipeline.from_pretrained(folder)
    values = [p.abs().sum() for p in getattr(pipeline, part).parameters()]
    assert sum(values) > 0, "the pickle's zeros were read"
    weights.unlink()
    refuse(folder, FileNotFoundError, rf"{part}.*(is missing|no weights in safetensors)")


def test_a_linear_prior_is_never_read_from_a_pickle(folder):
    torch.save(load_file(folder / "prior/linear.safetensors"), folder / "prior/linear.bin")
    (folder / "prior/linear.safetensors").unlink()
    assert DiffusionPrior.from_pretrained(folder / "prior").linear is None
    with pytest.raises(FileNotFoundError, match=r"linear.safetensors is missing"):
        LinearPrior.from_pretrained(folder / "prior")


# --- what is missing ------------------------------------------------------------------------------

NEEDED = [
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
    "clip/open_clip_config.json",
    "clip/open_clip_model.safetensors",
    "clip/tokenizer.json",
    "prior/config.json",
    "prior/diffusion_pytorch_model.safetensors",
    "prior/scheduler/scheduler_config.json",
    "model_index.json",
]


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named_and_nothing_random_takes_its_place(folder, name):
    (folder / name).unlink()
    refuse(folder, FileNotFoundError, name.rpartition("/")[2])


@pytest.mark.parametrize("name", NEEDED)
def test_a_link_to_itself_is_a_missing_file(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)
    refuse(folder, FileNotFoundError, name.rpartition("/")[2])


# --- what is damaged ------------------------------------------------------------------------------

ALL_JSON = [name for name in NEEDED if name.endswith(".json")] + ["clip/tokenizer_config.json"]
ALL_WEIGHTS = [f"{part}/{name}.safetensors" for part, name in WEIGHTS.items()]
ALL_WEIGHTS += ["prior/linear.safetensors"]
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "the last byte is missing": lambda content: content.rstrip()[:-1],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"<!DOCTYPE html><html><body>404</body></html>",
}
BROKEN_JSON = {
    "a list": lambda content: b"[]",
    "nothing but null": lambda content: b"null",
    "no UTF-8": lambda content: b'{"a": "\xff\xfe"}',
    "an endless nest": lambda content: b'{"a": ' + b"[" * 100_000,
    "a number without end": lambda content: b'{"a": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("how", BROKEN | BROKEN_JSON)
@pytest.mark.parametrize("name", ALL_JSON)
def test_damaged_json_is_named(folder, name, how):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes((BROKEN | BROKEN_JSON)[how](content))
    refuse(folder, ValueError, str(folder / name))


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ALL_WEIGHTS)
def test_damaged_weights_are_named(folder, name, how):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(BROKEN[how](content))
    refuse(folder, ValueError, rf"{folder / name} is damaged")


@pytest.mark.parametrize("name", ALL_WEIGHTS)
def test_bits_that_turned_over_in_the_header_are_a_named_fault(folder, name):
    """In a safetensors file the names, shapes and offsets come first, as JSON."""
    content = (folder / name).read_bytes()
    ends = 8 + int.from_bytes(content[:8], "little")
    start = content.index(b"}") + 1  # behind what was noted about the file as a whole
    for at in (0, 5, 8, *range(start, ends - 20, (ends - start) // 6)):
        broken = bytearray(content)
        broken[at] ^= 0x10
        (folder / name).write_bytes(bytes(broken))
        refuse(folder, ValueError, str(folder / name.partition("/")[0]))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet/config.json", {"block_out_channels": [8, 8, 8]}),
        ("unet/config.json", {"cross_attention_dim": "wide"}),
        ("unet/config.json", {"down_block_types": ["NoSuchBlock"] * 3}),
        ("vae/config.json", {"latent_channels": 5}),
        ("text_encoder/config.json", {"hidden_size": 20}),
        ("text_encoder/config.json", {"num_attention_heads": 0}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "straight"}),
        ("clip/open_clip_config.json", {"model_cfg": {}}),
        ("clip/open_clip_config.json", {"model_cfg": []}),
        ("clip/open_clip_config.json", {"preprocess_cfg": {}}),
        ("clip/open_clip_config.json", {"model_cfg.embed_dim": 20}),
        ("clip/open_clip_config.json", {"model_cfg.text_cfg": None}),
        ("clip/open_clip_config.json", {"model_cfg.vision_cfg": {"width": {"a": 1}}}),
        ("clip/open_clip_config.json", {"model_cfg.text_cfg.width": "16"}),
        ("prior/config.json", {"embedding_dim": 20}),
        ("prior/sampling.json", {"number_of_steps": 3}),
        ("tokenizer/tokenizer.json", {"model": {}}),
        ("tokenizer/tokenizer.json", {"model.vocab": {"a": 0}}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": None}),
        ("clip/tokenizer.json", {"model": 3}),
    ],
)
def test_settings_that_do_not_fit_are_one_error_that_names_the_part(folder, name, changes):
    change(folder / name, changes)
    part = name.partition("/")[0].removesuffix(".json")
    refuse(folder, ValueError, rf"{folder}|{part}|{next(iter(changes))}")


@pytest.mark.parametrize("name", ALL_WEIGHTS)
def test_a_missing_weight_is_named_and_not_made_up(folder, name):
    """A sound file, which lacks one tensor, or has it under another name."""
    state = load_file(folder / name)
    lost = sorted(state)[len(state) // 2]
    value = state.pop(lost)
    for others in ({}, {f"{lost}_old": value}):
        save_file({**state, **others}, folder / name, {"format": "pt"})
        part = name.partition("/")[0]
        refuse(folder, ValueError, rf"{folder / part}.*{lost.rpartition('.')[2]}")


# --- parts that are opened alone ------------------------------------------------------------------


def test_parts_of_ones_own_have_no_weights_to_guess(folder):
    for kind, part in ((Clip, "clip"), (DiffusionPrior, "prior"), (PixelFold, "vae")):
        with pytest.raises(FileNotFoundError, match=r"config.json is missing; pass a complete"):
            kind.from_pretrained(folder / "nowhere" / part)


def test_another_pipelines_folder_lacks_parts(root):
    with pytest.raises(FileNotFoundError, match="has no part 'text_encoder'; TextToImagePipeline"):
        TextToImagePipeline.from_pretrained(root / "spatext-pixel")
