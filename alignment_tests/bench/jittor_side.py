"""Jittor's side of a benchmark: the same work as PyTorch's, a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy.typing as npt

import converters
import jt_impl
from alignment_tests.bench import inputs
from alignment_tests.bench.cases import Case
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import capture, run_plain
from fixtures.config import load_config
from fixtures.images import drawn_boxes
from jt_impl import devices, mixed
from jt_impl.postprocess import non_max_suppression
from jt_impl.runtime import jittor as jt

Step = Callable[[], object]


class JittorSide:
    """A case ready to be worked on."""

    def __init__(self, case: Case, setting: str, folder: Path) -> None:
        self.case, self.setting, self.folder = case, setting, folder
        self.config = load_config(case.config)
        devices.choose_device(case.device)
        devices.use_tf32(case.precision == "tf32")
        self.step: Step = WORK[case.what](self)

    def wait(self) -> None:
        jt.sync_all(True)

    def model(self) -> Any:
        return inputs.seeded_model("jt_impl", self.case.config)

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        return jt.array(array)

    def precision(self) -> AbstractContextManager[Any]:
        return mixed.autocast() if self.case.precision == "half" else nullcontext()

    def graphs(self) -> int:
        return 0

    def memory(self) -> dict[str, int]:
        """What Jittor's allocators hold, bytes: they keep what they once took, so at the end this is the peak.

        Jittor counts no peak of what is in use.
        """
        held = jt.get_mem_info()
        return {"reserved": int(held.total_cuda_used if jt.flags.use_cuda else held.total_cpu_used)}

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in devices.describe().items() if name != "cache"}  # a user's own path


def inference(side: JittorSide) -> Step:
    model = side.model()
    if side.case.form == "deploy":
        model = jt_impl.fuse(model)
    model.eval()
    images = side.tensor(inputs.images_of(side.case))

    def step() -> None:
        with jt.no_grad():
            with side.precision():
                found = model(images)
            found.sync()  # outside: kernels that are chosen under AMP would have other dtypes

    return step


def training(side: JittorSide) -> Step:
    case, amp = side.case, side.case.precision == "half"
    schedule = inputs.schedule_of(side.config, case)
    trainer = jt_impl.Trainer(side.model(), side.config, case.side, case.batch, schedule, accumulate=1, amp=amp)
    batches = inputs.training_batches(case)
    return lambda: trainer.step(*batches[trainer.step_number % len(batches)])


def assigner(side: JittorSide) -> Step:
    loss: Any = jt_impl.build_loss(side.config, side.case.side)
    scores, distances = (side.tensor(array) for array in inputs.head_outputs(side.case, side.config))
    features = [side.tensor(maps) for maps in inputs.feature_maps(side.case, side.config)]
    targets = drawn_boxes(side.case.batch)

    def step() -> None:
        made = loss.assign((features, scores, distances), targets)
        jt.sync([value for value in vars(made).values() if isinstance(value, jt.Var)])

    return step


def nms(side: JittorSide) -> Step:
    predictions = side.tensor(inputs.raw_predictions(side.case, side.config))
    return lambda: jt.sync(non_max_suppression(predictions))


def loading(side: JittorSide) -> Step:
    batches = inputs.loaded_batches(side.case, side.config, side.folder)
    return lambda: side.tensor(next(batches)).sync()


def conversion(side: JittorSide) -> Step:
    model = side.model()
    path = inputs.foreign_checkpoint(model, ".pt", side.folder)
    return lambda: converters.load_into(model, converters.read_checkpoint(path).state)


def captured(side: JittorSide) -> Step:
    model, images = side.model(), inputs.images_of(side.case)
    if side.setting == "captured":
        return lambda: capture(model, images, with_inputs=False)
    adapter = adapter_for(model)
    return lambda: run_plain(adapter, model, images, "float32", train=False)


WORK: dict[str, Callable[[JittorSide], Step]] = {
    "inference": inference,
    "training": training,
    "assigner": assigner,
    "nms": nms,
    "loading": loading,
    "conversion": conversion,
    "capture": captured,
}
