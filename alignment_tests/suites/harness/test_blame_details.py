"""What is told of a blamed module beside its line, its arguments and attributes, and how a report shows it all."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from alignment_tests.harness import Report
from alignment_tests.harness.judge.arguments import compared, equal
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET
from alignment_tests.harness.judge.report import Coverage, Divergence
from alignment_tests.harness.report.html import report_page
from alignment_tests.harness.report.junit import junit_xml
from alignment_tests.harness.report.markdown import summary_markdown
from alignment_tests.harness.report.terminal import print_report
from jt_impl.runtime import jittor as jt

nn = jt.nn
T = torch.nn


def bare(**attributes: Any) -> tuple[Any, Any]:
    class Own(torch.nn.Module):
        pass

    class OwnHere(jt.nn.Module):
        pass

    models = Own(), OwnHere()
    for name, (theirs, ours) in attributes.items():
        setattr(models[0], name, theirs)
        setattr(models[1], name, ours)
    return models


# two modules, what differs
ARGUMENTS: dict[str, tuple[Callable[[], tuple[Any, Any]], tuple[str, ...]]] = {
    "momentum": (lambda: (T.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3)), ("momentum: 0.1 | 0.3",)),
    "slope": (lambda: (T.LeakyReLU(0.2), nn.LeakyReLU(0.1)), ("negative_slope: 0.2 | 0.1",)),
    "corners": (
        lambda: (T.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Upsample(2, "bilinear")),
        ("align_corners: True | False",),
    ),
    "what Jittor's has not": (lambda: (T.GELU(approximate="tanh"), nn.GELU()), ("approximate: 'tanh' | none",)),
    "padding mode": (
        lambda: (T.Conv2d(4, 4, 3, padding_mode="reflect"), nn.Conv2d(4, 4, 3)),
        ("padding_mode: 'reflect' | none",),
    ),
    "stride and dilation": (
        lambda: (T.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2)),
        ("stride: (2, 2) | (1, 1)", "dilation: (1, 1) | (2, 2)"),
    ),
    "stride of a pool": (lambda: (T.MaxPool2d(2, 1), nn.MaxPool2d(2)), ("stride: 1 | (2, 2)",)),
    "attributes": (lambda: bare(scale=(0.5, 0.25), heads=(2, 2)), ("scale: 0.5 | 0.25",)),
    "a tuple": (lambda: bare(window=((7, 7), (7, 8))), ("window: (7, 7) | (7, 8)",)),
    "equal pools": (lambda: (T.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)), ()),
    "equal convolutions": (lambda: (T.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)), ()),
    "equal in one dimension": (lambda: (T.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)), ()),
    "equal networks": (lambda: (T.LSTM(3, 4, batch_first=True), nn.LSTM(3, 4, batch_first=True)), ()),
    "equal functions": (lambda: (T.ReLU(inplace=True), nn.ReLU()), ()),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_and_attributes_are_compared_by_name(name: str) -> None:
    make, expected = ARGUMENTS[name]
    assert compared(*make())[1] == expected


SPELLINGS = [
    (3, (3, 3), True),
    ((3,), (3, 1), True),
    (None, False, True),
    ((3, 3), (3, 2), False),
    (0.1, 0.3, False),
    ("same", 1, False),
]


@pytest.mark.parametrize(("one", "other", "same"), SPELLINGS)
def test_spellings_of_one_argument_are_equal(one: Any, other: Any, same: bool) -> None:
    assert equal(one, other) == equal(other, one) == same


# How it is shown

WHERE = Divergence(
    "activation/act#0/0", "act", "GELU", "float64", "beyond budget", None,
    'model.py:83  F.gelu(x, approximate="tanh")', "port.py:57  nn.gelu(x)",
    ("torch.nn.GELU(approximate='tanh')", "jt.nn.GELU()"), ("approximate: 'tanh' | none",),
)  # fmt: skip
SHOWN = ("model.py:83", "port.py:57", "jt.nn.GELU()", "approximate:")


def rendered(report: Report) -> dict[str, str]:
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console=console)
    with pytest.raises(AssertionError) as raised:
        report.raise_if_diverged()
    return {
        "terminal": console.export_text(),
        "summary": re.sub(r"\\(.)", r"\1", summary_markdown(report)),
        "page": report_page(report),
        "page in Chinese": report_page(report, lang="zh"),
        "junit": junit_xml(report),
        "exception": str(raised.value),
    }


@pytest.mark.parametrize("form", ["terminal", "summary", "page", "page in Chinese", "junit", "exception"])
def test_every_form_of_the_report_shows_the_lines(form: str) -> None:
    text = rendered(Report("models", (), Coverage({}, {}, (), ()), WHERE, DEFAULT_BUDGET))[form]
    assert [word for word in SHOWN if word not in text] == []


def test_a_blame_without_lines_says_nothing_of_them() -> None:
    assert Divergence("activation/act#0/0", "act", "GELU", "float64", "beyond budget").details == []
