"""An optimizer of Jittor's at work in a training comparison."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jittor as jt
import numpy as np

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.jittor_adapter import JittorAdapter, _with_one_consumer
from alignment_tests.harness.training.slots import Slots

GIVEN = ("params", "grads")  # lists of a group that are no state


class Optimizer:
    """See ``training.ready.Optimizer``."""

    def __init__(self, model: Any, make: Callable[[Any], Any]) -> None:
        self.adapter, self.optimizer = JittorAdapter(), make(model)
        names: dict[int, list[str]] = {}
        for name, var in self.adapter.variables(model).items():
            names.setdefault(id(var), []).append(name)
        self.names = names
        held = {id(var) for group in self.optimizer.param_groups for var in group["params"]}
        named = self.adapter.variables(model).items()
        self.trained = {name: var for name, var in named if id(var) in held and self.adapter.trainable(var)}
        self.slots = Slots(self._known_slots())
        self._gradients: dict[str, Any] = {}

    def _known_slots(self) -> dict[str, str]:
        if hasattr(self.optimizer, "betas"):
            return {"m": "first", "values": "second"}
        return {"values": "second" if hasattr(self.optimizer, "alpha") else ""}

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        weights = {id(var): var for var in self.trained.values()}  # asked for twice, Jittor gives zeros the second time
        found = jt.grad(_with_one_consumer(total), [*weights.values(), *extra])
        gradients = dict(zip(weights, found, strict=False))
        self._gradients = {name: gradients[id(var)] for name, var in self.trained.items()}
        return self._gradients, found[len(weights) :]

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        """What ``optimizer.step(loss)`` does after it has the gradients."""
        given = gradients or {}
        for group in self.optimizer.param_groups:
            group["grads"] = [self._gradient(var, given).stop_grad() for var in group["params"]]
        self.optimizer.n_step += 1
        self.optimizer._Optimizer__zero_grad = False  # there are gradients, for those that clip them
        self.optimizer.step()
        jt.sync_all()

    def _gradient(self, var: Any, given: Mapping[str, Array]) -> Any:
        for name in self.names.get(id(var), ()):
            if name in given:
                return self.adapter.from_numpy(given[name].astype(str(var.dtype)))
            if name in self._gradients:
                return self._gradients[name]
        return jt.zeros_like(var)

    def state(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for key, name, var, kept in self._held():
            found[self.slots.named(key, name, of_weight=tuple(kept.shape) == tuple(var.shape))] = kept.numpy()
        return {**found, "position/steps": np.array(self.optimizer.n_step)}

    def load(self, state: Mapping[str, Array]) -> None:
        by_weight = self.slots.by_weight(state)
        for key, _, var, kept in self._held():
            arrays = (by_weight.get(name, {}).get(key) for name in self.names[id(var)])
            array = next((one for one in arrays if one is not None), None)
            array = np.zeros(tuple(kept.shape)) if array is None else array  # as a new optimizer has it
            kept.update(self.adapter.from_numpy(array.astype(str(kept.dtype))).stop_grad())
        self.optimizer.n_step = int(state.get("position/steps", 0))
        self.optimizer.zero_grad()

    def _held(self) -> Iterator[tuple[str, str, Any, Any]]:
        """Key, name and weight, and what is kept for it. Without momentum, what SGD keeps is never read again."""
        for group in self.optimizer.param_groups:
            forgetful = not group.get("momentum", getattr(self.optimizer, "momentum", 1))
            for key, values in group.items():
                if key in GIVEN or not isinstance(values, list) or len(values) != len(group["params"]):
                    continue
                for var, kept in zip(group["params"], values, strict=True):
                    for name in self.names.get(id(var), ()):
                        if name in self.trained and isinstance(kept, jt.Var) and not (forgetful and key == "values"):
                            yield key, name, var, kept


def copied(model: Any, trained: Mapping[str, bool]) -> Any:
    """The model once more, in train mode, with values of its own.

    Jittor's own way to copy a variable forgets which ones are frozen, and so does ``eval()`` what it froze itself.

    Args:
        model: what is copied.
        trained: which of its variables training changes.
    """
    plain = jt.Var.__deepcopy__

    def exact(var: Any, memo: dict[int, Any]) -> Any:
        array = var.numpy()
        made = jt.array64(array) if str(var.dtype) != "bfloat16" else jt.array(array).bfloat16()
        return made.stop_grad() if var.is_stop_grad() else made

    jt.Var.__deepcopy__ = exact
    try:
        made = copy.deepcopy(model)
    finally:
        jt.Var.__deepcopy__ = plain
    for _, module in made.named_modules():
        vars(module).pop("backup_grad_state", None)  # by the identities of the original's variables
    made.train()
    for name, var in JittorAdapter().variables(made).items():
        if trained[name]:
            var.start_grad()
        else:
            var.stop_grad()
    return made


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers in every step."""
    seed = jt.get_seed()
    jt.set_seed(0)
    try:
        yield
    finally:
        jt.set_seed(seed)
