"""Runs without any fault, with other weights, inputs, sizes and numbers of threads: none may be alarmed about."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch

from alignment_tests.meta_tests.catalogue import make
from alignment_tests.meta_tests.experiments.forward import FORWARD, SMALL_PARTS, Size, small_part
from alignment_tests.meta_tests.experiments.outcome import Outcome
from alignment_tests.meta_tests.experiments.training import TRAINING, StepCase

EVALUATION: tuple[Size, ...] = ((64, 64), (64, 96), (96, 64), (64, 160), (96, 96))
# Larger ones, batches of two: a norm over a few values magnifies the rounding before it without bound.
TRAINED: tuple[Size, ...] = ((128, 128), (96, 160), (160, 96))
SMALL: tuple[Size, ...] = ((4, 5), (5, 4), (3, 7), (6, 6), (8, 5), (7, 9))  # of the coarsest map of a small part
BLOCKS: tuple[Size, ...] = ((12, 10), (7, 9), (16, 12), (20, 13))
THREADS = (1, 2, 3, 4)
TRAIN = ", training"
# How often an experiment comes in a round of twenty-six.
ROUND = (
    *("backbone", "neck", "head", "head", "backbone, deploy form", "blocks of M and L", "activations", "assigner"),
    *SMALL_PARTS,
    *("backbone.stem" + TRAIN, "neck.Rep_p4" + TRAIN, "head" + TRAIN),
    *("training step", "training step with a teacher", "updates", "post-processing", "data", "conversion"),
)


@dataclass(frozen=True)
class CleanRun:
    """``size`` is None where an experiment has none."""

    experiment: str
    seed: int
    size: Size | None
    threads: int

    def run(self) -> Outcome:
        with threads(self.threads):
            return self.made().run()

    def made(self) -> Any:
        part = self.experiment.removesuffix(TRAIN)
        if part in SMALL_PARTS:
            assert self.size is not None
            return small_part(part, self.size, self.seed, train=part != self.experiment)
        if self.experiment in FORWARD:
            assert self.size is not None
            return replace(FORWARD[self.experiment], size=self.size).make(self.seed)
        case = TRAINING.get(self.experiment)
        if isinstance(case, StepCase):
            assert self.size is not None
            return case.make(self.seed, self.size)
        return make(self.experiment, seed=self.seed)


def clean_runs(count: int) -> Iterator[CleanRun]:
    """The first ``count`` of an endless list; every run has a seed of its own."""
    for seed, name in enumerate(islice(cycle(ROUND), count), start=1):
        yield CleanRun(name, seed, size_for(name, seed), THREADS[seed % len(THREADS)])


def size_for(name: str, seed: int) -> Size | None:
    if name.removesuffix(TRAIN) in SMALL_PARTS:
        sizes = SMALL
    elif name in ("blocks of M and L", "activations"):
        sizes = BLOCKS
    elif name in FORWARD or isinstance(TRAINING.get(name), StepCase):
        sizes = TRAINED if "training" in name else EVALUATION
    else:
        return None
    return sizes[(seed // 3) % len(sizes)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Both frameworks compute with this many threads; Jittor's kernels take those of the OpenMP library of g++."""
    before, library = torch.get_num_threads(), openmp()
    own = None if library is None else library.omp_get_max_threads()
    set_threads(library, count, count)
    try:
        yield
    finally:
        set_threads(library, before, own)


def openmp() -> Any:
    with suppress(OSError):
        return ctypes.CDLL("libgomp.so.1")
    return None


def set_threads(library: Any, of_torch: int, of_jittor: int | None) -> None:
    torch.set_num_threads(of_torch)
    if library is not None:
        library.omp_set_num_threads(of_jittor or os.cpu_count() or 1)
