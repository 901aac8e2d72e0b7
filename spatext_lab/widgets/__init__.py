# SPDX-License-Identifier: Apache-2.0
"""What can be touched; each widget has a code path beside it that gives the same."""
