"""The reusable core: capture, compare, judge, localise, report. It knows no model."""

from alignment_tests.harness.budget import Budget
from alignment_tests.harness.capture import capture
from alignment_tests.harness.compare import Comparison, compare_arrays
from alignment_tests.harness.experiment import align
from alignment_tests.harness.match import NameMap, NameMatchError, copy_weights, match_names
from alignment_tests.harness.offline import compare, dump
from alignment_tests.harness.report import Report
from alignment_tests.harness.trace import Trace

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
