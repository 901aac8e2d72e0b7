# SPDX-License-Identifier: Apache-2.0
"""SpaText (arXiv 2211.14305): the scene as a map, an embedding at every pixel."""
