# SPDX-License-Identifier: Apache-2.0
"""What a reader would try instead: the same scene in, the same kind of image out."""
