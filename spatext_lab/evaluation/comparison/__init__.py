# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab compare`: methods on the same scenes and seeds, as tables, curves and a page."""
