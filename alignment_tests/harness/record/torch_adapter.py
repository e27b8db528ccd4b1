"""The harness's view of PyTorch."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from alignment_tests.harness.record.adapter import After, Array, Before, Scope
from alignment_tests.harness.record.bfloat16 import from_bits, to_bits, type_name
from alignment_tests.harness.record.calls import watching
from alignment_tests.harness.record.forms import fill, form_of
from alignment_tests.harness.record.naming import without_inner
from alignment_tests.harness.record.nested import flatten
from alignment_tests.harness.record.untouched import Restore, Shared, seeded, untouched
from alignment_tests.harness.record.wide_torch_adapter import wide, wide_for, widened_copy

# Copies of models that the harness made: what a run writes into their weights is no matter.
COPIES: weakref.WeakSet[Any] = weakref.WeakSet()


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
        return without_inner(list(model.named_modules()), self.variables(model), _is_own, _is_container)

    def variables(self, model: Any) -> dict[str, Any]:
        parameters = model.named_parameters(remove_duplicate=False)
        return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def to_numpy(self, tensor: Any) -> Array:
        if tensor.dtype == torch.bfloat16:  # by its bits: numpy has no such type
            return from_bits(tensor.detach().contiguous().view(torch.int16).numpy(force=True).view(np.uint16))
        return tensor.numpy(force=True)

    def compute(self, tensors: Sequence[Any]) -> None:
        return None

    def from_numpy(self, array: Array) -> Any:
        # a copy: an in-place operation must not reach the recorded array
        if type_name(array) == "bfloat16":
            return torch.from_numpy(to_bits(array).view(np.int16)).view(torch.bfloat16).to(self.device)
        return torch.from_numpy(np.array(array)).to(self.device)

    def key(self, tensor: Any) -> tuple[Any, ...]:
        return id(tensor), tensor._version

    def keep(self, tensor: Any) -> Any:
        return weakref.ref(tensor)

    def alive(self, kept: Any) -> bool:
        return kept() is not None

    def hooks(self, modules: list[tuple[str, Any]], before: Before, after: After) -> AbstractContextManager[None]:
        """``_call_impl`` is a call with the user's hooks around it, ``forward`` one without."""
        return watching(modules, before, after, base=torch.nn.Module, entries=("_call_impl", "forward"))

    def settled(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()  # PyTorch computes at once

    def prepare(self, model: Any, run: Callable[[], Any]) -> None:
        """PyTorch's kernels are compiled."""

    @contextmanager
    def running(self, model: Any, *, train: bool) -> Iterator[None]:
        restore_ieee_arithmetic()
        modules = list(model.modules())
        modes = [(module, module.training) for module in modules]  # a scripted module has it as no attribute
        keep = _restore_of_buffer if model in COPIES else _restore_of
        with untouched(modules, keep, self.variables(model).values()):
            try:
                model.train(train)
                with _quiet(), seeded():
                    torch.manual_seed(0)
                    yield
            finally:
                for module, mode in modes:
                    module.training = mode

    @contextmanager
    def in_precision(self, model: Any, precision: str) -> Iterator[Any]:
        """float64 is a copy, whose calls are float64 throughout."""
        if precision == "float32":
            yield model
            return
        with widened_copy(model) as made:
            COPIES.add(made)
            yield made

    def arithmetic(self, precision: str) -> AbstractContextManager[None]:
        return wide() if precision == "float64" else nullcontext()

    def trainable(self, tensor: Any) -> bool:
        return bool(tensor.requires_grad)

    def trained(self, model: Any) -> dict[str, bool]:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        return {name: name in parameters and held.requires_grad for name, held in self.variables(model).items()}

    def variable(self, array: Array) -> Any:
        return self.from_numpy(array).requires_grad_(array.dtype.kind == "f")

    def gradients(self, total: Any, tensors: list[Any]) -> list[Array]:
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        with wide_for(total):
            found = iter(torch.autograd.grad(total, wanted, allow_unused=True))
        return [_as_array(tensor, next(found) if tensor.requires_grad else None) for tensor in tensors]

    def vjp(
        self, module: Any, arguments: dict[str, Any], upstream: dict[str, Array], scope: Scope = nullcontext
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        restore_ieee_arithmetic()
        leaves, structure = flatten(arguments, self.is_tensor)
        inputs = {slot: leaf.detach().clone() for slot, leaf in leaves.items()}
        wanted = {slot: tensor.requires_grad_() for slot, tensor in inputs.items() if tensor.is_floating_point()}
        made = fill(form_of(arguments, self.is_tensor), structure, inputs.__getitem__)
        with scope():
            outputs, _ = flatten(module(*made["args"], **made["kwargs"]), self.is_tensor)
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        with wide_for(outputs[next(iter(upstream))]):
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
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return {
            name: ("parameter" if name in parameters else "buffer", self.to_numpy(tensor))
            for name, tensor in self.variables(model).items()
        }

    def write(self, model: Any, arrays: Mapping[str, Array]) -> None:
        held = self.variables(model)
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


def _is_own(module: Any) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _is_container(module: Any) -> bool:
    return type(module).__module__ == "torch.nn.modules.container"


@contextmanager
def _without_side_effects() -> Iterator[None]:
    """No gradients, and the caller's random numbers are kept.

    Fast paths and compiled code are switched off: they give rounded results of the same formulas, choose by what is
    hooked, and hide the modules inside.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


_quiet = Shared(_without_side_effects)


def _restore_of(value: Any) -> Restore | None:
    """What puts the values of a tensor back; None for what is no plain tensor."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided or value.is_meta:
        return None
    storage = value.data  # the tensor may be given another one
    held = storage.clone()

    def restore() -> None:
        if not torch.equal(storage, held):
            storage.copy_(held)
        if value.data_ptr() != storage.data_ptr() or value.shape != storage.shape:
            value.data = storage

    return restore


def _restore_of_buffer(value: Any) -> Restore | None:
    return None if isinstance(value, torch.nn.Parameter) else _restore_of(value)


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
