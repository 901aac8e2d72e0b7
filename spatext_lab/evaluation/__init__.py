# SPDX-License-Identifier: Apache-2.0
"""Is the picture what was asked for? A judge that looks, metrics that count, reports that tell."""
