# SPDX-License-Identifier: Apache-2.0
"""GLIGEN's network: a frozen U-Net whose cells also attend to objects, through gated layers.

In every transformer block a new self-attention over cells and grounding tokens stands between the
base's self-attention and its cross-attention. The layers are those of diffusers
(`attention_type="gated"`); a gate that starts at 0 leaves the base as it was.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Real
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab import zoo
from spatext_lab.clip import truncated
from spatext_lab.diffusion import Condition, UNetDenoiser
from spatext_lab.scene.notes import warn


# GLIGEN, arXiv 2301.07093, section 3: v = v + tanh(gamma) TS(SelfAttention([v, h])), where TS keeps
# the cells of the sequence, h are grounding tokens, and gamma starts at 0
def with_gates(unet: UNet2DConditionModel, seed: int = 0) -> UNet2DConditionModel:
    """A copy of a U-Net with gated layers, which change nothing before they are trained.

    Args:
        seed: of the new layers' random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gated = type(unet).from_config({**unet.config, "attention_type": "gated"})
        # Our choice (He et al., arXiv 1502.01852). As diffusers begins, the tokens are small (a
        # deviation of 0.04 in the pocket model, not 0.8) and alike, since biases outweigh inputs:
        # attention has little to tell apart.
        blocks = (module.fuser for module in gated.modules() if hasattr(module, "fuser"))
        for layer in (*gated.position_net.linears, *(fuser.linear for fuser in blocks)):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    gated.load_state_dict(unet.state_dict(), strict=False)
    return gated.to(unet.device).type(unet.dtype).eval()


def is_gated(name: str) -> bool:
    """Whether a weight of `with_gates(unet)` is new, and not the base's."""
    return ".fuser." in name or name.startswith("position_net.")


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weights in a U-Net's folder, by which gated layers know their base."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        whole.update(file.read_bytes())
    return whole.hexdigest()


def save_gated(unet: UNet2DConditionModel, file: Path) -> None:
    """Writes the new weights alone."""
    new = {name: w.contiguous() for name, w in unet.state_dict().items() if is_gated(name)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(new, file)


def load_gated(unet: UNet2DConditionModel, file: Path) -> None:
    """Reads the new weights into a U-Net with gated layers.

    Raises:
        ValueError: for other weights than this U-Net's gated layers have; names the file.
    """
    weights = load_file(file)
    wrong = sorted(weights.keys() ^ {name for name in unet.state_dict() if is_gated(name)})
    if wrong:
        raise ValueError(f"{file}: {len(wrong)} weights do not fit the base, such as {wrong[0]}")
    with zoo.named(file):
        unet.load_state_dict(weights, strict=False)


def pooled(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]
) -> Float[Tensor, "k c"]:
    """The text encoder's state of each text's end token, which has read the whole text."""
    limit = tokenizer.model_max_length
    for rest in filter(None, (truncated(tokenizer, text, limit) for text in texts)):
        words = f"a region's text is longer than {limit} tokens"
        warn(f"{words}: {rest!r:.80} is truncated; shorten it", stacklevel=5)
    ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids.to(text_encoder.device)).pooler_output


# GLIGEN, section 3: h = MLP(text embedding, Fourier(box)), the network's `position_net`
@dataclass(frozen=True, eq=False)
class GroundedDenoiser(UNetDenoiser):
    """A U-Net with gated layers as a `Denoiser` that reads `Condition.objects`.

    Args:
        unet: see `with_gates`.
        first: below this timestep the gated layers are off.

    An object is the vector (1, x0, y0, x1, y1, text embedding). A vector of zeros is none: the
    network has learned null embeddings for it.
    """

    first: float = 0.0

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """The prediction for x_t, in x_t's precision; without grounding where `objects` is None."""
        unet, objects = self.unet, condition.objects
        if objects is None or t[0] < self.first:
            return super().__call__(x_t, t, condition)
        present, boxes, texts = objects.to(self.dtype).tensor_split([1, 5], dim=2)
        grounding = {"boxes": boxes, "masks": present[..., 0], "positive_embeddings": texts}
        prediction = unet(
            x_t.to(self.dtype),
            t,
            encoder_hidden_states=condition.text.to(self.dtype),
            cross_attention_kwargs={"gligen": grounding},
        ).sample
        return prediction.to(x_t.dtype)
