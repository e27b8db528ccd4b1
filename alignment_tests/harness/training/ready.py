"""A ready trainee: a model, a loss and an optimizer, of either framework, are enough for ``align_training``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol

import numpy as np

from alignment_tests.harness.record.adapter import Adapter, Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import tensors_from
from alignment_tests.harness.record.untouched import seeded
from alignment_tests.harness.training.trainee import Make, Share, alike_by_image

Loss = Callable[..., Any]
BATCH = "a batch must be (inputs, targets) or {'inputs': ..., 'targets': ...}, with `kwargs` if need be"


class Optimizer(Protocol):
    """An optimizer of one framework, with the names of the weights that it trains."""

    trained: dict[str, Any]

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Gradients by the trained weights, by name, and by the extra tensors."""

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        """One step, with these gradients in place of the own ones where given."""

    def state(self) -> dict[str, Array]:
        """Slots and counters, as a training state names them."""

    def load(self, state: Mapping[str, Array]) -> None:
        """Continue from such a state."""


class ReadyTrainee:
    """See ``Trainee``. The model is this trainee's own, in its precision and in train mode.

    Batches are ``(inputs, targets)`` or ``{"inputs": ..., "targets": ..., "kwargs": ...}`` of numpy arrays, ``inputs``
    and ``targets`` each an array or a list of positional arguments.

    Args:
        model: of either framework.
        loss: called with the model's output and the targets; gives a scalar, or scalars by name, "total" among them.
        make_optimizer: makes the framework's optimizer for the model.
        precision: "float32" or "float64".
    """

    def __init__(self, model: Any, loss: Loss, make_optimizer: Callable[[Any], Any], precision: str) -> None:
        self.model, self.loss, self.precision = model, loss, precision
        self.adapter = adapter_for(model)
        framework = framework_of(self.adapter)
        self.seeded = framework.seeded
        with self.scope():
            self.optimizer: Optimizer = framework.Optimizer(model, make_optimizer)
        self.types = {name: array.dtype for name, (_, array) in self.adapter.state(model).items()}

    def trained(self) -> dict[str, bool]:
        """Name -> whether a step changes it by its gradient, of every parameter and buffer."""
        return {name: name in self.optimizer.trained for name in self.types}

    def scope(self) -> AbstractContextManager[None]:
        return self.adapter.arithmetic(self.precision)

    def forward(self, batch: Any) -> Any:
        inputs, kwargs, _ = parts_of(batch)
        args, named = tensors_from(self.adapter, self.model, inputs, self.precision, kwargs)
        with self.scope(), seeded(), self.seeded():
            return self.model(*args, **named)

    def assign(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return {}

    def losses(self, outputs: Any, batch: Any, assignment: Mapping[str, Any]) -> dict[str, Any]:
        targets, _ = tensors_from(self.adapter, self.model, parts_of(batch)[2], self.precision)
        with self.scope(), seeded(), self.seeded():
            found = self.loss(outputs, *targets)
        terms = dict(found) if isinstance(found, Mapping) else {"total": found}
        if "total" not in terms:
            raise ValueError(f"`losses` must give a scalar, or scalars by name with 'total'. Received: {sorted(terms)}")
        for name, term in terms.items():
            if int(np.prod(tuple(term.shape))) != 1:
                raise ValueError(f"`losses` must give scalars. Received: {name} of shape {tuple(term.shape)}")
        return terms

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        with self.scope():
            return self.optimizer.backward(total, extra)

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        with self.scope():
            self.optimizer.update(gradients)

    def state(self) -> dict[str, Array]:
        held = self.adapter.state(self.model).items()
        return {f"{phase}/{name}": np.array(array) for name, (phase, array) in held} | self.optimizer.state()

    def load(self, state: Mapping[str, Array]) -> None:
        held = {}
        for full, array in state.items():
            phase, _, name = full.partition("/")
            if phase in ("parameter", "buffer") and name in self.types:
                held[name] = array.astype(self.types[name]) if array.dtype.kind == "f" else array
        self.adapter.write(self.model, held)
        self.optimizer.load(state)

    def margins(self, exact: Any, outputs: Any, batch: Any, share: Share) -> dict[str, Array]:
        return {}

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        return alike_by_image(sides)


def framework_of(adapter: Adapter) -> Any:
    """The file for the framework, with ``copied``, ``seeded`` and ``Optimizer``."""
    if adapter.name == "torch":
        from alignment_tests.harness.training import torch_optimizer_adapter

        return torch_optimizer_adapter
    from alignment_tests.harness.training import jittor_optimizer_adapter

    return jittor_optimizer_adapter


def parts_of(batch: Any) -> tuple[Any, Mapping[str, Any], list[Any]]:
    """Inputs, keyword arguments and targets of a batch.

    Raises:
        ValueError: it has another form.
    """
    if isinstance(batch, Mapping):
        if "inputs" not in batch or set(batch) - {"inputs", "targets", "kwargs"}:
            raise ValueError(f"{BATCH}. Received: a mapping of {', '.join(map(str, batch))}")
        inputs, targets, kwargs = batch["inputs"], batch.get("targets", ()), batch.get("kwargs") or {}
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        (inputs, targets), kwargs = batch, {}
    else:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(f"{BATCH}. Received: {type(batch).__name__}{size}")
    return inputs, kwargs, list(targets) if isinstance(targets, (tuple, list)) else [targets]


def maker(model: Any, loss: Loss, optimizer: Any, options: Mapping[str, Any] | None, stack: ExitStack) -> Make:
    """A function that makes trainees of copies of a model, which stays as it is.

    Args:
        model: of either framework.
        loss: see ``ReadyTrainee``.
        optimizer: the framework's class, made of the model's parameters and the options; or a function that makes an
            optimizer of the model.
        options: of such a class.
        stack: closed when the trainees are needed no longer.
    """
    adapter = adapter_for(model)
    make_optimizer = partial(made_optimizer, optimizer, dict(options or {}))

    def make(precision: str) -> ReadyTrainee:
        own = stack.enter_context(adapter.in_precision(copied(model), precision))
        return ReadyTrainee(own, in_own_precision(loss, precision, stack), make_optimizer, precision)

    return make


def copied(model: Any) -> Any:
    adapter = adapter_for(model)
    return framework_of(adapter).copied(model, adapter.trained(model))


def in_own_precision(loss: Loss, precision: str, stack: ExitStack) -> Loss:
    """A loss that is a module may hold tensors, such as the weights of classes."""
    try:
        adapter = adapter_for(loss)
    except TypeError:
        return loss
    made: Loss = stack.enter_context(adapter.in_precision(copied(loss), precision))
    return made


def made_optimizer(optimizer: Any, options: Mapping[str, Any], model: Any) -> Any:
    """Raises ValueError: it is neither a class nor a function, or options are given for a function."""
    kind = getattr(optimizer, "func", optimizer)  # of functools.partial
    if isinstance(kind, type):
        return optimizer(list(model.parameters()), **options)
    if not callable(optimizer):
        raise ValueError(
            "`optimizers` must be classes, or functions that make an optimizer of a model. "
            f"Received: {type(optimizer).__name__}"
        )
    if options:
        raise ValueError("`optimizer_options` are for classes; a function that makes an optimizer has its own")
    return optimizer(model)
