"""Checks of what must be equal before results can be compared: records, settings, data, batches, model, start."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alignment_tests.comparison.curves import as_floats, step_differences
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.findings import (
    FREE_OPTIONS,
    SCHEDULE,
    START,
    START_AMP,
    Finding,
    against,
    holds,
    not_judged,
    note,
    unproven,
)
from alignment_tests.comparison.number_format import whole
from alignment_tests.comparison.pairs import Pair
from alignment_tests.comparison.records import LOSSES, METRICS, RATES, TITLES, Run, Training

SHOWN = 4  # differences that a sentence lists


def records(evidence: Evidence) -> Iterator[Finding]:
    """Both sides have a finished training and a test with results, of seeds that both have."""
    missing = list(_missing(evidence))
    yield from missing
    if not missing:
        seeds = ", ".join(str(pair.seed) for pair in evidence.trainings)
        yield holds("records", "complete", seeds=seeds, tests=len(evidence.tests))


def _missing(evidence: Evidence) -> Iterator[Finding]:
    lack = False
    for side in evidence.sides.values():
        for found, fact in ((side.trainings, "no_training"), (side.tests, "no_test")):
            if not found:
                lack = True
                yield unproven("records", fact, side=side.title)
        for training in side.trainings:
            if training.status != "finished":
                yield unproven("records", "unfinished", folder=training.folder, status=training.status)
            elif not training.epochs or not training.steps["step"]:
                yield unproven("records", "no_steps", folder=training.folder)
        for test in side.tests:
            if not test.accuracy:
                yield unproven("records", "no_accuracy", folder=test.folder)
    if not lack and not evidence.trainings:
        seeds = {side.name: ", ".join(str(run.seed) for run in side.trainings) for side in evidence.sides.values()}
        yield unproven("records", "no_seed", **seeds)
    if not lack and not evidence.tests:
        yield unproven("records", "no_pair")
    for tested in evidence.tests:
        if tested.lacking is not None:
            fact, folder = tested.lacking
            yield unproven("records", fact, folder=folder)


def finite(evidence: Evidence) -> Iterator[Finding]:
    """No loss and no accuracy is null or NaN."""
    pairs: list[Pair[Any]] = [*evidence.trainings, *(tested.pair for tested in evidence.tests)]
    bad = []
    for pair in pairs:
        lost = {name: list(_not_finite(run)) for name, run in pair.sides.items()}
        sides = [name for name, places in lost.items() if places]
        values = {"side": " / ".join(TITLES[name] for name in sides), "count": sum(map(len, lost.values()))}
        values["place"] = next((places[0] for places in lost.values() if places), "")
        if len(sides) == 1:
            bad.append(against("finite", "one_side", **values))
        elif sides:
            bad.append(unproven("finite", "both", **values))
    paired = {id(run) for pair in pairs for run in pair.sides.values()}
    for side in evidence.sides.values():
        for run in side.runs:
            place = "" if id(run) in paired else next(_not_finite(run), "")
            if place:
                bad.append(unproven("finite", "unpaired", folder=run.folder, place=place))
    yield from bad or ([holds("finite", "all")] if pairs else [not_judged("finite")])


def _not_finite(run: Run) -> Iterator[str]:
    """Places of numbers that are missing."""
    if isinstance(run, Training):
        for loss in LOSSES:
            yield from (f"{loss}, step {at}" for at, value in enumerate(run.steps[loss]) if value is None)
            yield from (f"{loss}, epoch {e['epoch']}" for e in run.epochs if e["losses"].get(loss) is None)
    elif accuracy := run.record["accuracy"]:
        yield from (metric for metric in METRICS if accuracy.get(metric) is None)


def config(evidence: Evidence) -> Iterator[Finding]:
    """The model's configuration is the same everywhere."""
    yield from _equal_settings("config", evidence, lambda run: run.config, ())


def options(evidence: Evidence) -> Iterator[Finding]:
    """Every option that matters is the same on both sides of a pair."""
    yield from _equal_settings("options", evidence, lambda run: run.options, FREE_OPTIONS)


def _equal_settings(check: str, evidence: Evidence, of: Any, free: tuple[str, ...]) -> Iterator[Finding]:
    pairs: list[Pair[Any]] = [*evidence.trainings, *(tested.pair for tested in evidence.tests)]
    found = [line for pair in pairs for line in differences(of(pair.jittor), of(pair.torch), free)]
    if found:
        shown = "; ".join(found[:SHOWN]) + ("; ..." if len(found) > SHOWN else "")
        yield unproven(check, "differ", count=len(found), shown=shown)
    elif pairs:
        yield holds(check, "same", count=len(flat(of(pairs[0].jittor))), free=", ".join(free))
    else:
        yield not_judged(check)


