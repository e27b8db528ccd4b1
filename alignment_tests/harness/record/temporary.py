"""Temporary folders for traces, which a later run removes if their process was killed; files that are written whole."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

PREFIX = "gold-yolo-alignment-"
NAME = re.compile(rf"{PREFIX}[a-z]+-[a-z0-9_]{{8}}")
# A folder younger than this may be one that its owner has not locked yet.
YOUNG_SECONDS = 600.0


class Scratch:
    """A folder below the temporary folder (TMPDIR), for as long as its owner lives.

    The owner holds a shared lock on it. The system drops the lock however the process ends, and in whatever container
    it ran, which a process number would not tell.
    """

    def __init__(self, kind: str) -> None:
        parent = Path(tempfile.gettempdir())
        remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=parent))
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # a file system without locks: there, nobody can take it for abandoned either
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def remove(self) -> None:
        """Remove the folder with all that is in it; once is enough."""
        if self._handle >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: Any) -> None:
        self.remove()


@cache
def remove_abandoned(parent: Path) -> None:
    """Remove this user's folders in ``parent`` that no living process holds. Once per process is enough."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):  # another user's, held, or just removed by another process
                    _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    about = entry.stat(follow_symlinks=False)
    if about.st_uid != os.getuid() or time.time() - about.st_mtime < YOUNG_SECONDS:
        return
    handle = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        os.close(handle)


def write_text_atomically(path: Path, text: str) -> None:
    """Write under a temporary name in the same folder, then rename: a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
