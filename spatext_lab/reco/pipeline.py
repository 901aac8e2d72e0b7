# SPDX-License-Identifier: Apache-2.0
"""ReCo on top of the text-to-image model: caption and regions as one sentence."""

from collections.abc import Sequence
from typing import ClassVar
from warnings import warn

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.diffusion import Condition, Denoiser, PlacedDenoiser, UNetDenoiser
from spatext_lab.reco.position_tokens import PositionTokens, Sentence
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import RegionScale, TextToImagePipeline

PLACES = ("before", "after")  # the text transformer: where the positions come in
PADDINGS = ("read", "masked")


class ReCoPipeline(TextToImagePipeline):
    """Draws a scene: one sentence of caption, position tokens and texts through the text encoder.

    The parts are text-to-image's own, plain `diffusers` and `transformers` objects; only the
    tokenizer has the bins and the text encoder their rows. So published ReCo weights in the layout
    of diffusers are such a folder as they are.

    positions: "before" the text transformer, as the paper has it, or "after": then the words pass
        through it alone, and the rows of the position tokens are put between their states, as a
        summary of the paper has it.
    padding: "read" by the U-Net as everything else, as Stable Diffusion has it, or "masked".
    most_regions: how many regions a training sentence had at most; beyond that there is a warning.
    A U-Net with more input channels than x_t has is told the coordinates of its cells in them.
    Raises ValueError for other positions or padding, and where the tokenizer has more words than
    the text encoder.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ("positions", "padding", "most_regions")

    def __init__(
        self,
        unet,
        vae,
        text_encoder,
        tokenizer,
        scheduler,
        positions: str = "before",
        padding: str = "read",
        most_regions: int | None = None,
    ) -> None:
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        if positions not in PLACES:
            raise ValueError(f"positions is {positions!r}; there are {', '.join(PLACES)}")
        if padding not in PADDINGS:
            raise ValueError(f"padding is {padding!r}; there are {', '.join(PADDINGS)}")
        rows = text_encoder.get_input_embeddings().num_embeddings
        if rows < len(tokenizer):
            raise ValueError(
                f"text_encoder has {rows} rows for {len(tokenizer)} words of the tokenizer; "
                "give the text encoder that was grown with it"
            )
        self.positions, self.padding, self.most_regions = positions, padding, most_regions
        self.sentences = PositionTokens(tokenizer, text_encoder.config.max_position_embeddings)

    def spoken(self, scene: Scene) -> Scene:
        """The scene as it is said; methods that say it in another way change it here."""
        return scene

    def sentence(self, scene: Scene) -> Sentence:
        """The scene's tokens, which show themselves in colours."""
        return self.sentences.show_work(self.spoken(scene))

    def states(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l c"]:
        """What the U-Net is told of sentences; with gradients, for training."""
        ids = ids.to(self.device)
        if self.positions == "before":
            return self.text_encoder(ids).last_hidden_state
        is_bin = torch.isin(ids, torch.tensor(self.sentences.bin_ids, device=ids.device))
        return states_then_positions(self.text_encoder, ids, is_bin)

    @torch.no_grad()
    def text_states(self, texts: list[str]) -> Float[Tensor, "b l c"]:
        """What the text encoder makes of captions, padded to its full length."""
        return self.states(self.sentences.batch([Scene(text) for text in texts]))

    @torch.no_grad()
    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """What the network is told of the scenes: one sentence each; its null is the empty one."""
        for scene in scenes:
            self.check(scene)
        return self.told(self.sentences.batch([*map(self.spoken, scenes), Scene("")]))

    def told(self, ids: Int[Tensor, "b1 l"]) -> Condition:
        """The condition of b sentences, of which the last one more is the null; with gradients."""
        b, states = len(ids) - 1, self.states(ids)
        text = {"text": states[:-1], "null_text": repeat(states[-1], "l c -> b l c", b=b)}
        if self.padding == "read":
            return Condition(**text)
        mask = self.sentences.said(ids).to(self.device)
        return Condition(**text, text_mask=mask[:-1], null_mask=repeat(mask[-1], "l -> b l", b=b))

    def denoiser(self) -> Denoiser:
        """The network as sampling and training call it."""
        config = self.unet.config
        return (UNetDenoiser, PlacedDenoiser)[config.in_channels > config.out_channels](self.unet)

    def check(self, scene: Scene) -> None:
        """Warns where a scene has more regions than the model has learned from."""
        n = len(scene.regions)
        if self.most_regions is not None and n > self.most_regions:
            warn(
                f"the scene has {n} regions and the model has seen {self.most_regions} at most: "
                "some may be drawn badly or left out; draw fewer",
                stacklevel=3,
            )

    def _settings(self) -> dict:
        known = {"most_regions": self.most_regions}
        if self.positions != "before":
            known["positions"] = self.positions
        if self.padding != "read":
            known["padding"] = self.padding
        return {name: value for name, value in known.items() if value is not None}

    def _guided(self, guidance_scale: float, region_guidance_scale: RegionScale) -> Denoiser:
        if region_guidance_scale is not None:
            raise ValueError(
                f"region_guidance_scale is {region_guidance_scale}; ReCo's caption and regions are "
                "one sentence with one guidance_scale, leave it out"
            )
        return super()._guided(guidance_scale, None)


# A summary of the paper, not the paper: positions are put in after the text has been encoded.
def states_then_positions(
    text_encoder, ids: Int[Tensor, "b l"], is_bin: Tensor
) -> Float[Tensor, "b l c"]:
    """States of the words alone, as if the bins were not there, with the bins' rows between them.

    The words close ranks (a stable sort brings them to the front), pass through the transformer,
    and go back to their places.
    """
    order = is_bin.long().argsort(dim=1, stable=True)
    states = text_encoder(ids.gather(1, order)).last_hidden_state
    back = order.argsort(dim=1)
    states = states.gather(1, repeat(back, "b l -> b l c", c=states.shape[-1]))
    rows = text_encoder.get_input_embeddings()(ids)
    return torch.where(is_bin[..., None], rows, states)
