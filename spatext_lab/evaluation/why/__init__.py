# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab why`: is the layout used at all, and if not, why not?

The commonest complaint about layout-conditioned models is that boxes or masks have no effect. One
number answers it: the training loss of held-out images under their own layout, against the same
images and the same noise under another image's layout. If both are equal, the layout is ignored.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from spatext_lab import zoo
from spatext_lab.evaluation.why.figure import losses_figure
from spatext_lab.evaluation.why.losses import OWN, Pipeline, Shown, edges, held_out, paired_losses
from spatext_lab.evaluation.why.measures import inner_measures
from spatext_lab.evaluation.why.verdict import Cause, Effect, Finding, causes, findings
from spatext_lab.figures import save
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.scene import files
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.base import INDEX, class_name

# published ReCo weights are folders of Stable Diffusion whose tokenizer has position tokens
READERS = {
    "SpaTextPipeline": SpaTextPipeline,
    "ReCoPipeline": ReCoPipeline,
    "StableDiffusionPipeline": ReCoPipeline,
}
PLAIN = ("TextToImagePipeline", "PositionalWordsPipeline")


@dataclass(frozen=True)
class Report:
    """What `why` found out about a model.

    Attributes:
        folder: the model's.
        noun: what its layouts consist of, "boxes" or "masks".
        images: number of held-out images.
        edges: the first timestep of each bin of t, and the number of timesteps.
        own: the mean loss under the own layout in each bin.
        findings: of layout, region texts and caption.
        causes: where to look, if layout or region texts are not used.
        effects: increase of the loss by variant, in units of `own`.
        measures: measurements inside the model, see `inner_measures`.
    """

    folder: str
    noun: str
    images: int
    edges: tuple[int, ...]
    own: tuple[float, ...]
    findings: tuple[Finding, ...]
    causes: tuple[Cause, ...]
    effects: dict[str, Effect]
    measures: dict[str, float]

    @property
    def used(self) -> bool:
        """Whether layout and region texts are both used, and in the right way."""
        return all(one.state in ("used", "weak") for one in self.findings if one.part != "caption")

    @property
    def verdict(self) -> str:
        """The findings and, where something is not used, the causes, a line each."""
        lines = [one.sentence[0].upper() + one.sentence[1:] for one in self.findings]
        lines += [f"Look at {one.where}: {one.sentence}." for one in self.causes]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The verdict and, as tables in Markdown, the numbers that it is made from."""
        names = [f"{a}-{b - 1}" for a, b in pairwise(self.edges)]
        head = f"| loss | mean over t | {' | '.join(names)} |"
        own = " | ".join(f"{value:.4f}" for value in self.own)
        rows = [f"| own | {np.mean(self.own):.4f} | {own} |"]
        for name, found in self.effects.items():
            cells = " | ".join(f"{mean:+.1%}" for mean, _, _ in found.by_t)
            mean = f"{found.mean:+.1%} ({found.low:+.1%} to {found.high:+.1%})"
            rows.append(f"| {name} | {mean} | {cells} |")
        inside = [f"| {name} | {value:.4f} |" for name, value in self.measures.items()]
        table = [head, "|---" * (len(names) + 2) + "|", *rows]
        second = ["| measurement | value |", "|---|---|", *inside]
        said = self.verdict.replace("\n", "\n\n")
        return "\n".join([said, "", *table, "", *second]) + "\n"

    def to_json(self) -> str:
        """All of it, as JSON."""
        return json.dumps(asdict(self) | {"used": self.used}, indent=2) + "\n"

    def write(self, out: Path) -> None:
        """Writes why.md, why.json and why.png into a folder."""
        files.write(out / "why.md", self.markdown())
        files.write(out / "why.json", self.to_json())
        alt = f"Loss against t for the own and for exchanged conditions. {self.verdict}"
        known = {"folder": Path(self.folder).name, "images": self.images}
        figure = losses_figure(self.edges, self.own, self.effects, self.noun)
        save(figure, out / "why.png", " ".join(alt.split()), known)


def why(folder: str | Path, *, scenes: int = 64, seed: int = 0, data: Path | None = None) -> Report:
    """Whether a model uses its layouts, its region texts and its captions, and why not.

    Args:
        folder: of a SpaText or a ReCo model, also ReCo weights in the layout of Stable Diffusion.
        scenes: number of held-out images, at least 8.
        seed: of noise and timesteps.
        data: a folder in COCO layout, whose val2017 photos are used; scenes of the pocket world's
            test split, enlarged to the model's image size, if not given.

    Raises:
        FileNotFoundError: where there is no model, or a part of it is missing.
        ValueError: for a model without layouts, a tokenizer without position tokens, fewer than
            8 scenes, and damaged files; names the folder.
    """
    if scenes < 8:
        raise ValueError(f"scenes is {scenes}; pass at least 8, or no interval means anything")
    pipeline = load(folder)
    shown = held_out(pipeline, scenes, data)
    return diagnose(pipeline, shown, str(folder), seed)


def load(folder: str | Path) -> Pipeline:
    """The pipeline of a folder that reads layouts, on a GPU where there is one.

    Raises:
        FileNotFoundError, ValueError: as for `why`.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is no folder; pass the folder of a model")
    if not (place / INDEX).is_file():
        parts = sorted(index.parent.name for index in place.glob(f"*/{INDEX}"))
        rather = f"pass one of those in it: {', '.join(parts)}" if parts else "it is no model"
        raise FileNotFoundError(f"{place} has no {INDEX}: {rather}")
    kind = class_name(place)
    if kind not in READERS:
        no_layout = "this model has no layout, only a caption"
        rather = no_layout if kind in PLAIN else "pass the folder of a SpaText or ReCo model"
        raise ValueError(f"{place} is a {kind}: {rather}")
    pipeline = READERS[kind].from_pretrained(zoo.folder(str(place.absolute())))
    if isinstance(pipeline, ReCoPipeline) and not pipeline.position_tokens.bins:
        if kind != "ReCoPipeline":
            raise ValueError(f"{place} is a {kind}: this model has no layout, only a caption")
        raise ValueError(
            f"{place / 'tokenizer'} has no position tokens <bin000> ...: copy the tokenizer here "
            "that the model was trained with"
        )
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def diagnose(pipeline: Pipeline, shown: Sequence[Shown], name: str, seed: int = 0) -> Report:
    """The report on a pipeline that is at hand.

    Args:
        shown: held-out images, from `held_out`.
        name: of the model, for the report.
        seed: of noise and timesteps.
    """
    noun = "boxes" if isinstance(pipeline, ReCoPipeline) else "masks"
    limits = edges(pipeline.scheduler.config.num_train_timesteps)
    values = paired_losses(pipeline, shown, seed)
    parts, effects = findings(values, limits, noun)
    measured = inner_measures(pipeline, shown)
    return Report(
        folder=name,
        noun=noun,
        images=len(shown),
        edges=tuple(limits),
        own=tuple(values[OWN].mean(1).tolist()),
        findings=tuple(parts),
        causes=tuple(causes(parts, effects, measured, limits)),
        effects=effects,
        measures=measured,
    )
