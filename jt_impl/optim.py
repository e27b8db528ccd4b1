"""Optimizer, average of the weights, clipping of gradients.

Jittor's own optimizers take hyperparameters as float32 even in a float64 graph, decay parameters that have no
gradient, count an Adam step at every ``backward`` and keep Adam's eps out of the bias correction. Those below compute
what ``torch.optim`` does. Hyperparameters enter kernels as one array of several elements per group: Jittor compiles a
kernel anew for a scalar of 0, 1 or 2, such as the first learning rate of a warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fixtures.config import GoldYoloConfig
from fixtures.training.schedule import StepSettings, ema_decay, scaled_lr, scaled_weight_decay
from jt_impl.kernels.functional import with_one_consumer
from jt_impl.kernels.statistics import total
from jt_impl.layers import BatchNorm2d, Var, nn, to_var
from jt_impl.runtime import jittor as jt

Array = npt.NDArray[Any]
Slots = dict[str, dict[str, Array]]

GROUPS = ("norm", "weight", "bias")
SECOND_BETA = 0.999


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, Var]]]:
    """Names and parameters in three groups, frozen ones included, in the order of the modules.

    "norm" holds the weights of batch norms, "weight" every other ``weight``, "bias" every ``bias``. Parameters of other
    names (``alpha``, ``detect.proj``) are in none: the public recipe never trains them.
    """
    groups: dict[str, list[tuple[str, Var]]] = {group: [] for group in GROUPS}
    for path, module in model.named_modules():
        for name, parameter in own_vars(module):
            group = "norm" if name == "weight" and isinstance(module, BatchNorm2d) else name
            if group in groups:
                groups[group].append((f"{path}.{name}" if path else name, parameter))
    return groups


def own_vars(module: nn.Module) -> list[tuple[str, Var]]:
    """Parameters and buffers of this very module: attributes without a leading underscore."""
    return [(name, value) for name, value in vars(module).items() if isinstance(value, jt.Var) and name[0] != "_"]


def named_vars(model: nn.Module) -> dict[str, Var]:
    """Parameters and buffers by state key, in the order of the modules."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in own_vars(module)
    }


def is_buffer(name: str) -> bool:
    """Whether a state key is of running statistics, which PyTorch does not count among the parameters."""
    return name.rsplit(".", 1)[-1].startswith("running_")


def gradients_of(loss: Var, tensors: Sequence[Var], retain_graph: bool = False) -> tuple[list[Var], list[bool]]:
    """Gradients by each tensor, and whether ``loss`` depends on it at all (where not, the gradient is zero).

    Jittor makes the zeros of unconnected tensors last, in their order, and its variables are numbered as they are made.
    A sentinel in front that nothing depends on therefore has the first of these numbers.
    """
    sentinel = jt.array(np.zeros(2, np.float32)).start_grad()
    first, *gradients = jt.grad(with_one_consumer(loss), [sentinel, *tensors], retain_graph)
    return [gradient.stop_grad() for gradient in gradients], [gradient.id < first.id for gradient in gradients]


# Each updates one parameter: in0 is the parameter, in1 its gradient, then the slots and last the hyperparameters.
LOOP = """
    const int64 count = in0->num;
    {constants}
    #pragma omp parallel for simd if (count > 20000)
    for (int64 i = 0; i < count; ++i) {
        {body}
    }
"""
SGD_KERNEL = (
    "const in0_type lr = in3_p[0], momentum = in3_p[1], decay = in3_p[2];",
    """
        const in0_type slope = decay ? in1_p[i] + decay * in0_p[i] : in1_p[i];
        const in0_type velocity = momentum * in2_p[i] + slope;
        out1_p[i] = velocity;
        out0_p[i] = in0_p[i] - lr * (slope + momentum * velocity);
    """,
)
ADAM_KERNEL = (
    "const in0_type keep = in4_p[0], rest = in4_p[1], keep2 = in4_p[2], rest2 = in4_p[3], eps = in4_p[4];"
    "const in0_type root = in4_p[5], size = in4_p[6], decay = in4_p[7], shrink = in4_p[8];",
    """
        const in0_type start = in0_p[i] * shrink;
        const in0_type slope = decay ? in1_p[i] + decay * in0_p[i] : in1_p[i];
        const in0_type first = in2_p[i] * keep + slope * rest;
        const in0_type second = in3_p[i] * keep2 + slope * slope * rest2;
        out1_p[i] = first;
        out2_p[i] = second;
        out0_p[i] = start - size * (first / (std::sqrt(second) / root + eps));
    """,
)
EMA_KERNEL = ("const in0_type decay = in2_p[0], rest = in2_p[1];", "out0_p[i] = in0_p[i] * decay + in1_p[i] * rest;")


