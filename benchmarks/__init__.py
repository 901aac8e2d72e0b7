# SPDX-License-Identifier: Apache-2.0
"""Speed beside other libraries and methods, each on the same work: `python -m benchmarks`."""
