# SPDX-License-Identifier: Apache-2.0
"""One loop for every model; a recipe says what is trained on what, a checkpoint how it goes on."""