def by_kernel(kernel: tuple[str, str], values: Sequence[Var], outputs: int) -> list[Var]:
    """Run a kernel over arrays of one shape (the last value holds hyperparameters); so many new arrays."""
    source = LOOP.replace("{constants}", kernel[0]).replace("{body}", kernel[1])
    shape, dtype = values[0].shape, values[0].dtype
    return list(jt.code([shape] * outputs, [dtype] * outputs, values, cpu_header="#include <cmath>\n", cpu_src=source))


def uses_kernels() -> bool:
    return not jt.flags.use_cuda


def sgd_step(parameter: Var, gradient: Var, velocity: Var, hyper: Var) -> list[Var]:
    """New parameter and velocity; Nesterov, no dampening."""
    if uses_kernels():
        return by_kernel(SGD_KERNEL, [parameter, gradient, velocity, hyper], 2)
    lr, momentum, decay = (hyper[i] for i in range(3))
    slope = gradient + decay * parameter
    velocity = momentum * velocity + slope
    return [parameter - lr * (slope + momentum * velocity), velocity]


def adam_step(parameter: Var, gradient: Var, first: Var, second: Var, hyper: Var) -> list[Var]:
    """New parameter and moments."""
    if uses_kernels():
        return by_kernel(ADAM_KERNEL, [parameter, gradient, first, second, hyper], 3)
    keep, rest, keep2, rest2, eps, root, size, decay, shrink = (hyper[i] for i in range(9))
    slope = gradient + decay * parameter
    first = first * keep + slope * rest
    second = second * keep2 + slope * slope * rest2
    return [parameter * shrink - size * (first / (jt.sqrt(second) / root + eps)), first, second]


def ema_step(average: Var, value: Var, hyper: Var) -> Var:
    if uses_kernels():
        return by_kernel(EMA_KERNEL, [average, value, hyper], 1)[0]
    return average * hyper[0] + value * hyper[1]


