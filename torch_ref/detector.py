"""Trained weights ready to detect; see ``fixtures.evaluation.detector.Detector``."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

import converters
from converters.run_files import detector_facts, read_weights
from fixtures.evaluation.detections import per_image
from torch_ref.devices import choose_device, describe, is_out_of_memory
from torch_ref.model import build_model, fuse
from torch_ref.postprocess import non_max_suppression

Array = npt.NDArray[Any]


class TorchDetector:
    framework = "pytorch"

    def __init__(self, weights: Path, fused: bool, device: str) -> None:
        checkpoint = read_weights(weights)
        self.config, self.meta = checkpoint.model_config(), dict(checkpoint.meta)
        self.device = choose_device(device)
        model = build_model(self.config)
        converters.load_into(model, checkpoint.state)
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        trainable = [name for name, value in model.named_parameters() if value.requires_grad]
        self.model_facts = detector_facts(self.config, shapes, trainable, "deploy" if fused else "train")
        self.model = (fuse(model) if fused else model.eval()).to(self.device)

    def prepare(self, images: Array) -> torch.Tensor:
        return torch.from_numpy(images).to(self.device)

    def forward(self, images: Any) -> Any:
        with torch.no_grad():
            return self.model(images)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def is_done(self, predictions: Any) -> bool:
        return self.device.type != "cuda" or bool(torch.cuda.current_stream().query())

    def detect(self, images: Array, confidence: float, iou: float, multi_label: bool = True) -> list[Array]:
        predictions = self.forward(self.prepare(images))
        return per_image(non_max_suppression(predictions, confidence, iou, multi_label=multi_label))

    def compiled(self) -> int:
        return 0

    def memory(self) -> tuple[int, int | None]:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            return total - free, int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return describe(self.device), self.model_facts
