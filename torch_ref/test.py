"""``python -m torch_ref.test``: accuracy, speed, memory and structure of trained weights in PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fixtures.evaluation_options import parse_test
from fixtures.evaluation_run import test
from fixtures.run_command import guarded
from fixtures.run_record import command_line
from torch_ref.detector import TorchDetector


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse_test("python -m torch_ref.test", "PyTorch", arguments)
        return test(options, TorchDetector, "torch_ref.test", command_line(arguments, "torch_ref.test"))

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
