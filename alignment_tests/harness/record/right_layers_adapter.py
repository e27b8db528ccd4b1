"""What Jittor's own layers and functions should compute: the same arguments and weights, given to PyTorch's.

Each entry takes PyTorch tensors where Jittor's takes Vars, in Jittor's own signature and with its own defaults, so that
a port's wrong argument stays wrong. ``v`` holds the layer's own Vars by name; buffers among them are changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

F: Any = functional  # arguments are those that a port gave Jittor: of no type that is known here
Own = dict[str, Tensor]
Layer = Callable[..., Any]  # (layer, its own tensors, arguments of the call) -> what the call returns

ALIGNED_MODES = ("linear", "bilinear", "bicubic", "trilinear")


def _batch_norm(m: Any, v: Own, x: Tensor) -> Tensor:
    statistics = v["running_mean"], v["running_var"]
    return F.batch_norm(x, *statistics, v.get("weight"), v.get("bias"), bool(m.is_train), m.momentum, m.eps)


def _instance_norm(m: Any, v: Own, x: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, v.get("weight"), v.get("bias"), True, m.momentum, m.eps)


def _layer_norm(m: Any, v: Own, x: Tensor) -> Tensor:
    return F.layer_norm(x, m.normalized_shape, v.get("weight"), v.get("bias"), m.eps)


def _group_norm(m: Any, v: Own, x: Tensor) -> Tensor:
    return F.group_norm(x, m.num_groups, v.get("weight"), v.get("bias"), m.eps)


def _pool(m: Any, v: Own, x: Tensor) -> Any:
    """``Pool``, or a layer that holds one."""
    pool = next((held for name in ("layer", "_layer") if (held := m.__dict__.get(name)) is not None), m)
    flat = len(pool.kernel_size) == 2
    if pool.op == "maximum":
        best = F.max_pool2d if flat else F.max_pool3d
        indices = bool(pool.return_indices)
        return best(x, pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode, return_indices=indices)
    mean = F.avg_pool2d if flat else F.avg_pool3d
    # Jittor keeps whether padding counts only where there is any.
    counted = pool.count_include_pad or not any(pool.padding)
    return mean(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, counted)


def _recurrent(kind: str) -> Layer:
    def compute(m: Any, v: Own, x: Tensor, hidden: Any = None) -> Any:
        options = {"num_layers": m.num_layers, "bias": m.bias, "batch_first": m.batch_first}
        options |= {"dropout": m.dropout, "bidirectional": m.bidirectional}
        options |= {"proj_size": m.proj_size} if kind == "LSTM" else {}
        options |= {"nonlinearity": m.nonlinearity} if kind == "RNN" else {}
        layer = getattr(torch.nn, kind)(m.input_size, m.hidden_size, **options).to(x.dtype)
        layer.load_state_dict({name: v[name] for name in layer.state_dict()})
        layer.train(bool(m.is_train))
        return layer(x, hidden)

    return compute


def _resized(x: Tensor, size: Any, scale: Any, mode: str, align_corners: bool) -> Tensor:
    corners = {"align_corners": bool(align_corners)} if mode in ALIGNED_MODES else {}
    return F.interpolate(x, size=size, scale_factor=scale, mode=mode, **corners)


def _made(function: Callable[..., Tensor]) -> Layer:
    """A layer that ``jt.make_module`` made of a function: its arguments follow the input."""
    return lambda m, v, *inputs: function(*inputs, *m.args, **m.kw)


def _interpolate(
    X: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "bilinear", align_corners: bool = False
) -> Tensor:
    return _resized(X, size, scale_factor, mode, align_corners)


def _resize(img: Tensor, size: Any, mode: str = "nearest", align_corners: bool = False) -> Tensor:
    return _resized(img, size, None, mode, align_corners)


def _softmax(x: Tensor, dim: Any = None, log: bool = False) -> Tensor:
    flat = dim is None or dim == ()
    given = x.reshape(-1) if flat else x
    found = (F.log_softmax if log else F.softmax)(given, 0 if flat else dim)
    return found.reshape(x.shape)


def _weighed(value: Any, *, one: float) -> Tensor | None:
    """Jittor's functional norms have numbers where there is no weight."""
    return value if isinstance(value, Tensor) else (None if value == one else torch.tensor(value))


def _f_layer_norm(
    x: Tensor, normalized_shape: Any, weight: Any = 1, bias: Any = 0, eps: float = 1e-5, elementwise_affine: bool = True
) -> Tensor:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    return F.layer_norm(x, shape, _weighed(weight, one=1), _weighed(bias, one=0), eps)


