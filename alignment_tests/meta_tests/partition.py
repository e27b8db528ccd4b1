"""Faults and runs without one, dealt to processes: an experiment's faults are a part, and so are its clean runs."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from alignment_tests.meta_tests.catalogue import FAULTS, make
from alignment_tests.meta_tests.clean import CleanRun, clean_runs
from alignment_tests.meta_tests.clean_training import TrainingRun
from alignment_tests.meta_tests.faults.fault import Fault
from alignment_tests.meta_tests.proof_page import Data, clean_as_json, finding_as_json, training_as_json
from alignment_tests.meta_tests.runner import by_experiment, examine_all


@dataclass(frozen=True)
class Part:
    """Of one experiment: names of faults, or runs without a fault; or whole trainings without one."""

    faults: tuple[str, ...] = ()
    clean: tuple[CleanRun, ...] = ()
    training: tuple[TrainingRun, ...] = ()


def partition(faults: Iterable[Fault], clean: int, training: Iterable[TrainingRun] = ()) -> list[Part]:
    """The longest first, so that no process is left alone with one at the end: training, then what has most runs.

    Whole trainings of one model and kind share their kernels, and are a part.
    """
    dealt = {name: Part(faults=tuple(fault.name for fault in group)) for name, group in by_experiment(faults).items()}
    runs: dict[str, list[CleanRun]] = {}
    for run in clean_runs(clean):
        runs.setdefault(run.experiment, []).append(run)
    alone = [(name, Part(clean=tuple(group))) for name, group in runs.items()]

    whole: dict[str, list[TrainingRun]] = {}
    for one in training:
        whole.setdefault(f"training of {one.model}, {one.kind}", []).append(one)
    alone += [(name, Part(training=tuple(group))) for name, group in whole.items()]

    def cost(item: tuple[str, Part]) -> tuple[bool, int]:
        name, part = item
        return not name.startswith("training"), -len(part.faults) - len(part.clean) - len(part.training)

    return [part for _, part in sorted([*dealt.items(), *alone], key=cost)]


def run_all(
    faults: Iterable[Fault], clean: int, jobs: int, training: Iterable[TrainingRun] = ()
) -> tuple[list[Data], list[Data], list[Data]]:
    """What became of the faults, of the runs without one, and of the trainings, in the order of one process.

    Raises:
        RuntimeError: a candidate without a fault is not aligned, before the first fault of an experiment or after the
            last.
    """
    every, trainings = list(faults), list(training)
    dealt = partition(every, clean, trainings)
    if jobs == 1 or len(dealt) == 1:
        results = [run_part(part) for part in dealt]
    else:
        # Spawned, since threads of both frameworks and their locks do not survive a fork.
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(pool.map(run_part, dealt))
    found = {one["name"]: one for findings, _, _ in results for one in findings}
    alone = {one["seed"]: one for _, runs, _ in results for one in runs}
    whole = {one["seed"]: one for _, _, runs in results for one in runs}
    clean_ones = [alone[run.seed] for run in clean_runs(clean)]
    return [found[fault.name] for fault in every], clean_ones, [whole[run.seed] for run in trainings]


def run_part(part: Part) -> tuple[list[Data], list[Data], list[Data]]:
    findings = examine_all([FAULTS[name] for name in part.faults], make, tell)
    made = [finding_as_json(finding) for finding in findings]
    return made, list(clean_outcomes(part.clean)), list(training_outcomes(part.training))


def clean_outcomes(runs: Iterable[CleanRun]) -> Iterator[Data]:
    for run in runs:
        start = time.perf_counter()
        outcome = run.run()
        seconds = time.perf_counter() - start
        message = "aligned" if outcome.aligned else f"FALSE ALARM: {outcome.reason}"
        tell(f"clean run of {run.experiment}, seed {run.seed}: {message} {seconds:.1f} s")
        yield clean_as_json(run, outcome, seconds)


def training_outcomes(runs: Iterable[TrainingRun]) -> Iterator[Data]:
    for run in runs:
        start = time.perf_counter()
        report = run.run()
        seconds = time.perf_counter() - start
        message = "aligned" if report.aligned else f"FALSE ALARM: {report.problems[0]}"
        tell(f"training of {run.model}, {run.kind}, seed {run.seed}: {message} {seconds:.1f} s")
        yield training_as_json(run, report, seconds)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
