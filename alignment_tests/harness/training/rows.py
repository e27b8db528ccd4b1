"""From what a ``StepJudge`` kept of all steps to the rows and the ledger of a report."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from alignment_tests.harness.judge.compare import Comparison
from alignment_tests.harness.judge.report import Coverage, Row
from alignment_tests.harness.judge.rows import PRECISIONS
from alignment_tests.harness.judge.unmatched import Unmatched
from alignment_tests.harness.record.phases import GRADIENTS, causal_order, module_of, phase_of
from alignment_tests.harness.training.steps import Key, StepJudge


def rows_of(judge: StepJudge) -> tuple[Row, ...]:
    """Rows by phase, causes first; within a phase as the reference made them, gradients backwards."""
    kinds = {call.name: call.kind for call in judge.calls}
    unmatched = judge.unmatched()
    found = []
    for index, name in enumerate(causal_order(judge.names)):
        for precision in PRECISIONS:
            if any((name, precision) in kept for kept in (judge.accumulated, judge.isolated, judge.undecided)):
                found.append(_row(judge, index, name, precision, kinds, unmatched))
    return tuple(found)


def _row(
    judge: StepJudge, index: int, name: str, precision: str, kinds: Mapping[str, str], unmatched: Unmatched
) -> Row:
    key = (name, precision)
    accumulated, isolated = judge.accumulated.get(key), judge.isolated.get(key)
    if accumulated is None and key in judge.undecided:
        reason = "in no step did all sides decide alike anywhere, so nothing was compared"
        accumulated = (Comparison(False, reason, (), "", 0), 0)
    pardoned = precision == "float32" and _pardoned(judge, name, accumulated)
    in_parts = accumulated is not None and accumulated[0].proves_nothing and _proven_in_parts(judge, key)
    if in_parts:
        pardoned, isolated = True, None if isolated is None or isolated[0].proves_nothing else isolated
    failed = [c for c in (isolated, None if pardoned else accumulated) if c is not None and not c[0].passed]
    shown = failed[0] if failed else accumulated or isolated
    assert shown is not None
    label = "isolated: " if shown is isolated else ""
    steps = judge.failing_steps.get(key, set())
    where = f"step {shown[1]}"
    if failed and judge.steps[precision] > 1:
        where += f", the worst of {len(steps)} failing of {judge.steps[precision]}"
    reason = f"{label}{shown[0].reason} ({where})"
    if pardoned and not failed:
        why = "since float32 gradients pass kinks; judged in float64, and module by module"
        why = "since the whole pass is too noisy here; judged module by module" if in_parts else why
        reason = f"informs only, {why}: {reason}"
    excuse = _excuse(judge, name) if failed else None
    if failed == [accumulated] and excuse is None:
        excuse = unmatched.miscounted(name)
    rest = name.split("/", 1)[1]
    return Row(
        name=name,
        index=index,
        phase=phase_of(name),
        module=module_of(name),
        kind=kinds.get(rest.rsplit("/", 1)[0], ""),
        precision=precision,
        verdict="pass" if not failed else ("fail" if excuse is None else "excused"),
        reason=reason if excuse is None else f"{excuse} ({reason})",
        accumulated=None if accumulated is None else accumulated[0],
        isolated=None if isolated is None else isolated[0],
        step=shown[1],
    )


def _pardoned(judge: StepJudge, name: str, accumulated: tuple[Comparison, int] | None) -> bool:
    """Whether a failing gradient of a whole float32 pass only informs; another shape or NaN fails all the same."""
    if accumulated is None or accumulated[0].passed or accumulated[0].max_abs_error is None:
        return False
    return phase_of(name) in GRADIENTS and judge.noise.is_explained(phase_of(name))


def _proven_in_parts(judge: StepJudge, key: Key) -> bool:
    """Whether an output of a whole pass that proves nothing is right alone; one that proves nothing alone either,
    as the root's, is as good as what its module calls."""
    found = judge.isolated.get(key)
    if found is not None and not found[0].proves_nothing:
        return found[0].passed
    name, precision = key
    path = f"{module_of(name)}." if module_of(name) else ""
    inside = [
        other
        for other in judge.isolated
        if other != key and other[1] == precision and phase_of(other[0]) == "activation"
        if module_of(other[0]).startswith(path)
    ]
    return bool(inside) and all(_proven_in_parts(judge, other) for other in inside)


def _excuse(judge: StepJudge, name: str) -> str | None:
    return next((reason for pattern, reason in judge.excuses.items() if fnmatchcase(name, pattern)), None)


def coverage_of(judge: StepJudge, precisions: tuple[str, ...]) -> Coverage:
    compared: dict[str, int] = {}
    excused: dict[str, str] = {}
    missing, unmatched = dict(judge.missing), judge.unmatched()
    for name in judge.names:
        keys = [(name, precision) for precision in precisions]
        if name not in missing and all(key in judge.accumulated for key in keys):
            compared[phase_of(name)] = compared.get(phase_of(name), 0) + 1
    for name in [*missing, *judge.unexpected]:
        reason = _excuse(judge, name) or unmatched.excuse(name)
        if reason is not None:
            excused[name] = reason
    return Coverage(
        compared,
        excused,
        tuple(name for name in missing if name not in excused),
        tuple(name for name in judge.unexpected if name not in excused),
    )
