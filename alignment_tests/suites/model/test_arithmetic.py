"""TF32 and half precision: judged by budgets of their own, and run where they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests import __main__ as command
from alignment_tests.cases import arithmetic
from alignment_tests.cases.modules import NORM, seed_weights, signed
from alignment_tests.gpu import convolution
from alignment_tests.harness import align
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET, HALF_BUDGET, TF32_BUDGET, Budget
from alignment_tests.harness.record.adapters import adapter_for
from jt_impl import layers, runtime
from jt_impl.runtime import jittor as jt
from torch_ref import layers as torch_layers

BUDGETS = {"float32": (DEFAULT_BUDGET, 23), "tf32": (TF32_BUDGET, 10), "half": (HALF_BUDGET, 10)}


def rounded(values: Any, bits: int) -> Any:
    """To so many bits behind the point, as a factor is before it is multiplied."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)


def products(bits: int, fault: float = 0.0) -> tuple[Any, Any, Any]:
    """Candidate, reference and oracle of one matrix product; the candidate adds the other way round."""
    a, b = signed(1, 40, 300), signed(2, 300, 40)
    low_a, low_b = (rounded(side, bits).astype(np.float32) for side in (a, b))
    backwards = (low_a[:, ::-1] @ low_b[::-1]).astype(np.float32)
    return backwards + np.float32(fault * np.abs(a @ b).max()), low_a @ low_b, a @ b


@pytest.mark.parametrize("precision", BUDGETS)
def test_rounding_of_the_arithmetic_passes(precision: str) -> None:
    budget, bits = BUDGETS[precision]
    error, _, allowed = convolution.judged(*products(bits), budget)
    assert error <= allowed


@pytest.mark.parametrize(("precision", "fault"), [("float32", 1e-5), ("tf32", 0.01), ("half", 0.01)])
def test_planted_fault_fails(precision: str, fault: float) -> None:
    budget, bits = BUDGETS[precision]
    error, _, allowed = convolution.judged(*products(bits, fault), budget)
    assert error > allowed


def test_tf32_where_float32_was_promised_fails() -> None:
    candidate, _, oracle = products(10)
    reference = products(23)[1]
    error, _, allowed = convolution.judged(candidate, reference, oracle, DEFAULT_BUDGET)
    assert error > allowed


@pytest.mark.parametrize(
    ("precision", "runs", "budget"),
    [
        ("both", ("float64", "float32"), DEFAULT_BUDGET),
        ("float64", ("float64",), DEFAULT_BUDGET),
        ("tf32", ("float32",), TF32_BUDGET),
        ("half", ("float32",), HALF_BUDGET),
    ],
)
def test_what_a_precision_means(precision: str, runs: tuple[str, ...], budget: Budget) -> None:
    chosen = arithmetic.choose(precision, "cuda")
    assert (chosen.runs, chosen.budget) == (runs, budget)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "tf32"], "error: `--precision tf32` needs `--device cuda`"),
        (["--device", "cuda", "--image-size", "64"], "error: `--device cuda` needs a GPU that this PyTorch can use"),
    ],
)
def test_command_refuses_what_a_cpu_lacks(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and "cuda" in words:
        pytest.skip("there is a GPU here, so nothing is refused")
    assert command.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "gold_yolo_s-640x640-eval-train"),
        (["--device", "cuda", "--precision", "tf32"], "gold_yolo_s-640x640-eval-train-cuda-tf32"),
        (["--precision", "half"], "gold_yolo_s-640x640-eval-train-half"),
    ],
)
def test_report_is_named_after_what_is_unusual(words: list[str], name: str) -> None:
    assert command.report_name(command.arguments().parse_args(words)) == name


def test_switches_are_set_and_told() -> None:
    text = arithmetic.switch(arithmetic.choose("both", "cpu"), "cpu")
    assert text == {"device": "cpu", "arithmetic": "IEEE"}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    assert (jt.flags.use_tensorcore, jt.flags.use_cuda) == (0, 0)


def half_report(act: str) -> Any:
    """A convolution, norm and activation in mixed precision; ``act`` is the candidate's."""
    reference = torch_layers.ConvNormAct(3, 8, 3, norm=NORM, act=torch_layers.relu)
    candidate = layers.ConvNormAct(3, 8, 3, norm=NORM, act=getattr(layers, act))
    for model in (reference, candidate):
        seed_weights(model)
    chosen = arithmetic.ARITHMETICS["half"]
    return align(
        reference,
        candidate,
        signed(5, 1, 3, 12, 12).astype(np.float32),
        precisions=chosen.runs,
        budget=chosen.budget,
        scopes=arithmetic.scopes(chosen, "cpu"),
    )


def test_half_precision_is_compared_in_half() -> None:
    report = half_report("relu")
    rows = [row.accumulated.dtype for row in report.rows if row.phase == "activation"]
    assert (report.aligned, set(rows)) == (True, {"float16"})


def test_fault_in_half_precision_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the repro goes
    report = half_report("silu")
    assert report.first_divergence is not None
    assert report.first_divergence.name == "activation/act#0/0"


# What is compiled together


class Curve(jt.Module):
    def execute(self, x: Any) -> Any:
        return jt.sin(x) * jt.cosh(x) - jt.atan(x)


class Curves(jt.Module):
    def __init__(self) -> None:
        self.first, self.second = Curve(), Curve()

    def execute(self, x: Any) -> Any:
        return self.second(jt.tan(self.first(x))) + 3.5


def test_a_settled_run_needs_no_further_kernel() -> None:
    model: Any = Curves()
    adapter: Any = adapter_for(model)
    x = adapter.from_numpy(signed(3, 2, 3, 2, 3, 2, 3).astype(np.float32))
    before = runtime.loaded_kernels()
    with adapter.running(model, train=False):
        adapter.compile_together(model, lambda: model(x))
        ready = runtime.loaded_kernels()
        with adapter.settled(model):
            model(x).numpy()
    assert before < ready == runtime.loaded_kernels()


def test_compiling_together_changes_nothing() -> None:
    model: Any = Curves()
    adapter: Any = adapter_for(model)
    x = adapter.from_numpy(signed(3, 2, 3, 2, 3, 2, 3).astype(np.float32))
    expected = model(x).numpy()
    adapter.compile_together(model, lambda: model(x))
    assert np.array_equal(model(x).numpy(), expected)
