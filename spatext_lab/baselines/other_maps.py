# SPDX-License-Identifier: Apache-2.0
"""Other kinds of map than SpaText's: what a segment's cells hold, and which texts go elsewhere.

binary      1 in every segment, whatever it is; the region texts follow the caption (the paper's
            ablation, arXiv 2211.14305, section 4)
caption     the embeddings, and the caption's CLIP text embedding in every cell: 2 d channels (a
            summary of the paper: encode(S, T, R))
similarity  how similar each segment's embedding is to each of `words`: a channel a word (a summary
            of the paper: similarity between image and text tokens)

The map is the same function in training, where the embeddings are CLIP's of the true segments, and
at inference, where they come from texts.
"""

from collections.abc import Iterator, Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext_lab.clip import Clip
from spatext_lab.diffusion import Condition, SampleStep
from spatext_lab.scene import Scene, scene_list
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.spatext.prior import DiffusionPrior, LinearPrior
from spatext_lab.spatext.representation import inference_map, paint

KINDS = ("binary", "caption", "similarity")


class OtherMapsPipeline(SpaTextPipeline):
    """Samples images of scenes as `SpaTextPipeline` does, with another kind of map.

    Args:
        parts: those of `SpaTextPipeline`.
        representation: one of `KINDS`.
        words: of "similarity", a channel each; none for the others.

    Raises:
        ValueError: for another kind, for words where they have no meaning, and where the U-Net does
            not take the map's channels.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderTiny | AutoencoderKL,
        scheduler: SchedulerMixin,
        clip: Clip,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        prior: DiffusionPrior | LinearPrior | None = None,
        representation: str = KINDS[0],
        words: list[str] | None = None,
        most_regions: int | None = None,
        min_area: float | None = None,
    ) -> None:
        words = list(words or ())
        self._wanted = self.channels_of(representation, clip, words)
        parts = (unet, vae, scheduler, clip, text_encoder, tokenizer, prior)
        super().__init__(*parts, most_regions=most_regions, min_area=min_area)
        self.register_to_config(representation=representation, words=words)
        with torch.no_grad():
            self._words = clip.encode_text(words) if words else None

    @staticmethod
    def channels_of(representation: str, clip: Clip, words: Sequence[str] = ()) -> int:
        """Channels of a kind of map."""
        if representation not in KINDS:
            raise ValueError(f"representation is {representation!r}; there are {', '.join(KINDS)}")
        if (representation == "similarity") != bool(words):
            raise ValueError(f"words is {list(words)}; 'similarity' needs words, others take none")
        d = clip.embedding_dim
        return {"binary": 1, "caption": 2 * d, "similarity": len(words)}[representation]

    @property
    def _channels(self) -> int:
        return self._wanted

    def caption(self, caption: str, texts: Sequence[str]) -> str:
        """The caption beside the map; a binary map leaves the region texts to it."""
        whole = [caption, *texts] if self.config.representation == "binary" else [caption]
        return ", ".join(whole)

    @torch.no_grad()
    def paint(
        self,
        embeddings: Float[Tensor, "b k d"],
        covered: Float[Tensor, "b k h w"],
        captions: Sequence[str],
    ) -> Float[Tensor, "b channels h w"]:
        """The map of k disjoint segments; a segment without coverage is not there."""
        if self.config.representation == "binary":
            return covered.sum(1, keepdim=True)
        if self.config.representation == "similarity":
            likeness = einsum(embeddings, self._words.to(embeddings), "b k d, n d -> b k n")
            return paint(likeness, covered)
        st_map = paint(embeddings, covered)
        whole = repeat(self.clip.encode_text(list(captions)), "b d -> b d h w", h=1, w=1)
        return torch.cat([st_map, whole.to(st_map).expand_as(st_map)], dim=1)

    @torch.no_grad()
    def st_maps(self, scenes: Sequence[Scene], apart: bool = False) -> dict:
        """The maps of scenes as fields of a `Condition`."""
        if apart:
            raise ValueError("region_guidance_scale is a list; this kind of map takes a number")
        d, side = self.clip.embedding_dim, self.unet.config.sample_size
        maps = []
        for scene in scenes:
            embeddings = torch.zeros(1, d, device=self._execution_device)
            covered = torch.zeros(1, side, side, device=self._execution_device)
            if scene.regions:
                work = inference_map(scene, self.embed, (side, side), show_work=True)
                embeddings, covered = work["embeddings"], work["coverage"]
            maps.append(self.paint(embeddings[None], covered[None], [scene.caption])[0])
        return {"st_map": torch.stack(maps)}

    def stream(self, scenes: Scene | Sequence[Scene], **settings) -> Iterator[SampleStep]:
        """The sampling loop as a generator; arguments as in `SpaTextPipeline.stream`."""
        return super().stream(self._captioned(scenes), **settings)

    def condition(self, scenes: Sequence[Scene]) -> Condition:
        """Captions and maps of scenes."""
        return super().condition(self._captioned(scenes))

    def _captioned(self, scenes: Scene | Sequence[Scene]) -> list[Scene]:
        scenes = scene_list(scenes)
        texts = ([region.text for region in scene.regions] for scene in scenes)
        pairs = zip(scenes, texts, strict=True)
        return [Scene(self.caption(scene.caption, own), scene.regions) for scene, own in pairs]
