"""Models of torchvision and Jittor: a sample of the table, the corrected operators, what a broken candidate becomes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.cases.child_processes import exit_code, sheltered, stop
from alignment_tests.conformity.zoo import table
from alignment_tests.conformity.zoo.corrected_operators import ADAPTIVE_POOL, BATCH_NORM, MEAN, corrected
from alignment_tests.conformity.zoo.models import ON_DEMAND, architectures, case_of
from alignment_tests.conformity.zoo.run import CONFORMS, run
from fixtures.runs.record import commit_of
from jt_impl.runtime import jittor as jt


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """The smallest one; its kernels are few."""
    return run("squeezenet1_1", ("eval", "step"))


def test_the_sample_conforms_in_eval_mode(row: dict[str, Any]) -> None:
    found = row["parts"]["eval"]
    assert found["verdict"] == CONFORMS
    assert found["as it is"]["rows"] > 100


def test_the_sample_conforms_in_a_step(row: dict[str, Any]) -> None:
    """Jittor's float64 gradient of a mean, which float32 numbers enter, is no difference of a model."""
    found = row["parts"]["step"]
    assert found["verdict"] == CONFORMS
    assert found["as it is"]["float64"] < 1e-12


def test_a_model_that_is_built_otherwise_is_reported_as_such() -> None:
    row = run("mnasnet0_5")
    assert row["parts"] == {}
    assert "first layers.0.weight: Jittor (32, 3, 3, 3), PyTorch (16, 3, 3, 3)" in row["other weights"]


def test_at_least_twenty_architectures_are_run() -> None:
    assert len(set(architectures()) - set(ON_DEMAND)) >= 20


def test_what_is_left_for_later_exists() -> None:
    assert set(ON_DEMAND) <= set(architectures())


def test_cases_of_a_family_are_one() -> None:
    assert case_of("vgg11_bn") is case_of("vgg19")
    assert case_of("resnet18").size == 64


def test_mends_are_taken_out_again() -> None:
    before = jt.nn.BatchNorm.execute
    with corrected((BATCH_NORM,)):
        assert jt.nn.BatchNorm.execute is not before
    assert jt.nn.BatchNorm.execute is before


def corrected_output(name: str, layer: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with corrected((name,)):
        return layer(jt.array(x)).numpy()


X = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("size", [(3, 3), (7, 5), (1, 2)])
def test_the_right_adaptive_pool_is_right(size: tuple[int, int]) -> None:
    found = corrected_output(ADAPTIVE_POOL, jt.nn.AdaptiveAvgPool2d(size), X)
    expected = torch.nn.AdaptiveAvgPool2d(size)(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_right_mean_has_a_gradient_of_float64() -> None:
    x = jt.array64(np.ones((1, 1, 3, 3)))
    with corrected((MEAN,)):
        gradient = jt.grad(jt.nn.AdaptiveAvgPool2d(1)(x), x).numpy()
    np.testing.assert_allclose(gradient, 1 / 9, rtol=1e-14)


def test_the_right_batch_norm_has_an_unbiased_variance() -> None:
    ours, theirs = jt.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    corrected_output(BATCH_NORM, ours, X)
    theirs(torch.from_numpy(X))
    np.testing.assert_allclose(ours.running_var.numpy(), theirs.running_var.numpy(), rtol=0, atol=1e-6)


def test_a_model_whose_process_dies_is_a_row() -> None:
    row = table.run_one("no_such_model")
    assert row["failed"].startswith("the process ends with 1")
    assert "no_such_model" in row["failed"]


def test_a_shell_that_has_no_child_yet_is_stopped() -> None:
    with subprocess.Popen(sheltered(["sleep", "30"])) as shell:
        stop(shell)
        assert shell.poll() is not None
        assert exit_code(shell) == -signal.SIGKILL


def test_a_row_tells_its_commit_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "run_one", lambda name: {"name": name, "parts": {}})
    made = table.kept_or_run("resnet18", tmp_path)
    assert made == {"name": "resnet18", "parts": {}, "commit": commit_of(table.ROOT, ("docs",))}
    monkeypatch.setattr(table, "run_one", lambda name: {"name": name, "failed": "made again"})
    assert table.kept_or_run("resnet18", tmp_path) == made


def test_a_model_that_takes_for_ever_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PATIENCE", 0.1)
    assert table.run_one("resnet18") == {"name": "resnet18", "failed": "no end within 0 s"}
