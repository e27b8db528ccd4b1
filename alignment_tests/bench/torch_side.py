"""PyTorch's side of a benchmark: the work of a case under one setting, a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

import converters
import torch_ref
from alignment_tests.bench import inputs
from alignment_tests.bench.cases import Case
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import capture, run_plain
from fixtures.config import load_config
from fixtures.images import drawn_boxes
from torch_ref import devices
from torch_ref.postprocess import non_max_suppression

Step = Callable[[], object]


class TorchSide:
    """A case ready to be worked on."""

    def __init__(self, case: Case, setting: str, folder: Path) -> None:
        self.case, self.setting, self.folder = case, setting, folder
        self.config = load_config(case.config)
        self.device = devices.choose_device(case.device)
        devices.use_tf32(case.precision == "tf32")
        torch.backends.cudnn.benchmark = setting == "cudnn-benchmark"
        self.step: Step = WORK[case.what](self)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def model(self) -> Any:
        made = inputs.seeded_model("torch_ref", self.case.config).to(self.device)
        return made.to(memory_format=torch.channels_last) if self.setting == "channels-last" else made

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        made = torch.from_numpy(array).to(self.device)
        return made.to(memory_format=torch.channels_last) if self.setting == "channels-last" else made

    def precision(self) -> AbstractContextManager[Any]:
        if self.case.precision == "half" and self.setting != "half-weights":
            return torch.autocast(self.device.type, torch.float16)
        return nullcontext()

    def graphs(self) -> int:
        """Graphs that ``torch.compile`` has made so far."""
        if self.setting != "compile":
            return 0
        from torch._dynamo.utils import counters  # seconds, which the others' starts must not wait for

        return int(counters["stats"]["unique_graphs"])

    def memory(self) -> dict[str, int]:
        """Peaks of the caching allocator, bytes; the CPU's allocator keeps no count."""
        if self.device.type != "cuda":
            return {}
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}

    def facts(self) -> dict[str, Any]:
        return {**devices.describe(self.device), "cudnn_benchmark": torch.backends.cudnn.benchmark}


def inference(side: TorchSide) -> Step:
    model = side.model()
    model = torch_ref.fuse(model) if side.case.form == "deploy" else model.eval()
    if side.setting == "channels-last":  # fusing makes plain weights anew
        model = model.to(memory_format=torch.channels_last)
    images = side.tensor(inputs.images_of(side.case))
    if side.setting == "half-weights":
        model, images = model.half(), images.half()
    # torch.compile's guards fail on tensors that are made in inference mode inside of the model.
    scope = torch.inference_mode
    if side.setting == "compile":
        model.compile()
        scope = torch.no_grad

    def step() -> None:
        with scope(), side.precision():
            model(images)

    return step


def training(side: TorchSide) -> Step:
    case, model = side.case, side.model()
    schedule, amp = inputs.schedule_of(side.config, case), case.precision == "half"
    trainer = torch_ref.Trainer(model, side.config, case.side, case.batch, schedule, accumulate=1, amp=amp)
    if side.setting == "compile":
        model.compile()
    batches = inputs.training_batches(case)
    return lambda: trainer.step(*batches[trainer.step_number % len(batches)])


def assigner(side: TorchSide) -> Step:
    loss: Any = torch_ref.build_loss(side.config, side.case.side)
    scores, distances = (side.tensor(array) for array in inputs.head_outputs(side.case, side.config))
    features = [side.tensor(maps) for maps in inputs.feature_maps(side.case, side.config)]
    targets = drawn_boxes(side.case.batch)
    return lambda: loss.assign((features, scores, distances), targets)


def nms(side: TorchSide) -> Step:
    predictions = side.tensor(inputs.raw_predictions(side.case, side.config))
    return lambda: non_max_suppression(predictions)


def loading(side: TorchSide) -> Step:
    batches = inputs.loaded_batches(side.case, side.config, side.folder)
    return lambda: side.tensor(next(batches))


def conversion(side: TorchSide) -> Step:
    model = side.model()
    path = inputs.foreign_checkpoint(model, ".pkl", side.folder)
    return lambda: converters.load_into(model, converters.read_checkpoint(path).state)


def captured(side: TorchSide) -> Step:
    model, images = side.model(), inputs.images_of(side.case)
    if side.setting == "captured":
        return lambda: capture(model, images, with_inputs=False)
    adapter = adapter_for(model)
    return lambda: run_plain(adapter, model, images, "float32", train=False)


WORK: dict[str, Callable[[TorchSide], Step]] = {
    "inference": inference,
    "training": training,
    "assigner": assigner,
    "nms": nms,
    "loading": loading,
    "conversion": conversion,
    "capture": captured,
}
