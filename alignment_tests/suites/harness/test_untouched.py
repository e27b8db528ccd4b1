"""A run leaves a model as it was: modes, seeds, hooks, attributes, what containers hold, values of tensors."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness import align, capture
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.untouched import seeded, untouched
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
FRAMEWORKS = ["torch", "jittor"]


def ones(framework: str) -> Any:
    return torch.ones(4) if framework == "torch" else jt.array(np.ones(4, np.float32)).stop_grad()


def layer(framework: str) -> Any:
    return torch.nn.Linear(4, 4) if framework == "torch" else jt.nn.Linear(4, 4)


class Torch(torch.nn.Module):
    def __init__(self, change: Callable[[Any, Any], None]) -> None:
        super().__init__()
        fill(self, "torch")
        self.change = change

    def forward(self, x: Any) -> Any:
        self.change(self, x)
        return self.part(x)


class Jittor(jt.Module):
    def __init__(self, change: Callable[[Any, Any], None]) -> None:
        fill(self, "jittor")
        self.change = change

    def execute(self, x: Any) -> Any:
        self.change(self, x)
        return self.part(x)


def fill(m: Any, framework: str) -> None:
    m.part, m.rows, m.seen = layer(framework), None, [1, 2]
    m.by_key, m.names, m.queue, m.counts = {"a": 1}, {"a"}, deque([1]), Counter("aab")
    m.kept, m.cache = ones(framework), [ones(framework)]
    m.register_buffer("mask", ones(framework))


def sets_an_attribute(m: Any, x: Any) -> None:
    m.last = x


def replaces_an_attribute(m: Any, x: Any) -> None:
    m.rows = 4


def takes_an_attribute_away(m: Any, x: Any) -> None:
    del m.rows


def sets_one_on_a_child(m: Any, x: Any) -> None:
    m.part.rows = 4


def adds_a_module(m: Any, x: Any) -> None:
    m.made = layer("torch" if isinstance(m, torch.nn.Module) else "jittor")


def grows_containers(m: Any, x: Any) -> None:
    m.seen.append(x)
    m.by_key["b"] = x
    m.names.add("b")
    m.queue.append(x)
    m.counts.update("ab")


def empties_containers(m: Any, x: Any) -> None:
    for one in (m.seen, m.by_key, m.names, m.queue, m.counts):
        one.clear()


def replaces_a_buffer(m: Any, x: Any) -> None:
    m.mask = m.mask * 2


def adds_to_a_buffer(m: Any, x: Any) -> None:
    m.mask += 1


def adds_to_an_attribute(m: Any, x: Any) -> None:
    m.kept += 1


def adds_to_a_tensor_in_a_list(m: Any, x: Any) -> None:
    m.cache[0] += 1


def writes_part_of_a_tensor(m: Any, x: Any) -> None:
    m.kept[1:3] = 5
    m.mask[0] = 7


def writes_weights(m: Any, x: Any) -> None:
    weight = m.part.weight
    weight.data.mul_(2) if isinstance(m, torch.nn.Module) else weight.assign(weight * 2)


def replaces_the_numbers_of_weights(m: Any, x: Any) -> None:
    weight = m.part.weight
    if isinstance(m, torch.nn.Module):
        weight.data = weight.data * 2
    else:
        weight.update(weight * 2)


def freezes_weights(m: Any, x: Any) -> None:
    """As ``eval()`` of Jittor's does."""
    m.eval()


CHANGES = [
    sets_an_attribute,
    replaces_an_attribute,
    takes_an_attribute_away,
    sets_one_on_a_child,
    adds_a_module,
    grows_containers,
    empties_containers,
    replaces_a_buffer,
    adds_to_a_buffer,
    adds_to_an_attribute,
    adds_to_a_tensor_in_a_list,
    writes_part_of_a_tensor,
    writes_weights,
    replaces_the_numbers_of_weights,
    freezes_weights,
]


def plain(value: Any) -> Any:
    """A value to compare: tensors by identity, content and whether they learn."""
    if isinstance(value, torch.Tensor):
        return id(value), value.detach().numpy().tobytes(), value.requires_grad
    if isinstance(value, jt.Var):
        return id(value), value.numpy().tobytes(), value.is_stop_grad()
    if isinstance(value, dict):
        return type(value), [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, (list, deque, set)):
        return type(value), [plain(item) for item in value]
    return value


def everything(model: Any) -> Any:
    modules = model.named_modules()
    return [(path, id(m), [(k, id(v), plain(v)) for k, v in vars(m).items()]) for path, m in modules]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_a_run_does_to_a_model_is_undone(
    change: Callable[[Any, Any], None], precision: str, framework: str
) -> None:
    model: Any = (Torch if framework == "torch" else Jittor)(change)
    model.train()
    before = everything(model)
    capture(model, X, precision=precision)
    assert everything(model) == before


