# SPDX-License-Identifier: Apache-2.0
"""Does this machine run the course? Packages are imported *and called*; every FAIL has its repair.

Comparing version numbers is not enough: a torch and a torchvision from different indexes have
versions that agree, pass `pip check`, and die on the first call.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from spatext_lab.training.options import names

NEEDED_DISK = 2e9  # bytes: the tour's images, a few checkpoints and the packages' caches
NEEDED_MEMORY = 2e9  # bytes free: the largest recipe's peak on a CPU is below this
_CHECKOUT = Path(__file__).parents[2]

Fix = Callable[[Exception], str]
CHECKS: list[tuple[str, Callable[[], str], Fix]] = []  # name, call that returns a detail, repair


@dataclass(frozen=True)
class Check:
    """The result of one check: its name, whether it passed, what was seen, the repair of a FAIL."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def checks() -> Iterator[Check]:
    """Runs every check and yields each result at once; the first imports take seconds each.

    One that fails, in whatever way, does not stop the others.
    """
    for name, call, fix in CHECKS:
        try:
            yield Check(name, True, call())
        except Exception as error:  # a damaged package may raise anything at all
            seen = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield Check(name, False, seen, fix(error))


def line(one: Check) -> str:
    """One check for people; a FAIL has a second line with its repair."""
    width = max(len(name) for name, _, _ in CHECKS)
    text = f"{'ok  ' if one.ok else 'FAIL'}  {one.name:<{width}}  {one.detail}"
    return text if one.ok else f"{text}\n      {'':<{width}}  fix: {one.fix}"


def verdict(done: Sequence[Check]) -> str:
    """The closing line: how many checks failed."""
    failed = sum(not one.ok for one in done)
    return f"{failed} of {len(done)} checks failed" if failed else f"all {len(done)} checks passed"


def to_json(done: Sequence[Check]) -> str:
    """All checks for programs: `{"ok": bool, "checks": [{"name", "ok", "detail", "fix"}, ...]}`."""
    ok = all(one.ok for one in done)
    return json.dumps({"ok": ok, "checks": [asdict(one) for one in done]}, indent=2)


# --- repairs --------------------------------------------------------------------------------------


def _pip(arguments: str) -> str:
    pins = _CHECKOUT / "constraints.txt"  # absent where the package was installed
    pinned = f" -c {pins}" if pins.is_file() else ""
    return f"{sys.executable} -m pip install{pinned} {arguments}"


def _install(*packages: str) -> Fix:
    """Installs what is missing; replaces what is damaged, without its dependencies."""

    def fix(error: Exception) -> str:
        force = "" if isinstance(error, ModuleNotFoundError) else "--force-reinstall --no-deps "
        return _pip(force + " ".join(packages))

    return fix


def _pair(error: Exception) -> str:
    """torch and torchvision by one command, so that they come from one index and fit."""
    return _pip("--force-reinstall torch torchvision")


def _restore_models(error: Exception) -> str:
    if (_CHECKOUT / "pyproject.toml").is_file():
        return "git checkout -- data/pocket"
    return f"{sys.executable} -m pip install --force-reinstall --no-deps WHEEL (spatext_lab's)"


# --- packages: each is called, and the answer is known --------------------------------------------


def _package(name: str, what: str, *packages: str, fix: Fix | None = None) -> Callable:
    """Registers a function that returns (answer, right answer) as the check of a package.

    packages: what is installed as its repair, the name if not given; the first one has a version.
    """
    packages = packages or (name,)

    def register(call: Callable[[], tuple[Any, Any]]) -> None:
        def checked() -> str:
            answer, right = call()
            if answer != right:
                raise RuntimeError(f"{what} gave {answer}, not {right}")
            return f"{metadata.version(packages[0])}: {what}"

        CHECKS.append((name, checked, fix or _install(*packages)))

    return register


def _machine(name: str, fix: str | Fix) -> Callable:
    """Registers a function that returns a detail as a check of this machine."""

    def register(call: Callable[[], str]) -> None:
        CHECKS.append((name, call, fix if callable(fix) else lambda error: fix))

    return register


@_machine("python", "install Python 3.11 or newer, then: make setup PYTHON=python3.12")
def _python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 - a checkout on PYTHONPATH asks no installer
        raise RuntimeError(f"Python {sys.version.split()[0]} is older than 3.11")
    return f"{sys.version.split()[0]} at {sys.executable}"


@_package("torch", "a matrix product", fix=_pair)
def _torch():
    import torch

    return (torch.ones(2, 8) @ torch.ones(8, 3)).tolist(), [[8.0] * 3] * 2


@_package("torchvision", "nms on three boxes", fix=_pair)
def _torchvision():
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [20, 20, 30, 30]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    return kept.tolist(), [0, 2]


