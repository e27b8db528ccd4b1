"""The performance suite: one test, and one entry in pytest-benchmark's figures, for each contender of each case.

pytest --benchmark-only --benchmark-json figures.json
"""

from __future__ import annotations

from typing import Any

import pytest

from alignment_tests.bench.benchmark_entry import Replay, extra_info
from alignment_tests.bench.cases import Case, Contender, cases_of, contenders_of
from alignment_tests.bench.plugin import BUDGET_ENDED, Suite

# A test that fails before its times are handed over is no mistake in the use of the fixture.
pytestmark = pytest.mark.filterwarnings("default:Benchmark fixture was not used")
REPLAY = Replay()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device, grid = (metafunc.config.getoption(f"bench_{name}") for name in ("device", "grid"))
    entries = [(case, one) for case in cases_of(device, grid) for one in contenders_of(case, grid)]
    metafunc.parametrize(("case", "contender"), entries, ids=[f"{case.name}-{one.name}" for case, one in entries])


@pytest.fixture(autouse=True)
def named(benchmark: Any, case: Case) -> None:
    """pytest-benchmark's tables put the contenders of a case side by side."""
    benchmark.group = case.name


@pytest.mark.benchmark(timer=REPLAY.read)
def test_contender(
    benchmark: Any, suite: Suite, case: Case, contender: Contender, request: pytest.FixtureRequest
) -> None:
    measurement = suite.measurement(case, contenders_of(case, request.config.getoption("bench_grid")))
    if measurement is None:
        pytest.skip(BUDGET_ENDED)
    outcome = measurement.outcomes[contender.name]
    if outcome.failed and not contender.required:
        pytest.skip(f"{contender.name} cannot run here: {outcome.failed}")
    if outcome.failed and outcome.out_of_memory:
        pytest.skip(f"{contender.name}: a batch of {case.batch} does not fit into memory: {outcome.failed}")
    if outcome.failed and outcome.late:
        suite.not_run[f"{case.name}, {contender.name}"] = outcome.failed
        pytest.skip(f"{contender.name}: {outcome.failed}")
    assert outcome.failed is None, f"{contender.name}: {outcome.failed}"
    reason = outcome.void_reason(compiling=case.what == "cold-start")
    assert reason is None, f"void: {reason}"
    benchmark.extra_info.update(extra_info(measurement, outcome))
    REPLAY.hand_over(benchmark, outcome.times)
