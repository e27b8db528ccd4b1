"""Jittor in float64 throughout, whatever narrower type the code that runs names.

In a float64 run Python's floats and numpy's arrays are float64, factories make it, and what names float32, half or
bfloat16 means float64; integers and bool stay as they are, and random numbers are drawn as ever and then widened. What
C++ computes in float32 inside of an operator stays so, but for the gradients of means and of the error function, which
norms and GELU need.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import jittor as jt
import numpy as np

from alignment_tests.harness.record import wide_values_adapter as values
from alignment_tests.harness.record.wide import ScopedCalls, with_leaves
from alignment_tests.harness.record.wide_operators_adapter import WIDE_FUNCTIONS, WIDE_METHODS, WIDE_OPS

# Identity of a function that a module may hold by name -> what stands in its place.
REPLACED = {id(values.OPS[name]): made for name, made in WIDE_OPS.items()}
REPLACED |= {id(values.FUNCTIONS[name]): made for name, made in WIDE_FUNCTIONS.items()}


class Installed:
    """Puts the wide operators in their places for as long as somebody needs them."""

    def __init__(self) -> None:
        self.uses = 0
        self._methods: dict[str, Any] = {}
        self._names: list[tuple[dict[str, Any], str, Any]] = []  # a module's names, name, what it held

    @contextmanager
    def needed(self) -> Iterator[None]:
        self.uses += 1
        try:
            if self.uses == 1:
                self._install()
            yield
        finally:
            self.uses -= 1
            if not self.uses:
                self._uninstall()

    def _install(self) -> None:
        for name, made in WIDE_METHODS.items():
            self._methods[name] = vars(jt.Var)[name]
            setattr(jt.Var, name, made)
        for module in list(sys.modules.values()):  # ``from jittor import maximum`` may stand in any of them
            names = getattr(module, "__dict__", None)
            if isinstance(names, dict) and not REPLACED.keys().isdisjoint(map(id, list(names.values()))):
                self._names += [(names, name, value) for name, value in names.items() if id(value) in REPLACED]
        for names, name, value in self._names:
            names[name] = REPLACED[id(value)]

    def _uninstall(self) -> None:
        for names, name, value in self._names:
            if names.get(name) is REPLACED[id(value)]:
                names[name] = value
        for name, method in self._methods.items():
            setattr(jt.Var, name, method)
        self._names.clear()
        self._methods.clear()


_installed, _calls = Installed(), ScopedCalls()


@contextmanager
def wide() -> Iterator[None]:
    """Inside, Jittor computes in float64."""
    with _installed.needed(), values.wide():
        yield


@contextmanager
def widened_model(model: Any, modules: Iterable[Any]) -> Iterator[Any]:
    """Meanwhile the modules hold exact casts in the place of narrow Vars, and calls of them are made in ``wide``."""
    memo: dict[int, tuple[Any, Any]] = {}
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    held = list(modules)
    with _installed.needed(), _calls.made_in(values.wide, held):
        try:
            for module in held:
                attributes = module.__dict__
                for name, value in list(attributes.items()):
                    made = with_leaves(value, _in_place_of, memo)
                    if made is not value:
                        swapped.append((attributes, name, value))
                        attributes[name] = made
            # Computed as the user's own are: one of a single number would else be fused into a kernel that fails.
            jt.sync([made for _, made in memo.values() if isinstance(made, jt.Var)])
            yield model
        finally:
            for attributes, name, value in swapped:
                attributes[name] = value


def _in_place_of(value: Any) -> Any:
    """An exact cast of a narrow Var, the wide one of a function; anything else itself."""
    if isinstance(value, jt.Var):
        return _exact_cast(value) if values.is_narrow(value.dtype) else value
    if isinstance(value, partial) and id(value.func) in REPLACED:
        return partial(REPLACED[id(value.func)], *value.args, **value.keywords)
    return REPLACED.get(id(value), value)


def _exact_cast(var: Any) -> Any:
    made = values.as_float64(var.numpy().astype(np.float64))
    return made.stop_grad() if var.is_stop_grad() else made


def wide_for(var: Any) -> AbstractContextManager[None]:
    """``wide`` for the gradients of a float64 Var of a model that is: a function's own gradient is Python code."""
    return values.wide() if _installed.uses and str(var.dtype) == values.WIDE else nullcontext()
