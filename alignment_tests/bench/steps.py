"""One framework's training steps or forward passes in a process of its own, taken and timed on demand.

    python alignment_tests/bench/steps.py --package jt_impl --what training --config gold_yolo_s --image-size 320 \
        --batch-size 2

"training": whole steps. "inference": forward passes in eval mode, deploy form, without gradients or post-processing.
Reads a number of steps per line of standard input, takes them, and answers with a line of JSON: seconds, and the number
of Jittor kernels loaded so far. The first answer, to no line, tells that the model is ready. Run by its path, so that
the settings of ``alignment_tests`` for two frameworks in one process do not hold here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BATCHES = 4
MARK = "steps: "  # in front of an answer; Jittor prints to standard output too


def seeded_model(package: str, config_name: str) -> Any:
    import converters
    from fixtures.config import load_config
    from fixtures.seeded import seeded_state

    model = importlib.import_module(package).build_model(load_config(config_name))
    shapes = {name: array.shape for name, array in converters.read_state(model).items()}
    converters.load_into(model, seeded_state(shapes))
    return model


def make_pass(package: str, config_name: str, side: int, batch_size: int) -> Callable[[], None]:
    """A forward pass of a fused model with seeded weights; it has ended on return."""
    from fixtures.images import drawn_images

    model = importlib.import_module(package).fuse(seeded_model(package, config_name))
    model.eval()
    images = drawn_images(batch_size, (side, side))
    if package == "torch_ref":
        import torch

        ready = torch.from_numpy(images)

        def forward() -> None:
            with torch.inference_mode():
                model(ready)

        return forward
    from jt_impl.runtime import jittor as jt

    given = jt.array(images)

    def execute() -> None:
        with jt.no_grad():
            model(given).sync()
            jt.sync_all(True)

    return execute


def make_step(package: str, config_name: str, side: int, batch_size: int) -> Callable[[], None]:
    """A step of a fresh model with seeded weights on drawn scenes; each ends in an update, and has ended on return."""
    from fixtures.config import load_config
    from fixtures.images import drawn_boxes, drawn_images
    from fixtures.schedule import Schedule

    module, config = importlib.import_module(package), load_config(config_name)
    model = seeded_model(package, config_name)
    schedule = Schedule(config.solver, batch_size, 400, 300)
    trainer = module.Trainer(model, config, side, batch_size, schedule, accumulate=1)
    batches = [(drawn_images(batch_size, (side, side), n), drawn_boxes(batch_size, n)) for n in range(BATCHES)]
    synchronize = synchronizer(package)

    def step() -> None:
        trainer.step(*batches[trainer.step_number % BATCHES])
        synchronize()

    return step


def synchronizer(package: str) -> Callable[[], Any]:
    """What waits until the device has done its work."""
    if package == "torch_ref":
        import torch

        return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    from jt_impl.runtime import jittor as jt

    return lambda: jt.sync_all(True)


def answer(**figures: float) -> None:
    from jt_impl.runtime import loaded_kernels

    print(f"\n{MARK}{json.dumps({**figures, 'kernels': loaded_kernels()})}", flush=True)


def main() -> None:
    start = time.perf_counter()
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", choices=("torch_ref", "jt_impl"), required=True)
    parser.add_argument("--what", choices=("training", "inference"), required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    options = parser.parse_args()
    make = make_step if options.what == "training" else make_pass
    step = make(options.package, options.config, options.image_size, options.batch_size)
    answer(seconds=time.perf_counter() - start)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
