# SPDX-License-Identifier: Apache-2.0
"""What the documentation names is there, and a checkout has the bytes that were committed."""

import subprocess
from pathlib import Path

import pytest

from spatext_lab import zoo

ROOT = Path(__file__).parents[1]


# --- a checkout on Windows ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows_clone(tmp_path_factory) -> Path:
    """A clone of what is committed, made as Git for Windows does by default."""
    clone = tmp_path_factory.mktemp("clone") / "spatext_lab"
    command = ["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT.as_uri(), clone]
    subprocess.run(command, check=True, capture_output=True)
    return clone


def test_the_models_survive_a_checkout_on_windows(windows_clone):
    assert zoo.verify(windows_clone / "data" / "pocket") == []


def test_no_file_is_changed_by_a_checkout_on_windows(windows_clone):
    """Git's own word: the line ends in the index (i/) and in the working tree (w/) are equal."""
    command = ["git", "-c", "core.quotepath=off", "ls-files", "--eol"]
    listed = subprocess.run(
        command, cwd=windows_clone, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(listed) > 500
    ends = [line.split()[:2] for line in listed]
    assert [line for line, (i, w) in zip(listed, ends, strict=True) if i[2:] != w[2:]] == []
