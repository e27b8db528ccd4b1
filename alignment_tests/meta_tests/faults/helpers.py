"""How faults get at the places where they are planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alignment_tests.meta_tests.faults.fault import Patch
from jt_impl.layers import BatchNorm2d
from jt_impl.model import replaced


def at(model: Any, path: str) -> Any:
    """The module of a Jittor model at this path."""
    return dict(model.named_modules())[path]


def norms(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BatchNorm2d)]


def set_values(patch: Patch, module: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Another value for a parameter or buffer: what ``change`` makes of its numpy array."""
    var = getattr(module, name)
    array = np.ascontiguousarray(change(var.numpy()), var.numpy().dtype)
    patch.set(module, name, replaced(var, array))


def instead(patch: Patch, module: Any, make: Callable[[Any], Any]) -> None:
    """Another ``execute`` for this one module; ``make`` gets the right one."""
    patch.wrap(module, "execute", make)


def during(patch: Patch, module: Any, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """While this one module runs, another function stands at ``owner.name``; ``make`` gets the right one."""

    instead(patch, module, lambda execute: with_other(execute, owner, name, make))


def with_other(function: Any, owner: Any, name: str, make: Callable[[Any], Any]) -> Any:
    """The function, during whose calls another one stands at ``owner.name``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        right = getattr(owner, name)
        setattr(owner, name, make(right))
        try:
            return function(*args, **kwargs)
        finally:
            setattr(owner, name, right)

    return run


def reordered(order: tuple[int, ...]) -> Callable[[Any], Any]:
    """For ``during`` and ``jt.concat``: lists of this length are concatenated in another order."""

    def make(concat: Any) -> Any:
        def wrong(parts: Any, *args: Any, **kwargs: Any) -> Any:
            parts = list(parts)
            parts = [parts[i] for i in order] if len(parts) == len(order) else parts
            return concat(parts, *args, **kwargs)

        return wrong

    return make
