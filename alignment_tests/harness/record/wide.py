"""What the float64 runs of both frameworks share: calls made in a scope, and nests with other leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Scope = Callable[[], AbstractContextManager[None]]


class ScopedCalls:
    """Makes the calls of chosen modules in a scope, whoever calls them.

    A model in float64 and another of the same framework in float32 may be open at the same time, their calls taking
    turns. So a scope is entered with each call, and not for as long as a model is open.
    """

    def __init__(self) -> None:
        self._scopes: dict[int, list[Scope]] = {}  # by the module's identity
        self._owners: dict[type, tuple[Any, Any, int]] = {}  # class -> its own ``__call__``, ours, how many need it

    @contextmanager
    def made_in(self, scope: Scope, modules: Iterable[Any]) -> Iterator[None]:
        """Calls of these modules; a module's latest scope counts."""
        held = list(modules)
        owners = {_owner(type(module)) for module in held}
        for owner in owners:
            self._wrap(owner)
        for module in held:
            self._scopes.setdefault(id(module), []).append(scope)
        try:
            yield
        finally:
            for module in held:
                self._scopes[id(module)].remove(scope)
                if not self._scopes[id(module)]:
                    del self._scopes[id(module)]
            for owner in owners:
                self._unwrap(owner)

    def _wrap(self, owner: type) -> None:
        known = self._owners.get(owner)
        if known is not None:
            self._owners[owner] = *known[:2], known[2] + 1
            return
        original, scopes = vars(owner)["__call__"], self._scopes

        def wrapped(module: Any, *args: Any, **kwargs: Any) -> Any:
            found = scopes.get(id(module))
            if found is None:
                return original(module, *args, **kwargs)
            with found[-1]():
                return original(module, *args, **kwargs)

        self._owners[owner] = original, wrapped, 1
        owner.__call__ = wrapped  # type: ignore[method-assign]

    def _unwrap(self, owner: type) -> None:
        original, wrapped, uses = self._owners.pop(owner)
        if uses > 1:
            self._owners[owner] = original, wrapped, uses - 1
            return
        for name, value in list(vars(owner).items()):  # Jittor moves it to another name when a hook is registered
            if value is wrapped:
                setattr(owner, name, original)


def _owner(kind: type) -> type:
    """The class that a module's ``__call__`` comes from."""
    return next(base for base in kind.__mro__ if "__call__" in vars(base))


def with_leaves(value: Any, change: Callable[[Any], Any], memo: dict[int, tuple[Any, Any]]) -> Any:
    """A nest of lists, tuples and dicts with ``change`` applied to what they hold.

    Args:
        value: the nest, or a leaf.
        change: gives a leaf itself where it stays.
        memo: identity -> (what was there, what stands in its place); one memo keeps what is shared shared.

    Returns:
        New containers where a leaf changes, ``value`` itself where none does.
    """
    if id(value) in memo:
        return memo[id(value)][1]
    if not isinstance(value, (list, tuple, dict)):
        made = change(value)
        if made is not value:
            memo[id(value)] = value, made
        return made
    memo[id(value)] = value, value  # it may hold itself
    keys = list(value) if isinstance(value, dict) else range(len(value))
    changed = {key: made for key in keys if (made := with_leaves(value[key], change, memo)) is not value[key]}
    if changed:
        memo[id(value)] = value, _replaced(value, changed)
    return memo[id(value)][1]


def _replaced(value: Any, changed: dict[Any, Any]) -> Any:
    if isinstance(value, tuple):
        items = [changed.get(index, item) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    made = copy.copy(value)
    for key, item in changed.items():
        made[key] = item
    return made
