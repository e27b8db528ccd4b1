"""Runs cases one after another and prints a line of JSON before and after each, so that a crash is told apart.

python -m alignment_tests.conformity.operators.worker < keys
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np

from alignment_tests.conformity.operators.cases import Case
from alignment_tests.conformity.operators.judge import CONFORMS, DIFFERS, ROUNDED, UNPROVEN, Finding, judge
from alignment_tests.conformity.operators.sides import run_candidate, run_reference
from alignment_tests.conformity.operators.table import TABLE

DIRECTIONS = ("forward", "backward", "state")
RAISES, REFUSED = "raises", "refused"
WORST = (RAISES, DIFFERS, ROUNDED, UNPROVEN, CONFORMS)


def cases_by_key() -> dict[str, Case]:
    return {f"{place}|{case.key}": case for place, operator in enumerate(TABLE) for case in operator.cases()}


def run(case: Case) -> dict[str, Any]:
    """Findings by direction, the worst of each; or what was raised, and by whom."""
    try:
        exact = run_reference(case, "float64").arrays
        expected = exact if case.dtype == "float64" else run_reference(case, "float32").arrays
    except Exception as error:  # PyTorch refuses this input: nothing to compare with
        return {"verdict": REFUSED, "reason": short(error)}
    try:
        actual = run_candidate(case).arrays
    except Exception as error:  # any failure of Jittor's is a row
        return {"verdict": RAISES, "reason": short(error)}
    found = {}
    for direction in DIRECTIONS:
        names = [name for name in expected if name.startswith(direction)]
        findings = {name: compare(name, actual, expected, exact) for name in names}
        if findings:
            name = min(findings, key=lambda n: WORST.index(findings[n].verdict))
            found[direction] = {"where": name.partition("/")[2], **asdict(findings[name])}
    verdicts = [finding["verdict"] for finding in found.values()]
    return {"verdict": min(verdicts, key=WORST.index), "findings": found}


def compare(name: str, actual: dict[str, Any], expected: dict[str, Any], exact: dict[str, Any]) -> Finding:
    if name not in actual:
        return Finding(DIFFERS, f"Jittor has no {name}")
    # The gradient that comes in is about 1.
    return judge(actual[name], expected[name], exact[name], zero_scale=float(name.startswith("backward")))


def short(error: BaseException) -> str:
    """One line without colours, times and places."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    # Jittor's errors tell the whole call; what matters stands after "Reason" or "Run cmd failed".
    text = text.partition("Reason: ")[2] or text
    text = "a kernel does not compile" if "Run cmd failed" in text else text
    text = re.sub(r"\[[a-z] \d+ [\d:.]+ \d+ (\S+\.cc):\d+\]", r"\1:", text)
    return f"{type(error).__name__}: {re.sub(r'(?:/[^/ ]+)+/', '', text)}"[:240]


def main() -> int:
    known = cases_by_key()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for line in sys.stdin:
        key = line.strip()
        print(json.dumps({"start": key}), flush=True)
        print(json.dumps({"key": key, **run(known[key])}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
