"""What the harness needs of a framework. The core knows only this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Scope = Callable[[], AbstractContextManager[None]]
Before = Callable[[str, Any, tuple[Any, ...], dict[str, Any]], None]  # path, module, args, kwargs
After = Callable[[str, Any, Any], Any]  # path, module, output; what it returns, unless None, goes on in its place


class Adapter(Protocol):
    """One framework. Every context manager leaves the model as it found it."""

    name: str

    def modules(self, model: Any) -> list[tuple[str, Any]]:
        """(path, module) of every module, the root first under ""."""

    def is_tensor(self, value: Any) -> bool: ...

    def to_numpy(self, tensor: Any) -> Array:
        """The values, shape and dtype as they are; may share memory with the tensor."""

    def from_numpy(self, array: Array) -> Any: ...

    def compute(self, tensors: Sequence[Any]) -> None:
        """Compute lazy tensors now, planned as a whole, as a training step does before it reads any. One after the
        other they may run by other kernels: Jittor's backward of a convolution then becomes a plain loop."""

    def key(self, tensor: Any) -> tuple[Any, ...]:
        """Equal for two sightings of the same tensor with the same content, while ``tensor`` is alive."""

    def keep(self, tensor: Any) -> Any:
        """What to hold to know when ``key`` may be given again: a weak reference; None where it never is."""

    def alive(self, kept: Any) -> bool: ...

    def hooks(self, modules: list[tuple[str, Any]], before: Before, after: After) -> AbstractContextManager[None]: ...

    def settled(self, model: Any) -> AbstractContextManager[None]:
        """Compute every module's output before the next module runs (a lazy framework would fuse across modules).

        The result is the same, which the hook check proves; a compiling framework needs far fewer kernels.
        """

    def prepare(self, model: Any, run: Callable[[], Any]) -> None:
        """Compile the kernels that ``run`` will need, where that is better done ahead; computes nothing of use."""

    def running(self, model: Any, *, train: bool) -> AbstractContextManager[None]:
        """No gradients, the given mode in every module, a fixed random seed; modes, buffers and seed restored."""

    def in_precision(self, model: Any, precision: str) -> AbstractContextManager[Any]:
        """The model in float32 (as it is) or float64 (exact casts of its values)."""

    def trainable(self, tensor: Any) -> bool:
        """Whether gradients flow to the tensor."""

    def variable(self, array: Array) -> Any:
        """As ``from_numpy``, with gradients where the array is floating."""

    def gradients(self, total: Any, tensors: list[Any]) -> list[Array]:
        """Gradients of a scalar; zeros for tensors that it does not depend on or that cannot have one."""

    def vjp(
        self, module: Any, arguments: dict[str, Any], upstream: dict[str, Array], scope: Scope = nullcontext
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Gradients of one module alone.

        Args:
            module: in the mode it is in; its buffers may move.
            arguments: {"args": [...], "kwargs": {...}} of tensors and plain values.
            upstream: gradient by each output, by slot; cast to what the output is in.
            scope: makes the context that the module runs in, such as one of mixed precision.

        Returns:
            Gradients by the floating tensors among the arguments, by slot, and by the module's parameters, by name.
        """

    def state(self, model: Any) -> dict[str, tuple[str, Array]]:
        """Name -> (phase, values) of every parameter and buffer; phase is "parameter" or "buffer"."""

    def write(self, model: Any, arrays: Mapping[str, Array]) -> None:
        """Set parameters and buffers by name; what was trainable stays so. Shapes and dtypes must be equal."""

    def describe(self) -> dict[str, Any]: ...


def float_inputs(inputs: Any, precision: str) -> Any:
    """The nest of numpy inputs with floating arrays cast to ``precision``; integers stay."""
    if isinstance(inputs, dict):
        return {key: float_inputs(item, precision) for key, item in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(float_inputs(item, precision) for item in inputs)
    return (
        inputs.astype(precision) if getattr(inputs, "dtype", None) is not None and inputs.dtype.kind == "f" else inputs
    )
