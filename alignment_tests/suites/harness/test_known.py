"""Jittor's own layers that differ are told apart from the port's faults, each proved in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn as T

from alignment_tests.harness import Report, align, copy_weights
from jt_impl.runtime import jittor as jt

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 10, 10)).astype(np.float32)
WORDS = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)


class Applies(T.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def applies(function: Callable[[Any], Any]) -> Any:
    """The same of Jittor: code of the port that calls a function of Jittor's."""

    class Applied(jt.nn.Module):
        def execute(self, x: Any) -> Any:
            return function(x)

    return Applied()


def pair(reference: list[Any], candidate: list[Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    models = T.Sequential(*reference), jt.nn.Sequential(*candidate)
    copy_weights(*models)
    return models


def conv() -> tuple[Any, Any]:
    return T.Conv2d(3, 4, 3), jt.nn.Conv2d(3, 4, 3)


# what is behind a convolution on either side, mode, the operator of Jittor's that differs
DIFFERENT: dict[str, tuple[Callable[[], Any], Callable[[], Any], bool, str]] = {
    "running variance": (lambda: T.BatchNorm2d(4), lambda: jt.nn.BatchNorm2d(4), True, "jittor.nn.BatchNorm"),
    "windows of a pool": (
        lambda: T.AdaptiveAvgPool2d(3),
        lambda: jt.nn.AdaptiveAvgPool2d(3),
        False,
        "jittor.nn.AdaptiveAvgPool2d",
    ),
}


def report_of(name: str) -> Report:
    theirs, ours, train, _ = DIFFERENT[name]
    first = conv()
    return align(*pair([first[0], theirs()], [first[1], ours()]), IMAGES, train=train)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_layer_of_jittors_own_is_known(name: str) -> None:
    report = report_of(name)
    assert report.aligned
    assert [known.operator for known in report.known] == [DIFFERENT[name][3]]
    assert {row.verdict for row in report.rows} == {"pass", "known"}


def test_a_layer_that_reads_its_batch_first_is_known() -> None:
    torch.manual_seed(0)
    models = T.LSTM(3, 4, batch_first=True), jt.nn.LSTM(3, 4, batch_first=True)
    copy_weights(*models)
    report = align(*models, WORDS)
    assert report.aligned, report.problems


def test_a_function_of_jittors_own_is_known_by_the_line_that_calls_it() -> None:
    theirs = Applies(lambda x: (x > 0).cumsum(1).float() * x)
    report = align(theirs, applies(lambda x: jt.cumsum(x > 0, 1).float32() * x), WORDS)
    assert report.aligned, report.problems
    (known,) = report.known
    assert known.operator == "jittor.cumsum"
    assert known.places[0].partition(":")[0] == __file__


FAULTS: dict[str, tuple[Callable[[], Any], Callable[[], Any], bool]] = {
    "eps": (lambda: T.BatchNorm2d(4), lambda: jt.nn.BatchNorm2d(4, eps=1e-3), False),
    "momentum": (lambda: T.BatchNorm2d(4), lambda: jt.nn.BatchNorm2d(4, momentum=0.3), True),
    "size of a pool": (lambda: T.AdaptiveAvgPool2d(4), lambda: jt.nn.AdaptiveAvgPool2d(3), False),
    "another function": (lambda: T.GELU(approximate="tanh"), lambda: jt.nn.GELU(), False),
    "corners": (
        lambda: T.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        lambda: jt.nn.Upsample(scale_factor=2, mode="bilinear"),
        False,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_argument_of_such_a_layer_is_a_fault(name: str) -> None:
    theirs, ours, train = FAULTS[name]
    first = conv()
    report = align(*pair([first[0], theirs()], [first[1], ours()]), IMAGES, train=train)
    assert not report.aligned
    assert report.first_divergence is not None
    assert "1" in (report.first_divergence.module, report.first_divergence.name.split(".")[0].split("/")[-1])


def test_a_fault_behind_a_known_layer_is_blamed() -> None:
    first = conv()
    models = pair([first[0], T.AdaptiveAvgPool2d(3), T.BatchNorm2d(4)],
                  [first[1], jt.nn.AdaptiveAvgPool2d(3), jt.nn.BatchNorm2d(4, eps=1e-3)])  # fmt: skip
    report = align(*models, IMAGES)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "2"
    assert {row.verdict for row in report.rows if row.module == "1"} == {"known"}


def test_strict_counts_what_is_known() -> None:
    first = conv()
    models = pair([first[0], T.AdaptiveAvgPool2d(3)], [first[1], jt.nn.AdaptiveAvgPool2d(3)])
    report = align(*models, IMAGES, strict=True)
    assert report.first_divergence is not None
    assert report.first_divergence.module == "1"
    assert report.problems[-1] == "Jittor's own jittor.nn.AdaptiveAvgPool2d differs (strict)"


def test_the_model_is_left_as_it_was() -> None:
    layer = jt.nn.AdaptiveAvgPool2d(3)
    before, function = dict(layer.__dict__), jt.nn.interpolate
    align(T.AdaptiveAvgPool2d(3), layer, IMAGES)
    assert "execute" not in layer.__dict__
    assert set(before) <= set(layer.__dict__)
    assert jt.nn.interpolate is function
