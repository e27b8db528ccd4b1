"""Where in a model's own code something is called: the line to show."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

# Packages that the code of a model calls, but that do not hold it.
TOOLS = ("torch", "jittor", "jittor_core", "jittor_utils", "einops")
OWN = str(Path(__file__).resolve().parents[1]) + os.sep
LIBRARY = os.path.dirname(os.__file__) + os.sep
TEXT = 120  # characters of source that are shown


@dataclass(frozen=True)
class Place:
    """Where an operator is called. The source is read only when it is shown."""

    code: CodeType
    instruction: int
    line: int

    @property
    def file(self) -> str:
        return self.code.co_filename

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}  {self.source()}".rstrip()

    def source(self) -> str:
        """The expression, where this version of Python knows its columns, else the line."""
        whole = " ".join(linecache.getline(self.file, self.line).split())
        if not hasattr(self.code, "co_positions"):
            return whole[:TEXT]
        positions = enumerate(self.code.co_positions())
        first, last, begin, end = next((p for i, p in positions if 2 * i == self.instruction), (None,) * 4)
        if first is None or last is None or end is None:
            return whole[:TEXT]
        rows = [linecache.getline(self.file, number).encode() for number in range(first, last + 1)]  # columns are bytes
        rows[-1] = rows[-1][:end]
        rows[0] = rows[0][begin:]
        text = " ".join(b" ".join(rows).decode(errors="replace").split())
        # What is assigned in place has the target's columns only.
        return (whole if not text or f"{text} =" in whole else text)[:TEXT]


def shown_path(file: str) -> str:
    """Relative to the working directory where that is shorter."""
    try:
        return min(os.path.relpath(file), file, key=len)
    except ValueError:  # on another drive
        return file


@cache
def is_tool(file: str) -> bool:
    """Whether it is a file of a framework, of Python or of this harness; Jittor's model zoo is code like anybody's."""
    if file.startswith((OWN, "<frozen ")) or (file.startswith(LIBRARY) and "site-packages" not in file):
        return True
    for name in TOOLS:
        home = getattr(sys.modules.get(name), "__file__", None)
        if home is not None and file.startswith(os.path.dirname(home) + os.sep):
            return not file.startswith(os.path.join(os.path.dirname(home), "models") + os.sep)
    return False


def place_of(frame: FrameType | None, outermost: FrameType | None) -> Place | None:
    """The innermost line of the model's own code, inside of ``outermost``."""
    while frame is not None and frame is not outermost:
        if not is_tool(frame.f_code.co_filename):
            return Place(frame.f_code, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return None
