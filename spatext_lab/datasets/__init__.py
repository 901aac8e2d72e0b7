# SPDX-License-Identifier: Apache-2.0
"""Where scenes come from: the drawn pocket world and the COCO format."""
