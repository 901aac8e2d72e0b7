# SPDX-License-Identifier: Apache-2.0
"""Images of scenes, maps, tokens and numbers, each with alternative text."""

from spatext_lab.figures.charts import curve, grid
from spatext_lab.figures.png import PALETTE, ImageWithAlt, colour, save, show, to_image
from spatext_lab.figures.scenes import draw_scene, map_image, outline, token_strip
