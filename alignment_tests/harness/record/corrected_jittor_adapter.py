"""Jittor's own layers and functions with the right result in the place of their own, where the two differ.

Only what a port calls itself is looked at: what Jittor's layers call inside is theirs. Both results are computed for
each call, and the right one goes on only where they differ, so the calls that did are the differences. Gradients do not
pass.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jittor as jt
import numpy as np
import torch

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.nested import flatten, is_plain, unflatten
from alignment_tests.harness.record.right_layers_adapter import FUNCTIONS, LAYERS, Own

# (Jittor's, the right one in the same precision, in float64) -> error over scale where they differ, else None
Differs = Callable[[Array, Array, Array], float | None]


@dataclass
class Difference:
    """A layer or function of Jittor's that gave another result.

    Attributes:
        operator: "jittor.nn.BatchNorm".
        place: module path, or file and line of the call of a function.
        size: the largest difference, in units of the scale.
    """

    operator: str
    place: str
    size: float


class Corrections:
    """Calls both and hands the right result on where they differ."""

    def __init__(self, differs: Differs) -> None:
        self.differs = differs
        self.found: dict[tuple[str, str], Difference] = {}
        self._inside = 0

    def call(self, operator: str, place: Callable[[], str], own: Callable[[], Any], right: Callable[..., Any]) -> Any:
        """``right(dtype)`` computes by PyTorch in that precision, or in that of the inputs."""
        if self._inside:
            return own()
        self._inside += 1
        try:
            try:
                expected, exact = right(None), right(torch.float64)  # before Jittor's own, which moves buffers
            except Exception:  # arguments that only Jittor knows: nothing to compare with
                return own()
            result = own()
            size = self._difference(result, expected, exact)
        finally:
            self._inside -= 1
        if size is None:
            return result
        self.note(operator, place(), size)
        return to_vars(expected)

    def note(self, operator: str, place: str, size: float) -> None:
        """The largest difference of each place is kept."""
        known = self.found.get((operator, place))
        self.found[operator, place] = Difference(operator, place, max(size, known.size if known else 0.0))

    def _difference(self, result: Any, expected: Any, exact: Any) -> float | None:
        own, structure = flatten(result, lambda value: isinstance(value, jt.Var))
        right, other = flatten(expected, torch.is_tensor)
        wide, _ = flatten(exact, torch.is_tensor)
        if own.keys() != right.keys() or not is_plain(structure) or not is_plain(other):
            return None
        sizes = [
            self.differs(own[slot].numpy(), right[slot].detach().numpy(), wide[slot].detach().numpy()) for slot in own
        ]
        return max((size for size in sizes if size is not None), default=None)


@contextmanager
def corrected(modules: list[tuple[str, Any]], differs: Differs) -> Iterator[dict[tuple[str, str], Difference]]:
    """Inside, calls of stock layers among ``modules`` and of FUNCTIONS are corrected; yields what is found."""
    corrections = Corrections(differs)
    wrapped, replaced = [], []
    try:
        for path, module in modules:
            kind = stock_class(module)
            if kind in LAYERS and "execute" not in module.__dict__:
                module.__dict__["execute"] = _layer(corrections, path, module, LAYERS[kind], module.execute)
                wrapped.append(module)
        for owner, name, original in _functions(modules):
            made = _function(corrections, name, original)
            replaced.append((owner, name, original))
            setattr(owner, name, made)
        yield corrections.found
    finally:
        for owner, name, original in reversed(replaced):
            setattr(owner, name, original)
        for module in wrapped:
            module.__dict__.pop("execute", None)


def stock_class(module: Any) -> str | None:
    """Name of Jittor's class that computes the module's output; None if the port's code does."""
    kinds = type(module).__mro__
    computes = next((kind for kind in kinds if "execute" in vars(kind)), None)
    if computes is None or not _is_jittors(computes):
        return None
    return next(kind.__name__ for kind in kinds if _is_jittors(kind))


def _is_jittors(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "jittor"


def _functions(modules: list[tuple[str, Any]]) -> Iterator[tuple[Any, str, Any]]:
    """Where the functions can be called by name: Jittor's own places, and files of the port that imported them."""
    files = {type(module).__module__ for _, module in modules}
    owners = [jt, jt.nn, jt.Var, *(sys.modules[name] for name in files if name in sys.modules)]
    known = {id(held): name for name in FUNCTIONS for owner in (jt.nn, jt) if (held := vars(owner).get(name))}
    for owner in dict.fromkeys(owners):
        if getattr(owner, "__name__", "").partition(".")[0] == "jittor" and owner not in (jt, jt.nn, jt.Var):
            continue
        for name, held in list(vars(owner).items()):
            function = name if owner in (jt, jt.nn, jt.Var) else known.get(id(held))
            if function in FUNCTIONS and callable(held):
                yield owner, name, held


def _layer(corrections: Corrections, path: str, module: Any, right: Callable[..., Any], execute: Any) -> Any:
    operator = f"jittor.nn.{stock_class(module)}"

    def corrected_execute(*args: Any, **kwargs: Any) -> Any:
        held = {name: var for name, var in module.__dict__.items() if isinstance(var, jt.Var)}
        before = {name: to_tensor(var) for name, var in held.items()}
        after: dict[Any, Own] = {}  # dtype, None for the layer's own -> what PyTorch leaves in its place

        def compute(dtype: Any) -> Any:
            given = to_tensors({"args": list(args), "kwargs": kwargs}, dtype)
            own = {name: cast(tensor.clone(), dtype) for name, tensor in before.items()}
            with torch.no_grad():
                result = right(module, own, *given["args"], **given["kwargs"])
            after[dtype] = own
            return result

        result = corrections.call(operator, lambda: path, lambda: execute(*args, **kwargs), compute)
        for name, tensor in after.get(None, {}).items() if torch.float64 in after else ():
            if torch.equal(tensor, before[name]):
                continue  # no buffer, or one that this call does not move
            size = corrections.differs(held[name].numpy(), tensor.numpy(), after[torch.float64][name].numpy())
            if size is not None:
                held[name].update(to_var(tensor).stop_grad())
                corrections.note(operator, path, size)
        return result

    return corrected_execute


def _function(corrections: Corrections, name: str, original: Any) -> Any:
    right = FUNCTIONS[name]

    def corrected_function(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)

        def compute(dtype: Any) -> Any:
            given = to_tensors({"args": list(args), "kwargs": kwargs}, dtype)
            with torch.no_grad():
                return right(*given["args"], **given["kwargs"])

        if corrections._inside or caller.f_globals.get("__name__", "").partition(".")[0] == "jittor":
            return original(*args, **kwargs)
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        return corrections.call(f"jittor.{name}", lambda: place, lambda: original(*args, **kwargs), compute)

    return functools.update_wrapper(corrected_function, original)


def cast(tensor: torch.Tensor, dtype: Any) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def to_tensor(var: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(var.numpy()))


def to_tensors(nest: Any, dtype: Any) -> Any:
    leaves, structure = flatten(nest, lambda value: isinstance(value, jt.Var))
    return unflatten(structure, lambda slot: cast(to_tensor(leaves[slot]), dtype))


def to_var(tensor: torch.Tensor) -> Any:
    array = tensor.detach().numpy()
    return jt.array64(array) if array.dtype == np.float64 else jt.array(array)


def to_vars(nest: Any) -> Any:
    leaves, structure = flatten(nest, torch.is_tensor)
    return unflatten(structure, lambda slot: to_var(leaves[slot]))
