"""Checks of what the runs came to: curves, accuracy, and the harness's reports behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from alignment_tests.comparison.accuracy import spreads
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.findings import (
    CURVES,
    LOOSEST,
    MARGIN,
    NEAR_ZERO,
    RECOMPUTED,
    WIDEST,
    Finding,
    against,
    holds,
    not_judged,
    note,
    unproven,
)
from alignment_tests.comparison.proofs import LAYERS, STEPS, Proof
from alignment_tests.comparison.records import TITLES, TORCH
from alignment_tests.comparison.wording import percent, signed

JUDGED = ("ap", "ap50")  # metrics that have an interval
WORDS = {"ap": "mAP@[.5:.95]", "ap50": "mAP@0.5", "precision": "precision", "recall": "recall"}


def allowed_distance(spread: float | None) -> float:
    """How far two loss curves of one seed may be apart: as far as two seeds of the reference, if they are known."""
    return CURVES if spread is None else spread


def curves(evidence: Evidence) -> Iterator[Finding]:
    """Loss curves of one seed are no further apart than those of two seeds of the reference."""
    if any(math.isnan(one.distance) for one in evidence.distances) or not evidence.distances:
        yield not_judged("curves")
        return
    worst = max(evidence.distances, key=lambda one: one.distance / max(allowed_distance(one.spread), 1e-12))
    limit = allowed_distance(worst.spread)
    values = {"loss": worst.loss, "seed": worst.seed, "distance": percent(worst.distance), "limit": percent(limit)}
    measured = "bound" if worst.spread is None else "seeds"
    loosest = max(allowed_distance(one.spread) for one in evidence.distances)
    if loosest > LOOSEST:
        yield unproven("curves", "loose", spread=percent(loosest), limit=percent(LOOSEST))
    elif worst.distance > limit:
        yield against("curves", f"beyond_{measured}", **values)
    else:
        yield holds("curves", f"within_{measured}", **values)


def recomputed(evidence: Evidence) -> Iterator[Finding]:
    """The accuracy in a record is that of its detections."""
    evaluations = [tested for tested in evidence.tests if tested.metrics]
    wrong = False
    for tested in evaluations:
        for name, test in tested.pair.sides.items():
            for metric in JUDGED:
                told, found = test.accuracy.get(metric), getattr((tested.metrics or {})[name], metric)
                if told is not None and abs(told - found) > RECOMPUTED:
                    wrong = True
                    values = {"side": TITLES[name], "metric": WORDS[metric], "folder": test.folder}
                    yield unproven("recomputed", "differ", told=f"{told:.6f}", found=f"{found:.6f}", **values)
    if not wrong:
        yield holds("recomputed", "same") if evaluations else not_judged("recomputed")


def learned(evidence: Evidence) -> Iterator[Finding]:
    """Both sides find something: near zero, any two detectors agree."""
    values = [
        (test.accuracy["ap50"], TITLES[name])
        for tested in evidence.tests
        for name, test in tested.pair.sides.items()
        if test.accuracy.get("ap50") is not None
    ]
    if not values:
        yield not_judged("learned")
        return
    least, side = min(values)
    if least < NEAR_ZERO:
        yield unproven("learned", "near_zero", side=side, ap50=f"{least:.4f}", limit=f"{NEAR_ZERO:g}")
    else:
        yield holds("learned", "enough", side=side, ap50=f"{least:.4f}")


def margin(evidence: Evidence, metric: str) -> float:
    """By how much an interval may lie beside zero: MARGIN, or the spread of the reference's seeds if that is more."""
    spread = spreads(evidence.sides[TORCH].tests).get(metric)
    return MARGIN if spread is None else max(MARGIN, spread.width)


def beside_zero(low: float, high: float) -> float:
    """How far an interval lies from zero; 0 if it holds zero."""
    return max(low, -high, 0.0)


def interval(evidence: Evidence) -> Iterator[Finding]:
    """The interval of the difference in AP holds zero, up to a margin, and is narrow enough to tell anything."""
    found = list(_intervals(evidence))
    bad = [finding for finding in found if finding.outcome != "holds"]
    yield from bad or found[:1] or [not_judged("interval")]


def _intervals(evidence: Evidence) -> Iterator[Finding]:
    for tested in evidence.tests:
        for metric in JUDGED if tested.intervals else ():
            one = (tested.intervals or {})[metric]
            limit = margin(evidence, metric)
            values = {"metric": WORDS[metric], "difference": signed(one.difference), "limit": f"{limit:.3g}"}
            values |= {"low": signed(one.low), "high": signed(one.high), "widest": f"{WIDEST:g}"}
            if not one.high - one.low < math.inf:
                yield unproven("interval", "none", **values)
            elif beside_zero(one.low, one.high) > limit:
                yield against("interval", "beyond", **values)
            elif metric == "ap" and (one.high - one.low) / 2 > WIDEST:
                yield unproven("interval", "wide", **values)
            elif metric == "ap" and limit > WIDEST:
                yield unproven("interval", "loose", **values)
            else:
                yield holds("interval", "within", **values)


def layers(evidence: Evidence) -> Iterator[Finding]:
    """The layer-by-layer report, if given, is aligned and of this configuration."""
    yield _proof(LAYERS, evidence.layers, evidence)


def steps(evidence: Evidence) -> Iterator[Finding]:
    """The report on training steps, if given, is aligned and of this configuration."""
    yield _proof(STEPS, evidence.steps, evidence)


def _proof(check: str, proof: Proof | None, evidence: Evidence) -> Finding:
    if proof is None:
        return note(check, "absent")
    ours = {str(run.config.get("name")) for side in evidence.sides.values() for run in side.runs}
    values = {"title": proof.title, "rows": proof.passed + proof.failed + proof.excused}
    if not proof.aligned:
        problem = proof.problems[0] if proof.problems else "–"
        return against(check, "diverged", problem=problem, failed=proof.failed, **values)
    if proof.config is not None and ours != {proof.config}:
        return unproven(check, "other", config=proof.config, ours=", ".join(sorted(ours)), **values)
    return holds(check, "aligned", steps=proof.steps, **values)
