"""Compare the first training steps of both implementations on a data set, and write the report.

python -m alignment_tests.steps --data data/dataset.yaml --config gold_yolo_n --steps 50 --output-dir reports/steps

Takes the options of the ``train`` commands: what is compared are the steps that these would make.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice

from rich.console import Console

from fixtures.cli import positive
from fixtures.runs.command import guarded
from fixtures.runs.splits import RunError, open_data
from fixtures.runs.train_options import options_from, parser

PROG = "python -m alignment_tests.steps"
EXIT_DIVERGED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(partial(run, arguments))


def run(arguments: Sequence[str] | None) -> int:
    own = parser(PROG, "Compare the first training steps of both frameworks, on the batches that both draw.")
    own.add_argument("--steps", type=positive, default=10, help="how many (default: %(default)s)")
    own.add_argument("--free-running", action="store_true", help="also let both sides train on their own")
    options, known = options_from(own, arguments)
    for name in ("amp", "resume"):
        if getattr(options, name):
            raise RunError(
                f"`--{name}` is not for this command: it compares float64 and float32 steps from the first weights"
            )
    data = open_data(options)
    config = options.model_config(data.config.num_classes)
    drawn = chain.from_iterable(data.batches.epoch(epoch) for epoch in range(options.epochs))
    batches = list(islice(drawn, known.steps))
    if len(batches) < known.steps:
        raise RunError(f"`--steps` must be at most the {len(batches)} of the run. Received: {known.steps}")

    import jt_impl.train
    import torch_ref.train
    from alignment_tests.cases.trainees import GoldYoloTrainee
    from alignment_tests.harness.align_training import align_training
    from jt_impl.runtime import progress

    def make(package: str, precision: str) -> GoldYoloTrainee:
        make_trainer = torch_ref.train.make_trainer if package == "torch_ref" else jt_impl.train.make_trainer
        return GoldYoloTrainee(make_trainer(options, config, len(data.batches), dtype=precision), precision)

    with progress():
        report = align_training(
            partial(make, "torch_ref"),
            partial(make, "jt_impl"),
            batches,
            free_running=known.free_running,
            taught_updates=config.solver.optimizer != "sgd",
            title=f"first {known.steps} training steps of {config.name}",
            settings={"data": str(options.data), "image size": options.image_size, "batch size": options.batch_size},
            notify=Console(stderr=True).print,
        )
    report.save(options.output_dir)
    print("aligned" if report.aligned else f"not aligned: {report.first_divergence}")
    return 0 if report.aligned else EXIT_DIVERGED


if __name__ == "__main__":
    sys.exit(main())
