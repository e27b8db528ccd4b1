"""Calls that are no function of their arguments are judged where they stand, and a port that raises gets a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from alignment_tests.harness import align, copy_weights
from jt_impl.runtime import jittor as jt

X = np.random.default_rng(0).standard_normal((2, 8, 6)).astype(np.float32)


class Block(torch.nn.Module):
    """Takes its number of rows from whoever calls it."""

    rows: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        y = x.reshape(len(x), self.rows, -1, 6)
        return x + self.proj(y - y.mean(1, keepdim=True)).reshape(x.shape)


class Reference(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = Block(), torch.nn.Linear(6, 2)

    def forward(self, x: Any) -> Any:
        for rows in (4, 2):
            self.block.rows = rows
            x = self.block(x)
        return self.out(x)


def candidate(factor: float = 1.0) -> Any:
    class Ported(jt.nn.Module):
        rows: int | None = None

        def __init__(self) -> None:
            super().__init__()
            self.proj = jt.nn.Linear(6, 6)

        def execute(self, x: Any) -> Any:
            y = x.reshape(x.shape[0], self.rows, -1, 6)
            return x + self.proj(y - y.mean(1, keepdims=True) * factor).reshape(x.shape)

    class Candidate(jt.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.out = Ported(), jt.nn.Linear(6, 2)

        def execute(self, x: Any) -> Any:
            for rows in (4, 2):
                self.block.rows = rows
                x = self.block(x)
            return self.out(x)

    return Candidate()


def report_of(reference: Any, ported: Any, **options: Any) -> Any:
    copy_weights(reference, ported)
    return align(reference, ported, X, **options)


@pytest.mark.parametrize(("rows", "calls"), [(None, 2), (2, 1)], ids=["alone it raises", "alone it does another thing"])
def test_a_block_that_its_parent_sets_is_judged_in_place(rows: int | None, calls: int) -> None:
    reference, ported = Reference(), candidate()
    reference.block.rows = ported.block.rows = rows
    report = report_of(reference, ported)
    assert report.aligned, report.problems
    assert report.checks["judged in place only"].startswith(f"{calls} calls")


def test_a_fault_in_such_a_block_is_blamed() -> None:
    report = report_of(Reference(), candidate(factor=1.01))
    assert report.first_divergence is not None
    assert report.first_divergence.name == "activation/block#0/0"


# Ports that raise


class Half(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 0.5


class Stages(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.neck, self.last = torch.nn.Linear(6, 4), Half(), torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.last(self.neck(self.first(x)))


def stages(neck: Callable[[Any], Any]) -> Any:
    class Neck(jt.nn.Module):
        def execute(self, x: Any) -> Any:
            return neck(x)

    class Ported(jt.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.neck, self.last = jt.nn.Linear(6, 4), Neck(), jt.nn.Linear(4, 2)

        def execute(self, x: Any) -> Any:
            return self.last(self.neck(self.first(x)))

    return Ported()


def broken(x: Any) -> Any:
    return jt.no_such_function(x)


def broken_in_float64(x: Any) -> Any:
    if str(x.dtype) == "float64":
        raise TypeError("float64 is not supported")
    return x * 0.5


@pytest.mark.parametrize(("neck", "precisions"), [(broken, {"float64", "float32"}), (broken_in_float64, {"float64"})])
def test_a_port_that_raises_gets_a_report_up_to_there(neck: Callable[[Any], Any], precisions: set[str]) -> None:
    report = report_of(Stages(), stages(neck))
    raised = {row.precision for row in report.rows if row.name == "activation/neck#0/0" and row.verdict == "fail"}
    assert raised == precisions
    assert {row.verdict for row in report.rows if row.module == "first"} == {"pass"}
    assert report.first_divergence is not None
    assert report.first_divergence.module == "neck"
    assert not report.coverage.missing


def test_the_line_that_raises_is_told() -> None:
    report = report_of(Stages(), stages(broken))
    where = f"at {__file__}:{broken.__code__.co_firstlineno + 1}"
    assert [where in problem for problem in report.problems if "raises in neck" in problem] == [True, True]


def test_a_reference_that_raises_names_the_module() -> None:
    model = Stages()
    model.neck.forward = lambda x: x.no_such_method()  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"the model raises in neck: AttributeError"):
        align(model, stages(lambda x: x * 0.5), X)
