"""Functions that Jittor has not, or that differ from PyTorch's in their values or gradients, on any device.

Each says what was found (Jittor 1.3.11 against PyTorch). Masks are cast by hand throughout: Jittor's bool arithmetic
gives int8, whose sums wrap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jt_impl.kernels import code, exponential
from jt_impl.layers import constant, to_var
from jt_impl.runtime import jittor as jt

Var = Any


def as_float(mask: Var, like: Var) -> Var:
    """A mask as 0 and 1 in the dtype of ``like``."""
    return mask.cast(str(like.dtype))


def select(mask: Var, a: Var, b: Var) -> Var:
    """``a`` where the mask is set, else ``b``; mask and ``b`` are broadcast to the shape of ``a``."""
    return jt.ternary(mask.broadcast(a.shape), a, b.broadcast(a.shape))


def maximum(a: Var, b: Var) -> Var:
    """``jt.maximum`` gives the whole gradient of a tie to its second argument; PyTorch halves it."""
    return jt.ternary(a > b, a, jt.ternary(b > a, b, (a + b) * 0.5))


def minimum(a: Var, b: Var) -> Var:
    """As ``maximum``."""
    return jt.ternary(a < b, a, jt.ternary(b < a, b, (a + b) * 0.5))


def clamp_min(x: Var, bound: float) -> Var:
    """Gradient 0 at the bound, as in PyTorch 2.15. ``bound`` must be exact in float32."""
    return jt.ternary(x <= bound, jt.full_like(x, bound), x)


def clamp(x: Var, low: float, high: float) -> Var:
    """As ``clamp_min``; ``high`` is taken in the precision of ``x``."""
    bound = constant(high, x)
    return jt.ternary(x >= bound, jt.zeros_like(x) + bound, clamp_min(x, low))


def absolute(x: Var) -> Var:
    """Gradient 0 at 0, as in PyTorch; ``jt.abs`` has 1 there."""
    return jt.ternary(x > 0.0, x, jt.ternary(x < 0.0, -x, jt.zeros_like(x)))


# Of each floating type: an unsigned integer of its size, and the bits of the exponent in it.
EXPONENTS = {
    "float16": ("unsigned short", "0x7c00"),
    "bfloat16": ("unsigned short", "0x7f80"),
    "float32": ("unsigned int", "0x7f800000"),
    "float64": ("unsigned long long", "0x7ff0000000000000"),
}
# In one thread: all gradients of N took 8 ms, with threads that other processes had to share the cores with up to 400.
FINITE = """
    const int64 count = in0->num;
    for (int64 i = 0; i < count; ++i) {
        {word} bits;
        std::memcpy(&bits, in0_p + i, sizeof bits);
        out0_p[i] = (bits & {mask}) != {mask};
    }
"""
CUDA_FINITE_HEADER = """
#include <cstring>
template <class Word, class T>
static __global__ void are_finite(const T* x, bool* finite, long long count, Word mask) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= count) return;
    Word bits;
    memcpy(&bits, x + i, sizeof bits);
    finite[i] = (bits & mask) != mask;
}
"""
CUDA_FINITE = """
    if (in0->num) are_finite<{word}><<<(in0->num + 255) / 256, 256>>>(in0_p, out0_p, in0->num, {mask});
