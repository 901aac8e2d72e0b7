# SPDX-License-Identifier: Apache-2.0
"""Where scenes come from: the rendered pocket world and the COCO format."""
