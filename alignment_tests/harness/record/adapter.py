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
        """(path, module) of every module, the root first under ""; each once, see ``record.naming``."""

    def variables(self, model: Any) -> dict[str, Any]:
        """Every name of a parameter or buffer, and its tensor; a tied one comes under each of its names."""

    def is_tensor(self, value: Any) -> bool: ...

    def to_numpy(self, tensor: Any) -> Array:
        """The values, shape and dtype as they are, see ``bfloat16`` for what numpy has not; may share memory."""

    def from_numpy(self, array: Array) -> Any:
        """A tensor as the framework's users make it of the array: Jittor makes int32 of int64. float64 stays."""

    def compute(self, tensors: Sequence[Any]) -> None:
        """Compute lazy tensors now, planned as a whole, as a training step does before it reads any. One after the
        other they may run by other kernels: Jittor's backward of a convolution then becomes a plain loop."""

    def key(self, tensor: Any) -> tuple[Any, ...]:
        """Equal for two sightings of the same tensor with the same content, while ``tensor`` is alive."""

    def keep(self, tensor: Any) -> Any:
        """What to hold to know when ``key`` may be given again: a weak reference; None where it never is."""

    def alive(self, kept: Any) -> bool: ...

    def hooks(self, modules: list[tuple[str, Any]], before: Before, after: After) -> AbstractContextManager[None]:
        """Show every call of the modules, see ``record.calls``; the results are the same, bit for bit."""

    def settled(self, model: Any) -> AbstractContextManager[None]:
        """Compute every module's output before the next module runs (a lazy framework would fuse across modules).

        The result is the same, which the hook check proves; a compiling framework needs far fewer kernels.
        """

    def prepare(self, model: Any, run: Callable[[], Any]) -> None:
        """Compile the kernels that ``run`` will need, where that is better done ahead; computes nothing of use."""

    def running(self, model: Any, *, train: bool) -> AbstractContextManager[None]:
        """No gradients, the given mode in every module, fixed random seeds (Python's and numpy's too).

        Afterwards modes, seeds, attributes and values of tensors are as they were, see ``record.untouched``. Jittor
        cannot tell where its random numbers stand: they begin anew from the seed that was set.
        """

    def in_precision(self, model: Any, precision: str) -> AbstractContextManager[Any]:
        """The model in float32 (as it is) or float64: exact casts of its values, its calls made in ``arithmetic``."""

    def arithmetic(self, precision: str) -> AbstractContextManager[None]:
        """What code beside the model, such as a loss, runs in: in float64, whatever narrower type it names is void."""

    def trainable(self, tensor: Any) -> bool:
        """Whether gradients flow to the tensor."""

    def trained(self, model: Any) -> dict[str, bool]:
        """Name -> whether training changes it, of everything in ``state``; whatever mode the model is in now."""

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
        """Every name of ``variables`` -> (phase, values); phase is "parameter" or "buffer"."""

    def write(self, model: Any, arrays: Mapping[str, Array]) -> None:
        """Set parameters and buffers by name; what was trainable stays so. Shapes and dtypes must be equal."""

    def describe(self) -> dict[str, Any]: ...
