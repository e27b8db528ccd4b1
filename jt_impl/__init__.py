"""The Jittor implementation of Gold-YOLO.

Importing the package does not import Jittor yet (which may compile for minutes); the first use of a name below does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jt_impl.model import GoldYolo, build_model, fuse

__all__ = ["GoldYolo", "build_model", "fuse"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from jt_impl import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
