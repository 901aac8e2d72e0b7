# SPDX-License-Identifier: Apache-2.0
"""ReCo before its first step: a base with position tokens, or a ReCo folder to continue from."""

from pathlib import Path

from spatext_lab.baselines.digit_coordinates import DigitCoordinatesPipeline
from spatext_lab.baselines.positional_words import PositionalWordsPipeline
from spatext_lab.baselines.positions_after import PositionsAfterPipeline
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.reco.position_tokens import bin_ids
from spatext_lab.reco.text_encoder import grow
from spatext_lab.spatext.widen import narrow_input
from spatext_lab.text_to_image.base import class_name
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

CAPTION = 77  # tokens that CLIP reads
MOST_BINS = 1000  # as in the paper; small images need no more than two a pixel
CLASSES = {
    "reco": ReCoPipeline,
    "contrastive": ReCoPipeline,
    "after": PositionsAfterPipeline,
    "words": PositionalWordsPipeline,
    "digits": DigitCoordinatesPipeline,
}
WRITTEN = ("words", "digits")  # boxes stand in the caption, and no tokens are added
VARIANTS = tuple(CLASSES)


def build_model(
    folder: Path,
    device: str,
    variant: str = "reco",
    bins: int | None = None,
    init: str | None = None,
    seed: int = 0,
) -> ReCoPipeline:
    """The model before its first step; arguments as in `reco.make`.

    Raises:
        ValueError: for an unknown variant, for one that the ReCo folder was not trained as, for
            bins or an init where no tokens are added, and what `grow` raises.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; there are {', '.join(VARIANTS)}")
    base = TextToImagePipeline.from_pretrained(folder).to(device)
    known, kind = len(bin_ids(base.tokenizer)), class_name(folder)
    if known or kind in [CLASSES[name].__name__ for name in WRITTEN]:
        _check_no_tokens(f"the base has {known} bins already", bins, init)
        return _continue_from(folder, device, variant, kind)
    base.unet = narrow_input(base.unet)
    return _with_position_tokens(base, variant, bins, init, seed)


def _with_position_tokens(
    base: TextToImagePipeline,
    variant: str,
    bins: int | None,
    init: str | None,
    seed: int,
) -> ReCoPipeline:
    """The variant's model: the base's parts, and a text encoder with more tokens and more room."""
    if variant in WRITTEN:
        _check_no_tokens(f"variant {variant!r} has no position tokens", bins, init)
        bins = 0
    elif bins is None:
        bins = min(2 * base.image_size, MOST_BINS)
    elif bins == 0:
        raise ValueError("bins is 0; pass at least 2, the image's two edges")
    # Room for sequences as images have room for objects: 77 x 8 for latents of 64 x 64, as in the
    # paper, 77 x 2 for those of 16 x 16. A base may have more already.
    old = base.text_encoder.config.max_position_embeddings
    length = max(old, CAPTION * max(base.latent_size // 8, 1))
    if variant == "digits":  # a box takes 21 tokens, not 4: of pocket scenes 1 in 20 would not fit
        length = max(length, CAPTION * 3 * max(base.latent_size // 8, 1) // 2)
    text_encoder, tokenizer = grow(
        base.text_encoder, base.tokenizer, bins, length, init or "smooth", seed
    )
    parts = {"text_encoder": text_encoder, "tokenizer": tokenizer}
    return CLASSES[variant].from_pipe(base, **parts)


def _check_no_tokens(why: str, bins: int | None, init: str | None) -> None:
    """Raises ValueError for settings of new tokens where none are added."""
    for name, value in (("bins", bins), ("init", init)):
        if value is not None:
            raise ValueError(f"{name} is {value!r}; {why}, leave it out")


def _continue_from(folder: Path, device: str, variant: str, kind: str) -> ReCoPipeline:
    """The model of a ReCo folder, if it was trained as a variant that this one continues."""
    able = [name for name, cls in CLASSES.items() if cls.__name__ == kind]
    if variant not in able:
        known = " or ".join(able)
        raise ValueError(f"variant is {variant!r}; the base can be continued as {known} only")
    return CLASSES[variant].from_pretrained(folder).to(device)
