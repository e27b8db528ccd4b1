"""The harness's view of Jittor. The model brings Jittor with it, so it is imported, prepared, by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jittor as jt
import numpy as np

from alignment_tests.harness.record.adapter import After, Array, Before, Scope
from alignment_tests.harness.record.nested import flatten, is_plain, unflatten

CASTS_TO_FLOAT32 = ("float", "float32", "float_auto")


class JittorAdapter:
    name = "jittor"

    def modules(self, model: Any) -> list[tuple[str, Any]]:
        """Jittor lists a module once per name; as in PyTorch, the first name counts."""
        first: dict[int, tuple[str, Any]] = {}
        for path, module in model.named_modules():
            first.setdefault(id(module), (path, module))
        return list(first.values())

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, jt.Var)

    def to_numpy(self, tensor: Any) -> Array:
        if not jt.flags.auto_mixed_precision_level:
            return tensor.numpy()
        # What is computed now got its dtypes when it was called; kernels that are chosen under AMP would have others.
        with jt.flag_scope(auto_mixed_precision_level=0):
            return tensor.numpy()

    def compute(self, tensors: Sequence[Any]) -> None:
        if not jt.flags.auto_mixed_precision_level:
            jt.sync(list(tensors))
            return
        with jt.flag_scope(auto_mixed_precision_level=0):
            jt.sync(list(tensors))

    def from_numpy(self, array: Array) -> Any:
        wide = array.dtype in (np.float64, np.int64)  # jt.array would make them 32 bits wide
        array = np.ascontiguousarray(array)
        return jt.array64(array) if wide else jt.array(array)

    def key(self, tensor: Any) -> tuple[Any, ...]:
        return (tensor.id,)  # changes with every assignment, in place too, and is never given twice

    def keep(self, tensor: Any) -> Any:
        return None

    def alive(self, kept: Any) -> bool:
        return True

    @contextmanager
    def hooks(self, modules: list[tuple[str, Any]], before: Before, after: After) -> Iterator[None]:
        """Jittor keeps one hook of a kind per module and removing it takes the user's away: wrap ``execute``."""
        for path, module in modules:
            module.__dict__["execute"] = _observed(path, module, module.execute, before, after)
        try:
            yield
        finally:
            for _, module in modules:
                original = module.__dict__.pop("execute").original
                if original is not None:
                    module.__dict__["execute"] = original

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
            blanks = {slot: np.zeros(tuple(leaf.shape), str(leaf.dtype)) for slot, leaf in leaves.items()}
            return unflatten(structure, lambda slot: self.from_numpy(blanks[slot])) if is_plain(structure) else None

        with self.hooks(self.modules(model), _nothing, cut):
            run()
        with jt.flag_scope(auto_mixed_precision_level=0):
            jt.sync(aside)
            jt.sync_all()

    @contextmanager
    def running(self, model: Any, *, train: bool) -> Iterator[None]:
        modules = [module for _, module in self.modules(model)]
        modes = [(module, module.__dict__.get("is_train")) for module in modules]
        # A model may also put another variable in the place of a buffer.
        held = [(m, name, var) for m in modules for name, var in m.__dict__.items() if isinstance(var, jt.Var)]
        # In eval mode too: a norm that does not know its mode moves its statistics there.
        values = [(var, var.numpy()) for _, _, var in held if var.is_stop_grad()]
        seed = jt.get_seed()
        for module in modules:
            module.is_train = train  # eval() would also stop the gradients of every parameter
        jt.set_seed(0)
        try:
            with jt.no_grad():
                yield
        finally:
            for module, mode in modes:
                if mode is None:
                    module.__dict__.pop("is_train", None)
                else:
                    module.is_train = mode
            for module, name, var in held:
                module.__dict__[name] = var
            for var, value in values:
                var.update(self.from_numpy(value).stop_grad())
            jt.set_seed(seed)

    @contextmanager
    def in_precision(self, model: Any, precision: str) -> Iterator[Any]:
        """float64 swaps every variable of the model for its exact cast and swaps it back: no copy is reliable.

        Casts to float32 that the model's own code makes (Jittor's resnets do before their last layer) are void
        meanwhile, else no formula behind them could be judged.
        """
        if precision == "float32":
            yield model
            return
        casts = {name: getattr(jt.Var, name) for name in CASTS_TO_FLOAT32}
        for name, cast in casts.items():
            setattr(jt.Var, name, _keeping_float64(cast))
        swapped = []
        for _, module in self.modules(model):
            for name, var in list(module.__dict__.items()):
                if isinstance(var, jt.Var) and str(var.dtype) == "float32":
                    swapped.append((module, name, var))
                    wide = jt.array64(var.numpy().astype(np.float64))
                    module.__dict__[name] = wide.stop_grad() if var.is_stop_grad() else wide
        try:
            yield model
        finally:
            for module, name, var in swapped:
                module.__dict__[name] = var
            for name, cast in casts.items():
                setattr(jt.Var, name, cast)

    def trainable(self, tensor: Any) -> bool:
        return not tensor.is_stop_grad() and str(tensor.dtype).startswith("float")

    def variable(self, array: Array) -> Any:
        made = self.from_numpy(array)
        return made.start_grad() if array.dtype.kind == "f" else made

    def gradients(self, total: Any, tensors: list[Any]) -> list[Array]:
        found = jt.grad(_with_one_consumer(total), tensors)
        self.compute(found)
        return [gradient.numpy() for gradient in found]

    def vjp(
        self, module: Any, arguments: dict[str, Any], upstream: dict[str, Array], scope: Scope = nullcontext
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        leaves, structure = flatten(arguments, self.is_tensor)
        wanted = {slot: leaf.start_grad() for slot, leaf in leaves.items() if str(leaf.dtype).startswith("float")}
        made = unflatten(structure, leaves.__getitem__)
        with scope():
            outputs, _ = flatten(module(*made["args"], **made["kwargs"]), self.is_tensor)
        parameters = {
            f"{path}.{name}" if path else name: var
            for path, owner in self.modules(module)
            for name, var in owner.__dict__.items()
            if isinstance(var, jt.Var) and not name.startswith("_") and self.trainable(var)
        }
        total = _Upstream([self.from_numpy(array) for array in upstream.values()])(*(outputs[s] for s in upstream))
        gradients = jt.grad(total, [*wanted.values(), *parameters.values()])
        self.compute(gradients)
        found, split = [gradient.numpy() for gradient in gradients], len(wanted)
        return dict(zip(wanted, found[:split], strict=True)), dict(zip(parameters, found[split:], strict=True))

    def state(self, model: Any) -> dict[str, tuple[str, Array]]:
        found = {}
        for path, module in self.modules(model):
            for name, var in module.__dict__.items():
                if isinstance(var, jt.Var) and not name.startswith("_"):
                    # a buffer is a variable without gradient; PyTorch's side decides what a name really is
                    phase = "buffer" if var.is_stop_grad() else "parameter"
                    found[f"{path}.{name}" if path else name] = (phase, var.numpy())
        return found

    def write(self, model: Any, arrays: Mapping[str, Array]) -> None:
        """Jittor gives a variable the flag of what is assigned, and freezes what is made without gradients."""
        owners = dict(self.modules(model))
        with jt.flag_scope(auto_convert_64_to_32=0, no_grad=0, amp_reg=0):
            for name, array in arrays.items():
                path, _, leaf = name.rpartition(".")
                var = owners[path].__dict__[leaf]
                frozen = var.is_stop_grad()
                var.assign(np.array(array, order="C"))
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


def _observed(path: str, module: Any, execute: Any, before: Before, after: After) -> Any:
    def observed(*args: Any, **kwargs: Any) -> Any:
        before(path, module, args, kwargs)
        output = execute(*args, **kwargs)
        other = after(path, module, output)
        return output if other is None else other

    observed.original = module.__dict__.get("execute")  # type: ignore[attr-defined]
    return observed


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


def _keeping_float64(cast: Any) -> Any:
    return lambda var: var if str(var.dtype) == "float64" else cast(var)


def _optimisation(flags: str) -> str:
    return " ".join(flag for flag in flags.split() if flag.startswith(("-O", "-march", "-ffast", "-fno")))
