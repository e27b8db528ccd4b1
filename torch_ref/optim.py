"""Optimizer, average of the weights, clipping of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fixtures.config import GoldYoloConfig
from fixtures.training.schedule import StepSettings, ema_decay, scaled_lr, scaled_weight_decay

Array = npt.NDArray[Any]

GROUPS = ("norm", "weight", "bias")
SECOND_BETA = 0.999


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, Tensor]]]:
    """Names and parameters in three groups, frozen ones included, in the order of the modules.

    "norm" holds the weights of batch norms, "weight" every other ``weight``, "bias" every ``bias``. Parameters of other
    names (``alpha``, ``detect.proj``) are in none: the public recipe never trains them.
    """
    groups: dict[str, list[tuple[str, Tensor]]] = {group: [] for group in GROUPS}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            group = "norm" if name == "weight" and isinstance(module, nn.BatchNorm2d) else name
            if group in groups:
                groups[group].append((f"{path}.{name}" if path else name, parameter))
    return groups


def sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True)


def adam(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=lr, betas=(momentum, SECOND_BETA))


def adamw(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, SECOND_BETA))


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw}


def build_optimizer(model: nn.Module, config: GoldYoloConfig, batch_size: int) -> torch.optim.Optimizer:
    """The optimizer that ``config.solver`` names, over the three groups; only group "weight" decays.

    Args:
        model: any whose parameters follow the names of ``parameter_groups``.
        config: from ``fixtures.config.load_config``.
        batch_size: images per step; learning rate and decay are scaled by it.

    Raises:
        ValueError: the optimizer is unknown.
    """
    solver = config.solver
    if solver.optimizer not in OPTIMIZERS:
        raise ValueError(f"`solver.optimizer` must be one of {sorted(OPTIMIZERS)}. Received: {solver.optimizer!r}")
    decay = scaled_weight_decay(solver, batch_size)
    groups = [
        {"name": name, "params": named, "weight_decay": decay if name == "weight" else 0.0}
        for name, named in parameter_groups(model).items()
    ]
    return OPTIMIZERS[solver.optimizer](groups, scaled_lr(solver, batch_size), solver.momentum)


def apply_settings(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Rates and momentum of a step. The betas of Adam stay: the public warm-up knows only ``momentum``."""
    for group in optimizer.param_groups:
        group["lr"] = settings.bias_lr if group["name"] == "bias" else settings.lr
        if "momentum" in group:
            group["momentum"] = settings.momentum


def apply_gradients(optimizer: torch.optim.Optimizer, gradients: Mapping[str, Tensor]) -> None:
    """One update by these gradients, by name. What is frozen or has none is left alone, decay included."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            parameter.grad = gradients.get(name) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()


def clip_gradients(gradients: dict[str, Tensor], max_norm: float) -> float:
    """Scale all gradients so that their common 2-norm is at most ``max_norm``; the norm that they had.

    The formula of ``torch.nn.utils.clip_grad_norm_``: times min(1, max_norm / (norm + 1e-6)).
    """
    if not gradients:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()])))
    coefficient = min(max_norm / (norm + 1e-6), 1.0)
    for name, gradient in gradients.items():
        gradients[name] = gradient * coefficient
    return norm


class ModelEma:
    """Exponential moving average of a model's floating state: weights, frozen ones and running statistics alike.

    Attributes:
        updates: how many were made; the decay rises with it.
        average: by state key, in the model's precision.
    """

    def __init__(self, model: nn.Module) -> None:
        self.updates = 0
        self.average = {name: value.detach().clone() for name, value in floating_state(model).items()}

    def update(self, model: nn.Module) -> None:
        """Take the model's present state in. The model is only read."""
        self.updates += 1
        decay = ema_decay(self.updates)
        with torch.no_grad():
            for name, value in floating_state(model).items():
                self.average[name].mul_(decay).add_(value, alpha=1.0 - decay)

    def state(self) -> dict[str, Array]:
        """Copies as numpy arrays."""
        return {name: np.array(value.cpu().numpy(), order="C") for name, value in self.average.items()}

    def load(self, state: Mapping[str, Array], updates: int) -> None:
        """Go on from arrays of the same names, shapes and dtypes."""
        self.updates = updates
        for name, array in state.items():
            self.average[name].copy_(torch.from_numpy(array.copy()))


def floating_state(model: nn.Module) -> dict[str, Tensor]:
    """State by key, without integer counters."""
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
