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

NEEDED_DISK = 2e9  # bytes: the tour's pictures, a few checkpoints and the packages' caches
NEEDED_MEMORY = 2e9  # bytes free: the largest recipe's peak on a CPU is below this


@dataclass(frozen=True)
class Check:
    """One thing looked at: its name, whether it works, what was seen, the repair where it fails."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def check() -> list[Check]:
    """Run every check, in order. One that fails, in whatever way, does not stop the others."""
    return list(checks())


def checks() -> Iterator[Check]:
    """The same one by one, for the first imports take seconds each and a person wants news."""
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
    """The closing line: how many failed."""
    failed = sum(not one.ok for one in done)
    return f"{failed} of {len(done)} checks failed" if failed else f"all {len(done)} checks passed"


def to_json(done: Sequence[Check]) -> str:
    """All of it for programs: `{"ok": bool, "checks": [{"name", "ok", "detail", "fix"}, ...]}`."""
    ok = all(one.ok for one in done)
    return json.dumps({"ok": ok, "checks": [asdict(one) for one in done]}, indent=2)


def _expect(value: object, expected: object, what: str) -> None:
    if value != expected:
        raise RuntimeError(f"{what} gave {value}, not {expected}")


def _python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 - a checkout on PYTHONPATH asks no installer
        raise RuntimeError(f"Python {sys.version.split()[0]} is older than 3.11")
    return f"{sys.version.split()[0]} at {sys.executable}"


def _torch() -> str:
    import torch

    _expect((torch.ones(2, 8) @ torch.ones(8, 3)).tolist(), [[8.0] * 3] * 2, "a matrix product")
    return f"{torch.__version__}: a matrix product, {torch.get_num_threads()} threads"


def _torchvision() -> str:
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [20, 20, 30, 30]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    _expect(kept.tolist(), [0, 2], "torchvision.ops.nms")
    return f"{torchvision.__version__}: nms on three boxes"


def _diffusers() -> str:
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    with torch.no_grad():
        eps = unet(torch.zeros(1, 4, 4, 4), torch.tensor([1]), torch.zeros(1, 2, 8)).sample
    _expect(tuple(eps.shape), (1, 4, 4, 4), "a small U-Net")
    return f"{diffusers.__version__}: one pass of a small U-Net"


def _transformers() -> str:
    import torch
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=15,
        pad_token_id=15,
    )
    with torch.no_grad():
        states = transformers.CLIPTextModel(config)(torch.tensor([[0, 3, 15]])).last_hidden_state
    _expect(tuple(states.shape), (1, 3, 8), "a small text transformer")
    return f"{transformers.__version__}: one pass of a small text transformer"


def _open_clip() -> str:
    import open_clip
    import torch

    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = open_clip.model.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)
    with torch.no_grad():
        vectors = (
            clip.encode_image(torch.zeros(1, 3, 16, 16)),
            clip.encode_text(open_clip.tokenize("a red ball")),
        )
    _expect([tuple(v.shape) for v in vectors], [(1, 8), (1, 8)], "a small CLIP")
    return f"{open_clip.__version__}: a picture and a sentence through a small CLIP"


def _safetensors() -> str:
    import safetensors.torch
    import torch

    restored = safetensors.torch.load(safetensors.torch.save({"x": torch.arange(3)}))
    _expect(restored["x"].tolist(), [0, 1, 2], "a safetensors round trip")
    return f"{metadata.version('safetensors')}: tensors written and read"


def _einops() -> str:
    import einops
    import numpy as np

    _expect(einops.rearrange(np.zeros((2, 3)), "h w -> (h w)").shape, (6,), "einops.rearrange")
    return f"{einops.__version__}: one reshape"


def _pycocotools() -> str:
    import numpy as np
    from pycocotools import mask as coco_mask

    mask = np.asfortranarray(np.eye(5, dtype=np.uint8))
    _expect(coco_mask.decode(coco_mask.encode(mask)).tolist(), mask.tolist(), "an RLE round trip")
    return f"{metadata.version('pycocotools')}: a mask coded and decoded"


def _matplotlib() -> str:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    FigureCanvasAgg(figure).print_png(png := io.BytesIO())
    _expect(png.getvalue()[1:4], b"PNG", "a drawn figure")
    return f"{matplotlib.__version__}: a figure drawn"


def _ipywidgets() -> str:
    import ipywidgets

    slider = ipywidgets.IntSlider(value=3)
    slider.value += 1
    _expect(slider.value, 4, "a slider")
    return f"{ipywidgets.__version__}: a slider moved"


def _anywidget() -> str:
    import anywidget
    import traitlets

    class Probe(anywidget.AnyWidget):
        _esm = "export default { render() {} }"
        boxes = traitlets.List().tag(sync=True)

    _expect(Probe(boxes=[1, 2]).boxes, [1, 2], "a widget's trait")
    return f"{anywidget.__version__}: a widget made"


def _jupyterlab() -> str:
    import jupyterlab.labapp
    from jupyter_client.kernelspec import KernelSpecManager

    kernel = KernelSpecManager().get_kernel_spec("python3")
    return f"{jupyterlab.__version__}: opens notebooks with the kernel '{kernel.display_name}'"


def _models() -> str:
    from spatext_lab import zoo

    parts = [zoo.folder("pocket", part).name for part in ("text-to-image", "spatext", "judge")]
    if not (zoo.folder() / zoo.SUMS).is_file():  # one's own training has none, a shipped model has
        raise FileNotFoundError(f"{zoo.folder() / zoo.SUMS} is missing")
    return f"{', '.join(parts)}: there, and every sha256 agrees"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < NEEDED_DISK:
        raise RuntimeError(
            f"{free / 1e9:.1f} GB free in {Path.cwd()}, {NEEDED_DISK / 1e9:.0f} GB needed"
        )
    return f"{free / 1e9:.0f} GB free"


def _memory() -> str:
    import psutil

    free, total = (getattr(psutil.virtual_memory(), kind) for kind in ("available", "total"))
    if free < NEEDED_MEMORY:
        raise RuntimeError(
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, {NEEDED_MEMORY / 1e9:.0f} GB needed"
        )
    return f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free"


def _cores() -> str:
    cores = os.cpu_count() or 1
    return f"{cores} CPU core{'s' if cores > 1 else ''} (times in the course are for 2)"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none, and none is needed: the pocket models run on the CPU"
    return f"{torch.cuda.get_device_name()}, used with --device auto"


Fix = Callable[[Exception], str]


def _pip(arguments: str) -> str:
    pins = Path(__file__).parents[2] / "constraints.txt"  # absent where the package was installed
    pinned = f" -c {pins}" if pins.is_file() else ""
    return f"{sys.executable} -m pip install{pinned} {arguments}"


def _install(*packages: str) -> Fix:
    """Install what is missing; replace what is there and damaged, without what it stands on."""

    def fix(error: Exception) -> str:
        force = "" if isinstance(error, ModuleNotFoundError) else "--force-reinstall --no-deps "
        return _pip(force + " ".join(packages))

    return fix


def _pair(error: Exception) -> str:
    """torch and torchvision by one command, so that they come from one index and fit."""
    return _pip("--force-reinstall torch torchvision")


def _say(fix: str) -> Fix:
    return lambda error: fix


def _fetch_models(error: Exception) -> str:
    if (Path(__file__).parents[2] / "pyproject.toml").is_file():
        return "git checkout -- data/pocket"
    return f"{sys.executable} -m pip install --force-reinstall --no-deps WHEEL (spatext_lab's)"


CHECKS: tuple[tuple[str, Callable[[], str], Fix], ...] = (
    ("python", _python, _say("install Python 3.11 or newer, then: make setup PYTHON=python3.12")),
    ("torch", _torch, _pair),
    ("torchvision", _torchvision, _pair),
    ("diffusers", _diffusers, _install("diffusers")),
    ("transformers", _transformers, _install("transformers", "tokenizers")),
    ("open_clip", _open_clip, _install("open_clip_torch", "timm")),
    ("safetensors", _safetensors, _install("safetensors")),
    ("einops", _einops, _install("einops")),
    ("pycocotools", _pycocotools, _install("pycocotools")),
    ("matplotlib", _matplotlib, _install("matplotlib", "pillow")),
    ("ipywidgets", _ipywidgets, _install("ipywidgets")),
    ("anywidget", _anywidget, _install("anywidget")),
    ("jupyterlab", _jupyterlab, _install("jupyterlab", "ipykernel")),
    ("models", _models, _fetch_models),
    ("disk", _disk, _say("free some space, or work in a folder on a larger disk")),
    ("memory", _memory, _say("close other programs (browsers, other notebooks)")),
    ("cores", _cores, _say("nothing to do: this is information")),
    ("gpu", _gpu, _say("nothing to do: the course runs on the CPU")),
)
