"""Temporary folders that live as long as what uses them."""

from __future__ import annotations

import weakref
from pathlib import Path

from alignment_tests.harness.record.temporary import Scratch


def folder_of(owner: object) -> Path:
    """A new folder, removed with its owner, or when the process ends."""
    scratch = Scratch("sabotage")
    weakref.finalize(owner, scratch.remove)
    return scratch.path
