"""All experiments by name, each made with a seed; importing this module fills the register of faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment_tests.meta_tests import (
    faults_distill,
    faults_layers,
    faults_losses,
    faults_pipeline,
    faults_updates,
    faults_weights,
    faults_wiring,
)
from alignment_tests.meta_tests.fault import FAULTS
from alignment_tests.meta_tests.forward import FORWARD
from alignment_tests.meta_tests.measuring import Measuring
from alignment_tests.meta_tests.pipeline import PIPELINE
from alignment_tests.meta_tests.runner import Experiment
from alignment_tests.meta_tests.training import TRAINING

FILES = (faults_layers, faults_weights, faults_wiring, faults_losses, faults_distill, faults_updates, faults_pipeline)
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
