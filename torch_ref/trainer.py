"""The training step: forward, loss, backward, and an update where one is due.

Harness, training command and benchmarks take their steps here, whole (``step``) or phase by phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import converters
from converters.optimizer_state import TrainingState, match_training_state
from converters.state import LoadResult
from fixtures.config import GoldYoloConfig
from fixtures.seeded import drop_path_draw
from fixtures.training.loss_scale import LossScale
from fixtures.training.schedule import Schedule, StepSettings, update_is_due
from fixtures.training.step import StepResult, check_finite, check_outputs
from torch_ref.attention import DropPath
from torch_ref.distill import build_distillation_loss, prepare_teacher, teach
from torch_ref.losses import as_image_size, build_loss
from torch_ref.model import GoldYolo
from torch_ref.optim import ModelEma, apply_gradients, apply_settings, build_optimizer, clip_gradients

Array = npt.NDArray[Any]
FIRST_TEACHER_CALL = 1000  # of DropPath, so that student and teacher draw other numbers


class Trainer:
    """A model in training.

    Args:
        model: trained in place; put into train mode.
        config: the one that the model was built from.
        image_size: of the network's input, pixels: a side, or (rows, columns).
        batch_size: images per step that learning rate and decay are scaled for.
        schedule: settings by step number, and where epochs begin.
        assigner: "tal" or "atss".
        ema: keep an average of the weights.
        clip_norm: limit of the common norm of all gradients; None clips nothing, as the public recipe.
        accumulate: steps whose gradients are summed for one update; None takes the schedule's.
        seed: of the numbers that decide which paths are dropped; both frameworks drop the same.
        amp: mixed precision, float16 by ``torch.autocast``, with a scaled loss.
        teacher: of self-distillation, prepared in place; its paths are dropped by numbers of their own.

    Attributes:
        step_number: of the step that comes or is under way, over all epochs.
        last_update: step of the last update, -1 before the first.
        gradients: sum over the steps since the last update, by state key, of every trainable parameter.
        unused: parameters that the loss did not depend on in any of these steps; no update touches them.
        optimizer_steps: updates made.
        loss_scale: what the loss is scaled by in mixed precision, else None.

    Raises:
        ValueError: ``amp`` is asked for a model in float64, or an assigner of a training with a teacher.
    """

    def __init__(
        self,
        model: GoldYolo,
        config: GoldYoloConfig,
        image_size: int | tuple[int, int],
        batch_size: int,
        schedule: Schedule,
        *,
        assigner: str = "tal",
        ema: bool = True,
        clip_norm: float | None = None,
        accumulate: int | None = None,
        seed: int = 0,
        amp: bool = False,
        teacher: GoldYolo | None = None,
    ) -> None:
        if amp and next(model.parameters()).dtype == torch.float64:
            raise ValueError("`amp` needs a model in float32. Received: one in float64")
        if teacher is not None and assigner != "tal":
            raise ValueError(f"`assigner` must be 'tal' in self-distillation. Received: {assigner!r}")
        self.model = model.train()
        self.config, self.schedule, self.assigner = config, schedule, assigner
        self.clip_norm, self.accumulate, self.seed = clip_norm, accumulate, seed
        self.loss: Any = build_loss(config, image_size)
        self.teacher = None if teacher is None else prepare_teacher(teacher)
        if self.teacher is not None:
            self.loss = build_distillation_loss(config, as_image_size(image_size), schedule.epochs)
        self.optimizer = build_optimizer(model, config, batch_size)
        self.ema = ModelEma(model) if ema else None
        self.loss_scale = LossScale() if amp else None
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.step_number, self.last_update, self.optimizer_steps = 0, -1, 0
        self.gradients: dict[str, Tensor] = {}
        self.unused: frozenset[str] = frozenset()
        self._draws = self._teacher_draws = 0
        for network, draw in ((model, self.draw), (self.teacher, self.draw_for_teacher)):
            for module in network.modules() if network is not None else ():
                if isinstance(module, DropPath):
                    module.draw = draw

    def draw(self, batch: int) -> npt.NDArray[np.float32]:
        """Uniform numbers for the next DropPath call of this step."""
        self._draws += 1
        return drop_path_draw(self.seed, self.step_number, self._draws - 1, batch)

    def draw_for_teacher(self, batch: int) -> npt.NDArray[np.float32]:
        """The same for the teacher."""
        self._teacher_draws += 1
        return drop_path_draw(self.seed, self.step_number, FIRST_TEACHER_CALL + self._teacher_draws - 1, batch)

    @property
    def settings(self) -> StepSettings:
        """Of the step that comes or is under way."""
        return self.schedule.at(self.step_number)

    def forward(self, images: Array) -> Any:
        """Outputs of the model in train mode for images (N, 3, H, W) in 0..1, cast to the model's precision."""
        if not self.model.training:
            self.model.train()
        self._draws = 0
        tensor = self._tensor(images)
        if not self.loss_scale:
            return self.model(tensor)
        with self.scope():
            features, *outputs = self.model(tensor)
        return [feature.float() for feature in features], *(output.float() for output in outputs)

    def scope(self) -> AbstractContextManager[None]:
        """What the model's modules run in: mixed precision, or nothing."""
        return torch.autocast(self._like().device.type, torch.float16) if self.loss_scale else nullcontext()

    def assign(self, outputs: Any, targets: Any) -> Any:
        """Which anchor learns which box: one assignment, or a pair of the anchor-aided head's."""
        given = () if self.teacher is not None else (self.assigner,)
        return self.loss.assign(outputs, targets, *given)

    def teach(self, images: Array) -> Any:
        """Outputs of the teacher for images as in ``forward``, without gradients."""
        assert self.teacher is not None
        self._teacher_draws = 0
        taught, _ = teach(self.teacher, self._tensor(images))
        return taught

    def losses(self, outputs: Any, images: Array, targets: Any, assignment: Any = None, taught: Any = None) -> Any:
        """Weighted loss terms of a batch, by the boxes and, where there is one, by the teacher.

        Args:
            outputs: of ``forward``.
            images: (N, 3, H, W) in 0..1, for the teacher.
            targets: (M, 6) rows: image, class, cx, cy, w, h in 0..1.
            assignment: use this one in place of ``assign``.
            taught: use these in place of ``teach``.
        """
        if self.teacher is None:
            return self.loss(outputs, targets, self.assigner, assignment)
        taught = self.teach(images) if taught is None else taught
        epoch = self.step_number // self.schedule.steps_per_epoch
        return self.loss(outputs, taught, targets, epoch, assignment=assignment)

    def backward(self, total: Tensor, extra: Sequence[Tensor] = ()) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Gradients of ``total`` by every trainable parameter and by the extra tensors, in one pass.

        Those of the parameters are added to ``gradients``. What ``total`` does not depend on has zeros. In mixed
        precision the loss is scaled on the way, and the gradients are scaled back, in float32.
        """
        names, tensors = list(self.parameters), [*self.parameters.values(), *extra]
        factor = self.loss_scale.factor if self.loss_scale else 1.0
        found = torch.autograd.grad(total * factor, tensors, allow_unused=True)
        if self.loss_scale:
            found = tuple(gradient if gradient is None else gradient.float() / factor for gradient in found)
        unused = frozenset(name for name, gradient in zip(names, found, strict=False) if gradient is None)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
        gradients = dict(zip(names, filled, strict=False))
        if self.gradients:
            unused &= self.unused
            self.gradients = {name: self.gradients[name] + gradient for name, gradient in gradients.items()}
        else:
            self.gradients = dict(gradients)
        self.unused = unused
        return gradients, filled[len(names) :]

    def update(self) -> bool:
        """End the step: if an update is due, take it; whether the weights moved.

        In mixed precision an update whose gradients overflowed is left out, and the loss scale falls.

        Raises:
            RuntimeError: an update is due and there are no gradients.
        """
        settings = self.settings
        apply_settings(self.optimizer, settings)
        accumulate = settings.accumulate if self.accumulate is None else self.accumulate
        moved = update_is_due(self.step_number, self.last_update, accumulate)
        if moved:
            moved = self._update_weights()
            self.last_update = self.step_number
        self.step_number += 1
        if self.step_number % self.schedule.steps_per_epoch == 0:
            self.gradients = {}  # the public engine drops a partial sum where an epoch begins
        return moved

    def step(self, images: Array, targets: Any) -> StepResult:
        """A whole step.

        Args:
            images: (N, 3, H, W) in 0..1.
            targets: (M, 6) rows: image, class, cx, cy, w, h in 0..1.

        Raises:
            FloatingPointError: an output of the model or a loss term is not finite; the weights were not updated.
                In mixed precision: not until the loss scale has fallen to its end.
            ValueError: ``targets`` is malformed.
        """
        outputs = self.forward(images)
        if not self.loss_scale:
            check_outputs([bool(torch.isfinite(output).all()) for output in outputs[1:]], self.step_number)
        losses = self.losses(outputs, images, targets)
        self.backward(losses.total)
        numbers = {field.name: float(getattr(losses, field.name).detach()) for field in fields(losses)}
        if not self.loss_scale:
            check_finite(numbers, self.step_number)
        settings = self.settings
        return StepResult(numbers, self.update(), settings)

    def state(self) -> TrainingState:
        """Copies of everything that the next step depends on."""
        framework, scale = converters.adapter(self.model), self.loss_scale or LossScale()
        return TrainingState(
            weights=framework.read_state(self.model),
            slots=framework.read_slots(self.optimizer),
            ema=self.ema.state() if self.ema else {},
            gradients={n: framework.to_array(g) for n, g in self.gradients.items() if n not in self.unused},
            position={
                "step": self.step_number,
                "last_update": self.last_update,
                "ema_updates": self.ema.updates if self.ema else 0,
                "optimizer_steps": self.optimizer_steps,
                "loss_scale": scale.exponent,
                "loss_scale_successes": scale.successes,
            },
            optimizer=self.config.solver.optimizer,
        )

    def load_state(self, state: TrainingState) -> LoadResult:
        """Continue from a state of either framework, strictly; what was ignored or widened.

        Raises:
            StateMismatchError: names are missing or unexpected, or shapes or dtypes differ. Nothing was written.
            ValueError: the state is of another optimizer.
        """
        state, result = match_training_state(state, self.state(), self.parameters)
        framework = converters.adapter(self.model)
        framework.write_state(self.model, state.weights)
        framework.write_slots(self.optimizer, state.slots)
        if self.ema:
            self.ema.load(state.ema, state.position["ema_updates"])
        self.gradients, self.unused = {}, frozenset()
        if state.gradients:
            self.unused = frozenset(self.parameters) - frozenset(state.gradients)
            self.gradients = {
                name: torch.from_numpy(state.gradients[name].copy()).to(value)
                if name in state.gradients
                else torch.zeros_like(value)
                for name, value in self.parameters.items()
            }
        self.step_number, self.last_update = state.position["step"], state.position["last_update"]
        self.optimizer_steps = state.position["optimizer_steps"]
        if self.loss_scale:
            self.loss_scale = LossScale(state.position["loss_scale"], state.position["loss_scale_successes"])
        return result

    def _update_weights(self) -> bool:
        if not self.gradients:
            raise RuntimeError(f"step {self.step_number} is to update the weights, but `backward` was not called")
        gradients = {name: gradient for name, gradient in self.gradients.items() if name not in self.unused}
        if self.loss_scale:
            finite = self._all_finite(gradients)
            self.loss_scale.update(finite)
            if not finite:
                self.gradients = {}
                return False
        if self.clip_norm is not None:
            clip_gradients(gradients, self.clip_norm)
        apply_gradients(self.optimizer, gradients)
        self.gradients = {}
        self.optimizer_steps += 1
        if self.ema:
            self.ema.update(self.model)
        return True

    def _tensor(self, images: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images)).to(self._like())

    @staticmethod
    def _all_finite(gradients: dict[str, Tensor]) -> bool:
        return all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())

    def _like(self) -> Tensor:
        """A tensor of the model's precision and device."""
        return next(iter(self.model.parameters()))
