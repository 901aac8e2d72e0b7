# SPDX-License-Identifier: Apache-2.0
"""Widening the U-Net's first convolution, so that it reads the spatio-textual map."""

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import nn


# SpaText, arXiv 2211.14305, section 3.2: the first convolution's kernels grow from C_in to
# C_in + d_CLIP input channels
def widen_input(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """A copy of `unet` that takes `extra` more input channels, after the old ones.

    The weights of the new channels are zero (our choice), so that before training the output does
    not depend on the map.

    Raises:
        ValueError: for extra < 1.
    """
    if extra < 1:
        raise ValueError(f"extra is {extra}; pass the number of channels of the map, at least 1")
    # from_pretrained(..., ignore_mismatched_sizes=True) would leave uninitialised memory there
    return _with_inputs(unet, extra)


def narrow_input(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of `unet` without the input channels beyond those of its output: without the map.

    Its output is exactly that of `unet` with a zero map.
    """
    return _with_inputs(unet, unet.config.out_channels - unet.config.in_channels)


def _with_inputs(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """A copy that takes `extra` more channels, fewer where negative; new ones have weight zero.

    The first convolution may read more than the U-Net is passed, as `PocketUNet`'s does.
    """
    changed = copy.deepcopy(unet)
    old = changed.conv_in
    new = nn.Conv2d(
        old.in_channels + extra,
        old.out_channels,
        old.kernel_size,
        padding=old.padding,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    same = min(new.in_channels, old.in_channels)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :same] = old.weight[:, :same]
        new.bias.copy_(old.bias)
    changed.conv_in = new
    changed.register_to_config(in_channels=unet.config.in_channels + extra)
    return changed