@_package("diffusers", "one pass of a small U-Net")
def _diffusers():
    import diffusers
    import torch

    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {"block_out_channels": (8,), "cross_attention_dim": 8, "norm_num_groups": 4}
    unet = diffusers.UNet2DConditionModel(4, **kinds, **sizes)
    return unet(torch.zeros(1, 4, 4, 4), 1, torch.zeros(1, 2, 8)).sample.shape, (1, 4, 4, 4)


@_package("transformers", "one pass of a small text encoder", "transformers", "tokenizers")
def _transformers():
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    ids = {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 15, "pad_token_id": 15}
    config = CLIPTextConfig(**ids, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    return CLIPTextModel(config)(torch.tensor([[0, 3, 15]])).last_hidden_state.shape, (1, 3, 8)


@_package("open_clip", "an image and a text through a small CLIP", "open_clip_torch", "timm")
def _open_clip():
    import open_clip
    import torch

    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    clip = open_clip.model.CLIP(8, vision, {"width": 16, "heads": 2, "layers": 1})
    image, text = torch.zeros(1, 3, 16, 16), open_clip.tokenize("a red ball")
    return [clip.encode_image(image).shape, clip.encode_text(text).shape], [(1, 8), (1, 8)]


@_package("safetensors", "tensors written and read")
def _safetensors():
    import safetensors.torch
    import torch

    restored = safetensors.torch.load(safetensors.torch.save({"x": torch.arange(3)}))
    return restored["x"].tolist(), [0, 1, 2]


@_package("einops", "one reshape")
def _einops():
    import einops
    import numpy as np

    return einops.rearrange(np.zeros((2, 3)), "h w -> (h w)").shape, (6,)


@_package("pycocotools", "a mask encoded and decoded")
def _pycocotools():
    import numpy as np
    from pycocotools import mask as coco_mask

    mask = np.asfortranarray(np.eye(5, dtype=np.uint8))
    return coco_mask.decode(coco_mask.encode(mask)).tolist(), mask.tolist()


@_package("httpx", "an answer read, without a network", "httpx", "tenacity")
def _httpx():
    import httpx
    import tenacity

    server = httpx.MockTransport(lambda request: httpx.Response(200, text="yes"))
    with httpx.Client(transport=server) as client:
        return tenacity.Retrying()(client.get, "http://localhost").text, "yes"


@_package("matplotlib", "a figure drawn", "matplotlib", "pillow")
def _matplotlib():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    FigureCanvasAgg(figure).print_png(png := io.BytesIO())
    return png.getvalue()[1:4], b"PNG"


@_package("anywidget", "a widget made", "anywidget", "ipywidgets")
def _anywidget():
    import anywidget
    import traitlets

    class Probe(anywidget.AnyWidget):
        _esm = "export default { render() {} }"
        boxes = traitlets.List().tag(sync=True)

    return Probe(boxes=[1, 2]).boxes, [1, 2]


@_package("jupyterlab", "notebooks have a kernel", "jupyterlab", "ipykernel")
def _jupyterlab():
    import jupyterlab.labapp
    from jupyter_client.kernelspec import KernelSpecManager

    kernel = KernelSpecManager().get_kernel_spec("python3").language
    return (jupyterlab.labapp.LabApp.name, kernel), ("lab", "python")


# --- this machine ---------------------------------------------------------------------------------


@_machine("models", _restore_models)
def _models() -> str:
    from spatext_lab import zoo

    parts = [zoo.folder("pocket", part).name for part in ("text-to-image", "spatext", "judge")]
    if not (sums := zoo.folder("pocket", "judge").parent / zoo.SUMS).is_file():
        raise FileNotFoundError(f"{sums} is missing")  # a shipped model has one
    return f"{', '.join(parts)}: there, and every sha256 agrees"


def _fetched(name: str) -> None:
    """Registers the check of a model that can be fetched; one that is not there is no FAIL."""
    command = f"spatext-lab models fetch {name}"

    def checked() -> str:
        from spatext_lab.zoo.state import state

        found = state(name)
        missing = any(word in found for word in ("not there", "missing", "has no"))
        return f"{found}; to get it: {command}" if missing else found

    CHECKS.append((name, checked, lambda error: command))


for _name in names("spatext_lab.zoo.known", "MODELS"):
    _fetched(_name)


def _enough(free: float, needed: float, where: str) -> str:
    if free < needed:
        raise RuntimeError(f"{free / 1e9:.1f} GB free{where}, {needed / 1e9:.0f} GB needed")
    return f"{free / 1e9:.0f} GB free{where}"


@_machine("disk", "free some space, or work in a folder on a larger disk")
def _disk() -> str:
    return _enough(shutil.disk_usage(Path.cwd()).free, NEEDED_DISK, f" in {Path.cwd()}")


@_machine("memory", "close other programs (browsers, other notebooks)")
def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return _enough(memory.available, NEEDED_MEMORY, f" of {memory.total / 1e9:.0f} GB")


@_machine("cores", "nothing to do: this is information")
def _cores() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, and none is needed"
    return f"{os.cpu_count() or 1} (times in the course are for 2); GPU: {gpu}"
