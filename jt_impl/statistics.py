"""Batch norm in train mode, and sums over whole arrays.

Jittor's own reductions add in float32, one after the other (vectorised only when the compiler may regroup sums): with
3072 values per channel, the output of batch norm erred 21 times as much as PyTorch's. Here the sums are in double, in
eight lanes, in two passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jt_impl.runtime import jittor as jt

HEADER = """
#include <algorithm>
// Sum of the values, or of the squares of their distances from a centre; eight lanes, then one tail.
template <bool Squared, class T>
static inline double channel_sum(const T* p, long long count, double centre) {
    double lanes[8] = {};
    long long i = 0;
    for (; i + 8 <= count; i += 8)
        for (int j = 0; j < 8; ++j) {
            const double value = (double)p[i + j] - centre;
            lanes[j] += Squared ? value * value : value;
        }
    for (int j = 0; i < count; ++i, ++j) {
        const double value = (double)p[i] - centre;
        lanes[j] += Squared ? value * value : value;
    }
    double sum = 0;
    for (int j = 0; j < 8; ++j) sum += lanes[j];
    return sum;
}
// Sum of (x - centre) * g.
template <class T>
static inline double channel_product(const T* x, const T* g, long long count, double centre) {
    double lanes[8] = {};
    long long i = 0;
    for (; i + 8 <= count; i += 8)
        for (int j = 0; j < 8; ++j) lanes[j] += ((double)x[i + j] - centre) * (double)g[i + j];
    for (int j = 0; i < count; ++i, ++j) lanes[j] += ((double)x[i] - centre) * (double)g[i];
    double sum = 0;
    for (int j = 0; j < 8; ++j) sum += lanes[j];
    return sum;
}
"""
SOURCE = """
    const int64 batch = in0_shape0, channels = in0_shape1, plane = in0_shape2 * in0_shape3;
    const double count = (double)(batch * plane);
    #pragma omp parallel for
    for (int64 c = 0; c < channels; ++c) {
        double sum = 0, squares = 0;
        for (int64 b = 0; b < batch; ++b) sum += channel_sum<false>(in0_p + (b * channels + c) * plane, plane, 0.0);
        const double mean = sum / count;
        for (int64 b = 0; b < batch; ++b) squares += channel_sum<true>(in0_p + (b * channels + c) * plane, plane, mean);
        out0_p[c] = mean;
        out1_p[c] = squares / count;
    }
"""


BACKWARD = """
    const int64 batch = in0_shape0, channels = in0_shape1, plane = in0_shape2 * in0_shape3;
    const double count = (double)(batch * plane);
    #pragma omp parallel for
    for (int64 c = 0; c < channels; ++c) {
        const double mean = in2_p[c], inverse = 1.0 / std::sqrt((double)in3_p[c] + {eps});
        double sum = 0, product = 0;
        for (int64 b = 0; b < batch; ++b) {
            const int64 start = (b * channels + c) * plane;
            sum += channel_sum<false>(in1_p + start, plane, 0.0);
            product += channel_product(in0_p + start, in1_p + start, plane, mean);
        }
        out1_p[c] = product * inverse;
        out2_p[c] = sum;
        const in0_type scale = (double)in4_p[c] * inverse, shift = sum / count, centre = mean;
        const in0_type slope = product * inverse * inverse / count;
        for (int64 b = 0; b < batch; ++b) {
            const int64 start = (b * channels + c) * plane;
            const in0_type *x = in0_p + start, *g = in1_p + start;
            in0_type* dx = out0_p + start;
            for (int64 i = 0; i < plane; ++i) dx[i] = scale * (g[i] - shift - (x[i] - centre) * slope);
        }
    }
"""


def statistics_by_kernel(x: Any) -> Any:
    shape, dtype = [x.shape[1]], str(x.dtype)
    return jt.code([shape, shape], [dtype, dtype], [x], cpu_header=HEADER, cpu_src=SOURCE)


class BatchNormalise(jt.Function):
    """Normalise by the batch's statistics; the gradient's sums are in double too.

    Left to Jittor, the gradient of a weight is the difference of two sums over the uncentred map.
    """

    def execute(self, x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
        mean, variance = statistics_by_kernel(x)
        self.saved, self.eps = (x, mean, variance, weight), eps
        return normalised(x, mean, variance, weight, bias, eps), mean, variance

    def grad(self, upstream: Any, by_mean: Any, by_variance: Any) -> tuple[Any, Any, Any]:
        """Mean and variance are handed out for the running statistics only, which stop gradients."""
        x, mean, variance, weight = self.saved
        channels = [x.shape[1]]
        by_x, by_weight, by_bias = jt.code(
            [x.shape, channels, channels],
            [x.dtype] * 3,
            [x, upstream, mean, variance, weight],
            cpu_header="#include <cmath>\n" + HEADER,
            cpu_src=BACKWARD.replace("{eps}", repr(self.eps)),
        )
        return by_x, by_weight, by_bias


def normalised(x: Any, mean: Any, variance: Any, weight: Any, bias: Any, eps: Any) -> Any:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` per channel of (N, C, H, W), as one scale and shift."""
    double = str(x.dtype) == "float64"  # Jittor takes Python floats as float32
    scale = weight / jt.sqrt(variance + (jt.array64(np.array([eps])) if double else eps))
    shift = bias - mean * scale
    return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def batch_normalise(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """Batch norm in train mode: normalised x (N, C, H, W), and mean (C,) and biased variance (C,) of the batch."""
    if not jt.flags.use_cuda:
        return BatchNormalise.apply(x, weight, bias, eps)
    mean = x.mean((0, 2, 3))
    centred = x - mean.reshape(1, -1, 1, 1)
    variance = (centred * centred).mean((0, 2, 3))
    return normalised(x, mean, variance, weight, bias, eps), mean, variance


TOTAL = """
    const int64 count = in0->num, blocks = (count + 4095) / 4096;
    double sum = 0;
    std::vector<double> parts(blocks);
    #pragma omp parallel for
    for (int64 b = 0; b < blocks; ++b)
        parts[b] = channel_sum<false>(in0_p + b * 4096, std::min<int64>(4096, count - b * 4096), 0.0);
    for (int64 b = 0; b < blocks; ++b) sum += parts[b];
    out0_p[0] = sum;
"""


class Total(jt.Function):
    """The sum in double, in blocks whose number does not depend on the threads."""

    def execute(self, x: Any) -> Any:
        self.saved = x
        return jt.code([1], x.dtype, [x], cpu_header="#include <vector>\n" + HEADER, cpu_src=TOTAL)

    def grad(self, upstream: Any) -> Any:
        return jt.zeros_like(self.saved) + upstream.reshape([1] * len(self.saved.shape))


def total(x: Any) -> Any:
    """Sum of all elements, shape (1,). Jittor's own adds 300,000 float32 class losses one after the other."""
    return x.sum() if jt.flags.use_cuda else Total.apply(x)
