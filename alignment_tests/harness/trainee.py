"""One side of a training comparison, as ``align_training`` takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from alignment_tests.harness.adapters import Array, adapter_for


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

    def margins(self, outputs: Any, batch: Any) -> dict[str, Array]:
        """Relative margin of each decision in the assignment, by its name; called on the oracle only."""

    def decision_values(self, outputs: Any, batch: Any) -> Array:
        """The numbers that were decided on; their relative float32 error bounds what margins may excuse."""


Make = Callable[[str], Trainee]


def train_step(trainee: Trainee, batch: Any) -> float:
    """A whole step on its own; the total loss."""
    outputs = trainee.forward(batch)
    terms = trainee.losses(outputs, batch, trainee.assign(outputs, batch))
    trainee.backward(terms["total"], [])
    trainee.update(None)
    return float(np.asarray(adapter_for(trainee.model).to_numpy(terms["total"])).reshape(-1)[0])
