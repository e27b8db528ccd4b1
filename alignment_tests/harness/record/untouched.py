"""What a run of a model must leave as it was: random numbers, attributes of the modules, values of their tensors."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

CONTAINERS = frozenset((list, dict, set, deque, OrderedDict, defaultdict, Counter))
PLAIN = frozenset((type(None), bool, int, float, str))
Restore = Callable[[], None]


class Shared:
    """A setting of the whole process. The first to enter makes it, the last to leave ends it, in whatever order."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make, self._inside = make, 0
        self._made: AbstractContextManager[Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if not self._inside:
            made = self._make()
            made.__enter__()
            self._made = made
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside and self._made is not None:
                made, self._made = self._made, None
                made.__exit__(None, None, None)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    own, numpy_own = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy_own)


_kept = Shared(_random_state_kept)


@contextmanager
def seeded() -> Iterator[None]:
    """Python's and numpy's random numbers are the same in every run, of either framework; put back afterwards."""
    with _kept():
        random.seed(0)
        np.random.seed(0)
        yield


@contextmanager
def untouched(
    modules: Iterable[Any], keep: Callable[[Any], Restore | None], tensors: Iterable[Any] = ()
) -> Iterator[None]:
    """Put back what a run does to modules.

    Their attributes, the content of the lists, dictionaries and sets among these, and the values of the tensors in
    either are as they were. Not put back: what lies deeper (a list in a list), objects of other classes, what the code
    keeps on classes or in its own modules, and a module that became of another class, as PyTorch's lazy ones do.

    Args:
        modules: all of a model, each once.
        keep: of a tensor, what puts its values back; None of anything else.
        tensors: more of them, that no attribute shows.
    """
    kept = [(module, type(module), dict(vars(module))) for module in modules]
    contents = {id(v): (v, v.copy()) for _, _, held in kept for v in held.values() if type(v) in CONTAINERS}
    restores: dict[int, Restore | None] = {}
    for value in _values(kept, contents.values(), tensors):
        if type(value) not in PLAIN and id(value) not in restores:
            restores[id(value)] = keep(value)
    try:
        yield
    finally:
        for restore in restores.values():
            if restore is not None:
                restore()
        for module, kind, held in kept:
            if type(module) is kind:
                for value in held.values():
                    if id(value) in contents:
                        _refill(*contents[id(value)])
                _put_back(vars(module), held)


def _values(
    kept: list[tuple[Any, type, dict[str, Any]]], contents: Iterable[tuple[Any, Any]], tensors: Iterable[Any]
) -> Iterator[Any]:
    for _, _, held in kept:
        yield from held.values()
    for _, content in contents:
        yield from content.values() if isinstance(content, dict) else content
    yield from tensors


def _refill(container: Any, content: Any) -> None:
    if not container and not content:  # most of them are a module's lists of hooks
        return
    container.clear()
    container.extend(content) if isinstance(container, (list, deque)) else container.update(content)


def _put_back(attributes: dict[str, Any], held: dict[str, Any]) -> None:
    for name in attributes.keys() - held.keys():
        del attributes[name]
    if list(attributes) != list(held):  # one was taken away; the order of attributes is that of a model's names
        attributes.clear()
    attributes.update(held)
