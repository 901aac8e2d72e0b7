# SPDX-License-Identifier: Apache-2.0
"""Plans by the size of the base: the recipes' own suit the pocket models and would ruin others.

Which plan is chosen depends on how many weights the base's U-Net has, not on its name.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from spatext_lab import zoo
from spatext_lab.training.optimiser import has_8bit
from spatext_lab.training.plan import Plan

LARGE = 100_000_000  # weights of a U-Net; Stable Diffusion 1.5's has 860 million, the pocket's 4
MINUTES = 1.0  # between checkpoints; those of a large model are gigabytes
LARGE_MINUTES = 30.0


@dataclass(frozen=True)
class Choice:
    """A setting, and what it is elsewhere."""

    value: Any
    theirs: str  # the paper's or a released code's value, and where it stands


_PIX2PIX = "diffusers' train_instruct_pix2pix, which widens the first convolution too"
_RECO = "ReCo's released configs"
_GLIGEN = "GLIGEN's released main.py"
_ACTIVATIONS = Choice(True, "on in diffusers' commands for Stable Diffusion 1")
_AVERAGE = "a GPU's memory is short; on the GPU in diffusers' train_text_to_image with --use_ema"

# For a base of the size of Stable Diffusion 1. SpaText's authors published neither code nor these
# values. A rate for smaller batches is scaled by the root of their ratio, as Adam's steps ask for.
TABLE: dict[str, dict[str, Choice]] = {
    "spatext": {
        "lr": Choice(5e-5, f"not published; 5e-5 in {_PIX2PIX}"),
        "batch": Choice(4, f"not published; 4 there ({_PIX2PIX})"),
        "accumulate": Choice(4, "not published; 4 there: 16 images a step"),
        "steps": Choice(15_000, "not published; 15,000 there"),
        "warmup": Choice(500, "0 there; ours, for the new channels begin at zero"),
        "cooldown": Choice(1500, "constant to the end there; ours falls to zero"),
        "ema_decay": Choice(0.9999, "0.9999 in diffusers' EMAModel"),
        "average": Choice("cpu", _AVERAGE),
        "checkpointing": _ACTIVATIONS,
        "trained": Choice("the whole U-Net", "the whole U-Net (ZestGuide, of SpaText)"),
    },
    "reco": {
        "lr": Choice(2e-5, f"1e-4 for 2048 images a step in {_RECO}; 1e-4 sqrt(64 / 2048) = 2e-5"),
        "batch": Choice(8, f"8 on each of 32 GPUs in {_RECO}"),
        "accumulate": Choice(8, f"8 on each of 32 GPUs in {_RECO}: 2048 images a step, here 64"),
        "steps": Choice(20_000, f"20,000 in {_RECO}"),
        "warmup": Choice(500, f"1 in {_RECO}; ours, for new tokens"),
        "cooldown": Choice(2000, f"constant to the end in {_RECO}; ours falls to zero"),
        "ema_decay": Choice(0.9999, f"0.9999 in {_RECO}; not used for sampling there"),
        "average": Choice("cpu", _AVERAGE),
        "checkpointing": Choice(True, f"on in {_RECO}"),
        "trained": Choice("U-Net and text encoder", f"U-Net and text encoder in {_RECO}"),
    },
    "gligen": {
        "lr": Choice(5e-5, f"5e-5 in {_GLIGEN}"),
        "batch": Choice(4, f"2 a GPU in {_GLIGEN}"),
        "accumulate": Choice(8, f"no accumulation in {_GLIGEN}; ours, 32 images a step"),
        "steps": Choice(20_000, f"500,000 in {_GLIGEN}; ours is what a classroom has time for"),
        "warmup": Choice(1000, f"10,000 in {_GLIGEN}; as large a part of our steps"),
        "cooldown": Choice(2000, f"constant to the end in {_GLIGEN}; ours falls to zero"),
        "weight_decay": Choice(0.0, f"0 in {_GLIGEN}"),
        "ema_decay": Choice(0.9999, f"0.9999 in {_GLIGEN}, and off"),
        "average": Choice("cpu", _AVERAGE),
        "checkpointing": _ACTIVATIONS,
        "trained": Choice("the gated layers", f"the gated layers in {_GLIGEN}"),
    },
}


@dataclass(frozen=True)
class Suited:
    """A recipe's plan for a base, and what goes with it."""

    plan: Plan
    minutes: float  # between checkpoints
    batch: int | None = None  # images of a micro-batch; None for the recipe's own
    lines: tuple[str, ...] = ()  # each choice beside the paper's, for a person


def unet_weights(base: str | Path) -> int:
    """How many weights the U-Net of a text-to-image model has, read from its files' headers.

    Args:
        base: as for `zoo.folder`.
    """
    files = sorted((zoo.folder(str(base), "text-to-image") / "unet").glob("*.safetensors"))
    # a folder of the hub may have the same weights in half precision beside the others
    files = [file for file in files if ".fp16" not in file.name] or files
    count = 0
    for file in files:
        with suppress(SafetensorError), safe_open(file, "np") as tensors:  # who reads it complains
            names = tensors.keys()
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return count


def suited(recipe: str, plan: Plan, base: str | Path | None, gpu: bool) -> Suited:
    """The plan of a recipe for a base: the recipe's own, or TABLE's for a large one.

    Args:
        recipe: its name.
        plan: the recipe's own.
        base: the model that it starts from; None for a recipe that has none.
        gpu: whether a GPU trains it; there 8-bit moments are used where bitsandbytes is.
    """
    if base is None or recipe not in TABLE or (count := unet_weights(base)) < LARGE:
        return Suited(plan, MINUTES)
    chosen = dict(TABLE[recipe])
    bits = "8bit" if gpu and has_8bit() else "32bit"
    chosen["adamw"] = Choice(bits, "32 bits, or --use_8bit_adam in diffusers' commands")
    values = {name: choice.value for name, choice in chosen.items()}
    batch, _ = values.pop("batch"), values.pop("trained")
    head = f"plan for a U-Net of {count / 1e6:.0f} million weights (beside it: elsewhere):"
    lines = [f"  {name:13} {choice.value!s:22} {choice.theirs}" for name, choice in chosen.items()]
    return Suited(replace(plan, **values, rates={}), LARGE_MINUTES, batch, (head, *lines))


def accumulated(plan: Plan, usual: int | None, batch: int | None) -> Plan:
    """The plan with as many images a step when its micro-batches have another number of images.

    Args:
        plan: for micro-batches of `usual` images.
        usual: images of a micro-batch that the plan was made for; None where that is not known.
        batch: those that were asked for; None for the usual.
    """
    if not usual or not batch or plan.accumulate == 1:
        return plan
    return replace(plan, accumulate=max(1, round(plan.accumulate * usual / batch)))
