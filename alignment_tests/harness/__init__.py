"""The reusable core: capture, compare, judge, localise, report. It knows no model.

Importing the package is cheap, since pytest imports it for its plugin; the first use of a name below imports what it
needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import alignment_tests.harness.report.write  # noqa: F401 - lists the files that `Report.save` writes

if TYPE_CHECKING:
    from alignment_tests.harness.align_layers import align
    from alignment_tests.harness.judge.budget import Budget
    from alignment_tests.harness.judge.compare import Comparison, compare_arrays
    from alignment_tests.harness.judge.report import Report
    from alignment_tests.harness.match import NameMap, NameMatchError, match_names
    from alignment_tests.harness.offline import compare, dump
    from alignment_tests.harness.port_map import PortMap, PortMapError
    from alignment_tests.harness.proposal import propose
    from alignment_tests.harness.record.capture import capture
    from alignment_tests.harness.record.trace import Trace
    from alignment_tests.harness.weights import copy_weights, load_weights

HOMES = {
    "align": "align_layers",
    "Budget": "judge.budget",
    "Comparison": "judge.compare",
    "compare_arrays": "judge.compare",
    "Report": "judge.report",
    "NameMap": "match",
    "NameMatchError": "match",
    "match_names": "match",
    "compare": "offline",
    "dump": "offline",
    "PortMap": "port_map",
    "PortMapError": "port_map",
    "propose": "proposal",
    "capture": "record.capture",
    "Trace": "record.trace",
    "copy_weights": "weights",
    "load_weights": "weights",
}

__all__ = [
    "Budget",
    "Comparison",
    "NameMap",
    "NameMatchError",
    "PortMap",
    "PortMapError",
    "Report",
    "Trace",
    "align",
    "capture",
    "compare",
    "compare_arrays",
    "copy_weights",
    "dump",
    "load_weights",
    "match_names",
    "propose",
]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
