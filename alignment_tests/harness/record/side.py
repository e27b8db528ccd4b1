"""One side of a comparison of forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from alignment_tests.harness.record.adapter import Adapter, Array, Scope


@dataclass(frozen=True)
class Side:
    """One model with its adapter and what it is run on."""

    adapter: Adapter
    model: Any
    inputs: Any
    train: bool
    renamed: Mapping[str, str] = field(default_factory=dict)  # own module path -> the reference's
    scope: Scope = nullcontext  # what the float32 runs are made in

    def modules(self, model: Any) -> dict[str, Any]:
        """Modules of ``model`` (this side's, in some precision) by the reference's paths."""
        return {self.renamed.get(path, path): module for path, module in self.adapter.modules(model)}

    def context(self, precision: str) -> AbstractContextManager[None]:
        """What a run in that precision is made in; float64 has no mixed form."""
        return self.scope() if precision == "float32" else nullcontext()

    def values(self) -> dict[str, Array]:
        """Parameters and buffers by the reference's names."""
        found = {}
        for name, (_, array) in self.adapter.state(self.model).items():
            path, dot, leaf = name.rpartition(".")
            found[f"{self.renamed.get(path, path)}{dot}{leaf}"] = array
        return found
