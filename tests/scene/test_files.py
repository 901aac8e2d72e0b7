# SPDX-License-Identifier: Apache-2.0
"""Files that are written beside their place: whole or not at all, with the rights of the umask."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spatext_lab.scene import files


@pytest.fixture
def umask():
    """Sets the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask, mask):
    umask(mask)
    (tmp_path / "usual").touch()
    files.write(tmp_path / "text", "a")
    with files.replacing(tmp_path / "folder") as beside:
        beside.mkdir()
        save_file({"x": torch.zeros(2)}, beside / "x.safetensors")  # 0600, whatever the umask
    usual = rights(tmp_path / "usual")
    assert rights(tmp_path / "text") == rights(tmp_path / "folder" / "x.safetensors") == usual


def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with files.replacing(tmp_path / "model") as beside:
            beside.mkdir()
            (beside / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_block_that_fails_leaves_the_old_one(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
        (target / "a").write_text("old")
    else:
        target.write_text("old")

    def fails() -> None:
        with files.replacing(target) as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fails()
    assert (target / "a" if kind == "folder" else target).read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")

    def fails(patch: pytest.MonkeyPatch) -> None:
        with files.replacing(tmp_path / "model") as beside:
            beside.mkdir()
            patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        fails(patch)
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KILLED = """
import os, sys
from pathlib import Path
from spatext_lab.scene import files
with files.replacing(sys.argv[1]) as beside:
    beside.mkdir()
    (beside / "half").write_text("half")
    if sys.argv[2] == "swap":  # between the two renames
        Path(sys.argv[1]).rename(beside.parent / "old")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("moment", ["write", "swap"])
def test_what_a_killed_process_left_goes_with_the_next_call(tmp_path, moment):
    target = tmp_path / "a model [1]"
    target.mkdir()
    (target / "a").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(target), moment], check=False)
    assert len(list(tmp_path.glob(".*.part"))) == 1
    with pytest.raises(FileNotFoundError), files.replacing(target):
        pass  # nothing is written, but the place is swept
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_another_writer_is_left_alone(tmp_path):
    """Two threads at once: each writes a whole file, the later one stays."""
    target, both = tmp_path / "t", threading.Barrier(2)

    def writes(text: str) -> None:
        with files.replacing(target) as beside:
            both.wait()
            beside.write_text(text)
            both.wait()

    threads = [threading.Thread(target=writes, args=(c * 9,)) for c in "ab"]
    [each.start() for each in threads]
    [each.join() for each in threads]
    assert target.read_text() in ("a" * 9, "b" * 9)
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    files.write(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"


def test_devices_folders_and_loops_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for device in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match="neither a file nor a folder; pass another path"):
            files.write(device, "x")
    with pytest.raises(ValueError, match="is a folder; pass the path of a file"):
        files.write(tmp_path, "x")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        files.write(tmp_path / "a", "x")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file"):
        files.write(tmp_path / "file" / "x", "x")
