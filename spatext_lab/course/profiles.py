# SPDX-License-Identifier: Apache-2.0
"""The model that the course's cells run with, and how long they take where they run.

A notebook begins with `start()`; the environment variable SPATEXT_PROFILE names a model for all of
them. The cells are the same for the pocket models on a laptop and Stable Diffusion in a classroom.
"""

import os
import time
from dataclasses import dataclass

from spatext_lab import zoo
from spatext_lab.scene import Scene

STEPS = 10  # denoising steps of an image, the pipelines' own default


@dataclass(frozen=True)
class Profile:
    """The model that the cells of a notebook run with."""

    model: str  # "pocket", "sd15" or a folder, for `zoo.folder`

    def expect(self, pipeline, images: int) -> str:
        """A sentence on how long sampling takes here, from one guided step that is timed now.

        Args:
            pipeline: a pipeline of this package.
            images: how many images the chapter samples.
        """
        size, step = pipeline.image_size, seconds_per_step(pipeline)
        one = STEPS * step
        return (
            f"model {self.model}, {size} x {size} pixels: on this {pipeline.device.type} a guided "
            f"step takes {step:.2g} s, an image of {STEPS} steps {one:.2g} s, "
            f"the {images} or so of this chapter {images * one:.2g} s"
        )


def start(model: str | None = None) -> Profile:
    """The profile of a notebook. Call it before importing the libraries: it makes them quiet.

    Args:
        model: "pocket"; "sd15", the classroom's Stable Diffusion in ./models; or the folder of a
            model. If not given, the one that SPATEXT_PROFILE names, or else "pocket".

    Raises:
        FileNotFoundError: there is no such model.
    """
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DIFFUSERS_VERBOSITY": "error"}
    model = model or os.environ.get("SPATEXT_PROFILE") or "pocket"
    zoo.folder(model)
    return Profile(model)


def seconds_per_step(pipeline) -> float:
    """Seconds of an image's second denoising step; the first one includes what is done once."""
    steps = pipeline.stream(Scene("a house"), num_inference_steps=STEPS)
    next(steps)
    begin = time.perf_counter()
    next(steps)
    return time.perf_counter() - begin
