# SPDX-License-Identifier: Apache-2.0
"""Attention that is watched: the same prediction, weights against a slow loop, the loss of them."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.testing import assert_close

from spatext_lab.scene import Region, Scene
from spatext_lab.training.recipes.reco.attention import attention_loss, watched

B, LENGTH, WIDTH = 2, 5, 6


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def told(masked: bool) -> dict[str, Tensor | None]:
    text = torch.randn(B, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask if masked else None}


def predict(unet: UNet2DConditionModel, masked: bool) -> Tensor:
    x_t = torch.randn(B, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return unet(x_t, torch.tensor([10, 900]), **told(masked)).sample


def cross_attention(unet: UNet2DConditionModel) -> list[torch.nn.Module]:
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


# --- watching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_watching_changes_no_prediction_and_leaves_no_trace(unet, masked):
    want = predict(unet, masked)
    with watched(unet) as seen:
        got = predict(unet, masked)
    assert_close(got, want, atol=1e-5, rtol=1e-5)
    number = len(seen)
    assert number == len(cross_attention(unet)) > 1
    assert torch.equal(predict(unet, masked), want)
    assert len(seen) == number
    with pytest.raises(RuntimeError, match="stop"), watched(unet) as seen:
        raise RuntimeError("stop")
    predict(unet, masked)
    assert seen == []


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_weights_against_a_slow_loop(unet, masked):
    """Head by head and cell by cell, from the queries and keys of each layer as they passed by."""
    passed: list[dict[str, Tensor]] = []
    for layer in cross_attention(unet):
        passed.append({})
        for part in ("to_q", "to_k"):
            getattr(layer, part).register_forward_hook(
                lambda _, inputs, out, kept=passed[-1], part=part: kept.update({part: out})
            )
    with watched(unet) as seen:
        predict(unet, masked)
    mask, used = told(masked)["encoder_attention_mask"], set()
    for layer, kept in zip(cross_attention(unet), passed, strict=True):
        (match,) = [k for k, w in enumerate(seen) if k not in used and close(layer, kept, w, mask)]
        used.add(match)
    assert len(used) == len(seen)


def close(layer, kept: dict[str, Tensor], weights: Tensor, mask: Tensor | None) -> bool:
    """Whether these are the weights of this layer."""
    query, key, heads = kept["to_q"], kept["to_k"], layer.heads
    size = query.shape[-1] // heads
    if weights.shape != (B, query.shape[1], LENGTH):
        return False
    want = torch.zeros_like(weights)
    for k in range(B):
        allowed = range(LENGTH) if mask is None else [i for i in range(LENGTH) if mask[k, i]]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for cell in range(query.shape[1]):
                scores = torch.stack(
                    [query[k, cell, part] @ key[k, i, part] / math.sqrt(size) for i in allowed]
                )
                want[k, cell, list(allowed)] += scores.softmax(0) / heads
    return torch.allclose(weights, want, atol=1e-5)


def test_the_weights_teach_queries_and_keys(unet):
    with watched(unet) as seen:
        predict(unet, masked=True)
    sum(weights[..., 0].sum() for weights in seen).backward()
    for layer in cross_attention(unet):
        for part in (layer.to_q, layer.to_k):
            assert part.weight.grad.abs().sum() > 0


# --- the loss -------------------------------------------------------------------------------------

SCENES = [
    Scene("c", [Region("a", box=(0, 0, 0.5, 1)), Region("b", box=(0.25, 0.5, 1, 1))]),
    Scene("c"),
    Scene("c", [Region("d", box=(0.5, 0, 1, 0.5))]),
]
OWNERS = torch.tensor([[0, 1, 1, 2, 2, -1], [0, 0, -1, -1, -1, -1], [0, 0, 1, 1, 1, -1]])


def slow_loss(weights: list[Tensor]) -> float:
    """Cell by cell, by the middle of each; where boxes overlap, the later one's."""
    losses = []
    for layer in weights:
        side = math.isqrt(layer.shape[1])
        for k, scene in enumerate(SCENES):
            for y in range(side):
                for x in range(side):
                    u, v, owner = (x + 0.5) / side, (y + 0.5) / side, 0
                    for number, region in enumerate(scene.regions, start=1):
                        x0, y0, x1, y1 = region.box
                        if x0 <= u < x1 and y0 <= v < y1:
                            owner = number
                    if owner:
                        tokens = [i for i in range(6) if OWNERS[k, i] == owner]
                        cell = layer[k, y * side + x]
                        losses.append(-math.log(sum(cell[i].item() for i in tokens)))
    return sum(losses) / len(losses)


def test_the_attention_loss_against_a_slow_loop():
    weights = [torch.randn(3, side * side, 6).softmax(-1) for side in (4, 8)]
    got = attention_loss(weights, OWNERS, SCENES)
    assert got.item() == pytest.approx(slow_loss(weights), rel=1e-4)


def test_the_attention_loss_in_closed_form():
    """Evenly spread, log of all tokens over the region's; where all cells look at nothing but the
    scene's only region, 0; at nothing of it, a large number."""
    even = [torch.full((1, 16, 6), 1 / 6)]
    one, owners = SCENES[2:], OWNERS[2:]
    assert attention_loss(even, owners, one).item() == pytest.approx(math.log(6 / 3), rel=1e-5)
    right = torch.tensor([0, 0, 0.5, 0.25, 0.25, 0]).expand(1, 16, 6)
    assert attention_loss([right], owners, one).item() == pytest.approx(0, abs=1e-6)
    wrong = torch.tensor([0.5, 0.5, 0, 0, 0, 0]).expand(1, 16, 6)
    assert 10 < attention_loss([wrong], owners, one).item() < 20


def test_cells_in_no_box_may_look_where_they_like():
    weights = torch.randn(3, 16, 6).softmax(-1)
    free = weights.clone()
    inside = torch.from_numpy(SCENES[2].label_map(4, 4)).flatten() > 0
    free[1] = torch.randn(16, 6).softmax(-1)
    free[2, ~inside] = torch.randn(12, 6).softmax(-1)
    a, b = (attention_loss([each], OWNERS, SCENES) for each in (weights, free))
    assert_close(a, b)


def test_without_boxes_the_loss_is_0_and_can_be_learned_from():
    weights = torch.randn(1, 16, 6, requires_grad=True)
    loss = attention_loss([weights], OWNERS[1:2], SCENES[1:2])
    assert loss.item() == 0
    loss.backward()
    assert not weights.grad.any()
