"""Trained weights ready to detect; see ``fixtures.evaluation.detector.Detector``."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy.typing as npt

import converters
from converters.run_files import detector_facts, read_weights
from fixtures.evaluation.detections import per_image
from jt_impl.devices import choose_device, describe, is_out_of_memory
from jt_impl.model import build_model, fuse
from jt_impl.optim import is_buffer, named_vars
from jt_impl.postprocess import non_max_suppression
from jt_impl.runtime import jittor as jt
from jt_impl.runtime import loaded_kernels

Array = npt.NDArray[Any]


class JittorDetector:
    framework = "jittor"

    def __init__(self, weights: Path, fused: bool, device: str) -> None:
        checkpoint = read_weights(weights)
        self.config, self.meta = checkpoint.model_config(), dict(checkpoint.meta)
        choose_device(device)
        model = build_model(self.config)
        converters.load_into(model, checkpoint.state)
        named = named_vars(model)
        shapes = {name: tuple(value.shape) for name, value in named.items() if not is_buffer(name)}
        trainable = [name for name, value in named.items() if not value.is_stop_grad()]
        self.model_facts = detector_facts(self.config, shapes, trainable, "deploy" if fused else "train")
        self.model = fuse(model) if fused else model
        self.model.eval()

    def prepare(self, images: Array) -> Any:
        return jt.array(images)

    def forward(self, images: Any) -> Any:
        with jt.no_grad():
            predictions = self.model(images)
            predictions.sync()
            return predictions

    def wait(self) -> None:
        jt.sync_all(True)

    def is_done(self, predictions: Any) -> bool:
        return ":s1:" in predictions.debug_msg()  # s0 while the operator that makes them has not run

    def detect(self, images: Array, confidence: float, iou: float, multi_label: bool = True) -> list[Array]:
        predictions = self.forward(self.prepare(images))
        return per_image(non_max_suppression(predictions, confidence, iou, multi_label=multi_label))

    def compiled(self) -> int:
        return loaded_kernels()

    def memory(self) -> tuple[int, int | None]:
        if jt.flags.use_cuda:
            used = int(jt.get_mem_info().total_cuda_used)
            return used, used
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return describe(), self.model_facts
