"""Watch the calls of modules. One rule for both frameworks: the outermost call of a module counts, however it is made.

``child(x)`` and ``child.forward(x)`` (``child.execute(x)``) are the same to a model's code, so both are seen, with what
the user's own hooks make of them where these take part. What a module calls of itself while it runs (a ``forward`` that
calls itself for each item of a list) is part of its call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from alignment_tests.harness.record.adapter import After, Before

MISSING: Any = object()


class Watched:
    """One module, and whether a call of it is under way."""

    __slots__ = ("after", "before", "module", "open", "path")

    def __init__(self, path: str, module: Any, before: Before, after: After) -> None:
        self.path, self.module, self.before, self.after = path, module, before, after
        self.open = False

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.open:
            return function(*args, **kwargs)
        self.open = True
        try:
            self.before(self.path, self.module, args, kwargs)
            output = function(*args, **kwargs)
            other = self.after(self.path, self.module, output)
        finally:
            self.open = False
        return output if other is None else other

    def through(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            return self.run(function, args, kwargs)

        return watched


@contextmanager
def watching(
    modules: Sequence[tuple[str, Any]], before: Before, after: After, *, base: type, entries: tuple[str, ...]
) -> Iterator[None]:
    """Let ``before`` and ``after`` see every call of the modules; whatever happens, nothing of it stays.

    Args:
        modules: (path, module), each module once.
        before: told of each call before it.
        after: told of what it returned; what it gives, unless None, goes on in its place.
        base: the framework's class of modules.
        entries: methods that a call may come in by; they are put on the instances.
    """
    watched = {id(module): Watched(path, module, before, after) for path, module in modules}
    undo: list[Callable[[], None]] = []
    try:
        for one in watched.values():
            held = vars(one.module)
            for entry in entries:
                method = getattr(one.module, entry, None)
                if method is not None:
                    undo.append(partial(_put_back, held, entry, held.get(entry, MISSING)))
                    held[entry] = one.through(method)
        # Python looks ``__call__`` up on the class alone: one that is not the framework's plain one is watched there.
        for kind in {type(one.module) for one in watched.values()}:
            if kind.__call__ is not base.__call__:
                undo.append(partial(_put_back_on_class, kind, vars(kind).get("__call__", MISSING)))
                kind.__call__ = _watched_call(kind.__call__, watched)
        yield
    finally:
        for step in reversed(undo):
            step()


def _watched_call(call: Callable[..., Any], watched: dict[int, Watched]) -> Callable[..., Any]:
    def called(module: Any, *args: Any, **kwargs: Any) -> Any:
        one = watched.get(id(module))
        if one is None:
            return call(module, *args, **kwargs)
        return one.run(partial(call, module), args, kwargs)

    return called


def _put_back(held: dict[str, Any], entry: str, original: Any) -> None:
    if original is MISSING:
        held.pop(entry, None)
    else:
        held[entry] = original


def _put_back_on_class(kind: type, original: Any) -> None:
    if original is MISSING:
        del kind.__call__
    else:
        kind.__call__ = original  # type: ignore[method-assign]
