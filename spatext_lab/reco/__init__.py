# SPDX-License-Identifier: Apache-2.0
"""ReCo: the scene as a sentence, with position tokens between the words."""
