"""``python -m jt_impl.predict``: draw what trained weights find in images, in Jittor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fixtures.runs.command import guarded
from fixtures.runs.evaluation_options import parse_predict
from fixtures.runs.predict import predict
from fixtures.runs.record import command_line
from jt_impl.detector import JittorDetector
from jt_impl.runtime import progress


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse_predict("python -m jt_impl.predict", "Jittor", arguments)
        return predict(options, JittorDetector, command_line(arguments, "jt_impl.predict"))

    with progress():
        return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
