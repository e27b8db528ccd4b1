"""A classifier in training as the harness takes it: cross-entropy and SGD of each framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.training.trainee import Share, Trainee, alike_by_image

# Powers of two: float32 and float64 hold them alike, and Jittor takes Python floats as float32.
RATE, MOMENTUM, DECAY = 2.0**-4, 2.0**-1, 2.0**-10


@dataclass(frozen=True)
class Batch:
    """Images (N, 3, H, W) float32 and labels (N,)."""

    images: Array
    labels: Array


class ClassifierTrainee:
    """See ``alignment_tests.harness.training.trainee.Trainee``. The model is in the given precision already."""

    def __init__(self, model: Any, precision: str) -> None:
        self.model, self.precision = model, precision
        self.adapter = adapter_for(model)
        self.buffers: dict[str, Array] = {}
        kinds = {name: kind for name, (kind, _) in self.adapter.state(model).items()}
        self.weight_names = [name for name, kind in kinds.items() if kind == "parameter"]
        self.slots = {name: np.zeros_like(self.adapter.state(model)[name][1]) for name in self.weight_names}

    def scope(self) -> AbstractContextManager[None]:
        return nullcontext()

    def assign(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        return {}

    def margins(self, exact: Any, outputs: Any, batch: Batch, share: Share) -> dict[str, Array]:
        return {}

    def alike(self, name: str, sides: Sequence[Mapping[str, Array]]) -> Array:
        return alike_by_image(sides)

    def images(self, batch: Batch) -> Any:
        return self.adapter.from_numpy(batch.images.astype(self.precision))

    def state(self) -> dict[str, Array]:
        held = {f"{kind}/{name}": np.array(array) for name, (kind, array) in self.adapter.state(self.model).items()}
        return held | {f"momentum/{name}": np.array(slot) for name, slot in self.slots.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        own = self.adapter.state(self.model)
        arrays = {name.split("/", 1)[1]: array for name, array in state.items() if not name.startswith("momentum/")}
        cast = {name: arrays[name].astype(array.dtype) for name, (_, array) in own.items()}
        self.adapter.write(self.model, cast)
        self.slots = {name: state[f"momentum/{name}"].astype(self.precision) for name in self.weight_names}


class TorchTrainee(ClassifierTrainee):
    def forward(self, batch: Batch) -> Any:
        outputs = self.model.train()(self.images(batch))
        return outputs if hasattr(outputs, "shape") else outputs[0]  # GoogLeNet gives those of its aids as well

    def losses(self, outputs: Any, batch: Batch, assignment: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        return {"total": torch.nn.functional.cross_entropy(outputs, torch.from_numpy(batch.labels).long())}

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        import torch

        weights = dict(self.model.named_parameters())
        wanted = [*weights.values(), *extra]
        found = torch.autograd.grad(total, wanted, allow_unused=True)
        whole = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
        self.gradients = dict(zip(weights, whole, strict=False))
        return self.gradients, whole[len(weights) :]

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        import torch

        weights = dict(self.model.named_parameters())
        optimizer = torch.optim.SGD(weights.values(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        for name, weight in weights.items():
            given = self.gradients[name] if gradients is None else self.adapter.from_numpy(gradients[name])
            weight.grad = given.to(weight.dtype)
            optimizer.state[weight]["momentum_buffer"] = self.adapter.from_numpy(self.slots[name])
        optimizer.step()
        self.slots = {name: optimizer.state[w]["momentum_buffer"].numpy() for name, w in weights.items()}
        for weight in weights.values():
            weight.grad = None


class JittorTrainee(ClassifierTrainee):
    def weights(self) -> dict[str, Any]:
        owners = dict(self.adapter.modules(self.model))
        parts = [(name, *name.rpartition(".")[::2]) for name in self.weight_names]
        return {name: owners[path].__dict__[leaf] for name, path, leaf in parts}

    def forward(self, batch: Batch) -> Any:
        for _, module in self.adapter.modules(self.model):
            module.is_train = True
        return self.model(self.images(batch))

    def losses(self, outputs: Any, batch: Batch, assignment: Mapping[str, Any]) -> dict[str, Any]:
        import jittor as jt

        return {"total": jt.nn.cross_entropy_loss(outputs, jt.array(batch.labels.astype(np.int32)))}

    def backward(self, total: Any, extra: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        import jittor as jt

        weights = self.weights()
        found = jt.grad(total, [*weights.values(), *extra])
        self.gradients = dict(zip(weights, found, strict=False))
        return self.gradients, found[len(weights) :]

    def update(self, gradients: Mapping[str, Array] | None) -> None:
        import jittor as jt

        weights = self.weights()
        optimizer = jt.optim.SGD(list(weights.values()), RATE, momentum=MOMENTUM, weight_decay=DECAY)
        (group,) = optimizer.param_groups
        # What ``optimizer.backward(loss)`` would put there.
        group["grads"] = [
            self.gradients[name] if gradients is None else self.adapter.from_numpy(gradients[name]) for name in weights
        ]
        group["values"] = [self.adapter.from_numpy(self.slots[name]).stop_grad() for name in weights]
        optimizer.step()
        self.slots = {name: value.numpy() for name, value in zip(weights, group["values"], strict=True)}
        jt.sync_all()


TRAINEES: dict[str, Callable[[Any, str], Trainee]] = {"torch": TorchTrainee, "jittor": JittorTrainee}


def trainee_of(model: Any, precision: str) -> Trainee:
    return TRAINEES[adapter_for(model).name](model, precision)
