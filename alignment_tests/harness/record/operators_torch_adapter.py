"""Show the functions of PyTorch that a module's code calls to a recorder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from alignment_tests.harness.record.operators import Recorder, module_calls


class _Shown(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):  # of an attribute: Tensor.mT
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        return self.recorder.call(name, func, args, kwargs or {})


@contextmanager
def shown(recorder: Recorder, modules: list[Any], whole: Mapping[int, str]) -> Iterator[None]:
    """Inside, every function of PyTorch that is called passes through ``recorder``.

    Args:
        recorder: takes the operators.
        modules: of the model.
        whole: identity -> name, of modules that count as one operator.
    """
    with module_calls(recorder, modules, lambda module: whole.get(id(module))), _Shown(recorder):
        yield


def parts(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a port computes by hand on the way to the result of PyTorch's function of that name."""
    make = PARTS.get(name)
    if make is None:
        return []
    try:
        return list(make(*args, **kwargs))
    except Exception:  # arguments of another form: the function is then known by its result alone
        return []


def _normalized(x: Any, axes: list[int], eps: float, mean: Any = None, variance: Any = None) -> Iterator[Any]:
    if mean is None:
        mean = x.mean(axes, keepdim=True)
        variance = x.var(axes, unbiased=False, keepdim=True)
        yield from (x.square(), x.square().mean(axes), mean.square())
    yield from (mean, variance, x - mean, (x - mean).square())
    deviation = (variance + eps).sqrt()
    yield from (variance + eps, deviation, 1 / deviation, (x - mean) / deviation, variance.sqrt())


def _layer_norm(
    x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Iterator[Any]:
    axes = list(range(-len(normalized_shape), 0))
    yield from _normalized(x, axes, eps)
    if weight is not None:
        yield F.layer_norm(x, normalized_shape, weight, None, eps)


def _group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Iterator[Any]:
    yield from _normalized(x.reshape(x.shape[0], num_groups, -1), [-1], eps)
    if weight is not None:
        yield F.group_norm(x, num_groups, weight, None, eps)


def _rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Iterator[Any]:
    square = x.square().mean(list(range(-len(normalized_shape), 0)), keepdim=True)
    inner = square + (torch.finfo(x.dtype).eps if eps is None else eps)
    yield from (x.square(), square, inner, inner.sqrt(), inner.rsqrt(), x * inner.rsqrt())


def _batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Iterator[Any]:
    shape = (1, -1, *([1] * (x.dim() - 2)))
    axes = [axis for axis in range(x.dim()) if axis != 1]
    held = (None, None) if training else (running_mean.reshape(shape), running_var.reshape(shape))
    yield from _normalized(x, axes, eps, *held)
    if weight is not None:
        deviation = (held[1] if held[1] is not None else x.var(axes, unbiased=False, keepdim=True)).add(eps).sqrt()
        scale = weight.reshape(shape) / deviation
        yield from (scale, scale * x, scale * (x - (held[0] if held[0] is not None else x.mean(axes, keepdim=True))))


def _softmax(x: Any, dim: int | None = None, *rest: Any, **named: Any) -> Iterator[Any]:
    moved = x - x.amax(dim, keepdim=True)
    yield from (x.amax(dim), x.exp(), x.exp().sum(dim), moved, moved.exp(), moved.exp().sum(dim))
    yield from (x.softmax(dim), x.log_softmax(dim), x.logsumexp(dim))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[Any]:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = query @ key.transpose(-2, -1)
    yield from (query * factor, logits, logits * factor)
    scores = logits * factor
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        yield scores
    yield scores.softmax(-1)


def _gelu(x: Any, approximate: str = "none") -> Iterator[Any]:
    if approximate == "tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x**3)
        yield from (x**3, 0.044715 * x**3, x + 0.044715 * x**3, inner, inner.tanh(), 1 + inner.tanh(), 0.5 * x)
    else:
        inner = (x * 0.7071067811865476).erf()
        yield from (x * 0.7071067811865476, inner, 1 + inner, 0.5 * x, x * (1 + inner), 0.5 * (1 + inner))


def _linear(x: Any, weight: Any, bias: Any = None) -> Iterator[Any]:
    yield F.linear(x, weight)


def _convolution(name: str) -> Callable[..., Iterator[Any]]:
    def parts_of(x: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Iterator[Any]:
        yield getattr(F, name)(x, weight, None, *rest, **named)

    return parts_of


def _normalize(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Iterator[Any]:
    norm = x.norm(p, dim, keepdim=True)
    yield from (x.square(), x.square().sum(dim), norm, norm.clamp_min(eps), norm + eps)


PARTS: dict[str, Callable[..., Iterator[Any]]] = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "batch_norm": _batch_norm,
    "instance_norm": lambda x, *a, eps=1e-5, **k: _normalized(x, list(range(2, x.dim())), eps),
    "softmax": _softmax,
    "log_softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "gelu": _gelu,
    "silu": lambda x, inplace=False: iter([x.sigmoid(), (-x).exp(), 1 + (-x).exp()]),
    "mish": lambda x, inplace=False: iter([F.softplus(x), F.softplus(x).tanh()]),
    "hardswish": lambda x, inplace=False: iter([x + 3, F.relu6(x + 3), F.relu6(x + 3) / 6, x * F.relu6(x + 3)]),
    "hardsigmoid": lambda x, inplace=False: iter([x + 3, F.relu6(x + 3), x / 6, x / 6 + 0.5]),
    "linear": _linear,
    "normalize": _normalize,
    **{name: _convolution(name) for name in ("conv1d", "conv2d", "conv3d")},
    **{name: _convolution(name) for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")},
}
