"""A function that the code of a port calls in another file."""

from __future__ import annotations

from typing import Any


def scaled(x: Any, factor: float) -> Any:
    return x * factor
