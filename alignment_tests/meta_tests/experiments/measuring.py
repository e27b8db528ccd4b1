"""The experiment with measuring: a time counts only if what was timed had been computed when the clock stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment_tests.meta_tests.experiments.forward import narrow_pair
from alignment_tests.meta_tests.experiments.outcome import PLAIN, Blame, Outcome
from fixtures.runs.evaluation_options import parse_test
from fixtures.runs.splits import RunError
from fixtures.runs.test import speed
from jt_impl.detector import JittorDetector

SIDE = 64
HERE = str(Path(__file__))  # a path for options that are not looked at


class Measuring:
    """``speed`` of the command ``test``, on a Jittor model. A comparison of arrays has nothing to look at here."""

    def __init__(self, seed: int = 0) -> None:
        detector = JittorDetector.__new__(JittorDetector)  # without a file of weights
        detector.model = narrow_pair(seed).candidate
        detector.model.eval()
        self.subject = detector
        options = parse_test("measuring", "Jittor", ["--weights", HERE, "--data", HERE, "--output-dir", "."])
        self.options = replace(options, warmup=1, rounds=2)

    def run(self) -> Outcome:
        plain: Mapping[str, Any] = dict.fromkeys(PLAIN)
        try:
            speed(self.subject, self.options, SIDE, 1, logging.getLogger("sabotage"))
        except RunError as error:
            return Outcome(False, Blame("speed/synchronized"), str(error), plain)
        return Outcome(True, None, "", plain)
