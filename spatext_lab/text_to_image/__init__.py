# SPDX-License-Identifier: Apache-2.0
"""The base: a caption becomes an image, regions are ignored."""
