# SPDX-License-Identifier: Apache-2.0
"""An image of K regions by SpaText, against MultiDiffusion and GLIGEN on the same base.

The images are each method's own, so only the time is compared.
"""

from collections.abc import Iterator
from functools import partial

from diffusers import DiffusionPipeline
from torch import Tensor

from benchmarks.timer import Case, Setup
from spatext_lab import zoo
from spatext_lab.baselines.gligen import GligenPipeline
from spatext_lab.baselines.multidiffusion import MultiDiffusionPipeline
from spatext_lab.scene import Region, Scene
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline

COUNTS = (1, 2, 4, 8)
COLOURS = ("red", "blue", "yellow", "green", "purple", "orange", "white", "black")


def cases(setup: Setup) -> Iterator[Case]:
    """Each K against both rivals, then K = 8 against K = 1."""
    base = zoo.folder(setup.models, "text-to-image")
    ours = SpaTextPipeline.from_pretrained(zoo.folder(setup.models, "spatext"))
    several = MultiDiffusionPipeline.from_pipe(TextToImagePipeline.from_pretrained(base))
    # Time does not depend on the weights: without trained ones, new ones will do.
    try:
        gligen = GligenPipeline.from_pretrained(zoo.folder(setup.models, "gligen"), base=base)
        name = "GLIGEN"
    except FileNotFoundError:
        gligen = GligenPipeline.from_base(base)
        name = "GLIGEN (untrained)"
    make = partial(image, steps=setup.steps)
    for pipe in (ours, several, gligen):
        pipe.set_progress_bar_config(disable=True)
    for k in COUNTS:
        own = partial(make, ours, k)
        what = f"SpaText, K = {k} / "
        goal = 1 / 3 if k == 4 else None
        yield Case(f"{what}MultiDiffusion", own, partial(make, several, k), goal, same=False)
        yield Case(f"{what}{name}", own, partial(make, gligen, k), same=False)
    most, least = (partial(make, ours, k) for k in (COUNTS[-1], COUNTS[0]))
    yield Case("SpaText, K = 8 / K = 1", most, least, 1.1, same=False)


def image(pipe: DiffusionPipeline, k: int, steps: int) -> Tensor:
    """An image of k regions as a tensor (1, 3, h, w)."""
    return pipe(scene(k), seed=0, num_inference_steps=steps, output_type="pt").images


def scene(k: int) -> Scene:
    """k balls in a meadow, in two rows of four."""
    corners = [(i % 4 / 4, 0.5 * (i // 4)) for i in range(k)]
    boxes = [(x + 0.02, y + 0.1, x + 0.23, y + 0.4) for x, y in corners]
    named = zip(COLOURS, boxes, strict=False)
    return Scene("balls in a meadow", [Region(f"a {c} ball", box=box) for c, box in named])
