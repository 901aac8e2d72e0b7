# SPDX-License-Identifier: Apache-2.0
"""Systems that summaries of the papers describe and the papers do not have."""