class GroupOptimizer(jt.optim.Optimizer):
    """What the optimizers share: named groups, gradients by name, slots by name.

    Used like Jittor's own (``step(loss)``, or ``backward(loss)`` several times and then ``step()``; set
    ``param_groups[i]["lr"]``), or with gradients at hand (``apply``).

    Attributes:
        param_groups: dicts with "name", "params", "param_names" and the hyperparameters.
        slots: per kind of slot and parameter name what is carried from update to update.
        n_step: updates made.
    """

    slot_values: ClassVar[Mapping[str, float]]  # kinds of slots, and what stands in one before the first update
    rule: ClassVar[Callable[..., list[Var]]]  # (parameter, gradient, *slots, hyper) to new parameter and slots

    def __init__(self, groups: list[dict[str, Any]], lr: float, **defaults: Any) -> None:
        made = []
        for group in groups:
            names, params = [name for name, _ in group["params"]], [value for _, value in group["params"]]
            made.append({"lr": lr, **defaults, **group, "params": params, "param_names": names})
        super().__init__(made, lr)
        self.gradients: dict[str, Var] = {}
        self.slots: dict[str, dict[str, Var]] = {
            slot: {name: filled(value, parameter) for name, parameter in self.trainable().items()}
            for slot, value in self.slot_values.items()
        }

    def trainable(self) -> dict[str, Var]:
        """Parameters that are not frozen, by name."""
        return {
            name: parameter
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
            if not parameter.is_stop_grad()
        }

    def apply(self, gradients: Mapping[str, Var]) -> None:
        """One update by these gradients, by name. What is frozen or has none is left alone, decay included."""
        self.n_step += 1
        shared: dict[tuple[Any, ...], Var] = {}
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if name in gradients and not parameter.is_stop_grad():
                    values = self.hyper(group, name)
                    key = (values, str(parameter.dtype))
                    if key not in shared:
                        shared[key] = to_var(np.array(values), parameter).stop_grad()
                    self.update_one(name, parameter, gradients[name].stop_grad(), shared[key])

    def hyper(self, group: dict[str, Any], name: str) -> tuple[float, ...]:
        """What the rule needs beside arrays, for the update that is under way."""
        raise NotImplementedError

    def update_one(self, name: str, parameter: Var, gradient: Var, hyper: Var) -> None:
        """New values for a parameter, which stays trainable, and its slots, which stay frozen."""
        slots = [named[name] for named in self.slots.values()]
        values = self.rule(parameter.detach(), gradient, *slots, hyper)
        for var, value in zip([parameter, *slots], values, strict=True):
            var.update(value.detach())

    def backward(self, loss: Var, retain_graph: bool = False) -> None:
        """Add the gradients of ``loss`` to those since the last ``step`` or ``zero_grad``.

        Raises:
            RuntimeError: every parameter is frozen, as ``eval()`` leaves them.
        """
        named = self.trainable()
        if not named:
            raise RuntimeError("no parameter is trainable. Is the model in eval mode? Jittor freezes it there")
        found, used = gradients_of(loss, list(named.values()), retain_graph)
        if self.gradients:
            jt.sync(found)  # a sum fused into the backward pass would compile its kernels anew
        for name, gradient, connected in zip(named, found, used, strict=True):
            if connected:
                known = self.gradients.get(name)
                self.gradients[name] = gradient if known is None else (known + gradient).stop_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.gradients = {}

    def step(self, loss: Var | None = None, retain_graph: bool = False) -> None:
        """Update by the gradients since the last update, after adding those of ``loss`` if one is given."""
        if loss is not None:
            self.backward(loss, retain_graph)
        self.apply(self.gradients)
        self.zero_grad()

    def clip_grad_norm(self, max_norm: float, norm_type: int = 2) -> None:
        """See ``clip_gradients``."""
        if norm_type != 2:
            raise ValueError(f"`norm_type` must be 2. Received: {norm_type}")
        clip_gradients(self.gradients, max_norm)

    def find_grad(self, v: Var) -> Var:
        """The gradient of a parameter (``v.opt_grad(optimizer)``)."""
        name = next((name for name, parameter in self.trainable().items() if parameter is v), None)
        if name not in self.gradients:
            raise RuntimeError("the variable is not trained by this optimizer, or has no gradient yet")
        return self.gradients[name]

    def state_dict(self) -> dict[str, Any]:
        """Copies of the slots as numpy arrays, and the number of updates."""
        slots = {slot: {name: np.array(v.numpy()) for name, v in named.items()} for slot, named in self.slots.items()}
        return {"slots": slots, "n_step": self.n_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from slots of the same names and shapes."""
        self.n_step = state["n_step"]
        for slot, named in self.slots.items():
            for name, var in named.items():
                var.update(to_var(state["slots"][slot][name], var).stop_grad())


class SGD(GroupOptimizer):
    """Nesterov momentum without dampening, as ``torch.optim.SGD``."""

    # A velocity of -0.0 stands for none: the first one is then the gradient, bit for bit, as in PyTorch.
    slot_values: ClassVar = {"momentum": -0.0}
    rule = staticmethod(sgd_step)

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, lr, momentum=momentum, nesterov=True, weight_decay=0.0)

    def hyper(self, group: dict[str, Any], name: str) -> tuple[float, ...]:
        return group["lr"], group["momentum"], group["weight_decay"]


class Adam(GroupOptimizer):
    """As ``torch.optim.Adam``: decay is added to the gradient, eps stands inside the bias correction."""

    slot_values: ClassVar = {"first": 0.0, "second": 0.0}
    rule = staticmethod(adam_step)
    decoupled = False

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr, betas=betas, eps=1e-8, weight_decay=0.0)
        self.steps = dict.fromkeys(self.slots["first"], 0)  # by parameter: one without gradient does not age

    def hyper(self, group: dict[str, Any], name: str) -> tuple[float, ...]:
        self.steps[name] += 1
        step, (beta, beta2), lr, decay = self.steps[name], group["betas"], group["lr"], group["weight_decay"]
        size, root = lr / (1.0 - beta**step), (1.0 - beta2**step) ** 0.5
        coupled, shrink = (0.0, 1.0 - lr * decay) if self.decoupled else (decay, 1.0)
        return beta, 1.0 - beta, beta2, 1.0 - beta2, group["eps"], root, size, coupled, shrink

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["slots"]["step"] = {name: np.array(step) for name, step in self.steps.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = {name: int(step) for name, step in state["slots"]["step"].items()}


class AdamW(Adam):
    """As ``torch.optim.AdamW``: decay shrinks the parameter."""

    decoupled = True


def filled(value: float, like: Var) -> Var:
    """A frozen array of one value; from numpy, since Jittor's own constants lose the sign of -0.0."""
    return to_var(np.full(tuple(like.shape), value), like).stop_grad()


def adam(groups: list[dict[str, Any]], lr: float, momentum: float) -> GroupOptimizer:
    return Adam(groups, lr, betas=(momentum, SECOND_BETA))


def adamw(groups: list[dict[str, Any]], lr: float, momentum: float) -> GroupOptimizer:
    return AdamW(groups, lr, betas=(momentum, SECOND_BETA))


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, float], GroupOptimizer]] = {
    "sgd": SGD,
    "adam": adam,
    "adamw": adamw,
}


