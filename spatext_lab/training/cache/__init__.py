# SPDX-License-Identifier: Apache-2.0
"""What a diffusion model is trained on, computed once: in memory, or on disk for later runs too."""

from spatext_lab.training.cache.encode import SEGMENTS
from spatext_lab.training.cache.examples import (
    Example,
    Photos,
    coco_examples,
    pocket_examples,
    pocket_images,
    squares,
    views,
)
from spatext_lab.training.cache.memory import Cache, build, draw_noise
from spatext_lab.training.cache.shards import Mapped
from spatext_lab.training.cache.store import opened
