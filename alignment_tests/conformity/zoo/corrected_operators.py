"""Jittor's operators as they would have to be, so that a report shows that nothing else differs.

Each corrects a difference that the operator table proves, and is in force only inside ``corrected``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from jt_impl.runtime import load

BATCH_NORM = "batch norm: the running variance is biased, and Python floats are float32 in a float64 graph"
ADAPTIVE_POOL = "adaptive average pool: one window for all outputs, none where the map is smaller than the output"

MEAN = "mean: its float64 gradient is multiplied by a float32 reciprocal of the count"


@contextmanager
def corrected(names: tuple[str, ...]) -> Iterator[None]:
    """Put the right operators in place of Jittor's and take them out again."""
    jt = load()
    right = {
        BATCH_NORM: [(jt.nn.BatchNorm, "execute", batch_norm)],
        ADAPTIVE_POOL: [(jt.nn.AdaptiveAvgPool2d, "execute", adaptive_average)],
        MEAN: [(jt, "mean", mean), (jt.Var, "mean", mean), (jt.Var, "reduce", reduce_with(jt.Var.reduce))],
    }
    wanted = [place for name in names for place in right[name]]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    for owner, name, made in wanted:
        setattr(owner, name, made)
    try:
        yield
    finally:
        for owner, name, before in kept:
            setattr(owner, name, before)


def mean(x: Any, *args: Any, **kwargs: Any) -> Any:
    """The sum times the reciprocal of the count, in the precision of ``x``."""
    total = x.sum(*args, **kwargs)
    return total * constant(total.numel() / x.numel(), x)


def reduce_with(original: Any) -> Any:
    def reduce(x: Any, op: str, *args: Any, **kwargs: Any) -> Any:
        return mean(x, *args, **kwargs) if op == "mean" else original(x, op, *args, **kwargs)

    return reduce


def constant(value: float, like: Any) -> Any:
    """A number in the precision of ``like``; a Python float would come as float32."""
    import jittor as jt

    return jt.array64(np.array([value])) if str(like.dtype) == "float64" else jt.array(np.array([value], np.float32))


def batch_norm(self: Any, x: Any) -> Any:
    """Jittor's formula with an unbiased running variance and exact constants."""
    import jittor as jt

    dims = [0, *range(2, x.ndim)]
    eps, momentum = constant(self.eps, x), constant(self.momentum, x)
    mean, variance = self.running_mean, self.running_var
    if self.is_train:
        mean = x.mean(dims=dims)
        centred = x - mean.broadcast(x, dims)
        variance = (centred * centred).mean(dims=dims)
        count = x.numel() // x.shape[1]
        unbiased = variance * constant(count / max(count - 1, 1), x)
        self.running_mean.update(self.running_mean + (mean - self.running_mean) * momentum)
        self.running_var.update(self.running_var + (unbiased - self.running_var) * momentum)
    scale = self.weight / jt.sqrt(variance + eps)
    return (x - mean.broadcast(x, dims)) * scale.broadcast(x, dims) + self.bias.broadcast(x, dims)


def adaptive_average(self: Any, x: Any) -> Any:
    """Windows from floor(i * n / out) to ceil((i + 1) * n / out), as sums with a matrix on either side."""
    import jittor as jt

    wanted = self.output_size if isinstance(self.output_size, (tuple, list)) else (self.output_size,) * 2
    for axis, (size, out) in enumerate(zip(x.shape[2:], wanted, strict=True)):
        matrix = np.zeros((size, out), str(x.dtype))
        for i in range(out):
            start, end = i * size // out, -(-(i + 1) * size // out)
            matrix[start:end, i] = 1.0 / (end - start)
        made = jt.array64(matrix) if str(x.dtype) == "float64" else jt.array(matrix)
        x = jt.matmul(x, made) if axis else jt.matmul(x.transpose(0, 1, 3, 2), made).transpose(0, 1, 3, 2)
    return x
