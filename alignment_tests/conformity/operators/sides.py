"""Run one case in one framework: outputs, gradients by inputs and parameters, running buffers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch

from alignment_tests.conformity.operators.cases import At, Case
from alignment_tests.harness import PortMap, copy_weights
from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.nested import flatten
from alignment_tests.harness.record.torch_adapter import TorchAdapter
from jt_impl.runtime import load


@dataclass
class Result:
    """Arrays by name: "forward/0", "backward/input 0", "backward/weight", "state/running_var"."""

    arrays: dict[str, Array] = field(default_factory=dict)


def resolve(root: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), root)


def reference_layer(case: Case) -> Any:
    """PyTorch's module with seeded parameters that are none of them 0 or 1."""
    args, kwargs = case.call.reference
    torch.manual_seed(0)
    layer = resolve(torch, case.operator.counterpart)(*args, **kwargs)
    random = np.random.default_rng(11)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(random.normal(0.25, 0.5, tuple(parameter.shape))))
        for name, buffer in layer.named_buffers():
            if buffer.is_floating_point():
                low = 0.5 if name.endswith("var") else -0.5
                buffer.copy_(torch.from_numpy(random.uniform(low, 1.5, tuple(buffer.shape))))
    return layer.train()


def run_reference(case: Case, dtype: str) -> Result:
    """The case in PyTorch, its numbers cast to ``dtype``."""
    adapter = TorchAdapter()
    layer = reference_layer(case).to(getattr(torch, dtype)) if case.operator.layer else None
    args, kwargs = case.call.reference if layer is None else ((), {})
    function = resolve(torch, case.operator.counterpart) if layer is None else layer
    arrays = [array.astype(dtype) if array.dtype.kind == "f" else array for array in case.arrays()]
    make = adapter.variable if case.operator.gradient else adapter.from_numpy
    tensors = [make(array) for array in arrays]
    given = [
        t.long() if t.dtype == torch.int32 and not case.operator.name.startswith("bitwise") else t for t in tensors
    ]
    return observe(case, adapter, layer, 1, tensors, lambda: called(case, function, given, args, kwargs))


def run_candidate(case: Case) -> Result:
    """The case in Jittor, in the case's own precision."""
    jt = load()
    from alignment_tests.harness.record.jittor_adapter import JittorAdapter

    adapter: Adapter = JittorAdapter()
    make = adapter.variable if case.operator.gradient else adapter.from_numpy
    tensors = [make(array) for array in case.arrays()]
    target = resolve(jt, case.operator.name)
    if not case.operator.layer:
        return observe(
            case, adapter, None, 0, tensors, lambda: called(case, target, tensors, case.call.args, case.call.kwargs)
        )
    layer = target(*case.call.args, **case.call.kwargs)
    copy_weights(reference_layer(case), layer, PortMap())  # a single layer has the same names
    for _, module in adapter.modules(layer):
        module.is_train = True
    with adapter.in_precision(layer, case.dtype) if case.dtype == "float64" else nullcontext():
        return observe(case, adapter, layer, 0, tensors, lambda: layer(*tensors))


def called(case: Case, function: Callable[..., Any], tensors: list[Any], args: Any, kwargs: Any) -> Any:
    if any(isinstance(value, At) for value in args):
        return function(*(tensors[value.number] if isinstance(value, At) else value for value in args), **kwargs)
    return function(tensors, *args, **kwargs) if case.operator.packed else function(*tensors, *args, **kwargs)


def observe(case: Case, adapter: Adapter, layer: Any, side: int, tensors: list[Any], run: Callable[[], Any]) -> Result:
    output = run()
    part = case.operator.output[side]
    output = output if part is None or not isinstance(output, (tuple, list)) else output[part]
    slots, _ = flatten(output, adapter.is_tensor)
    found = Result({f"forward/{slot}": np.array(adapter.to_numpy(tensor)) for slot, tensor in slots.items()})
    if not found.arrays:
        raise TypeError(f"the output holds no array: {output!r}"[:200])
    if layer is not None:
        found.arrays |= {f"state/{n}": np.array(a) for n, a in moving(adapter, layer).items()}
    if case.operator.gradient:
        add_gradients(found, adapter, layer, tensors, slots)
    return found


def moving(adapter: Adapter, layer: Any) -> dict[str, Array]:
    state = adapter.state(layer).items()
    return {name: array for name, (_, array) in state if name.rpartition(".")[2] in ("running_mean", "running_var")}


def add_gradients(found: Result, adapter: Adapter, layer: Any, tensors: list[Any], slots: dict[str, Any]) -> None:
    """Gradients of the sum of all outputs, each element with a weight of its own."""
    total, random = None, np.random.default_rng(13)
    for slot, tensor in slots.items():
        array = found.arrays[f"forward/{slot}"]
        if array.dtype.kind != "f" or not array.size:
            continue
        weights = random.uniform(0.5, 1.5, array.size).reshape(array.shape).astype(np.float32).astype(array.dtype)
        term = (tensor * adapter.from_numpy(weights)).sum()
        total = term if total is None else total + term
    if total is None:
        return
    wanted = {f"input {i}": t for i, t in enumerate(tensors) if str(t.dtype).rpartition(".")[2].startswith("float")}
    if layer is not None:
        wanted |= parameters(adapter, layer)
    for name, array in zip(wanted, adapter.gradients(total, list(wanted.values())), strict=True):
        found.arrays[f"backward/{name}"] = np.array(array)


def parameters(adapter: Adapter, layer: Any) -> dict[str, Any]:
    if adapter.name == "torch":
        return dict(layer.named_parameters())
    owners = dict(adapter.modules(layer))
    names = [name for name, (kind, _) in adapter.state(layer).items() if kind == "parameter"]
    return {name: owners[name.rpartition(".")[0]].__dict__[name.rpartition(".")[2]] for name in names}
