# SPDX-License-Identifier: Apache-2.0
"""The course's profiles: the pocket models on any laptop, or real Stable Diffusion in a classroom.

A notebook begins with `start()`; the environment variable SPATEXT_PROFILE says the same for all of
them. The cells are the same in each profile, and how long they take is measured where they run.
"""

import os
import time
from dataclasses import dataclass

from spatext_lab import zoo
from spatext_lab.scene import Scene

PROFILES = {"pocket": "pocket", "classroom": "sd15"}  # the model of each, see `zoo.folder`
STEPS = 10  # of a picture, as the pipelines draw one if nothing else is said


@dataclass(frozen=True)
class Profile:
    """What the cells run with. model: for `zoo.folder`."""

    name: str
    model: str

    def expect(self, pipeline, pictures: int) -> str:
        """How long drawing so many pictures will take, from one guided step that is taken now."""
        size, step = pipeline.image_size, seconds_per_step(pipeline)
        one = STEPS * step
        return (
            f"profile {self.name}, {size} x {size} pixels: on this {pipeline.device.type} a guided "
            f"step takes {step:.2g} s, a picture of {STEPS} steps {one:.2g} s, "
            f"the {pictures} or so of this chapter {pictures * one:.2g} s"
        )


def start(name: str | None = None) -> Profile:
    """The profile of that name, else the one in SPATEXT_PROFILE, else "pocket"; libraries are told
    to be quiet, so call it before importing them.

    name: "pocket", "classroom", or a model folder of the same layout.
    Raises FileNotFoundError where the profile's model is not there.
    """
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DIFFUSERS_VERBOSITY": "error"}
    name = name or os.environ.get("SPATEXT_PROFILE") or "pocket"
    model = PROFILES.get(name, name)
    try:
        zoo.folder(model)
    except FileNotFoundError as error:
        known = ", ".join(PROFILES)
        raise FileNotFoundError(f"profile is {name!r}; there are {known}. Its {error}") from None
    return Profile(name, model)


def seconds_per_step(pipeline) -> float:
    """Of the second step of a picture, for the first one pays for what is only done once."""
    film = pipeline.stream(Scene("a house"), num_inference_steps=STEPS)
    next(film)
    begin = time.perf_counter()
    next(film)
    return time.perf_counter() - begin
