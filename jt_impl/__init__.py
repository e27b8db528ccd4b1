"""The Jittor implementation of Gold-YOLO.

Importing the package does not import Jittor yet (which may compile for minutes); the first use of a name below does.
From then on ``import jittor`` anywhere in this process gets the Jittor that ``jt_impl.runtime.load`` prepares.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jt_impl import on_import

if TYPE_CHECKING:
    from jt_impl.losses import build_loss
    from jt_impl.model import GoldYolo, build_model, fuse
    from jt_impl.optim import build_optimizer
    from jt_impl.trainer import Trainer

__all__ = ["GoldYolo", "Trainer", "build_loss", "build_model", "build_optimizer", "fuse"]

HOMES = {"Trainer": "trainer", "build_loss": "losses", "build_optimizer": "optim"}  # others: model

on_import.prepare(lambda: importlib.import_module("jt_impl.runtime").load())


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"jt_impl.{HOMES.get(name, 'model')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
