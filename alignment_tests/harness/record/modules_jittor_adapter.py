"""What a Jittor model is made of, and runs of it that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jittor as jt
import numpy as np

from alignment_tests.harness.record.naming import without_inner
from alignment_tests.harness.record.untouched import Restore, Shared, seeded, untouched


def modules(model: Any) -> list[tuple[str, Any]]:
    """See ``Adapter.modules``."""
    return without_inner(every_module(model), variables(model), _is_own, _is_container)


def variables(model: Any) -> dict[str, Any]:
    """As Jittor trains and saves them: those of a name with an underscore in front are none."""
    found = {}
    for path, module in model.named_modules():  # once per name
        held = module.params if isinstance(module, jt.nn.ParameterList) else vars(module)
        for key, var in held.items():
            if isinstance(var, jt.Var) and not str(key).startswith("_"):
                found[f"{path}.{key}" if path else str(key)] = var
    return found


def every_module(model: Any) -> list[tuple[str, Any]]:
    """(path, module), what Jittor's own layers are made of too. Jittor lists one per name; the first name counts."""
    first: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        first.setdefault(id(module), (path, module))
    return list(first.values())


def _is_own(module: Any) -> bool:
    """Whether the class is one of Jittor's layers; its model zoo is code like anybody's."""
    package, _, rest = type(module).__module__.partition(".")
    return package == "jittor" and rest.partition(".")[0] != "models"


def _is_container(module: Any) -> bool:
    return isinstance(module, (jt.nn.Sequential, jt.nn.ParameterList))


@contextmanager
def running(model: Any, *, train: bool) -> Iterator[None]:
    """See ``Adapter.running``."""
    every = [module for _, module in every_module(model)]
    with jt.flag_scope(auto_mixed_precision_level=0):
        jt.sync(list(variables(model).values()))  # what is kept aside would change how kernels are fused
    with untouched(every, _restore_of):
        _set_mode(model, every, train)
        with _quiet(), seeded():
            jt.set_seed(0)
            yield


def _set_mode(model: Any, every: list[Any], train: bool) -> None:
    """As ``train()`` and ``eval()`` do, without stopping the gradients of every parameter."""
    for module in every:
        module.is_train = train
    name = "train" if train else "eval"
    if getattr(type(model), name) is getattr(jt.Module, name):
        return
    flags = [(var, var.is_stop_grad()) for var in variables(model).values()]
    getattr(model, name)()  # the model's own, which may keep a part in another mode
    for var, stopped in flags:
        _set_stopped(var, stopped)


def _restore_of(value: Any) -> Restore | None:
    """What puts a variable back; None for what is none. The old one is kept by a second holder, not copied."""
    if not isinstance(value, jt.Var):
        return None
    stopped, number = value.is_stop_grad(), value.id
    held = jt.array([0.0])._update(value)
    # A norm that does not know its mode moves its statistics in eval mode too, and memory may be written directly.
    array = value.numpy() if stopped else None

    def restore() -> None:
        if value.id != number:
            value._update(held)
        if array is not None and not np.array_equal(value.numpy(), array, equal_nan=array.dtype.kind == "f"):
            exact = jt.array64(array)
            value.update((exact.bfloat16() if value.dtype == "bfloat16" else exact).stop_grad())
        _set_stopped(value, stopped)

    return restore


def _set_stopped(var: Any, stopped: bool) -> None:
    if var.is_stop_grad() != stopped:
        var.stop_grad() if stopped else var.start_grad()


@contextmanager
def _without_side_effects() -> Iterator[None]:
    seed = jt.get_seed()
    try:
        with jt.no_grad():
            yield
    finally:
        jt.set_seed(seed)


_quiet = Shared(_without_side_effects)
