# SPDX-License-Identifier: Apache-2.0
"""One loop for every model; recipes define the jobs, checkpoints make them resumable."""
