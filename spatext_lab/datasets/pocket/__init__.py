# SPDX-License-Identifier: Apache-2.0
"""The pocket world: rendered scenes whose truth is known at every pixel."""

from spatext_lab.datasets.pocket.world import (
    BACKDROPS,
    COLOURS,
    KINDS,
    LABELS,
    PATTERNS,
    SIZE,
    STUFF,
    Placed,
    PocketItem,
    Segment,
    held_out,
    outline_mask,
    pocket_item,
)
