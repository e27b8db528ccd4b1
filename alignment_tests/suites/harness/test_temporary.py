"""Temporary folders: gone with their owner, and those of a killed process gone with the next one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from alignment_tests.cases.child_processes import sheltered, stop
from alignment_tests.harness.record.temporary import PREFIX, YOUNG_SECONDS, Scratch, remove_abandoned
from alignment_tests.harness.record.trace import NoRoomError, TraceWriter

OWNER = """
import sys
from alignment_tests.harness.record.temporary import Scratch
scratch = Scratch("align")
(scratch.path / "arrays").write_bytes(bytes(1000))
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def owner_in(place: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A living process that holds a folder, and the shell around it."""
    shell = subprocess.Popen(
        sheltered([sys.executable, "-c", OWNER]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(place)},
    )
    assert shell.stdout is not None
    return shell, Path(shell.stdout.readline().decode().strip())


def make_old(folder: Path) -> None:
    os.utime(folder, (0, os.stat(folder).st_mtime - 2 * YOUNG_SECONDS))


def look_again(place: Path) -> None:
    remove_abandoned.cache_clear()
    remove_abandoned(place)


def test_a_folder_goes_with_its_owner(place: Path) -> None:
    with Scratch("align") as folder:
        (folder / "arrays").write_bytes(b"1")
        assert folder.parent == place
    assert not folder.exists()


def test_removing_twice_closes_nothing_of_others(place: Path) -> None:
    scratch = Scratch("align")
    scratch.remove()
    with (place / "other").open("w") as file:  # takes the number of the closed handle
        scratch.remove()
        file.write("kept")
    assert (place / "other").read_text() == "kept"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(place: Path) -> None:
    shell, folder = owner_in(place)
    with shell:
        assert (folder / "arrays").stat().st_size == 1000
        make_old(folder)
        look_again(place)
        assert folder.exists()
        stop(shell)
        look_again(place)
        assert not folder.exists()


def test_a_folder_that_its_owner_may_not_have_locked_yet_stays(place: Path) -> None:
    folder = place / f"{PREFIX}align-abcd_123"
    folder.mkdir()
    look_again(place)
    assert folder.exists()
    make_old(folder)
    look_again(place)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["align-abcd_123", f"{PREFIX}align-results", f"{PREFIX}align-abcd_123.kept", "x"])
def test_folders_of_other_names_stay(name: str, place: Path) -> None:
    (place / name).mkdir()
    make_old(place / name)
    look_again(place)
    assert (place / name).exists()


def test_a_link_is_not_followed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("photographs")
    (target / "photo").write_bytes(b"1")
    make_old(target)
    (place / f"{PREFIX}align-abcd_123").symlink_to(target)
    look_again(place)
    assert (target / "photo").exists()


def test_a_full_disk_names_the_folder_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".arrays.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(NoRoomError, match=r"no room on the disk .*TMPDIR") as caught, TraceWriter(tmp_path) as writer:
        writer.put("activation/a#0/0", np.zeros(1 << 20))
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
