"""What Jittor has and PyTorch has, read from the modules, so that what is new shows as not covered."""

from __future__ import annotations

import types
from typing import Any

import torch

from alignment_tests.conformity.operators.table import NO_ROW, TABLE
from jt_impl.runtime import load


def jittor_names() -> list[str]:
    """Public callables of ``jittor.nn`` as "nn.NAME", then those of ``jittor`` that PyTorch has under the same name."""
    jt = load()
    own = [name for name in public(jt.nn) if origin(getattr(jt.nn, name)).startswith("jittor")]
    return [*(f"nn.{name}" for name in own), *(name for name in public(jt) if hasattr(torch, name))]


def public(module: Any) -> list[str]:
    made = ((name, getattr(module, name)) for name in dir(module) if not name.startswith("_"))
    return sorted(name for name, value in made if callable(value) and not isinstance(value, types.ModuleType))


def origin(value: Any) -> str:
    return str(getattr(value, "__module__", ""))


def without_row() -> dict[str, list[str]]:
    """Names of Jittor's that have no row, by reason; "not covered" has those that nobody has looked at."""
    covered = {operator.name.removesuffix(".apply") for operator in TABLE}
    reasons = {name: reason for reason, names in NO_ROW.items() for name in names}
    found: dict[str, list[str]] = {}
    for name in jittor_names():
        if name not in covered:
            found.setdefault(reasons.get(name, "not covered"), []).append(name)
    return found


def missing() -> dict[str, list[str]]:
    """Layers and functions of PyTorch that neither ``jittor.nn`` nor ``jittor`` has by that name, and that no row is
    the counterpart of."""
    jt = load()
    counterparts = {operator.counterpart for operator in TABLE}

    def absent(name: str, path: str) -> bool:
        return not hasattr(jt.nn, name) and not hasattr(jt, name) and f"{path}.{name}" not in counterparts

    layers = [n for n in public(torch.nn) if isinstance(getattr(torch.nn, n), type) and absent(n, "nn")]
    functions = [n for n in public(torch.nn.functional) if own_function(getattr(torch.nn.functional, n))]
    return {
        "layers": [n for n in layers if not n.startswith("Lazy")],
        "functions": [n for n in functions if absent(n, "nn.functional") and not n.endswith(("_", "_with_indices"))],
    }


def own_function(value: Any) -> bool:
    """Defined for users: neither a class nor something that ``torch.nn.functional`` imports for itself."""
    return not isinstance(value, type) and origin(value) in ("torch.nn.functional", "torch._C._nn", "torch", "None")
