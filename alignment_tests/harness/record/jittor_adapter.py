"""The harness's view of Jittor. The model brings Jittor with it, so it is imported, prepared, by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jittor as jt
import numpy as np

from alignment_tests.harness.record.adapter import After, Array, Before, Scope
from alignment_tests.harness.record.bfloat16 import marked, type_name
from alignment_tests.harness.record.calls import watching
from alignment_tests.harness.record.forms import fill, form_of
from alignment_tests.harness.record.modules_jittor_adapter import every_module, modules, running, variables
from alignment_tests.harness.record.naming import first_names
from alignment_tests.harness.record.nested import flatten, is_plain, unflatten
from alignment_tests.harness.record.wide_jittor_adapter import wide, wide_for, widened_model


class JittorAdapter:
    name = "jittor"

    def modules(self, model: Any) -> list[tuple[str, Any]]:
        return modules(model)

    def variables(self, model: Any) -> dict[str, Any]:
        return variables(model)

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, jt.Var)

    def to_numpy(self, tensor: Any) -> Array:
        if not jt.flags.auto_mixed_precision_level:
            return _as_array(tensor)
        # What is computed now got its dtypes when it was called; kernels that are chosen under AMP would have others.
        with jt.flag_scope(auto_mixed_precision_level=0):
            return _as_array(tensor)

    def compute(self, tensors: Sequence[Any]) -> None:
        if not jt.flags.auto_mixed_precision_level:
            jt.sync(list(tensors))
            return
        with jt.flag_scope(auto_mixed_precision_level=0):
            jt.sync(list(tensors))

    def from_numpy(self, array: Array) -> Any:
        """As ``jt.array`` makes it in anybody's program, integers of 64 bits with 32; but float64 stays what it is."""
        if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
            return jt.array(np.ascontiguousarray(array))
        return _exact(array)

    def key(self, tensor: Any) -> tuple[Any, ...]:
        return (tensor.id,)  # changes with every assignment, in place too, and is never given twice

    def keep(self, tensor: Any) -> Any:
        return None

    def alive(self, kept: Any) -> bool:
        return True

    def hooks(self, modules: list[tuple[str, Any]], before: Before, after: After) -> AbstractContextManager[None]:
        """Jittor keeps one hook of a kind per module, and removing it takes the user's away."""
        return watching(modules, before, after, base=jt.Module, entries=("execute",))

    def settled(self, model: Any) -> AbstractContextManager[None]:
        def settle(path: str, module: Any, output: Any) -> None:
            # Kernels that are chosen under AMP would have other dtypes than their operators.
            with jt.flag_scope(auto_mixed_precision_level=0):
                jt.sync_all()  # running buffers too: unread updates of one would chain, and each length is a kernel

        return self.hooks(self.modules(model), _nothing, settle)

    def prepare(self, model: Any, run: Callable[[], Any]) -> None:
        """On CUDA, where nvcc takes seconds for each kernel; g++ takes less than the pass would."""
        if jt.flags.use_cuda:
            self.compile_together(model, run)

    def compile_together(self, model: Any, run: Callable[[], Any]) -> None:
        """Compile in parallel what a run needs that computes each module's output before the next module runs.

        Every output is kept aside and zeros go on in its place, so each module's operators stand alone, as they do
        in such a run, and all of them in one queue, whose kernels Jittor compiles at the same time.
        """
        aside: list[Any] = []

        def cut(path: str, module: Any, output: Any) -> Any:
            leaves, structure = flatten(output, self.is_tensor)
            aside.extend(leaves.values())
            return unflatten(structure, lambda slot: _blank(leaves[slot])) if is_plain(structure) else None

        with self.hooks(self.modules(model), _nothing, cut):
            run()
        with jt.flag_scope(auto_mixed_precision_level=0):
            jt.sync(aside)
            jt.sync_all()

    def running(self, model: Any, *, train: bool) -> AbstractContextManager[None]:
        return running(model, train=train)

    @contextmanager
    def in_precision(self, model: Any, precision: str) -> Iterator[Any]:
        """float64 swaps what the modules hold for exact casts and swaps it back: no copy is reliable."""
        if precision == "float32":
            yield model
            return
        with widened_model(model, [module for _, module in every_module(model)]) as made:
            yield made

    def arithmetic(self, precision: str) -> AbstractContextManager[None]:
        return wide() if precision == "float64" else nullcontext()

    def trainable(self, tensor: Any) -> bool:
        return not tensor.is_stop_grad() and tensor.dtype.is_float()

    def trained(self, model: Any) -> dict[str, bool]:
        """``eval()`` freezes every parameter and notes which ones ``train()`` thaws again."""
        thawed = vars(model).get("backup_grad_state", {})
        return {
            name: var.dtype.is_float() and (self.trainable(var) or bool(thawed.get(id(var))))
            for name, var in self.variables(model).items()
        }

    def variable(self, array: Array) -> Any:
        made = self.from_numpy(array)
        return made.start_grad() if array.dtype.kind == "f" else made

    def gradients(self, total: Any, tensors: list[Any]) -> list[Array]:
        with wide_for(total):
            found = jt.grad(_with_one_consumer(total), tensors)
        self.compute(found)
        return [gradient.numpy() for gradient in found]

    def vjp(
        self, module: Any, arguments: dict[str, Any], upstream: dict[str, Array], scope: Scope = nullcontext
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        leaves, structure = flatten(arguments, self.is_tensor)
        wanted = {slot: leaf.start_grad() for slot, leaf in leaves.items() if str(leaf.dtype).startswith("float")}
        made = fill(form_of(arguments, self.is_tensor), structure, leaves.__getitem__)
        with scope():
            outputs, _ = flatten(module(*made["args"], **made["kwargs"]), self.is_tensor)
        held = self.variables(module)
        parameters = {n: held[n] for n, first in first_names(held).items() if n == first and self.trainable(held[n])}
        total = _Upstream([self.from_numpy(array) for array in upstream.values()])(*(outputs[s] for s in upstream))
        with wide_for(outputs[next(iter(upstream))]):
            gradients = jt.grad(total, [*wanted.values(), *parameters.values()])
        self.compute(gradients)
        found, split = [gradient.numpy() for gradient in gradients], len(wanted)
        return dict(zip(wanted, found[:split], strict=True)), dict(zip(parameters, found[split:], strict=True))

    def state(self, model: Any) -> dict[str, tuple[str, Array]]:
        """A buffer is a variable without gradient; PyTorch's side decides what a name really is."""
        return {
            name: ("buffer" if var.is_stop_grad() else "parameter", self.to_numpy(var))
            for name, var in self.variables(model).items()
        }

    def write(self, model: Any, arrays: Mapping[str, Array]) -> None:
        """Jittor gives a variable the flag of what is assigned, and freezes what is made without gradients."""
        held = self.variables(model)
        with jt.flag_scope(auto_convert_64_to_32=0, no_grad=0, amp_reg=0):
            for name, array in arrays.items():
                var = held[name]
                frozen = var.is_stop_grad()
                # It assigns the type too, and integers are narrower here.
                wanted = str(var.dtype) if array.dtype.kind in "iu" else array.dtype
                copy = np.array(array, wanted, order="C")
                var.assign(_exact(copy) if type_name(array) == "bfloat16" else copy)
                if frozen:
                    var.stop_grad()

    def describe(self) -> dict[str, Any]:
        compiler = jt.compiler
        return {
            "framework": "jittor",
            "version": jt.__version__,
            "device": "cuda" if jt.flags.use_cuda else "cpu",
            "compiler": compiler.cc_path,
            "cc_flags": _optimisation(compiler.cc_flags),
            "kernel_flags": " ".join(compiler.kernel_opt_flags.split()),
            "onednn": bool(jt.compile_extern.use_mkl),
            **({"use_tensorcore": jt.flags.use_tensorcore} if jt.flags.use_cuda else {}),
        }


def _as_array(var: Any) -> Array:
    array: Array = var.numpy()
    return marked(array) if var.dtype == "bfloat16" else array  # Jittor gives it as float32


def _exact(array: Array) -> Any:
    """A variable of the very type of the array."""
    made = jt.array64(np.ascontiguousarray(array))
    return made.bfloat16() if type_name(array) == "bfloat16" else made


def _blank(var: Any) -> Any:
    narrow = var.dtype == "bfloat16"
    zeros = np.zeros(tuple(var.shape), "float32" if narrow else str(var.dtype))
    return _exact(marked(zeros) if narrow else zeros)


def _nothing(path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a module."""


class _Upstream(jt.Function):
    """A scalar whose gradients by its inputs are the given ones, without a product for each that would be compiled."""

    def __init__(self, gradients: list[Any]) -> None:
        self.gradients = gradients

    def execute(self, *outputs: Any) -> Any:
        return jt.zeros((1,))

    def grad(self, one: Any) -> Any:
        return self.gradients


def _with_one_consumer(total: Any) -> Any:
    """The same gradients. Where several kernels read the gradient 1 of a scalar, Jittor writes it by a kernel that it
    looks up without the dtype, so that float64 after float32 may come out scaled; fused into one reader it has none."""
    pair = np.array([1.0, 0.0], str(total.dtype))
    return (total.reshape(1) * (jt.array64(pair) if pair.dtype == np.float64 else jt.array(pair))).sum()


def _optimisation(flags: str) -> str:
    return " ".join(flag for flag in flags.split() if flag.startswith(("-O", "-march", "-ffast", "-fno")))
