"""The blamed call once more, on both sides, to tell the lines, the arguments and the attributes that differ."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from alignment_tests.harness.judge.arguments import SAME_ARGUMENTS, compared, equal, home_of
from alignment_tests.harness.judge.budget import DEFAULT_BUDGET
from alignment_tests.harness.judge.definitions import definition
from alignment_tests.harness.judge.isolated import run_alone
from alignment_tests.harness.judge.known import differs_by
from alignment_tests.harness.judge.lines import Pair, culprits, exchanged
from alignment_tests.harness.judge.report import Divergence
from alignment_tests.harness.record.adapter import Adapter
from alignment_tests.harness.record.adapters import corrected_operators, shown_operators
from alignment_tests.harness.record.capture import tensors_from
from alignment_tests.harness.record.nested import OpaqueArgumentError, paired_slots
from alignment_tests.harness.record.operators import Operator, Recorder, Tracing, plain_name
from alignment_tests.harness.record.side import Side
from alignment_tests.harness.record.trace import Call, Trace

SIDES = ("reference", "candidate")
Show = Callable[[], AbstractContextManager[None]]


def with_arguments(blamed: Divergence, reference: Side, candidate: Side) -> Divergence:
    """The divergence with what its module was made with on either side; of a stock layer, where it was made too."""
    sides = reference, candidate
    modules = [side.modules(side.model).get(blamed.module) for side in sides]
    if any(module is None for module in modules):
        return blamed
    try:
        arguments, differences = compared(*modules)
        lines = [
            definition(side.adapter.modules(side.model), module) if home_of(module) is not None else None
            for side, module in zip(sides, modules, strict=True)
        ]
    except Exception as error:  # an attribute of the user's that does not like to be looked at
        return _without_more(blamed, error)
    return replace(
        blamed, arguments=arguments, differences=differences, reference_line=lines[0], candidate_line=lines[1]
    )


def with_lines(
    blamed: Divergence, reference: Side, candidate: Side, trace: Trace, call: Call, *, alone: bool
) -> Divergence:
    """The divergence with the first operator of either side that differs, and its line.

    Args:
        blamed: of an output of the call, with its arguments.
        reference, candidate: the sides.
        trace: of the reference in the blamed precision, which holds the call's inputs.
        call: the blamed one.
        alone: whether it was judged alone, and not only where it stands.

    Returns:
        The divergence as it was where no line can be named, or a side raises.
    """
    sides = reference, candidate
    modules = [side.modules(side.model).get(call.module) for side in sides]
    if all(module is None or home_of(module) is not None for module in modules):
        return blamed  # none of the lines is the user's

    paths = [set(side.modules(side.model)) for side in sides]
    shared = paths[0] & paths[1]

    def run(*, inner: bool = False, wanted: tuple[int | None, int | None] | None = None) -> tuple[Tracing, Tracing]:
        recorders = [
            _recorder(side, inner, None if wanted is None else frozenset({wanted[index]}))
            for index, side in enumerate(sides)
        ]
        for side, recorder, own in zip(sides, recorders, (call, None), strict=True):
            _trace(side, trace, call, blamed.precision, recorder, shared, own=own, alone=alone)
        return recorders[0].trace, recorders[1].trace

    slot = blamed.name.rsplit("/", 1)[1]
    try:
        traces = run()
        pair = culprits(*traces, blamed.precision, slot)
        if pair is None:
            return blamed
        if pair.both and not _same_kind(traces, pair):
            # One may stand for several of the other: what is computed inside of it tells which.
            finer = run(inner=True)
            again = culprits(*finer, blamed.precision, slot)
            traces, pair = (traces, pair) if again is None else (finer, again)
        words = list(_words(traces, pair))
        if pair.both and _same_kind(traces, pair):
            parts = exchanged(*traces, pair, blamed.precision)
            if parts is not None:
                pair, words = parts, ["its results are used in each other's place"]
            else:
                words += _apart(run(wanted=(pair.reference, pair.candidate)), pair)
    except Exception as error:
        if "raises" in blamed.reason:  # so it does here
            return blamed
        return _without_more(blamed, error)
    lines = _lines(traces, pair, slot)
    return replace(
        blamed,
        reference_line=lines[0] or blamed.reference_line,
        candidate_line=lines[1] or blamed.candidate_line,
        differences=(*words, *blamed.differences),
    )


def _without_more(blamed: Divergence, error: Exception) -> Divergence:
    """A report is worth more than its finest detail: what went wrong is told, and not raised."""
    why = f"no more can be told: {type(error).__name__}: {error}"[:300]
    return replace(blamed, differences=(*blamed.differences, why))


def _operators(traces: tuple[Tracing, Tracing], pair: Pair) -> list[Operator | None]:
    numbers = pair.reference, pair.candidate
    return [None if n is None else trace.operators[n] for trace, n in zip(traces, numbers, strict=True)]


def _same_kind(traces: tuple[Tracing, Tracing], pair: Pair) -> bool:
    first, second = _operators(traces, pair)
    return first is not None and second is not None and plain_name(first.name) == plain_name(second.name)


def _words(traces: tuple[Tracing, Tracing], pair: Pair) -> Iterator[str]:
    """What differs: an operator that one side has too many, or constants of the same one."""
    first, second = _operators(traces, pair)
    if first is None or second is None:
        index = 1 if first is None else 0
        yield f"{shown_name((first, second)[index])} stands in the {SIDES[index]} only"
    elif _same_kind(traces, pair):
        left, right = ({_argument(name): held for name, held in op.constants.items()} for op in (first, second))
        for name in left:
            if (
                not name.isdigit()
                and name in right
                and None not in (left[name], right[name])
                and not equal(left[name], right[name])
            ):
                yield f"{name}: {left[name]!r} | {right[name]!r}"
    else:
        for index, (own, other) in enumerate(((first, second), (second, first))):
            if own.inputs and plain_name(other.name) in _next_names(traces[index], own):
                yield f"{shown_name(own)} stands in the {SIDES[index]} only, before {shown_name(other)}"
                return
        yield f"operator: {shown_name(first)} | {shown_name(second)}"


def _argument(name: str) -> str:
    return SAME_ARGUMENTS.get(name, name)


def shown_name(operator: Operator | None) -> str:
    return "" if operator is None else operator.name.strip("_")


def _next_names(trace: Tracing, operator: Operator) -> set[str]:
    made = set(operator.outputs)
    return {plain_name(other.name) for other in trace.operators if made & set(other.inputs)}


def _lines(traces: tuple[Tracing, Tracing], pair: Pair, slot: str) -> list[str | None]:
    """Where the culprits stand; of a side that has none, where the output comes from."""
    found: list[str | None] = []
    for trace, operator in zip(traces, _operators(traces, pair), strict=True):
        if operator is None:
            value = trace.outputs.get(slot)
            operator = next((one for one in trace.operators if value in one.outputs), None)
        found.append(None if operator is None or operator.place is None else str(operator.place))
    return found


def _apart(traces: tuple[Tracing, Tracing], pair: Pair) -> list[str]:
    """By how much the results of both differ, where they are of one shape."""
    first, second = _operators(traces, pair)
    if first is None or second is None:
        return []
    for a, b in zip(first.outputs, second.outputs, strict=False):
        one, other = (trace.arrays[n] for trace, n in zip(traces, (a, b), strict=True))
        if one.shape == other.shape and one.dtype.kind == other.dtype.kind == "f" and np.isfinite([one, other]).all():
            error, scale = float(np.abs(one - other).max(initial=0.0)), float(np.abs(one).max(initial=0.0))
            if error and scale:
                return [f"its results differ by {error / scale:.2g} of their scale"]
    return []


class _FinishedError(Exception):
    """The call that was wanted has returned; the rest of the model need not run."""


def _recorder(side: Side, inner: bool, wanted: frozenset[int | None] | None) -> Recorder:
    _, parts = shown_operators(side.adapter)
    return Recorder(side.adapter, inner=inner, wanted=wanted, parts=parts)


def _trace(
    side: Side,
    trace: Trace,
    call: Call,
    precision: str,
    recorder: Recorder,
    shared: set[str],
    *,
    own: Call | None,
    alone: bool,
) -> None:
    """Run the call and let the recorder see it.

    Modules inside that both sides have (``shared``) count as one operator each: they are judged by themselves, and in a
    wrong order among them the line is that of the call. ``own`` is the call as the reference made it; None on the
    candidate's side.
    """
    adapter, (show, _) = side.adapter, shown_operators(side.adapter)
    with side.in_precision(precision) as model, side.context(precision), adapter.running(model, train=side.train):
        modules = side.modules(model)
        module, prefix = modules[call.module], f"{call.module}." if call.module else ""
        inside = {id(held): path for path, held in modules.items() if path in shared and held is not module}
        whole = {key: path.removeprefix(prefix) for key, path in inside.items() if path.startswith(prefix)}

        @contextmanager
        def shown() -> Iterator[None]:
            # What Jittor's own operators do in another way is not what the line is asked for.
            right = corrected_operators(adapter) if own is None else None
            own_right = nullcontext() if right is None else right(list(modules.items()), differs_by(DEFAULT_BUDGET))
            with own_right, show(recorder, list(modules.values()), whole):
                yield

        if not (alone and _alone(adapter, module, trace, call, precision, recorder, shown, own)):
            _in_place(side, model, module, call, precision, recorder, shown)
    others = {} if own is None else paired_slots(own.output, call.output)
    recorder.trace.outputs = {others.get(slot, slot): value for slot, value in recorder.trace.outputs.items()}


def _alone(
    adapter: Adapter,
    module: Any,
    trace: Trace,
    call: Call,
    precision: str,
    recorder: Recorder,
    shown: Show,
    own: Call | None,
) -> bool:
    """Run the call on its recorded inputs; False where these cannot be made."""
    reached = False

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal reached
        reached, recorder.outermost = True, sys._getframe()
        with shown():
            output = module(*args, **kwargs)
            recorder.finish(output)
        return output

    try:
        run_alone(adapter, watched, trace, call, precision, own=own)
    except OpaqueArgumentError:
        if reached:
            raise
    return reached


def _in_place(side: Side, model: Any, module: Any, call: Call, precision: str, recorder: Recorder, shown: Show) -> None:
    """Run the whole model up to the end of the call."""
    number = -1
    with ExitStack() as stack:

        def before(path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal number
            number += 1
            if number == call.number:
                recorder.outermost = sys._getframe(1)
                stack.enter_context(shown())

        def after(path: str, module: Any, output: Any) -> None:
            if number == call.number:
                recorder.finish(output)
                stack.close()
                raise _FinishedError

        stack.enter_context(side.adapter.hooks([(call.module, module)], before, after))
        args, kwargs = tensors_from(side.adapter, side.model, side.inputs, precision, side.kwargs)
        with suppress(_FinishedError):
            model(*args, **kwargs)
