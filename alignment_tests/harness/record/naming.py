"""Which modules and tensors of a model have a name. One rule for both frameworks.

Every name of a parameter or buffer counts; a tensor under several names (tied weights, a module registered twice) has
the first one, and the others are aliases of it. A module has its first name. A layer of the framework's own counts as
one: what it is made of inside (Jittor's pools hold a pool) has a name only where it holds parameters or buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def first_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Name -> the first name of the same tensor: its own unless it is tied to one before."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def owner_of(name: str) -> str:
    """Path of the module that holds the parameter or buffer."""
    return name.rpartition(".")[0]


def holding(names: Iterable[str]) -> set[str]:
    """Paths of the modules that hold a parameter or buffer themselves, or in a module inside."""
    found: set[str] = set()
    for name in names:
        path = owner_of(name)
        while path not in found:
            found.add(path)
            path = owner_of(path)
    return found


def without_inner(
    modules: Sequence[tuple[str, Any]],
    names: Iterable[str],
    is_own: Callable[[Any], bool],
    is_container: Callable[[Any], bool],
) -> list[tuple[str, Any]]:
    """The modules without what the framework's own layers are made of.

    Args:
        modules: (path, module), parents before children.
        names: of all parameters and buffers.
        is_own: whether a module is of a class of the framework.
        is_container: whether it is one whose children are the user's, such as ``Sequential``.
    """
    held = holding(names)
    inside: set[str] = set()  # paths of what lies in a layer of the framework's own, at any depth
    found = []
    for path, module in modules:
        if path and owner_of(path) in inside and is_own(module) and path not in held:
            inside.add(path)
            continue
        found.append((path, module))
        if is_own(module) and not is_container(module):
            inside.add(path)
    return found
