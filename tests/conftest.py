# SPDX-License-Identifier: Apache-2.0
"""Set-up of every test: annotated shapes are checked as the code runs, random numbers repeat."""

import pytest
import torch
from jaxtyping import config, install_import_hook

# Before any test module imports the package; a wrong shape then fails at the function that took it.
# The tower of PEP 484: where a float is annotated, a whole number will do.
install_import_hook(
    "spatext_lab", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# One thread: tests run side by side, one process a core.
torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    torch.manual_seed(0)


@pytest.fixture
def as_for_users():
    """Without the checks of annotations, so that a value of a wrong type meets the library's."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
