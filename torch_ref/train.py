"""``python -m torch_ref.train``: train Gold-YOLO in PyTorch."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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
from torch_ref.devices import choose_device, describe, is_out_of_memory
from torch_ref.model import GoldYolo, build_model
from torch_ref.postprocess import non_max_suppression
from torch_ref.trainer import Trainer

Array = npt.NDArray[Any]
CPU = torch.device("cpu")


class TorchBackend(TrainerFiles):
    """See ``fixtures.runs.train.Backend``."""

    framework, suffix = "pytorch", ".pt"

    def __init__(self, options: TrainOptions, config: GoldYoloConfig, steps_per_epoch: int) -> None:
        self.options = options
        self.device = choose_device(options.device)
        trainer = make_trainer(options, config, steps_per_epoch, self.device)
        super().__init__(trainer, config)
        self.tested: GoldYolo | None = None

    def step(self, images: Array, targets: Array) -> StepResult:
        result = self.trainer.step(images, targets)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def refresh(self) -> None:
        if self.tested is None:
            self.tested = build_model(self.config).to(self.device).eval()
        converters.load_into(self.tested, self.weights())

    def detect(self, images: Array, confidence: float, iou: float) -> list[Array]:
        assert self.tested is not None
        with torch.no_grad():
            predictions = self.tested(torch.from_numpy(images).to(self.device))
        return per_image(non_max_suppression(predictions, confidence, iou))

    def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        parameters = dict(self.trainer.model.named_parameters())
        model = {
            "parameters": sum(p.numel() for p in parameters.values()),
            "trainable": sum(p.numel() for p in parameters.values() if p.requires_grad),
            "by_part": parameters_by_part({name: tuple(p.shape) for name, p in parameters.items()}),
        }
        return describe(self.device), model

    def memory_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def fits(self, images: int) -> bool:
        """Whether a step of so many images fits; nothing of it is kept."""
        side, trainer = self.options.image_size, self.trainer
        trainer.gradients = {}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            blank = np.zeros((images, 3, side, side), np.float32)
            trainer.backward(trainer.losses(trainer.forward(blank), blank, np.zeros((0, 6))).total)
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
            return False
        finally:
            trainer.gradients = {}
        return True


def make_trainer(
    options: TrainOptions,
    config: GoldYoloConfig,
    steps_per_epoch: int,
    device: torch.device = CPU,
    dtype: str = "float32",
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
        model.to(device),
        config,
        options.image_size,
        options.batch_size,
        options.schedule(config, steps_per_epoch),
        ema=options.ema,
        clip_norm=options.clip_norm,
        accumulate=options.grad_accum,
        seed=options.seed,
        amp=options.amp,
        teacher=None if options.distill is None else load_teacher(options.distill, device, dtype),
    )


def load_teacher(path: Path, device: torch.device, dtype: str = "float32") -> GoldYolo:
    """An anchor-aided model, or a plain one with distributions, from its weights.

    Raises:
        CheckpointError: the weights are not of a known model.
    """
    checkpoint = read_weights(path)
    teacher = build_model(checkpoint.model_config(), dtype)
    converters.load_into(teacher, checkpoint.state)
    return teacher.to(device)


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse("python -m torch_ref.train", "PyTorch", arguments)
        return train(options, TorchBackend, command_line(arguments, "torch_ref.train"))

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
