"""Which module is blamed. A model of two stages is drawn up here: rows and calls without any framework.

Its calls, in the order in which they return: a.b, a.bc, a, c, then the root.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.localise import first_divergence
from alignment_tests.harness.judge.report import Row
from alignment_tests.harness.record.trace import Call

CALLS = [
    Call(module, 0, f"Kind of {module}", {"value": None}, {"leaf": "0"}) for module in ("a.b", "a.bc", "a", "c", "")
]
TWICE = [Call(module, n, "Kind", {"value": None}, {"leaf": "0"}) for n in (0, 1) for module in ("a.b", "a")]


def verdict(passed: bool, reason: str) -> Comparison:
    return Comparison(passed, reason, (2,), "float64", 2)


def row(call: str, alone: bool | None, whole: bool, precision: str = "float64", slot: str = "0") -> Row:
    """The row of a call's output that passes alone and in the whole network, or not. ``alone`` None: it did not run."""
    isolated = None if alone is None else verdict(alone, f"{call} alone")
    module = call.split("#")[0]
    name, kind = f"activation/{call}/{slot}", f"Kind of {module}"
    state = "pass" if whole and alone is not False else "fail"
    return Row(name, 0, "activation", module, kind, precision, state, call, verdict(whole, call), isolated)


def rows_of(faulty: set[str], downstream: set[str], precision: str = "float64", alone: bool = True) -> list[Row]:
    """Rows of all calls: ``faulty`` fail alone too, ``downstream`` only because of what feeds them."""
    return [
        row(call.name, call.module not in faulty if alone else None, call.module not in faulty | downstream, precision)
        for call in CALLS
    ]


def blamed(rows: list[Row], calls: list[Call] = CALLS, missing: tuple[str, ...] = ()) -> Any:
    found = first_divergence(rows, calls, missing)
    return None if found is None else (found.module, found.precision)


