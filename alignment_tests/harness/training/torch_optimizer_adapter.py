"""An optimizer of PyTorch's at work in a training comparison."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.torch_adapter import TorchAdapter, restore_ieee_arithmetic
from alignment_tests.harness.training.slots import Slots

ADAPTIVE = {"exp_avg": "first", "exp_avg_sq": "second"}
OTHERS = {"momentum_buffer": "", "square_avg": "second"}
STEP = "step"  # counted for each weight, by all optimizers but SGD


class Optimizer:
    """See ``training.ready.Optimizer``."""

    def __init__(self, model: Any, make: Callable[[Any], Any]) -> None:
        self.adapter, self.optimizer = TorchAdapter.of(model), make(model)
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        named = model.named_parameters(remove_duplicate=False)
        self.trained = {name: p for name, p in named if p.requires_grad and id(p) in held}
        names: dict[int, list[str]] = {}
        for name, parameter in self.trained.items():
            names.setdefault(id(parameter), []).append(name)
        self.names = list(names.values())  # of each weight; a tied one has several
        self.slots = Slots(ADAPTIVE if "betas" in self.optimizer.defaults else OTHERS)
        self.steps = 0
        self._gradients: dict[str, Any] = {}
        self._unused: set[str] = set()

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        wanted = [*self.trained.values(), *extra]
        found = torch.autograd.grad(total, wanted, allow_unused=True)
        whole = [torch.zeros_like(of) if grad is None else grad for of, grad in zip(wanted, found, strict=True)]
        self._unused = {name for name, grad in zip(self.trained, found, strict=False) if grad is None}
        self._gradients = dict(zip(self.trained, whole, strict=False))
        return self._gradients, whole[len(self.trained) :]

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        """What the loss does not depend on is left alone, weight decay included, as in anybody's PyTorch."""
        given = gradients or {}
        for names in self.names:
            name = next((name for name in names if name in given), names[0])
            own = self.adapter.from_numpy(given[name]) if name in given else self._gradients[name]
            parameter = self.trained[name]
            parameter.grad = None if name in self._unused else own.to(parameter.dtype)
        self.optimizer.step()
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Array]:
        """A weight that was never updated has nothing kept, which stands for zeros as Jittor keeps them."""
        found: dict[str, Array] = {"position/steps": np.array(self.steps)}
        kept = {name: self.optimizer.state.get(parameter, {}) for name, parameter in self.trained.items()}
        of_weights = {key for name, held in kept.items() for key, value in held.items() if self._is_slot(name, value)}
        for name, parameter in self.trained.items():
            for key in of_weights:
                value = kept[name].get(key, torch.zeros_like(parameter))
                found[self.slots.named(key, name, of_weight=True)] = np.array(value.detach().cpu().numpy())
            for key, value in kept[name].items():
                usual = key == STEP and int(value) == self.steps
                if key not in of_weights and value is not None and not usual:
                    found[self.slots.named(key, name, of_weight=False)] = np.array(value)
        return found

    def _is_slot(self, name: str, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.shape == self.trained[name].shape

    def load(self, state: Mapping[str, Array]) -> None:
        self.steps, by_weight = int(state.get("position/steps", 0)), self.slots.by_weight(state)
        for names in self.names:
            parameter = self.trained[names[0]]
            self.optimizer.state.pop(parameter, None)
            kept = next((by_weight[name] for name in names if name in by_weight), {})
            found = {key: self._tensor(array, parameter) for key, array in kept.items()}
            counted = found.pop(STEP, torch.tensor(float(self.steps)))
            if found and not isinstance(self.optimizer, torch.optim.SGD):
                found[STEP] = counted
            if found:
                self.optimizer.state[parameter] = found

    def _tensor(self, array: Array, parameter: Any) -> Any:
        made = self.adapter.from_numpy(array)
        return made.to(parameter.dtype) if made.is_floating_point() and made.ndim else made


def copied(model: Any, trained: Mapping[str, bool]) -> Any:
    """The model once more, in train mode, with values of its own. Flags are copied with them."""
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf  # PyTorch refuses to copy what was computed
    }
    return copy.deepcopy(model, memo).train()


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers in every step, and no flush-to-zero."""
    restore_ieee_arithmetic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
