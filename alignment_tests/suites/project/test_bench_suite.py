"""The performance suite under pytest: who runs when, what its figures hold, and one real duel of a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment_tests.bench import interleaved, plugin, rounds, training
from alignment_tests.bench.cases import CHANNELS_LAST, COMPILE, EAGER, JITTOR, Case
from alignment_tests.bench.interleaved import Measurement
from alignment_tests.bench.workers import Worker, WorkerError
from alignment_tests.suites.project.test_bench_rules import Scripted

ROOT = Path(__file__).resolve().parents[3]
CASE = Case("inference", "gold_yolo_n", 64)
PLANTED = """
from alignment_tests.bench import bench_cases, plugin
from alignment_tests.suites.project.test_bench_suite import planted_cases, planted_fight

plugin.interleave = planted_fight
bench_cases.cases_of = planted_cases
"""


def planted_cases(device: str, grid: str) -> list[Case]:
    return [CASE, replace(CASE, batch=2)]


def planted_fight(case: Case, contenders: Any, deadline: float) -> Measurement:
    """Batch 1: all is well, but one opponent can't run. Batch 2: Jittor loads a kernel in a timed round."""
    loads = [] if case.batch == 1 else [6]
    made = {
        EAGER.name: Scripted("A", [1.0]),
        JITTOR.name: Scripted("B", [2.0], loads),
        COMPILE.name: Scripted("C", [3.0], fails=0),
        CHANNELS_LAST.name: Scripted("D", [4.0]),
    }
    return interleaved.interleave(case, contenders, start=lambda case, one, environment, end: made[one.name])


def pytest_run(*options: str, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def planted_run(folder: Path, *options: str) -> tuple[int, str]:
    """The suite itself, with cases that are no work."""
    (folder / "planted.py").write_text(PLANTED)
    (folder / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\n")
    plugins = ["-p", "alignment_tests.bench.plugin", "-p", "planted", "-rs"]
    module = str(ROOT / "alignment_tests" / "bench" / "bench_cases.py")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    given = ["-c", str(folder / "pytest.ini"), "--rootdir", str(folder), module, "--benchmark-only", *options]
    return pytest_run(*plugins, *given, cwd=folder, PYTHONPATH=paths)


@pytest.mark.parametrize(("name", "only", "ignored"), [
    ("bench_cases.py", False, True),
    ("bench_cases.py", True, None),
    ("test_model.py", True, True),
    ("test_model.py", False, None),
    ("conftest.py", True, None),
    ("README.md", True, None),
])  # fmt: skip
def test_each_run_leaves_out_the_modules_of_the_other(name: str, only: bool, ignored: bool | None) -> None:
    class Config:
        @staticmethod
        def getoption(option: str, default: bool) -> bool:
            return only

    assert plugin.pytest_ignore_collect(Path(name), Config()) is ignored  # type: ignore[arg-type]


def test_a_plain_run_has_no_benchmark_and_a_benchmark_run_nothing_else() -> None:
    folder, own = "alignment_tests/bench", "alignment_tests/meta_tests"
    plain, only = (pytest_run("--collect-only", "-q", folder, own, *more)[1] for more in ([], ["--benchmark-only"]))
    assert "test_comparator_torture.py" in plain
    assert "bench_cases.py" not in plain
    assert "bench_cases.py::test_contender[inference-deploy-s-640-b1-float32-cpu-jittor]" in only
    assert "test_comparator_torture.py" not in only


def test_benchmarks_that_are_named_without_the_option_are_skipped() -> None:
    status, message = pytest_run("-q", "-x", "alignment_tests/bench/bench_cases.py")
    assert status == 0
    assert "skipped" in message
    assert "passed" not in message


def test_figures_hold_every_contender_and_void_times_fail(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    status, message = planted_run(tmp_path, "--benchmark-json", str(path))
    assert status == 1
    assert "void: 1 kernels were loaded in the timed rounds" in message
    assert "pytorch-compile cannot run here: planted" in message
    entries = {one["name"]: one for one in json.loads(path.read_text())["benchmarks"]}
    names = ["b1-float32-cpu-pytorch-eager", "b1-float32-cpu-jittor", "b1-float32-cpu-pytorch-channels-last"]
    names += [name.replace("b1", "b2") for name in names if "jittor" not in name]
    assert set(entries) == {f"test_contender[inference-deploy-n-64-{name}]" for name in names}
    jittor = entries[f"test_contender[inference-deploy-n-64-{names[1]}]"]
    assert jittor["stats"]["data"] == jittor["extra_info"]["round_seconds"] == [2.0] * CASE.rounds
    assert jittor["extra_info"]["ratios"] == [2.0] * CASE.rounds
    assert jittor["extra_info"]["not_measured"] == {"pytorch-compile": "planted"}
    assert jittor["group"] == CASE.name


def test_cases_beyond_the_budget_are_named(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    status, message = planted_run(tmp_path, "--bench-seconds", "1e-9", "--benchmark-json", str(path))
    assert status == 0
    assert "2 cases of the performance suite were not run:" in message
    assert all(f"  {case.name}: {plugin.BUDGET_ENDED}" in message for case in planted_cases("cpu", "small"))


def test_cuda_without_a_gpu_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.UsageError, match="needs a GPU"):
        plugin.check_cuda()


def test_a_real_duel_of_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both frameworks, each in its process, with figures of its own and no kernel in the timed rounds."""
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.01)
    made = interleaved.interleave(CASE, (EAGER, JITTOR))
    for outcome in made.outcomes.values():
        assert (outcome.failed, outcome.void_reason()) == (None, None)
        assert min(outcome.times) > 0
        assert outcome.memory["resident"] > 2**26
    assert [outcome.facts["framework"] for outcome in made.outcomes.values()] == ["pytorch", "jittor"]
    assert made.outcomes["jittor"].kernels[0] > 0
    assert len(made.ratios(made.outcomes["jittor"])) == CASE.rounds


@pytest.mark.parametrize("batch", [1, 2])
def test_make_bench_takes_its_figures_from_a_duel(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "interleave", lambda case, both: planted_fight(case, both, float("inf")))
    case = replace(CASE, batch=batch)
    if batch == 2:
        with pytest.raises(RuntimeError, match="Jittor: the times are void: 1 kernels"):
            training.in_turn("inference", case)
        return
    found = training.in_turn("inference", case)
    assert found["inference, gold_yolo_n 64x64, batch 1, Jittor over PyTorch"]["ratio"] == 2.0


def test_a_worker_that_fails_says_why() -> None:
    with Worker(replace(CASE, config="gold_yolo_x"), EAGER) as worker, pytest.raises(WorkerError, match="gold_yolo_x"):
        worker.ready()