# faulty alone, failing only downstream, blamed
FAULTS: dict[str, tuple[set[str], set[str], str]] = {
    "a leaf, with all that holds it": ({"a.b", "a", ""}, {"a.bc", "c"}, "a.b"),
    "the second leaf": ({"a.bc", "a", ""}, {"c"}, "a.bc"),
    "wiring of a container": ({"a", ""}, {"c"}, "a"),
    "wiring of the root": ({""}, set(), ""),
    "a leaf behind clean stages": ({"c", ""}, set(), "c"),
    "two leaves": ({"a.bc", "c", "a", ""}, set(), "a.bc"),
    "a leaf and the container before it": ({"a", "c", ""}, set(), "a"),
    "a leaf whose fault is lost in the container": ({"a.b"}, set(), "a.b"),
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_deepest_module_first_in_order_is_blamed(fault: str, precision: str) -> None:
    faulty, downstream, expected = FAULTS[fault]
    assert blamed(rows_of(faulty, downstream, precision)) == (expected, precision)


def test_nothing_is_blamed_where_all_is_clean() -> None:
    assert blamed(rows_of(set(), set())) is None


def test_the_divergence_tells_name_kind_and_reason() -> None:
    found = first_divergence(rows_of({"c"}, set()), CALLS, ())
    assert found is not None
    assert (found.name, found.kind, found.reason) == ("activation/c#0/0", "Kind of c", "c#0")


def test_the_order_of_the_calls_decides_not_that_of_the_rows() -> None:
    assert blamed(rows_of({"a.bc", "c"}, set())[::-1]) == ("a.bc", "float64")


def test_a_name_that_begins_alike_is_no_child() -> None:
    calls = [CALLS[i] for i in (0, 1)]  # a.b returns before a.bc, which lies beside it and not inside
    assert blamed(rows_of({"a.b", "a.bc"}, set()), calls) == ("a.b", "float64")


def test_a_container_is_blamed_though_its_child_fails_in_a_later_call() -> None:
    rows = [row("a.b#0", True, True), row("a#0", False, False), row("a.b#1", False, False), row("a#1", False, False)]
    found = first_divergence(rows, TWICE, ())
    assert found is not None
    assert found.name == "activation/a#0/0"


def test_the_second_call_is_blamed_where_the_first_is_clean() -> None:
    rows = [row("a.b#0", True, True), row("a#0", True, True), row("a.b#1", False, False), row("a#1", False, False)]
    found = first_divergence(rows, TWICE, ())
    assert found is not None
    assert found.name == "activation/a.b#1/0"


def test_the_slot_that_fails_is_named() -> None:
    rows = [row("c#0", True, True), row("c#0", False, False, slot="1.0"), row("c#0", False, False, slot="1.1")]
    found = first_divergence(rows, CALLS, ())
    assert found is not None
    assert found.name == "activation/c#0/1.0"


# Precision


def test_float64_decides_over_float32() -> None:
    rows = rows_of({"c", ""}, set()) + rows_of({"a.b", "a", ""}, {"c"}, "float32")
    assert blamed(rows) == ("c", "float64")


def test_float32_decides_where_float64_is_clean() -> None:
    assert blamed(rows_of(set(), set()) + rows_of({"a.b"}, set(), "float32")) == ("a.b", "float32")


def test_an_accumulated_float64_row_decides_over_float32() -> None:
    assert blamed(rows_of(set(), {"c"}) + rows_of({"a.b"}, set(), "float32")) == ("c", "float64")


# Without isolated runs


def test_the_first_accumulated_error_is_blamed() -> None:
    assert blamed(rows_of({"a.bc"}, {"a", "c", ""}, alone=False)) == ("a.bc", "float64")


def test_an_isolated_error_is_blamed_before_an_accumulated_one() -> None:
    assert blamed(rows_of({"c"}, {"a.b", "a", ""})) == ("c", "float64")


@pytest.mark.parametrize(("phase", "expected"), [("parameter", "c"), ("buffer", "a.b")])
def test_a_wrong_parameter_explains_what_follows_and_a_buffer_does_not(phase: str, expected: str) -> None:
    # A running buffer has moved with the run: it is an outcome.
    state = replace(row("c#0", None, False), name=f"{phase}/c.weight", phase=phase)
    assert blamed([*rows_of({"a.b"}, {"a", "c", ""}, alone=False), state]) == (expected, "float64")


# What is excused or missing


def test_an_excused_row_is_not_blamed() -> None:
    rows = [replace(r, verdict="excused") if r.module == "a.b" else r for r in rows_of({"a.b", "c"}, set())]
    assert blamed(rows) == ("c", "float64")


MISSING = [("activation/a.b#0/0", "a.b"), ("activation/#0/1", ""), ("parameter/a.b.weight", "a.b"), ("buffer/mean", "")]


@pytest.mark.parametrize(("name", "module"), MISSING)
def test_a_missing_array_is_blamed(name: str, module: str) -> None:
    found = first_divergence(rows_of(set(), set()), CALLS, (name, "activation/z#0/0"))
    assert found is not None
    assert (found.name, found.module, found.reason) == (name, module, "the candidate has no such array")


def test_a_failing_row_is_blamed_before_a_missing_array() -> None:
    assert blamed(rows_of({"c"}, set()), missing=("activation/a.b#0/1",)) == ("c", "float64")


# Strength of the evidence


def strengths(**errors: float) -> list[Row]:
    """Rows of calls of their own that fail alone, by how far in units of the limit."""
    found = []
    for module, error in errors.items():
        comparison = replace(verdict(False, module), max_abs_error=error, budget=1.0)
        found.append(replace(row(f"{module}#0", False, False), isolated=comparison, accumulated=comparison))
    return found


LINE = [Call(module, 0, "Kind", {"value": None}, {"leaf": "0"}) for module in ("x", "y", "z", "")]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"x": 2.0, "y": 4000.0}, "y"),  # a float32 constant before a wrong formula
        ({"x": 2000.0, "y": 4000.0}, "x"),
        ({"x": 2.0, "y": 4.0}, "x"),
        ({"x": 4000.0, "y": 2.0}, "x"),
        ({"x": 2.0, "y": float("inf")}, "y"),
        ({"x": 2.0, "y": 50.0, "z": 1e6}, "z"),
    ],
)
def test_what_is_far_weaker_is_not_blamed_for_coming_first(errors: dict[str, float], expected: str) -> None:
    assert blamed(strengths(**errors), LINE) == (expected, "float64")


def test_a_call_that_was_not_judged_alone_is_blamed_for_the_first_error_inside() -> None:
    rows = [row("a.b#0", True, False), row("a.bc#0", True, False), row("a#0", None, False), row("#0", False, False)]
    assert blamed(rows) == ("a", "float64")


def test_what_fails_alone_inside_a_call_explains_it() -> None:
    rows = [row("a.b#0", False, False), row("a.bc#0", True, False), row("a#0", None, False), row("#0", False, False)]
    assert blamed(rows) == ("a.b", "float64")


def test_the_root_is_the_last_resort() -> None:
    rows = [row("a.b#0", None, False), row("a#0", True, False), row("#0", False, False)]
    assert blamed(rows) == ("a.b", "float64")
