"""Checks of what the runs came to: curves, accuracy, and the harness's reports behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from alignment_tests.comparison.accuracy import spreads
from alignment_tests.comparison.alignment_reports import LAYERS, STEPS, Proof
from alignment_tests.comparison.curves import FURTHEST
from alignment_tests.comparison.evidence import Evidence
from alignment_tests.comparison.findings import (
    AGAINST,
    CURVES,
    HOLDS,
    LOOSEST,
    MARGIN,
    NEAR_ZERO,
    RECOMPUTED,
    UNPROVEN,
    WIDEST,
    Finding,
    against,
    holds,
    not_judged,
    note,
    unproven,
)
from alignment_tests.comparison.number_format import percent, signed
from alignment_tests.comparison.records import TITLES, TORCH
from alignment_tests.comparison.seed_spread import Allowed, allowed

FACTS = {HOLDS: "within", UNPROVEN: "between", AGAINST: "beyond"}
JUDGED = ("ap", "ap50")  # metrics that have an interval
WORDS = {"ap": "mAP@[.5:.95]", "ap50": "mAP@0.5", "precision": "precision", "recall": "recall"}


def allowed_distances(evidence: Evidence) -> tuple[Allowed, ...]:
    """How far the curves of each loss may be apart, in the order of ``evidence.distances``."""
    judged = len(evidence.distances) * len(evidence.trainings)
    return tuple(
        allowed(one.spread, one.seeds, least=0.0, convention=(CURVES, LOOSEST), judged=judged, most=FURTHEST)
        for one in evidence.distances
    )


def curves(evidence: Evidence) -> Iterator[Finding]:
    """Loss curves are no further from the nearest seed of the reference than two of its seeds are apart."""
    limits = allowed_distances(evidence)
    if any(math.isnan(one.nearest) for one in evidence.distances) or not limits:
        yield not_judged("curves")
        return
    widest = max(limits, key=lambda one: one.limit)
    if widest.limit > LOOSEST:
        yield unproven("curves", "loose", spread=percent(widest.limit), limit=percent(LOOSEST))
        return
    both = zip(evidence.distances, limits, strict=True)
    worst, limit = max(both, key=lambda one: one[0].nearest / max(one[1].limit, 1e-12))
    values = {"loss": worst.loss, "seed": worst.seed, "distance": percent(worst.nearest), "seeds": limit.seeds}
    values |= {"limit": percent(limit.limit), "bound": percent(limit.bound)}
    outcome, measured = limit.outcome(worst.nearest), "bound" if worst.spread is None else "seeds"
    yield Finding("curves", outcome, f"{FACTS[outcome]}_{measured}", values)


def recomputed(evidence: Evidence) -> Iterator[Finding]:
    """The accuracy in a record is that of its detections."""
    evaluations = [tested for tested in evidence.tests if tested.metrics]
    wrong = False
    for tested in evaluations:
        for name, test in tested.pair.sides.items():
            for metric in JUDGED:
                text, found = test.accuracy.get(metric), getattr((tested.metrics or {})[name], metric)
                if text is not None and abs(text - found) > RECOMPUTED:
                    wrong = True
                    values = {"side": TITLES[name], "metric": WORDS[metric], "folder": test.folder}
                    yield unproven("recomputed", "differ", text=f"{text:.6f}", found=f"{found:.6f}", **values)
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


def margin(evidence: Evidence, metric: str) -> Allowed:
    """By how much an interval may lie beside zero: MARGIN, or the spread of the reference's seeds if that is more."""
    spread = spreads(evidence.sides[TORCH].tests).get(metric)
    width, seeds = (None, 1) if spread is None else (spread.width, spread.runs)
    judged = len(JUDGED) * len(evidence.tests)
    return allowed(width, seeds, least=MARGIN, convention=(MARGIN, WIDEST), judged=judged, most=1.0, partners=1)


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
            outcome = limit.outcome(beside_zero(one.low, one.high))
            values = {"metric": WORDS[metric], "difference": signed(one.difference), "limit": f"{limit.limit:.3g}"}
            values |= {"bound": f"{limit.bound:.3g}", "seeds": str(limit.seeds)}
            values |= {"low": signed(one.low), "high": signed(one.high), "widest": f"{WIDEST:g}"}
            if not one.high - one.low < math.inf:
                yield unproven("interval", "none", **values)
            elif outcome != HOLDS:
                yield Finding("interval", outcome, FACTS[outcome], values)
            elif metric == "ap" and (one.high - one.low) / 2 > WIDEST:
                yield unproven("interval", "wide", **values)
            elif metric == "ap" and limit.limit > WIDEST:
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
