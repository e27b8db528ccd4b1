"""What one operator is called with: inputs, arguments, and inputs that are not ordinary numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignment_tests.harness.record.adapter import Array


@dataclass(frozen=True)
class Input:
    """One array argument: how its values are drawn, and its shape.

    ``kind``: "normal", "unit" (inside 0..1), "positive" (0.5 to 3), "distinct" (no two equal), "spd" (symmetric
    positive definite), "bool", or "below" (integers from 0 to ``bound`` - 1).
    """

    kind: str
    shape: tuple[int, ...]
    bound: int = 0

    @property
    def floating(self) -> bool:
        return self.kind not in ("bool", "below")

    def draw(self, random: np.random.Generator, dtype: str) -> Array:
        made: Array
        if self.kind == "below":
            return random.integers(0, self.bound, self.shape).astype(np.int32)
        if self.kind == "bool":
            return random.random(self.shape) < 0.5
        if self.kind == "unit":
            made = random.uniform(0.05, 0.95, self.shape)
        elif self.kind == "positive":
            made = random.uniform(0.5, 3.0, self.shape)
        elif self.kind == "distinct":
            made = (random.permutation(int(np.prod(self.shape))) / 3.0 - 1.0).reshape(self.shape)
        elif self.kind == "spd":
            root = random.normal(size=self.shape)
            made = root @ np.swapaxes(root, -1, -2) + 2.0 * np.eye(self.shape[-1])
        else:
            made = random.normal(size=self.shape)
        return made.astype(np.float32).astype(dtype)  # both precisions start from the same numbers


@dataclass(frozen=True)
class At:
    """Stands among the arguments for the array of that number, where arrays do not come first."""

    number: int


@dataclass(frozen=True)
class Call:
    """Arguments besides the arrays, which come first unless ``At`` places them; ``theirs`` where PyTorch's differ in
    form, never in meaning."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    theirs: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def reference(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.args, self.kwargs) if self.theirs is None else self.theirs


@dataclass(frozen=True)
class Operator:
    """A row of the table.

    Attributes:
        name: below ``jittor``, such as "nn.Conv".
        counterpart: below ``torch``, such as "nn.Conv2d".
        inputs: arrays of a call (of a layer's call, after its construction).
        calls: the grid of arguments.
        layer: ``calls`` construct a module, which then takes the inputs.
        special: also run on NaN, infinities, zeros, large numbers, equal numbers and nothing.
        gradient: compare the backward pass too.
        packed: the arrays are given as one list.
        output: the part of a tuple that is compared, for Jittor and for PyTorch; None takes the whole.
        double: run in float64 too. False where the layer holds variables that cannot be made float64 from outside.
    """

    name: str
    counterpart: str
    inputs: tuple[Input, ...]
    calls: tuple[Call, ...] = (Call(),)
    layer: bool = False
    special: bool = False
    gradient: bool = True
    packed: bool = False
    output: tuple[int | None, int | None] = (None, None)
    double: bool = True

    def cases(self) -> Iterator[Case]:
        for number, call in enumerate(self.calls):
            for dtype in ("float64", "float32") if self.double else ("float32",):
                yield Case(self, call, number, dtype, "ordinary")
                if self.special and number == 0:
                    for variant in SPECIAL:
                        yield Case(self, call, number, dtype, variant)


SPECIAL: dict[str, tuple[float, ...]] = {
    "nan": (0.5, float("nan")),
    "inf": (0.5, float("inf"), float("-inf")),
    "zeros": (0.0, -0.0),
    "large": (90.0, -90.0, 1e4, -1e4),
    "small": (1e-6, -1e-6, 1e-30, -1e-30),
    "equal": (1.0, 1.0, 1.0),
    "empty": (),
}


@dataclass(frozen=True)
class Case:
    """One run: an operator, one entry of its grid, a precision, a kind of numbers."""

    operator: Operator
    call: Call
    number: int
    dtype: str
    variant: str

    @property
    def key(self) -> str:
        return f"{self.operator.name}|{self.number}|{self.dtype}|{self.variant}"

    def arrays(self) -> list[Array]:
        """The same for every run; special numbers take the place of the floating inputs, along one axis."""
        random = np.random.default_rng(7)
        if self.variant == "ordinary":
            return [given.draw(random, self.dtype) for given in self.operator.inputs]
        return [
            np.array(self.special(number), self.dtype) if given.floating else given.draw(random, self.dtype)
            for number, given in enumerate(self.operator.inputs)
        ]

    def special(self, number: int) -> tuple[float, ...]:
        """Values of the input of that number: each one moved on, so that unlike numbers meet."""
        values = SPECIAL[self.variant]
        start = number % max(len(values), 1)
        return values[start:] + values[:start]
