# SPDX-License-Identifier: Apache-2.0
"""What the user wants, whatever the method: a caption, and texts with a mask or a box each."""

from spatext_lab.scene.scene import Region, Scene, scene_list
