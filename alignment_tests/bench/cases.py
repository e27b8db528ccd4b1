"""What the performance suite measures, on which device, and who is measured beside whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

DEVICES = ("cpu", "cuda")
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "half")}
BATCHES = (1, 2, 4, 6, 8, 16, 32)
SIDES = (512, 640)
CONFIGS = ("gold_yolo_s", "gold_yolo_n")
NETWORK = ("inference", "training")  # work of the whole network, for which PyTorch has faster settings
ROUNDS, START_ROUNDS = 7, 3
ONLY_CUDA = "TF32 and half precision are measured with --bench-device cuda: a CPU has neither as units of its own"


@dataclass(frozen=True)
class Case:
    """One piece of work, the same for all its contenders.

    Attributes:
        what: key of ``WORK``.
        side: of the square images, pixels.
        precision: "float32" (TF32 off), "tf32" or "half"; the first on a CPU.
        form: of the model in inference: "deploy" or "train".
    """

    what: str
    config: str = "gold_yolo_n"
    side: int = 640
    batch: int = 1
    precision: str = "float32"
    form: str = "deploy"
    device: str = "cpu"

    @property
    def name(self) -> str:
        form = f"-{self.form}" if self.what == "inference" else ""
        size = self.config.removeprefix("gold_yolo_")
        return f"{self.what}{form}-{size}-{self.side}-b{self.batch}-{self.precision}-{self.device}"

    @property
    def rounds(self) -> int:
        return {"start": START_ROUNDS, "cold-start": 1, "limit": 1}.get(self.what, ROUNDS)

    @property
    def fresh_processes(self) -> bool:
        """Whether every round is a process of its own, which no earlier round can warm."""
        return self.what in ("start", "cold-start")


WORK = {
    "inference": "a forward pass in eval mode, without gradients and post-processing",
    "training": "a whole training step: forward, loss, backward, update, average of the weights",
    "assigner": "the task-aligned label assignment of a batch",
    "nms": "post-processing of a batch of raw predictions to detections",
    "loading": "the next training batch: decoding, augmentation, transfer to the device",
    "capture": "a forward pass, bare or with every module's output written to disk by the harness",
    "conversion": "weights read from the other framework's checkpoint and loaded into the model",
    "start": "a new process until its first forward pass has ended, Jittor with all kernels in its cache",
    "cold-start": "the same of Jittor with an empty cache: core and kernels are compiled",
    "limit": "the largest batch of a training step that fits into the device's memory, and the step's time",
}


@dataclass(frozen=True)
class Contender:
    """Who does the work: a package under a setting.

    Attributes:
        baseline: name of the contender that ratios are taken to.
        required: its failure fails the suite; an opponent that cannot run on a machine is only reported.
    """

    name: str
    package: str
    setting: str = "eager"
    baseline: str = "pytorch-eager"
    required: bool = False


EAGER = Contender("pytorch-eager", "torch_ref", required=True)
JITTOR = Contender("jittor", "jt_impl", required=True)
COMPILE = Contender("pytorch-compile", "torch_ref", "compile")
CHANNELS_LAST = Contender("pytorch-channels-last", "torch_ref", "channels-last")
AUTOTUNED = Contender("pytorch-cudnn-benchmark", "torch_ref", "cudnn-benchmark")
HALF_WEIGHTS = Contender("pytorch-half-weights", "torch_ref", "half-weights")
CAPTURED = (
    Contender("pytorch-captured", "torch_ref", "captured", required=True),
    Contender("jittor-captured", "jt_impl", "captured", baseline="jittor", required=True),
)


def contenders_of(case: Case, grid: str) -> tuple[Contender, ...]:
    """In the order in which they take their rounds; the opponents of a training step on a CPU in the full grid only."""
    if case.what == "capture":
        return EAGER, CAPTURED[0], JITTOR, CAPTURED[1]
    if case.what == "cold-start":
        return (JITTOR,)
    if case.what not in NETWORK or (case.what == "training" and case.device == "cpu" and grid == "small"):
        return EAGER, JITTOR
    more = (AUTOTUNED,) if case.device == "cuda" else ()
    halved = (HALF_WEIGHTS,) if case.what == "inference" and case.precision == "half" else ()
    return EAGER, JITTOR, CHANNELS_LAST, COMPILE, *more, *halved


def small_grid(device: str) -> Iterator[Case]:
    """A few batches, what says most first: time may run out."""
    precisions = PRECISIONS[device][::2]  # float32, and on a GPU half
    for batch, precision, config in product((1, 8), precisions, CONFIGS):
        yield Case("inference", config, 640, batch, precision, device=device)
        if (batch, precision, config) == (1, precisions[-1], CONFIGS[0]):
            yield from (Case("training", CONFIGS[0], 512, 6, one, device=device) for one in precisions)
    yield Case("training", CONFIGS[1], 512, 6, device=device)
    if device == "cuda":
        yield Case("inference", CONFIGS[0], 640, 32, "half", device=device)
        yield Case("inference", CONFIGS[0], 640, 8, "tf32", device=device)
    yield Case("inference", CONFIGS[1], 512, 1, form="train", device=device)
    yield from single_pieces(device)
    yield Case("start", device=device)


def full_grid(device: str) -> Iterator[Case]:
    """The small grid first, then every form, size, precision and batch."""
    yield from small_grid(device)
    grid = product(("deploy", "train"), SIDES, PRECISIONS[device], CONFIGS, BATCHES)
    for form, side, precision, config, batch in grid:
        yield Case("inference", config, side, batch, precision, form, device)
    for precision, config in product(PRECISIONS[device], CONFIGS):
        yield Case("training", config, 512, 6, precision, device=device)
    if device == "cuda":  # on a CPU the system ends the process, or another one, in place of an error
        yield Case("limit", CONFIGS[0], 512, 32, device=device)
    yield Case("cold-start", device=device)


def single_pieces(device: str) -> Iterator[Case]:
    yield Case("assigner", side=512, batch=6, device=device)
    yield Case("nms", batch=8, device=device)
    yield Case("loading", side=512, batch=6, device=device)
    yield Case("conversion", CONFIGS[0], device=device)
    yield Case("capture", device=device)


GRIDS = {"small": small_grid, "full": full_grid}


def cases_of(device: str, grid: str) -> list[Case]:
    """Every case once, in the order in which they are run."""
    return list(dict.fromkeys(GRIDS[grid](device)))


def describe(grid: str, device: str) -> str:
    """How many there are, for the help."""
    return f"{len(cases_of(device, grid))} cases on {device}"