@pytest.mark.parametrize("change", [sets_an_attribute, grows_containers, writes_weights], ids=lambda c: c.__name__)
def test_both_models_are_left_as_they_were(change: Callable[[Any, Any], None]) -> None:
    reference, candidate = Torch(change), Jittor(change)
    before = everything(reference), everything(candidate)
    align(reference, candidate, X, train=True)
    assert (everything(reference), everything(candidate)) == before


def raises(m: Any, x: Any) -> None:
    m.last = x
    raise ArithmeticError("of the user's")


@pytest.mark.parametrize("kind", [Torch, Jittor])
def test_a_run_that_raises_is_undone(kind: Any) -> None:
    model = kind(raises)
    before = everything(model)
    with pytest.raises(Exception, match="of the user's"):
        capture(model, X)
    assert everything(model) == before


def test_a_model_in_training_can_go_on_backward() -> None:
    """What a graph keeps must not seem to have been changed by putting it back."""
    model = Torch(sets_an_attribute)
    loss = (model.part(torch.from_numpy(X)) * model.mask).sum()
    capture(model, X)
    loss.backward()
    assert model.part.weight.grad is not None


def test_a_lazy_layer_stays_made() -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(3))
    capture(model, X)
    assert model(torch.from_numpy(X)).shape == (2, 3)


# Modes


class TorchFrozen(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> TorchFrozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Any) -> Any:
        return self.norm(x)


class JittorFrozen(jt.Module):
    def __init__(self) -> None:
        self.norm = jt.nn.BatchNorm1d(4)

    def train(self) -> JittorFrozen:
        super().train()
        self.norm.is_train = False
        return self

    def execute(self, x: Any) -> Any:
        return self.norm(x)


@pytest.mark.parametrize("kind", [TorchFrozen, JittorFrozen])
def test_a_model_may_keep_a_part_in_another_mode(kind: Any) -> None:
    trace = capture(kind(), X, train=True)
    assert not trace["buffer/norm.running_mean"].any()
    assert trace.names("parameter") == ["parameter/norm.weight", "parameter/norm.bias"]


# Random numbers


def draws(m: Any, x: Any) -> None:
    m.seen.append((random.random(), np.random.rand()))


@pytest.mark.parametrize("kind", [Torch, Jittor])
def test_random_numbers_of_python_and_numpy_go_on_as_if_nothing_was(kind: Any) -> None:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    capture(kind(draws), X)
    assert (random.random(), np.random.rand()) == expected


def test_both_sides_draw_the_same_numbers() -> None:
    drawn: list[Any] = []
    for kind in (Torch, Jittor):
        capture(kind(lambda m, x: drawn.append((random.random(), np.random.rand()))), X)
    assert drawn[0] == drawn[1]


def numpy_state() -> bytes:
    state: Any = np.random.get_state()
    return bytes(state[1])


def test_runs_may_end_in_any_order() -> None:
    """The reference is kept ready for single modules while runs of the candidate come and go."""
    models = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    numbers, grad = numpy_state(), torch.is_grad_enabled()
    drawn = torch.get_rng_state()
    first, second = ExitStack(), ExitStack()
    first.enter_context(adapter_for(models[0]).running(models[0], train=False))
    second.enter_context(adapter_for(models[1]).running(models[1], train=False))
    first.close()
    second.close()
    assert torch.is_grad_enabled() == grad
    assert numpy_state() == numbers
    assert torch.equal(torch.get_rng_state(), drawn)


def test_seeded_runs_inside_one_another_begin_alike() -> None:
    drawn = []
    with seeded():
        drawn.append(np.random.rand())
        with seeded():
            drawn.append(np.random.rand())
    assert drawn[0] == drawn[1]


# The helper itself


class Holder:
    pass


@pytest.mark.parametrize(
    "container",
    [[1, 2], {"a": 1}, OrderedDict(b=1, a=2), defaultdict(list, a=[1]), Counter("aab"), deque([1, 2]), {1, 2}],
    ids=lambda container: type(container).__name__,
)
def test_containers_of_every_kind_are_refilled(container: Any) -> None:
    holder: Any = Holder()
    holder.held, before = container, container.copy()
    with untouched([holder], lambda value: None):
        container.clear()
    assert holder.held is container
    assert container == before


def test_attributes_come_back_in_order() -> None:
    holder: Any = Holder()
    holder.a, holder.b, holder.c = 1, 2, 3
    with untouched([holder], lambda value: None):
        del holder.a
        holder.d = 4
    assert list(vars(holder).items()) == [("a", 1), ("b", 2), ("c", 3)]
