"""All experiments by name, each made with a seed; importing this module fills the register of faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment_tests.meta_tests.experiments.forward import FORWARD
from alignment_tests.meta_tests.experiments.measuring import Measuring
from alignment_tests.meta_tests.experiments.pipeline import PIPELINE
from alignment_tests.meta_tests.experiments.training import TRAINING
from alignment_tests.meta_tests.faults import distill, layers, losses, pipeline, updates, weights, wiring
from alignment_tests.meta_tests.faults.fault import FAULTS
from alignment_tests.meta_tests.runner import Experiment

FILES = (layers, weights, wiring, losses, distill, updates, pipeline)
EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
    **{name: case.make for name, case in FORWARD.items()},
    **{name: case.make for name, case in TRAINING.items()},
    **PIPELINE,
    "measuring": Measuring,
}


def make(name: str, **options: Any) -> Experiment:
    """The experiment of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"`experiment` must be one of {sorted(EXPERIMENTS)}. Received: {name!r}")
    return EXPERIMENTS[name](**options)


__all__ = ["EXPERIMENTS", "FAULTS", "make"]