def differences(mine: Mapping[str, Any], other: Mapping[str, Any], free: tuple[str, ...] = ()) -> Iterator[str]:
    """Leaves that differ, as ``key: Jittor's / PyTorch's``; those below a key of ``free`` are left out."""
    a, b = flat(mine), flat(other)
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key) and key.split(".")[0] not in free:
            yield f"{key}: {a.get(key, '–')} / {b.get(key, '–')}"


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Leaves of nested objects by dotted path, as JSON."""
    if not isinstance(value, Mapping):
        return {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{path}.{key}" if path else str(key))
    return found


def data(evidence: Evidence) -> Iterator[Finding]:
    """Checksums and class names of the data are recorded and equal."""
    places = [(split, pair.jittor.data[split], pair.torch.data[split])
              for pair in evidence.trainings for split in ("train", "val")]  # fmt: skip
    places += [("test", tested.pair.jittor.data, tested.pair.torch.data) for tested in evidence.tests]
    if not places:
        yield not_judged("data")
        return
    lost = [split for split, *sides in places if any(not side.get("checksum") for side in sides)]
    differ = [split for split, a, b in places if a.get("checksum") != b.get("checksum")]
    runs = [run.data.get("names") for pair in evidence.trainings for run in pair.sides.values()]
    runs += [run.data.get("names") for tested in evidence.tests for run in tested.pair.sides.values()]
    if lost:
        yield unproven("data", "unrecorded", splits=_listed(lost))
    if set(differ) - set(lost):
        yield unproven("data", "differ", splits=_listed(set(differ) - set(lost)))
    if any(names != runs[0] for names in runs):
        yield unproven("data", "names")
    elif not lost and not differ:
        sums = {split: str(mine["checksum"])[:12] for split, mine, _ in places}
        yield holds("data", "same", checksums=", ".join(f"{split} {value}" for split, value in sums.items()))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def parameters(evidence: Evidence) -> Iterator[Finding]:
    """As many parameters, trainable ones, and in each part."""
    pairs: list[Pair[Any]] = [*evidence.trainings, *(tested.pair for tested in evidence.tests)]
    keys = ("parameters", "trainable", "by_part")
    for pair in pairs:
        mine, other = ({key: run.model.get(key) for key in keys} for run in pair.sides.values())
        differ = list(differences(mine, other))
        if differ:
            yield against("parameters", "differ", shown="; ".join(differ[:SHOWN]))
            return
    if pairs:
        yield holds("parameters", "same", count=whole(pairs[0].jittor.model["parameters"]))
    else:
        yield not_judged("parameters")


def structure(evidence: Evidence) -> Iterator[Finding]:
    """Each tested model has the structure that its configuration asks for."""
    tests = [test for side in evidence.sides.values() for test in side.tests]
    wrong = [test for test in tests if test.model.get("structure") != "ok"]
    for test in wrong:
        text = test.model.get("structure")
        if text is None:
            yield unproven("structure", "unrecorded", folder=test.folder)
        else:
            yield against("structure", "wrong", folder=test.folder, text=text)
    if not wrong:
        yield holds("structure", "ok") if tests else not_judged("structure")


def batches(evidence: Evidence) -> Iterator[Finding]:
    """The checksum of every batch, pixels and boxes, is the same at every step."""
    bad = [found for pair in evidence.trainings if (found := _batches(pair)) is not None]
    steps = sum(len(pair.jittor.steps["batch"]) for pair in evidence.trainings)
    yield from bad or [holds("batches", "same", steps=steps) if steps else not_judged("batches")]


def _batches(pair: Pair[Training]) -> Finding | None:
    mine, other = pair.jittor.steps["batch"], pair.torch.steps["batch"]
    for step, (a, b) in enumerate(zip(mine, other, strict=False)):
        if a is None or b is None:
            return unproven("batches", "unrecorded", step=step, seed=pair.seed)
        if a != b:
            return against("batches", "differ", step=step, seed=pair.seed, jittor=a, torch=b)
    if len(mine) != len(other):
        return against("batches", "length", jittor=len(mine), torch=len(other), seed=pair.seed)
    return None


def schedule(evidence: Evidence) -> Iterator[Finding]:
    """Learning rates and momentum are the same at every step."""
    for pair in evidence.trainings:
        for column in RATES:
            mine, other = (as_floats(run.steps.get(column) or []) for run in pair.sides.values())
            length = min(mine.size, other.size)
            apart = abs(mine[:length] - other[:length]) > SCHEDULE * abs(other[:length])
            if apart.any():
                yield against("schedule", "differ", column=column, step=int(apart.argmax()), seed=pair.seed)
                return
    yield holds("schedule", "same") if evidence.trainings else not_judged("schedule")


def start(evidence: Evidence) -> Iterator[Finding]:
    """The loss of the first step, before any update, is equal up to rounding: same weights, same computation."""
    worst = 0.0
    for pair in evidence.trainings:
        limit = START_AMP if pair.torch.options.get("amp") else START
        apart = step_differences(pair)
        if not apart.size or math.isnan(apart[0]):
            yield not_judged("start")
            return
        worst = max(worst, float(apart[0]))
        if apart[0] > limit:
            yield against("start", "differ", seed=pair.seed, difference=f"{apart[0]:.2g}", limit=f"{limit:g}")
            return
    yield holds("start", "same", difference=f"{worst:.2g}") if evidence.trainings else not_judged("start")


def weights(evidence: Evidence) -> Iterator[Finding]:
    """What was tested is what was trained."""
    bad, unseen, kinds = False, False, set()
    for name, side in evidence.sides.items():
        for test, origin in zip(side.tests, evidence.origins[name], strict=True):
            kinds.add(str(test.weights["path"]).replace("\\", "/").rpartition("/")[2].partition(".")[0])
            unseen |= not origin.proven
            if side.trainings and origin.training is None:
                bad = True
                yield unproven("weights", "unknown", folder=test.folder, path=test.weights["path"])
    if len(kinds) > 1:
        bad = True
        yield unproven("weights", "kinds", kinds=", ".join(sorted(kinds)))
    if not bad and not kinds:
        yield not_judged("weights")
    elif not bad:
        yield note("weights", "unseen") if unseen else holds("weights", "same")
