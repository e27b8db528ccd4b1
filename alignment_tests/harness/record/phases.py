"""The phases of a training step: which name belongs to which, in what order, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.trace import Trace

# Cause before effect: within a step, what stands first explains what follows.
PHASES = (
    "activation",
    "buffer",
    "assignment",
    "loss",
    "grad_activation",
    "grad_parameter",
    "momentum",
    "parameter",
    "ema",
)

# Phases with entries that are zero by structure; weights too: a bias that begins at zero then holds rounding alone.
STRUCTURAL = ("grad_activation", "grad_parameter", "gradient", "momentum", "parameter", "ema")
GRADIENTS = ("grad_activation", "grad_parameter")  # in float32 they pass kinks
LOSS = "loss#0"  # the loss as a module call: isolated, it is fed with the model's recorded outputs


def phase_of(name: str) -> str:
    return name.split("/", 1)[0]


def module_of(name: str) -> str:
    """Module path of a row: ``grad_activation/backbone.stem#0/0`` and ``momentum/backbone.stem.weight`` alike."""
    rest = name.split("/", 1)[1]
    return rest.split("#")[0] if "#" in rest else rest.rpartition("/")[2].rpartition(".")[0]


def causal_order(names: Mapping[str, None]) -> list[str]:
    """Names by phase; gradients of activations backwards, since there the last module comes first."""
    by_phase: dict[str, list[str]] = {phase: [] for phase in PHASES}
    for name in names:
        by_phase.setdefault(phase_of(name), []).append(name)
    for phase in GRADIENTS:
        by_phase[phase].reverse()
    return [name for phase in by_phase for name in by_phase[phase]]


def magnitudes(oracle: Mapping[str, Array] | Trace, share: float) -> tuple[dict[str, float], dict[str, float]]:
    """For each name of a phase with structural zeros: its largest magnitude, and that among the arrays beside it.

    Beside a parameter's gradient stand the gradients of the same module, then those of the module around it; beside an
    activation's gradient those of the same module's other outputs and of the module around it. Weights that got nothing
    but rounding (``share`` of the momentum beside theirs) stand beside the largest of both: a norm that begins at zero
    has weights as small as they are, and moves at another rate.
    """
    peaks = {}
    for name in oracle:
        if phase_of(name) in STRUCTURAL and oracle[name].dtype.kind == "f":
            array = oracle[name]
            peaks[name] = float(np.abs(array).max()) if array.size and np.isfinite(array).all() else 0.0
    groups: dict[tuple[str, str], float] = {}
    for name, peak in peaks.items():
        for path in ancestors(name):
            groups[phase_of(name), path] = max(groups.get((phase_of(name), path), 0.0), peak)
    beside = {
        name: next(
            (groups[phase_of(name), path] for path in ancestors(name) if groups[phase_of(name), path] > peak), peak
        )
        for name, peak in peaks.items()
    }
    unmoved = {weight_of(n) for n, p in peaks.items() if phase_of(n) == "momentum" and p <= share * beside[n]}
    for name in peaks:
        if phase_of(name) in ("parameter", "ema") and weight_of(name) in unmoved:
            beside[name] = max(groups[phase_of(name), path] for path in ancestors(name))
    return peaks, beside


def weight_of(name: str) -> str:
    """The parameter that an array of it belongs to; optimizers with several slots name them ``momentum/slot/...``."""
    return name.rsplit("/", 1)[-1]


def ancestors(name: str) -> list[str]:
    """The module of a name and the one around it, innermost first."""
    path = module_of(name)
    return [path, path.rpartition(".")[0]]
