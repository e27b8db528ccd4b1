"""pytest plugin of the performance suite: its options, which tests belong to which run, and what was not run.

A plain ``pytest`` never collects a benchmark, ``pytest --benchmark-only`` collects nothing else. The modules of the
suite are called ``bench_*.py``, so that neither run imports the other's.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignment_tests.bench import rounds
from alignment_tests.bench.cases import DEVICES, GRIDS, ONLY_CUDA, Case, Contender, describe
from alignment_tests.bench.interleaved import Measurement, find_limit, interleave

PREFIX = "bench_"
BUDGET_ENDED = "not run: the budget of --bench-seconds ended"


def pytest_addoption(parser: pytest.Parser) -> None:
    sizes = {grid: ", ".join(describe(grid, device) for device in DEVICES) for grid in GRIDS}
    group = parser.getgroup("performance suite", "performance suite (with --benchmark-only)")
    group.addoption(
        "--bench-device",
        choices=DEVICES,
        default="cpu",
        help=f"where both frameworks compute (default: cpu). {ONLY_CUDA}",
    )
    group.addoption(
        "--bench-grid",
        choices=tuple(GRIDS),
        default="small",
        help=f"small ({sizes['small']}): N and S, batches of 1 and 8; full ({sizes['full']}): both forms, batches of 1"
        " to 32, 512 and 640 pixels, Jittor from an empty cache. Default: small",
    )
    group.addoption(
        "--bench-seconds",
        type=float,
        metavar="N",
        help="time budget: cases run in order of what they say; those that no longer fit are named at the end",
    )


@dataclass
class Suite:
    """What a session has measured, and what it left out."""

    seconds: float | None
    begun: float = field(default_factory=time.monotonic)
    taken: dict[str, list[float]] = field(default_factory=dict)  # seconds of the finished cases by kind
    not_run: dict[str, str] = field(default_factory=dict)
    _last: tuple[Case, Measurement] | None = None

    @property
    def deadline(self) -> float:
        return float("inf") if self.seconds is None else self.begun + self.seconds

    def measurement(self, case: Case, contenders: tuple[Contender, ...]) -> Measurement | None:
        """The case's duel, fought once for all its contenders; None where the budget doesn't reach."""
        if self._last is not None and self._last[0] == case:
            return self._last[1]
        if case.name in self.not_run:
            return None
        if not rounds.may_start(self.deadline - time.monotonic(), self.taken.get(case.what, [])):
            self.not_run[case.name] = BUDGET_ENDED
            return None
        made = (find_limit if case.what == "limit" else interleave)(case, contenders, deadline=self.deadline)
        self.taken.setdefault(case.what, []).append(made.seconds)
        self._last = (case, made)
        return made


SUITE = pytest.StashKey[Suite]()


def only_benchmarks(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_only", False))


def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options: benchmarks are skipped where they are named without being asked for.

    ``--benchmark-skip`` in the configuration file would do it too, but some versions refuse it beside
    ``--benchmark-only``.
    """
    seconds = config.getoption("bench_seconds")
    if seconds is not None and not seconds > 0:
        raise pytest.UsageError(f"--bench-seconds must be positive. Received: {seconds:g}")
    config.stash[SUITE] = Suite(seconds)
    if hasattr(config.option, "benchmark_skip") and not only_benchmarks(config):
        config.option.benchmark_skip = True


def pytest_sessionstart(session: pytest.Session) -> None:
    if not only_benchmarks(session.config):
        return
    if session.config.getoption("bench_device") == "cuda":
        check_cuda()
    # Whoever ends the run early, as ``timeout`` does, still gets the file of what was measured so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def check_cuda() -> None:
    """Once, before any case fails for it."""
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError("--bench-device cuda needs a GPU that PyTorch can use. Received: none")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix != ".py" or collection_path.name == "conftest.py":
        return None
    return True if collection_path.name.startswith(PREFIX) != only_benchmarks(config) else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    if not only_benchmarks(config):
        return []
    device, grid, seconds = (config.getoption(f"bench_{name}") for name in ("device", "grid", "seconds"))
    budget = "no time budget" if seconds is None else f"budget {seconds:g} s"
    return [f"benchmarks: grid {grid}, {describe(grid, device)}, {budget}", *([ONLY_CUDA] if device == "cpu" else [])]


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.config.stash[SUITE]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in missing(config.stash[SUITE].not_run):
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["not_run"] = config.stash[SUITE].not_run


def missing(not_run: dict[str, str]) -> Iterator[str]:
    """Every case that was not run, by name, with the reason."""
    if not_run:
        yield f"{len(not_run)} cases of the performance suite were not run:"
    for name, reason in not_run.items():
        yield f"  {name}: {reason}"