"""


def is_finite(x: Var) -> Var:
    """Whether each element is neither NaN nor infinite, as bool, by the bits of its exponent.

    A compiler that was given -Ofast, as Jittor's own default is, holds ``x - x == 0`` and C's ``isfinite`` to be true
    always, and a check for NaN would be silent. Jittor's own ``isfinite`` has Python write its kernel, which kills the
    process on Python 3.12 (docs/jittor.md).
    """
    if str(x.dtype) not in EXPONENTS:
        return jt.ones(x.shape, "bool")
    word, mask = EXPONENTS[str(x.dtype)]
    sources = [source.replace("{word}", word).replace("{mask}", mask) for source in (FINITE, CUDA_FINITE)]
    flat = code.code(
        [x.numel()],
        "bool",
        [x.reshape(-1)],  # one kernel, whatever the number of dimensions
        cpu_header="#include <cstring>\n",
        cpu_src=sources[0],
        cuda_header=CUDA_FINITE_HEADER,
        cuda_src=sources[1],
    )
    return flat.reshape(x.shape)


def log1p(x: Var) -> Var:
    """log(1 + x), exact for small x, for use without gradient.

    The error of rounding 1 + x cancels in the quotient (Kahan); where 1 + x is 1, so is the result x.
    """
    shifted = x + 1.0
    rounded = shifted - 1.0
    safe = jt.ternary(rounded == 0.0, jt.ones_like(x), rounded)
    return jt.ternary(rounded == 0.0, x, jt.log(shifted) * (x / safe))


def with_one_consumer(loss: Var) -> Var:
    """A loss of the same gradients, whose own gradient of 1 has one consumer only.

    That 1 is an array of one element. Where several kernels read it, Jittor writes it by a kernel that it looks up
    without the dtype: in a process that was in float32 before, only 4 of the 8 bytes of a float64 1 were written, and
    all gradients came out times what the other 4 happened to be. Fused into its one consumer it has no such kernel.
    """
    return (loss.reshape(1) * to_var(np.array([1.0, 0.0]), loss)).sum()


class BinaryCrossEntropy(jt.Function):
    """PyTorch's limits: logarithms of at least -100, a divisor of at least 1e-12 in the gradient.

    ``nn.bce_loss`` clips at 1e-20 with gradient 0 there, and has no form without reduction.
    """

    def execute(self, scores: Var, targets: Var) -> Var:
        self.saved = scores, targets
        at_one, at_zero = jt.maximum(jt.log(scores), -100.0), jt.maximum(log1p(-scores), -100.0)
        return (targets - 1.0) * at_zero - targets * at_one

    def grad(self, upstream: Var) -> tuple[Var, None]:
        scores, targets = self.saved
        floor = constant(1e-12, scores)
        return upstream * (scores - targets) / jt.maximum((1.0 - scores) * scores, floor), None


def binary_cross_entropy(scores: Var, targets: Var) -> Var:
    """Of each score in 0..1 with its target; no gradient for the targets."""
    return BinaryCrossEntropy.apply(scores, targets.detach())


def log_softmax(x: Var, dim: int) -> Var:
    """``nn.log_softmax`` takes its exponentials from the C library (see ``exponential``)."""
    shifted = x - x.max(dim, keepdims=True).detach()
    return shifted - jt.log(exponential.exp(shifted).sum(dim, keepdims=True))


def one_hot(labels: Var, classes: int, like: Var) -> Var:
    """(...) labels to (..., classes), 0 and 1 in the dtype of ``like``."""
    return as_float(labels.unsqueeze(-1) == jt.arange(classes), like)


def take(x: Var, dim: int, index: Var) -> Var:
    """``gather`` of rows: ``index`` is broadcast to the shape of ``x`` along every other dimension."""
    shape = [index.shape[i] if i == dim else x.shape[i] for i in range(len(x.shape))]
    return jt.gather(x, dim, index.broadcast(shape))


TOP_K = """
    const int64 width = in0->shape[in0->shape.size() - 1], rows = in0->num / width, k = std::min<int64>({k}, width);
    #pragma omp parallel for
    for (int64 row = 0; row < rows; ++row) {
        const in0_type* values = in0_p + row * width;
        std::vector<in0_type> sorted(values, values + width);
        std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<in0_type>());
        const in0_type bound = sorted[k - 1];
        int64 room = k;
        for (int64 i = 0; i < width; ++i) room -= values[i] > bound;
        for (int64 i = 0; i < width; ++i)
            out0_p[row * width + i] = values[i] > bound || (values[i] == bound && room-- > 0);
    }
"""
TOP_K_HEADER = "#include <algorithm>\n#include <functional>\n#include <vector>\n"


def top_k(values: Var, k: int) -> Var:
    """Mask of the ``k`` greatest along the last dimension; of equal ones the first.

    ``jt.topk`` sorts everything, on the CPU by an unstable sort, so among equal values it takes any.
    """
    if not jt.flags.use_cuda:
        source = TOP_K.replace("{k}", str(k))
        return jt.code(values.shape, "bool", [values], cpu_header=TOP_K_HEADER, cpu_src=source)
    bound = jt.topk(values, min(k, values.shape[-1]), dim=-1)[0][..., -1:]
    above, level = values > bound, values == bound
    room = k - above.int32().sum(-1, keepdims=True)
    return above | (level & (jt.cumsum(level.int32(), -1) <= room))
