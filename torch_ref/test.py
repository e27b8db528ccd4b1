"""``python -m torch_ref.test``: accuracy, speed, memory and structure of trained weights in PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fixtures.runs.command import guarded
from fixtures.runs.evaluation_options import parse_test
from fixtures.runs.record import command_line
from fixtures.runs.test import test
from torch_ref.detector import TorchDetector


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse_test("python -m torch_ref.test", "PyTorch", arguments)
        return test(options, TorchDetector, "torch_ref.test", command_line(arguments, "torch_ref.test"))

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
