"""Temporary folders that live as long as what uses them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path


def folder_of(owner: object) -> Path:
    """A new folder, removed with its owner, or when the process ends."""
    place = Path(tempfile.mkdtemp(prefix="sabotage-"))
    weakref.finalize(owner, shutil.rmtree, place, ignore_errors=True)
    return place
