# SPDX-License-Identifier: Apache-2.0
"""What the notebooks need beside the library: profiles, and student copies."""
