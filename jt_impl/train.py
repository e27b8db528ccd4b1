"""``python -m jt_impl.train``: train Gold-YOLO in Jittor."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import converters
from converters.run_files import TrainerFiles, fine_tune, parameters_by_part, read_weights
from fixtures.config import GoldYoloConfig
from fixtures.evaluation.detections import per_image
from fixtures.runs.command import guarded
from fixtures.runs.record import command_line
from fixtures.runs.train import train
from fixtures.runs.train_options import TrainOptions, parse
from fixtures.seeded import initial_state
from fixtures.training.step import StepResult
from jt_impl.devices import choose_device, describe, is_out_of_memory
from jt_impl.model import GoldYolo, build_model
from jt_impl.optim import is_buffer, named_vars
from jt_impl.postprocess import non_max_suppression
from jt_impl.runtime import jittor as jt
from jt_impl.runtime import progress
from jt_impl.trainer import Trainer

Array = npt.NDArray[Any]


class JittorBackend(TrainerFiles):
    """See ``fixtures.runs.train.Backend``."""

    framework, suffix = "jittor", ".pkl"

    def __init__(self, options: TrainOptions, config: GoldYoloConfig, steps_per_epoch: int) -> None:
        self.options = options
        choose_device(options.device)
        trainer = make_trainer(options, config, steps_per_epoch)
        super().__init__(trainer, config)
        self.tested: GoldYolo | None = None

    def step(self, images: Array, targets: Array) -> StepResult:
        result = self.trainer.step(images, targets)
        jt.sync_all(True)
        return result

    def refresh(self) -> None:
        if self.tested is None:
            self.tested = build_model(self.config)
            self.tested.eval()
        converters.load_into(self.tested, self.weights())

    def detect(self, images: Array, confidence: float, iou: float) -> list[Array]:
        assert self.tested is not None
        with jt.no_grad():
            predictions = self.tested(jt.array(images))
        return per_image(non_max_suppression(predictions, confidence, iou))

    def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # The reference counts the same: what it holds as a parameter, Jittor holds as a variable that is no buffer.
        shapes = {n: tuple(v.shape) for n, v in named_vars(self.trainer.model).items() if not is_buffer(n)}
        by_part = parameters_by_part(shapes)
        trainable = sum(int(np.prod(value.shape)) for value in self.trainer.parameters.values())
        return describe(), {"parameters": sum(by_part.values()), "trainable": trainable, "by_part": by_part}

    def memory_bytes(self) -> int:
        if jt.flags.use_cuda:
            return int(jt.get_mem_info().total_cuda_used)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def fits(self, images: int) -> bool:
        """Whether a step of so many images fits; nothing of it is kept."""
        side, trainer = self.options.image_size, self.trainer
        trainer.gradients = {}
        jt.gc()
        try:
            blank = np.zeros((images, 3, side, side), np.float32)
            trainer.backward(trainer.losses(trainer.forward(blank), blank, np.zeros((0, 6))).total)
            jt.sync_all(True)
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
            return False
        finally:
            trainer.gradients = {}
        return True


def make_trainer(
    options: TrainOptions, config: GoldYoloConfig, steps_per_epoch: int, dtype: str = "float32"
) -> Trainer:
    """What the options ask for, before its first step; in both frameworks from the same weights.

    Raises:
        CheckpointError, FileNotFoundError: of weights or teacher.
    """
    model = build_model(config, dtype)
    first = initial_state(converters.read_state(model), options.seed)
    if options.weights and not options.resume:
        first = fine_tune(first, converters.read_checkpoint(options.weights), options.weights).state
    converters.load_into(model, first)
    return Trainer(
        model,
        config,
        options.image_size,
        options.batch_size,
        options.schedule(config, steps_per_epoch),
        ema=options.ema,
        clip_norm=options.clip_norm,
        accumulate=options.grad_accum,
        seed=options.seed,
        amp=options.amp,
        teacher=None if options.distill is None else load_teacher(options.distill, dtype),
    )


def load_teacher(path: Path, dtype: str = "float32") -> GoldYolo:
    """An anchor-aided model, or a plain one with distributions, from its weights.

    Raises:
        CheckpointError: the weights are not of a known model.
    """
    checkpoint = read_weights(path)
    teacher = build_model(checkpoint.model_config(), dtype)
    converters.load_into(teacher, checkpoint.state)
    return teacher


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse("python -m jt_impl.train", "Jittor", arguments)
        return train(options, JittorBackend, command_line(arguments, "jt_impl.train"))

    with progress():
        return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
