# SPDX-License-Identifier: Apache-2.0
"""The models that `spatext-lab models fetch` knows: where the hub has them, and their licences."""

from dataclasses import dataclass

HALF = ".fp16.safetensors"  # how a repository names the same weights in half precision


@dataclass(frozen=True)
class Licence:
    """What a model's weights may be used for.

    Args:
        name: as the licence calls itself.
        address: where its text can be read.
        forbids: one line, for people; the text is what holds.
    """

    name: str
    address: str
    forbids: str


@dataclass(frozen=True)
class Source:
    """A repository of the hub, and what of it is read.

    Args:
        repository: "owner/name".
        part: the folder in the model that it becomes; "" for the model's own folder.
        needed: file names within that folder.
        licence: of the weights.
        also: patterns of further files that are taken where they are there.
        elsewhere: other names that a repository may have for one of `needed`.
    """

    repository: str
    part: str
    needed: tuple[str, ...]
    licence: Licence
    also: tuple[str, ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()

    def names(self, needed: str) -> list[str]:
        """The names under which the repository may have a file, the preferred one first."""
        other = [name for wanted, name in self.elsewhere if wanted == needed]
        return [needed.replace(".safetensors", HALF), needed, *other]


@dataclass(frozen=True)
class Known:
    """A model that can be fetched by its name.

    Args:
        title: for people.
        sources: the repositories that it is made of.
        size: about how many bytes that is; the hub's own list is what is shown before a download.
    """

    title: str
    sources: tuple[Source, ...]
    size: float


_WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")
_PIPELINE = (
    *("model_index.json", "scheduler/scheduler_config.json"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
    *("text_encoder/config.json", "unet/config.json", "vae/config.json"),
    *("text_encoder/model.safetensors", *_WEIGHTS),
)
_ALSO = ("tokenizer/*.json", "tokenizer/*.txt")

_RAIL = Licence(
    "CreativeML Open RAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "no use to harm, deceive, harass or discriminate (its Attachment A); whoever passes on the "
    "model, or one fine-tuned from it, passes on these limits",
)
_MIT = Licence(
    "MIT",
    "https://opensource.org/license/mit",
    "nothing, as long as its notice is kept; its makers advise against any use but research",
)
_RECO = Licence(
    "CreativeML Open RAIL-M, of Stable Diffusion 1.4, which it was fine-tuned from",
    _RAIL.address,
    f"{_RAIL.forbids}; its own page named no licence when this was written",
)

MODELS = {
    "sd15": Known(
        "Stable Diffusion 1.5, and the OpenCLIP ViT-L/14 that a spatio-textual map needs",
        (
            Source(
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "text-to-image",
                _PIPELINE,
                _RAIL,
                _ALSO,
            ),
            Source(
                "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
                "clip",
                ("open_clip_config.json", "open_clip_model.safetensors"),
                _MIT,
                elsewhere=(("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),),
            ),
        ),
        3.9e9,
    ),
    "reco-coco": Known(
        "ReCo as its authors trained it on COCO, in diffusers' layout",
        (Source("j-min/reco_sd14_coco", "", _PIPELINE, _RECO, _ALSO),),
        4.4e9,
    ),
}
