"""One side of a comparison of forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from alignment_tests.harness.record.adapter import Adapter, Array, Scope
from alignment_tests.harness.record.layout import SAME, Layout


@dataclass(frozen=True)
class Side:
    """One model with its adapter and what it is run on."""

    adapter: Adapter
    model: Any
    inputs: Any
    train: bool
    layout: Layout = SAME  # of a candidate
    scope: Scope = nullcontext  # what the float32 runs are made in
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # arguments by name, beside ``inputs``
    exact: Mapping[str, Array] = field(default_factory=dict)  # of the float64 model, where float32 holds rounded sums

    @contextmanager
    def in_precision(self, precision: str) -> Iterator[Any]:
        """The model in float32 (as it is) or float64."""
        with self.adapter.in_precision(self.model, precision) as model:
            if precision == "float64" and self.exact:
                self.adapter.write(model, self.exact)
            yield model

    def modules(self, model: Any) -> dict[str, Any]:
        """Modules of ``model`` (this side's, in some precision) by the reference's paths."""
        return {self.layout.module(path): module for path, module in self.adapter.modules(model)}

    def context(self, precision: str) -> AbstractContextManager[None]:
        """What a run in that precision is made in; float64 has no mixed form."""
        return self.scope() if precision == "float32" else nullcontext()

    def values(self) -> dict[str, Array]:
        """Parameters and buffers by this side's names."""
        return {name: array for name, (_, array) in self.adapter.state(self.model).items()}
