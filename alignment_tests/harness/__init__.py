"""The reusable core: capture, compare, judge, localise, report. It knows no model."""

import alignment_tests.harness.report.write  # noqa: F401 - lists the files that `Report.save` writes
from alignment_tests.harness.align_layers import align
from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import Comparison, compare_arrays
from alignment_tests.harness.judge.report import Report
from alignment_tests.harness.offline import compare, dump
from alignment_tests.harness.port_map import NameMap, NameMatchError, copy_weights, match_names
from alignment_tests.harness.record.capture import capture
from alignment_tests.harness.record.trace import Trace

__all__ = [
    "Budget",
    "Comparison",
    "NameMap",
    "NameMatchError",
    "Report",
    "Trace",
    "align",
    "capture",
    "compare",
    "compare_arrays",
    "copy_weights",
    "dump",
    "match_names",
]