def _f_group_norm(x: Tensor, num_groups: int, weight: Any = 1, bias: Any = 0, eps: float = 1e-5) -> Tensor:
    return F.group_norm(x, num_groups, _weighed(weight, one=1), _weighed(bias, one=0), eps)


def _f_instance_norm(
    x: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = 1,
    bias: Any = 0,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return F.instance_norm(x, None, None, _weighed(weight, one=1), _weighed(bias, one=0), True, momentum, eps)


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Over axes that Jittor names ``dim`` or ``dims``; all of them where none is named."""

    def compute(x: Tensor, dim: Any = None, dims: Any = None, keepdims: bool = False, **options: Any) -> Tensor:
        axes = dims if dim is None else dim
        axes = tuple(range(x.ndim)) if axes is None or axes == () else axes
        found = function(x, axes, keepdim=bool(keepdims or options.pop("keepdim", False)), **options)
        return found if found.ndim else found.reshape(1)

    return compute


def _var(x: Tensor, axes: Any, keepdim: bool, unbiased: bool = False) -> Tensor:
    return torch.var(x, axes, unbiased=unbiased, keepdim=keepdim)


def _std(x: Tensor, axes: Any, keepdim: bool) -> Tensor:
    return torch.std(x, axes, keepdim=keepdim)


def _norm(
    x: Tensor, p: float = 2, dim: Any = -1, keepdims: bool = False, eps: float = 0.0, keepdim: bool = False
) -> Tensor:
    return torch.norm(x, p, dim, keepdim=keepdims or keepdim)


def _normalize(input: Tensor, p: float = 2, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return F.normalize(input, p, dim, eps)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "interpolate": _interpolate,
    "resize": _resize,
    "upsample": _resize,
    "softmax": _softmax,
    "log_softmax": lambda x, dim=None: _softmax(x, dim, True),
    "layer_norm": _f_layer_norm,
    "group_norm": _f_group_norm,
    "instance_norm": _f_instance_norm,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "leaky_relu": lambda x, scale=0.01: F.leaky_relu(x, scale),
    "softplus": lambda x, beta=1.0, threshold=20.0: F.softplus(x, beta, threshold),
    "log_sigmoid": F.logsigmoid,
    "mean": _reduced(torch.mean),
    "var": _reduced(_var),
    "std": _reduced(_std),
    "norm": _norm,
    "normalize": _normalize,
    "cumsum": lambda x, dim=None: torch.cumsum(x, -1 if dim is None else dim),
    "cumprod": lambda x, dim=None: torch.cumprod(x, -1 if dim is None else dim),
    "rsqrt": torch.rsqrt,
    "expm1": torch.expm1,
    "sigmoid": torch.sigmoid,
}

LAYERS: dict[str, Layer] = {
    "BatchNorm": _batch_norm,
    "InstanceNorm": _instance_norm,
    "LayerNorm": _layer_norm,
    "GroupNorm": _group_norm,
    "Pool": _pool,
    "Pool3d": _pool,
    "AvgPool2d": _pool,
    "AvgPool3d": _pool,
    "MaxPool2d": _pool,
    "MaxPool3d": _pool,
    "AdaptiveAvgPool2d": lambda m, v, x: F.adaptive_avg_pool2d(x, m.output_size),
    "AdaptiveAvgPool3d": lambda m, v, x: F.adaptive_avg_pool3d(x, m.output_size),
    "AdaptiveMaxPool2d": lambda m, v, x: F.adaptive_max_pool2d(x, m.output_size, bool(m.return_indices)),
    "AdaptiveMaxPool3d": lambda m, v, x: F.adaptive_max_pool3d(x, m.output_size, bool(m.return_indices)),
    "Upsample": lambda m, v, x: _resized(x, None, m.scale_factor, m.mode, m.align_corners),
    "UpsamplingBilinear2d": lambda m, v, x: _resized(x, None, m.scale_factor, m.mode, m.align_corners),
    "UpsamplingNearest2d": lambda m, v, x: _resized(x, None, m.scale_factor, m.mode, m.align_corners),
    "Resize": lambda m, v, x: _resized(x, m.size, None, m.mode, m.align_corners),
    "LSTM": _recurrent("LSTM"),
    "GRU": _recurrent("GRU"),
    "RNN": _recurrent("RNN"),
    "PReLU": lambda m, v, x: F.prelu(x, v["weight"]),
    "ELU": lambda m, v, x: F.elu(x, m.alpha),
    "Softplus": lambda m, v, x: F.softplus(x, m.beta, m.threshold),
    "Sigmoid": lambda m, v, x: torch.sigmoid(x),
    "softmax": _made(_softmax),
    "gelu": _made(F.gelu),
    "silu": _made(F.silu),
    "leaky_relu": _made(FUNCTIONS["leaky_relu"]),
}
