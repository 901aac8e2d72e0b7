# SPDX-License-Identifier: Apache-2.0
"""Does an image follow its scene? A judge, metrics, and the reports and tables made of them."""