def build_optimizer(model: nn.Module, config: GoldYoloConfig, batch_size: int) -> GroupOptimizer:
    """The optimizer that ``config.solver`` names, over the three groups; only group "weight" decays.

    Args:
        model: any whose parameters follow the names of ``parameter_groups``; in train mode.
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


def apply_settings(optimizer: GroupOptimizer, settings: StepSettings) -> None:
    """Rates and momentum of a step. The betas of Adam stay: the public warm-up knows only ``momentum``."""
    for group in optimizer.param_groups:
        group["lr"] = settings.bias_lr if group["name"] == "bias" else settings.lr
        if "momentum" in group:
            group["momentum"] = settings.momentum


def apply_gradients(optimizer: GroupOptimizer, gradients: Mapping[str, Var]) -> None:
    """One update by these gradients, by name. What is frozen or has none is left alone, decay included."""
    optimizer.apply(gradients)


def clip_gradients(gradients: dict[str, Var], max_norm: float) -> float:
    """Scale all gradients so that their common 2-norm is at most ``max_norm``; the norm that they had.

    The formula of ``torch.nn.utils.clip_grad_norm_``: times min(1, max_norm / (norm + 1e-6)).
    """
    if not gradients:
        return 0.0
    squares = jt.concat([total(gradient * gradient) for gradient in gradients.values()]).numpy()
    norm = float(np.sqrt(squares.sum(dtype=np.float64)))
    coefficient = min(max_norm / (norm + 1e-6), 1.0)
    for name, gradient in gradients.items():
        gradients[name] = (gradient * to_var(np.array([coefficient, 0.0]), gradient)[0]).stop_grad()
    return norm


class ModelEma:
    """Exponential moving average of a model's floating state: weights, frozen ones and running statistics alike.

    Attributes:
        updates: how many were made; the decay rises with it.
        average: by state key, in the model's precision.
    """

    def __init__(self, model: nn.Module) -> None:
        self.updates = 0
        self.average = {name: to_var(value.numpy(), value).stop_grad() for name, value in floating_state(model).items()}

    def update(self, model: nn.Module) -> None:
        """Take the model's present state in. The model is only read."""
        self.updates += 1
        decay = ema_decay(self.updates)
        values, shared = np.array([decay, 1.0 - decay]), {}
        for name, value in floating_state(model).items():
            average = self.average[name]
            dtype = str(average.dtype)
            if dtype not in shared:
                shared[dtype] = to_var(values, average).stop_grad()
            average.update(ema_step(average, value.detach(), shared[dtype]).detach())

    def state(self) -> dict[str, Array]:
        """Copies as numpy arrays."""
        return {name: np.array(value.numpy(), order="C") for name, value in self.average.items()}

    def load(self, state: Mapping[str, Array], updates: int) -> None:
        """Go on from arrays of the same names, shapes and dtypes."""
        self.updates = updates
        for name, array in state.items():
            self.average[name].update(to_var(array.copy(), self.average[name]).stop_grad())


def floating_state(model: nn.Module) -> dict[str, Var]:
    """State by key, without integer counters."""
    return {name: value for name, value in named_vars(model).items() if str(value.dtype).startswith("float")}
