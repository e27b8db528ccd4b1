"""Gold-YOLO training as the harness takes it: the trainers of both packages behind one face."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import converters
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.training.trainee import Share
from converters.optimizer_state import TrainingState
from fixtures.config import GoldYoloConfig
from fixtures.seeded import initial_state, seeded_state
from fixtures.training.schedule import Schedule

if TYPE_CHECKING:  # it imports PyTorch
    from alignment_tests.cases.margins import Decided

Array = npt.NDArray[Any]
BRANCHES = ("", "anchored.")  # of the anchor-aided head's pair of assignments
DECISIONS = ("foreground", "labels", "matched")
TAUGHT = ("teacher.scores", "teacher.distances")  # beside the assignment: the other part of what is to be learned


@dataclass(frozen=True)
class Batch:
    """Images (N, 3, H, W) float32 in 0..1, and their boxes (M, 6): image, class, cx, cy, w, h in 0..1."""

    images: Array
    targets: Array


@dataclass(frozen=True)
class Run:
    """What both sides of a training comparison hold fixed.

    Attributes:
        config: the model.
        image_size: (rows, columns).
        batch_size: images per batch.
        schedule: rates by step.
        first_step: position in the schedule at which training starts.
        assigner: "tal" or "atss".
        seed: of the weights and of DropPath's stream.
        amp: mixed precision in place of float32.
        fresh: weights as a constructor draws them, but for predictions, which it sets to zero; else ``seeded_state``.
        loss_scale: exponent of two that mixed precision starts from.
        teacher: of self-distillation, in the form that it was trained in; its weights are seeded by ``seed`` + 1.
    """

    config: GoldYoloConfig
    image_size: tuple[int, int]
    batch_size: int
    schedule: Schedule
    first_step: int = 0
    assigner: str = "tal"
    seed: int = 0
    amp: bool = False
    fresh: bool = False
    loss_scale: int = 16
    teacher: GoldYoloConfig | None = None

    def trainee(self, package: str, precision: str) -> GoldYoloTrainee:
        """A new one, with seeded weights."""
        module = importlib.import_module(package)
        model = module.build_model(self.config, precision)
        converters.load_into(model, self.weights(converters.read_state(model)))
        trainer = module.Trainer(
            model,
            self.config,
            self.image_size,
            self.batch_size,
            self.schedule,
            assigner=self.assigner,
            seed=self.seed,
            amp=self.amp and precision == "float32",
            teacher=self.taught_by(module, precision),
        )
        trainee = GoldYoloTrainee(trainer, precision)
        start = trainer.state()
        position = {**start.position, "step": self.first_step, "last_update": self.first_step - 1}
        position["loss_scale"] = self.loss_scale
        trainer.load_state(replace(start, position=position))
        return trainee

    def taught_by(self, module: Any, precision: str) -> Any:
        """The teacher, if there is one."""
        if self.teacher is None:
            return None
        teacher = module.build_model(self.teacher, precision)
        shapes = {name: array.shape for name, array in converters.read_state(teacher).items()}
        converters.load_into(teacher, seeded_state(shapes, self.seed + 1))
        return teacher

    def weights(self, built: Mapping[str, Array]) -> dict[str, Array]:
        """The first ones, by state key."""
        seeded = seeded_state({name: array.shape for name, array in built.items()}, self.seed)
        if not self.fresh:
            return seeded
        drawn = initial_state(built, self.seed)
        return {n: seeded[n].astype(a.dtype) if "_preds." in n and a.ndim == 4 else a for n, a in drawn.items()}

    def makers(self) -> tuple[Callable[[str], GoldYoloTrainee], Callable[[str], GoldYoloTrainee]]:
        """For the reference and for the candidate."""
        return (lambda precision: self.trainee("torch_ref", precision)), (lambda p: self.trainee("jt_impl", p))


class GoldYoloTrainee:
    """See ``alignment_tests.harness.training.trainee.Trainee``."""

    def __init__(self, trainer: Any, precision: str) -> None:
        self.trainer, self.model, self.precision = trainer, trainer.model, precision
        self.adapter = adapter_for(trainer.model)
        self.partial: dict[str, Any] = {}  # sum of the gradients before this step
        self.make_assignment = importlib.import_module(f"{package_of(trainer)}.assigners").Assignment

    def scope(self) -> AbstractContextManager[None]:
        scope: AbstractContextManager[None] = self.trainer.scope()
        return scope

    def forward(self, batch: Batch) -> Any:
        return self.trainer.forward(batch.images)

    def assign(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Labels, slots and boxes are zeroed where they mean nothing. What a teacher says stands beside them."""
        made = self.trainer.assign(outputs, batch.targets)
        named = {}
        for prefix, assignment in zip(BRANCHES, made if isinstance(made, tuple) else (made,), strict=False):
            foreground = assignment.foreground
            named[f"{prefix}foreground"] = foreground
            named[f"{prefix}labels"] = self.masked(assignment.labels, foreground)
            named[f"{prefix}matched"] = self.masked(assignment.matched, foreground)
            named[f"{prefix}boxes"] = self.masked(assignment.boxes, foreground.unsqueeze(-1))
            named[f"{prefix}scores"] = assignment.scores
        if self.trainer.teacher is not None:
            named |= zip(TAUGHT, self.trainer.teach(batch.images)[-2:], strict=True)
        return named

    def masked(self, values: Any, mask: Any) -> Any:
        array, keep = self.adapter.to_numpy(values), self.adapter.to_numpy(mask)
        array = array.astype(np.int32) if array.dtype.kind == "i" else array  # Jittor's integers; PyTorch has int64
        return self.adapter.from_numpy(np.where(keep, array, np.zeros((), array.dtype)))

    def losses(self, outputs: Any, batch: Batch, assignment: Mapping[str, Any]) -> dict[str, Any]:
        tensors = {name: self.tensor(value) for name, value in assignment.items()}
        made = [
            self.make_assignment(
                labels=self.index_type(tensors[f"{prefix}labels"]),
                matched=self.index_type(tensors[f"{prefix}matched"]),
                **{name: tensors[prefix + name] for name in ("boxes", "scores", "foreground")},
            )
            for prefix in BRANCHES
            if f"{prefix}labels" in tensors
        ]
        given = made[0] if len(made) == 1 else tuple(made)
        taught = (None, *(tensors[name] for name in TAUGHT)) if TAUGHT[0] in tensors else None
        losses = self.trainer.losses(outputs, batch.images, batch.targets, given, taught)
        return {f.name: getattr(losses, f.name) for f in fields(losses)}

    def tensor(self, value: Any) -> Any:
        """An array of the other side as an own tensor, in own precision."""
        if not isinstance(value, np.ndarray):
            return value
        return self.adapter.from_numpy(value.astype(self.precision) if value.dtype.kind == "f" else value)

    def index_type(self, tensor: Any) -> Any:
        """PyTorch indexes with int64 only."""
        return tensor.long() if self.adapter.name == "torch" else tensor

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        self.partial = dict(self.trainer.gradients)
        return self.trainer.backward(total, list(extra))

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        if gradients is not None:
            given = {name: self.tensor(array) for name, array in gradients.items()}
            self.trainer.gradients = {n: self.partial[n] + g if n in self.partial else g for n, g in given.items()}
        self.trainer.update()

    def state(self) -> dict[str, Array]:
        state = self.trainer.state()
        named = {f"{phase_of(name)}/{name}": array for name, array in state.weights.items()}
        for slot, arrays in state.slots.items():
            prefix = "momentum/" if slot == "momentum" else f"momentum/{slot}/"
            named |= {f"{prefix}{name}": array for name, array in arrays.items()}
        named |= {f"gradient/{name}": array for name, array in state.gradients.items()}
        named |= {f"ema/{name}": array for name, array in state.ema.items()}
        return named | {f"position/{name}": np.array(value) for name, value in state.position.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        def below(*prefixes: str) -> dict[str, Array]:
            return {
                name.split("/", 1)[1]: array.astype(self.precision) if array.dtype.kind == "f" else array
                for name, array in state.items()
                if name.split("/", 1)[0] in prefixes
            }

        slots: dict[str, dict[str, Array]] = {}
        for key, array in below("momentum").items():
            slot, _, name = key.rpartition("/")
            slots.setdefault(slot or "momentum", {})[name] = array
        self.trainer.load_state(
            TrainingState(
                weights=below("parameter", "buffer"),
                slots=slots,
                ema=below("ema"),
                gradients=below("gradient"),
                position={name: int(value) for name, value in below("position").items()},
                optimizer=self.trainer.config.solver.optimizer,
            )
        )

    def margins(self, exact: Any, outputs: Any, batch: Batch, share: Share) -> dict[str, Array]:
        from alignment_tests.cases.margins import atss_margins, task_aligned_margins

        found: dict[str, Array] = {}
        for (prefix, loss, branch, top), (_, _, own, _) in zip(
            self.branches(exact), self.branches(outputs), strict=True
        ):
            sides = decided_on(loss, branch, batch), decided_on(loss, own, batch)
            # The anchored branch is task-aligned whatever the assigner.
            by_distance = self.trainer.assigner == "atss" and not prefix
            margins = atss_margins(*sides, share) if by_distance else task_aligned_margins(*sides, top, share)
            found |= {prefix + name: margins.numpy() for name in DECISIONS}
        return found

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        """Boxes hang on their own anchor's decisions, scores on those of all anchors of their box. (N, A)."""
        if name in TAUGHT:
            return np.ones(len(next(iter(sides[0].values()))), bool)
        prefix = name.rpartition(".")[0]
        prefix = f"{prefix}." if prefix else ""
        named = [[side[prefix + key] for key in DECISIONS] for side in sides]
        same = np.logical_and.reduce([a == b for side in named[1:] for a, b in zip(named[0], side, strict=True)])
        if not name.endswith("scores"):
            return same
        owners = [np.where(foreground, matched, -1) for foreground, _, matched in named]
        kept = same.copy()
        for image in np.flatnonzero(~same.all(axis=1)):
            moved = np.unique([owner[image][~same[image]] for owner in owners])
            kept[image] &= ~np.isin(owners[0][image], moved[moved >= 0])
        return kept

    def branches(self, outputs: Any) -> list[tuple[str, Any, Any, int]]:
        """(prefix, loss, its outputs, candidates per box) of every branch of the head."""
        from torch_ref.assigners import TAL_TOPK
        from torch_ref.losses import ANCHORED_TOPK

        loss = self.trainer.loss
        if not hasattr(loss, "branches"):
            return [("", getattr(loss, "detection", loss), outputs, TAL_TOPK)]
        free, anchored = loss.branches(outputs)
        return [("", loss.free, free, TAL_TOPK), ("anchored.", loss.anchored, anchored, ANCHORED_TOPK)]


def decided_on(loss: Any, outputs: Any, batch: Batch) -> Decided:
    """The arguments of the assigner."""
    from alignment_tests.cases.margins import Decided

    grid, scores = loss.grid(outputs), outputs[1].detach()
    boxes = loss.predicted_boxes(outputs).detach() * grid.strides
    truth = loss.ground_truth(batch.targets, scores)
    return Decided(scores, boxes, grid.pixel_points, truth, grid.anchors, grid.level_sizes)


def phase_of(name: str) -> str:
    """Jittor cannot tell a frozen parameter from a buffer, so names decide."""
    return "buffer" if name.rsplit(".", 1)[-1].startswith(("running_", "num_batches")) else "parameter"


def package_of(trainer: Any) -> str:
    return type(trainer).__module__.split(".")[0]
