# SPDX-License-Identifier: Apache-2.0
"""A blind study: people choose between two images of a scene without knowing the methods."""
