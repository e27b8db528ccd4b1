"""``python -m jt_impl.cuda.phases``: has Jittor compile what Gold-YOLO-N needs on CUDA, phase by phase.

Images are small: kernels do not depend on the size. On standard output stands one line of JSON per phase, with its
result, its seconds and how many kernels it loaded. Needs ALIGN_CUDA=1 and a device, or the stub libraries of
``compile_check``, with which the results mean nothing. Exit code 1 if a phase failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

# Jittor keeps cuDNN's algorithm by a convolution's shape without its type, and what is found for float32 may not do
# for half precision: in one process they must not meet the same shapes.
SIDE, HALF_SIDE, CLASSES = 64, 96, 10
LOAD = "load Jittor"
STUB_LIBRARIES = "ALIGN_STUB_LIBRARIES"  # set to 1 where the libraries are stubs
Phase = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """What one phase came to: ``result`` is "done" or the error."""

    phase: str
    result: str
    seconds: float
    kernels: int


def load() -> None:
    """Jittor's core and its CUDA modules."""
    from jt_impl import runtime

    module = runtime.load()
    if not module.has_cuda:
        raise RuntimeError("Jittor was built for the CPU")
    module.flags.use_cuda = 1


def forward(dtype: str = "float32", deploy: bool = False, half: bool = False) -> None:
    """Two images through the network in eval mode."""
    import numpy as np

    from fixtures.config import load_config
    from jt_impl import mixed
    from jt_impl.model import build_model, fuse
    from jt_impl.runtime import jittor as jt

    model = build_model(load_config("gold_yolo_n", CLASSES), dtype)
    model.eval()
    model = fuse(model) if deploy else model
    side = HALF_SIDE if half else SIDE
    images = np.zeros((2, 3, side, side), dtype)
    with jt.no_grad():
        with mixed.autocast() if half else nullcontext():
            predictions = model(jt.array64(images) if dtype == "float64" else jt.array(images))
        predictions.sync()
    jt.sync_all(True)


def suppression() -> None:
    """Predictions to detections."""
    import numpy as np

    from jt_impl.postprocess import non_max_suppression
    from jt_impl.runtime import jittor as jt

    non_max_suppression(jt.array(np.zeros((1, 84, 5 + CLASSES), np.float32)))


def training_step(amp: bool = False) -> None:
    """Forward, loss, backward, and an update of the weights and of their average."""
    import numpy as np

    from fixtures.config import load_config
    from fixtures.training.schedule import Schedule
    from jt_impl.model import build_model
    from jt_impl.runtime import jittor as jt
    from jt_impl.trainer import Trainer

    config, side = load_config("gold_yolo_n", CLASSES), HALF_SIDE if amp else SIDE
    schedule = Schedule(config.solver, 2, steps_per_epoch=1, epochs=1)
    trainer = Trainer(build_model(config), config, side, 2, schedule, accumulate=1, amp=amp)
    targets = np.array([[0, 1, 0.5, 0.5, 0.4, 0.4], [1, 2, 0.4, 0.6, 0.3, 0.5]], np.float64)
    with taken_for_finite() if os.environ.get(STUB_LIBRARIES) == "1" else nullcontext():
        trainer.step(np.zeros((2, 3, side, side), np.float32), targets)
    jt.sync_all(True)


@contextmanager
def taken_for_finite() -> Iterator[None]:
    """Nothing that stubs compute is true, so neither is that a number is not finite, for which a step would end
    before its update. The tests for it are made all the same: their kernels count."""
    from jt_impl import trainer

    true_test = trainer.Trainer._all_finite

    def all_finite(gradients: dict[str, Any]) -> bool:
        true_test(gradients)
        return True

    def accept(*_: object) -> None:
        return None

    checks = mock.patch.multiple(trainer, check_outputs=accept, check_finite=accept)
    with checks, mock.patch.object(trainer.Trainer, "_all_finite", staticmethod(all_finite)):
        yield


PHASES: dict[str, Phase] = {
    LOAD: load,
    "forward, train form": forward,
    "suppression": suppression,
    "training step": training_step,
    "forward, deploy form": lambda: forward(deploy=True),
    "forward, half precision": lambda: forward(deploy=True, half=True),
    "training step, mixed precision": lambda: training_step(amp=True),
    "forward, float64": lambda: forward("float64"),
}


def run(phases: Mapping[str, Phase]) -> Iterator[Outcome]:
    """Run the phases; a failed one does not keep the later ones from compiling theirs, unless it is the first."""
    from jt_impl.runtime import loaded_kernels

    for name, phase in phases.items():
        start, before = time.perf_counter(), loaded_kernels()
        try:
            phase()
            result = "done"
        except Exception as error:  # whatever a kernel or a step raises is what this tells
            result = f"{type(error).__name__}: {' '.join(str(error).split())[-600:]}"
        yield Outcome(name, result, round(time.perf_counter() - start, 1), loaded_kernels() - before)
        if name == LOAD and result != "done":
            return


def report(outcomes: Iterable[Outcome]) -> int:
    """A line of JSON for each, as it comes; the exit code."""
    code = 0
    for outcome in outcomes:
        print(json.dumps(asdict(outcome)), flush=True)
        code |= outcome.result != "done"
    return code


def outcome_of(line: str) -> Outcome | None:
    """What a line of standard output tells, if it is one of these."""
    if not line.startswith('{"phase"'):
        return None
    found: dict[str, Any] = json.loads(line)
    return Outcome(**found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jt_impl.cuda.phases", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=("load",), help="stop where Jittor's core and its CUDA modules are ready")
    options = parser.parse_args(arguments)
    return report(run({LOAD: load} if options.only else PHASES))


if __name__ == "__main__":
    sys.exit(main())
