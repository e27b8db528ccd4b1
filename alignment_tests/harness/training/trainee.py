"""One side of a training comparison, as ``align_training`` takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.layout import SAME, Layout

# Relative gaps, and relative errors of the reference in what was compared -> gaps in units of what is allowed.
Share = Callable[[Any, Any], Any]


class Trainee(Protocol):
    """One side of a training comparison, in one precision. Tensors and outputs are the framework's own."""

    model: Any

    def scope(self) -> AbstractContextManager[None]:
        """What the model's modules run in: ``nullcontext()``, or mixed precision."""

    def forward(self, batch: Any) -> Any:
        """Outputs of the model in train mode."""

    def assign(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """What is decided before the loss, as named tensors; decisions as integers or bool, first. May be empty."""

    def losses(self, outputs: Any, batch: Any, assignment: Mapping[str, Any]) -> dict[str, Any]:
        """Scalar terms, "total" among them, given an assignment: own tensors, or numpy arrays of the other side."""

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Gradients by every trainable parameter, by name, and by the extra tensors."""

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        """The rest of the step, with these gradients in place of the own ones where given."""

    def state(self) -> dict[str, Array]:
        """What the next step depends on, under ``momentum/``, ``parameter/``, ``buffer/``, ``ema/``, ``position/``."""

    def load(self, state: Mapping[str, Array]) -> None:
        """Continue from such a state; floating arrays are cast to this side's precision."""

    def margins(self, exact: Any, outputs: Any, batch: Any, share: Share) -> dict[str, Array]:
        """By how much each decision in the assignment was made, by its name: at most 1 where rounding may decide it.

        Called on the oracle, where a decision of the candidate differs. Names that are lacking must be equal.

        Args:
            exact: the oracle's outputs.
            outputs: the reference's.
            batch: of both.
            share: turns relative gaps, as tensors of the trainee's framework, and the relative errors that the
                reference made in what was compared, into gaps in units of what is allowed.
        """

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        """Where all sides made the decisions that the values ``name`` hang on: bool, of the leading axes of the values.

        ``sides`` are the decisions in the assignment of each side, by name.
        """


Make = Callable[[str], Trainee]


def layout_of(trainee: Trainee) -> Layout:
    """How the trainee's model is laid out beside the reference's; see ``training.mapped``."""
    found: Layout = getattr(trainee, "layout", SAME)
    return found


def modules_of(trainee: Trainee) -> list[tuple[str, Any]]:
    """(path, module) of the trainee's model, the paths those of the reference."""
    layout = layout_of(trainee)
    return [(layout.module(path), module) for path, module in adapter_for(trainee.model).modules(trainee.model)]


def variables_of(trainee: Trainee) -> dict[str, Any]:
    """Parameters and buffers by the reference's names, without those that are kept in another form."""
    layout = layout_of(trainee)
    held = adapter_for(trainee.model).variables(trainee.model).items()
    return {other: tensor for name, tensor in held if layout.is_plain(name) for other in layout.partners(name)}


def trained_of(trainee: Trainee) -> dict[str, bool] | None:
    """Whether a step changes each parameter and buffer by its gradient, by own name; None where nobody can tell."""
    tell = getattr(getattr(trainee, "own", trainee), "trained", None)
    return None if tell is None else tell()


def alike_by_image(sides: Sequence[Mapping[str, Array]]) -> Array:
    """(N,): the images in which all decisions fell alike; what ``Trainee.alike`` gives where nothing finer is known."""
    first = sides[0]
    same = [
        (first[key] == side[key]).reshape(len(first[key]), -1).all(axis=1)
        for side in sides[1:]
        for key in first
        if first[key].ndim
    ]
    return np.logical_and.reduce([one for one in same if one.shape == same[0].shape])


class TrainStep(NamedTuple):
    """What came of a step on its own."""

    loss: float
    assignment: dict[str, Array]
    gradients: dict[str, Array]


def train_step(
    trainee: Trainee,
    batch: Any,
    assignment: Mapping[str, Array] | None = None,
    gradients: Mapping[str, Array] | None = None,
) -> TrainStep:
    """A whole step on its own; what is given takes the own one's place in the loss and in the update."""
    adapter, outputs = adapter_for(trainee.model), trainee.forward(batch)
    own = trainee.assign(outputs, batch)
    terms = trainee.losses(outputs, batch, own if assignment is None else assignment)
    found, _ = trainee.backward(terms["total"], [])
    adapter.compute(list(found.values()))
    arrays = {name: np.array(adapter.to_numpy(tensor)) for name, tensor in found.items()}
    decided = {name: np.array(adapter.to_numpy(tensor)) for name, tensor in own.items()}
    trainee.update(gradients)
    return TrainStep(float(np.asarray(adapter.to_numpy(terms["total"])).reshape(-1)[0]), decided, arrays)
