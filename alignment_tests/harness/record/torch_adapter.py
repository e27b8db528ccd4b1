"""The harness's view of PyTorch."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from alignment_tests.harness.record.adapter import After, Array, Before, Scope
from alignment_tests.harness.record.nested import flatten, unflatten


class TorchAdapter:
    """For models on one device, where tensors are made."""

    name = "torch"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @classmethod
    def of(cls, model: Any) -> TorchAdapter:
        """For the device of the model's first parameter or buffer."""
        held = next(model.parameters(), None)
        held = next(model.buffers(), None) if held is None else held
        return cls("cpu" if held is None else held.device)

    def modules(self, model: Any) -> list[tuple[str, Any]]:
        return list(model.named_modules())

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def to_numpy(self, tensor: Any) -> Array:
        return tensor.detach().cpu().numpy()

    def compute(self, tensors: Sequence[Any]) -> None:
        return None

    def from_numpy(self, array: Array) -> Any:
        # a copy: an in-place operation must not reach the recorded array
        return torch.from_numpy(np.array(array)).to(self.device)

    def key(self, tensor: Any) -> tuple[Any, ...]:
        return id(tensor), tensor._version

    def keep(self, tensor: Any) -> Any:
        return weakref.ref(tensor)

    def alive(self, kept: Any) -> bool:
        return kept() is not None

    @contextmanager
    def hooks(self, modules: list[tuple[str, Any]], before: Before, after: After) -> Iterator[None]:
        handles = []
        try:
            for path, module in modules:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda m, args, kwargs, path=path: before(path, m, args, kwargs), with_kwargs=True
                    )
                )
                handles.append(module.register_forward_hook(lambda m, args, out, path=path: after(path, m, out)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def settled(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()  # PyTorch computes at once

    def prepare(self, model: Any, run: Callable[[], Any]) -> None:
        """PyTorch's kernels are compiled."""

    @contextmanager
    def running(self, model: Any, *, train: bool) -> Iterator[None]:
        restore_ieee_arithmetic()
        modes = [(module, module.training) for module in model.modules()]
        # In eval mode too: a model may count or cache. A buffer may also be replaced, or made by the first call.
        buffers = [
            (module, name, buffer, None if buffer is None else buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]
        model.train(train)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer if buffer is None else buffer.copy_(value)

    @contextmanager
    def in_precision(self, model: Any, precision: str) -> Iterator[Any]:
        """float64 is a copy. Casts to float32 by the model's own code are void meanwhile, as on Jittor's side."""
        if precision == "float32":
            yield model
            return
        cast, own = torch.Tensor.float, torch.Tensor.__dict__.get("float")
        torch.Tensor.float = lambda tensor, *args, **kwargs: (
            tensor if tensor.dtype == torch.float64 else cast(tensor, *args, **kwargs)
        )
        try:
            yield copy.deepcopy(model).double()
        finally:
            if own is None:  # it is inherited
                del torch.Tensor.float
            else:
                torch.Tensor.float = own

    def trainable(self, tensor: Any) -> bool:
        return bool(tensor.requires_grad)

    def variable(self, array: Array) -> Any:
        return self.from_numpy(array).requires_grad_(array.dtype.kind == "f")

    def gradients(self, total: Any, tensors: list[Any]) -> list[Array]:
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        found = iter(torch.autograd.grad(total, wanted, allow_unused=True))
        return [_as_array(tensor, next(found) if tensor.requires_grad else None) for tensor in tensors]

    def vjp(
        self, module: Any, arguments: dict[str, Any], upstream: dict[str, Array], scope: Scope = nullcontext
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        restore_ieee_arithmetic()
        leaves, structure = flatten(arguments, self.is_tensor)
        inputs = {slot: leaf.detach().clone() for slot, leaf in leaves.items()}
        wanted = {slot: tensor.requires_grad_() for slot, tensor in inputs.items() if tensor.is_floating_point()}
        made = unflatten(structure, inputs.__getitem__)
        with scope():
            outputs, _ = flatten(module(*made["args"], **made["kwargs"]), self.is_tensor)
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        found = torch.autograd.grad(
            [outputs[slot] for slot in upstream],
            [*wanted.values(), *parameters.values()],
            [self.from_numpy(array).to(outputs[slot].dtype) for slot, array in upstream.items()],
            allow_unused=True,
        )
        arrays = [_as_array(of, grad) for of, grad in zip([*wanted.values(), *parameters.values()], found, strict=True)]
        split = len(wanted)
        return dict(zip(wanted, arrays[:split], strict=True)), dict(zip(parameters, arrays[split:], strict=True))

    def state(self, model: Any) -> dict[str, tuple[str, Array]]:
        parameters = {name: ("parameter", self.to_numpy(value)) for name, value in model.named_parameters()}
        buffers = {name: ("buffer", self.to_numpy(value)) for name, value in model.named_buffers()}
        return parameters | buffers

    def write(self, model: Any, arrays: Mapping[str, Array]) -> None:
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, array in arrays.items():
                held[name].copy_(self.from_numpy(array))

    def describe(self) -> dict[str, Any]:
        found = {
            "framework": "torch",
            "version": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "mkldnn": torch.backends.mkldnn.is_available(),
        }
        return found | (_describe_gpu(self.device) if self.device.type == "cuda" else {})


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": f"matmul {torch.backends.cuda.matmul.allow_tf32}, cudnn {torch.backends.cudnn.allow_tf32}",
    }


def _as_array(of: torch.Tensor, gradient: torch.Tensor | None) -> Array:
    """The gradient by ``of``; zeros where nothing depends on it."""
    return (torch.zeros_like(of) if gradient is None else gradient).detach().cpu().numpy()


def subnormals_survive() -> bool:
    """Probe: do numpy and torch compute with subnormal numbers in this thread, or are they flushed to zero?"""
    tiny = np.full(4, 1e-40, np.float32)
    return bool((tiny * np.float32(1.0) > 0).all() and (torch.from_numpy(tiny) * 1.0 > 0).all())


def restore_ieee_arithmetic() -> None:
    """Undo flush-to-zero, which a library built with -Ofast sets for the whole thread when it loads.

    Raises:
        RuntimeError: the probe still finds subnormals flushed; the reference would not be the reference.
    """
    torch.set_flush_denormal(False)
    if not subnormals_survive():
        raise RuntimeError("subnormals are flushed to zero in this thread: run the reference in a process of its own")
