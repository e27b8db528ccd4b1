"""``python -m torch_ref.predict``: draw what trained weights find in images, in PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fixtures.runs.command import guarded
from fixtures.runs.evaluation_options import parse_predict
from fixtures.runs.predict import predict
from fixtures.runs.record import command_line
from torch_ref.detector import TorchDetector


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse_predict("python -m torch_ref.predict", "PyTorch", arguments)
        return predict(options, TorchDetector, command_line(arguments, "torch_ref.predict"))

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
