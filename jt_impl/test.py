"""``python -m jt_impl.test``: accuracy, speed, memory and structure of trained weights in Jittor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fixtures.runs.command import guarded
from fixtures.runs.evaluation_options import parse_test
from fixtures.runs.record import command_line
from fixtures.runs.test import test
from jt_impl.detector import JittorDetector
from jt_impl.runtime import progress


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse_test("python -m jt_impl.test", "Jittor", arguments)
        return test(options, JittorDetector, "jt_impl.test", command_line(arguments, "jt_impl.test"))

    with progress():
        return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
