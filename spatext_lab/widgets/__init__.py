# SPDX-License-Identifier: Apache-2.0
"""Interactive widgets; each has a path in code to the same result."""
