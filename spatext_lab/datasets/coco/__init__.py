# SPDX-License-Identifier: Apache-2.0
"""Folders in COCO's layout: real photos as scenes, and scenes written that way."""

from spatext_lab.datasets.coco.fingerprint import fingerprint
from spatext_lab.datasets.coco.item import CocoItem, CocoSubset
from spatext_lab.datasets.coco.read import PhotoChoice, read_coco, thing_names
from spatext_lab.datasets.coco.report import CocoReport
from spatext_lab.datasets.coco.write import write_coco
