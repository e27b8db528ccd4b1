"""Batch norm in train mode, the gradient of a bias, and sums over whole arrays.

Jittor's own reductions add in float32, one after the other (vectorised only when the compiler may regroup sums): with
3072 values per channel, the output of batch norm erred 21 times as much as PyTorch's. Here the sums are in double, in
two passes: in eight lanes on the CPU, by one block of threads per channel on CUDA.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jt_impl.kernels import code
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

# The names stand inside a member function of Jittor's operators, which have a `statistics` of their own.
CUDA_HEADER = """
// The sum over a block's threads, for each of them; in a fixed order, so that it is the same in every run.
static __device__ double block_sum(double value) {
    __shared__ double parts[512];
    parts[threadIdx.x] = value;
    __syncthreads();
    for (int half = 256; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    const double sum = parts[0];
    __syncthreads();
    return sum;
}
// Sum of f over the places of a block's channel in an array (batch, channels, plane).
template <class F>
static __device__ double channel_sum(long long batch, long long plane, F f) {
    double sum = 0;
    for (long long b = 0; b < batch; ++b) {
        const long long start = (b * gridDim.x + blockIdx.x) * plane;
        for (long long i = start + threadIdx.x; i < start + plane; i += 512) sum += f(i);
    }
    return block_sum(sum);
}
template <class T>
static __global__ void batch_statistics(const T* x, T* means, T* variances, long long batch, long long plane) {
    const double count = (double)batch * plane;
    const double mean = channel_sum(batch, plane, [=](long long i) { return (double)x[i]; }) / count;
    const double squares = channel_sum(
        batch, plane, [=](long long i) { return ((double)x[i] - mean) * ((double)x[i] - mean); });
    if (threadIdx.x == 0) means[blockIdx.x] = mean, variances[blockIdx.x] = squares / count;
}
template <class T>
static __global__ void batch_norm_backward(const T* x, const T* g, const T* means, const T* variances,
                                           const T* weights, T* dx, T* dweights, T* dbiases, long long batch,
                                           long long plane, double eps) {
    const int c = blockIdx.x;
    const double count = (double)batch * plane, mean = means[c], inverse = 1.0 / sqrt((double)variances[c] + eps);
    const double sum = channel_sum(batch, plane, [=](long long i) { return (double)g[i]; });
    const double product = channel_sum(
        batch, plane, [=](long long i) { return ((double)x[i] - mean) * (double)g[i]; });
    if (threadIdx.x == 0) dweights[c] = product * inverse, dbiases[c] = sum;
    const T scale = (double)weights[c] * inverse, shift = sum / count, centre = mean;
    const T slope = product * inverse * inverse / count;
    for (long long b = 0; b < batch; ++b) {
        const long long start = (b * gridDim.x + c) * plane;
        for (long long i = start + threadIdx.x; i < start + plane; i += 512)
            dx[i] = scale * (g[i] - shift - (x[i] - centre) * slope);
    }
}
"""
CUDA_SOURCE = "batch_statistics<<<in0_shape1, 512>>>(in0_p, out0_p, out1_p, in0_shape0, in0_shape2 * in0_shape3);"
CUDA_BACKWARD = """
    batch_norm_backward<<<in0_shape1, 512>>>(in0_p, in1_p, in2_p, in3_p, in4_p, out0_p, out1_p, out2_p, in0_shape0,
                                             in0_shape2 * in0_shape3, {eps});
"""


def statistics_by_kernel(x: Any) -> Any:
    shape, dtype = [x.shape[1]], str(x.dtype)
    return code.code(
        [shape, shape],
        [dtype, dtype],
        [x],
        cpu_header=HEADER,
        cpu_src=SOURCE,
        cuda_header=CUDA_HEADER,
        cuda_src=CUDA_SOURCE,
    )


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
        by_x, by_weight, by_bias = code.code(
            [x.shape, channels, channels],
            [x.dtype] * 3,
            [x, upstream, mean, variance, weight],
            cpu_header="#include <cmath>\n" + HEADER,
            cpu_src=BACKWARD.replace("{eps}", repr(self.eps)),
            cuda_header=CUDA_HEADER,
            cuda_src=CUDA_BACKWARD.replace("{eps}", repr(self.eps)),
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
    return BatchNormalise.apply(x, weight, bias, eps)


CHANNEL_SUMS = """
    const int64 batch = in0_shape0, channels = in0_shape1, plane = in0_shape2 * in0_shape3;
    #pragma omp parallel for
    for (int64 c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64 b = 0; b < batch; ++b) sum += channel_sum<false>(in0_p + (b * channels + c) * plane, plane, 0.0);
        out0_p[c] = sum;
    }
"""
CUDA_CHANNEL_SUMS = "channel_sums<<<in0_shape1, 512>>>(in0_p, out0_p, in0_shape0, in0_shape2 * in0_shape3);"
CUDA_CHANNEL_HEADER = f"""{CUDA_HEADER}
template <class T>
static __global__ void channel_sums(const T* x, T* sums, long long batch, long long plane) {{
    const double sum = channel_sum(batch, plane, [=](long long i) {{ return (double)x[i]; }});
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}}
"""


class Biased(jt.Function):
    """(N, C, H, W) with a number per channel added, whose gradient is summed in double.

    With Jittor's own sum and one thread, the worst gradient of the head's biases was 2.7 times as far from PyTorch's as
    a comparison allows in float32.
    """

    def execute(self, x: Any, bias: Any) -> Any:
        return x + bias.reshape(1, -1, 1, 1)

    def grad(self, upstream: Any) -> tuple[Any, Any]:
        sums = code.code(
            [upstream.shape[1]],
            upstream.dtype,
            [upstream],
            cpu_header=HEADER,
            cpu_src=CHANNEL_SUMS,
            cuda_header=CUDA_CHANNEL_HEADER,
            cuda_src=CUDA_CHANNEL_SUMS,
        )
        return upstream, sums


def add_bias(x: Any, bias: Any) -> Any:
    """``x`` (N, C, H, W) plus ``bias`` (C,); float32 and float64 have the gradient's sum in double."""
    if jt.flags.no_grad or str(x.dtype) not in ("float32", "float64"):
        return x + bias.reshape(1, -1, 1, 1)
    return Biased.apply(x, bias)


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

CUDA_TOTAL = "total_of<<<1, 512>>>(in0_p, out0_p, in0->num);"
CUDA_TOTAL_HEADER = f"""{CUDA_HEADER}
template <class T>
static __global__ void total_of(const T* x, T* sum, long long count) {{
    const double all = channel_sum(1, count, [=](long long i) {{ return (double)x[i]; }});
    if (threadIdx.x == 0) *sum = all;
}}
"""


class Total(jt.Function):
    """The sum in double, in blocks whose number does not depend on the threads."""

    def execute(self, x: Any) -> Any:
        self.saved = x
        return code.code(
            [1],
            x.dtype,
            [x],
            cpu_header="#include <vector>\n" + HEADER,
            cpu_src=TOTAL,
            cuda_header=CUDA_TOTAL_HEADER,
            cuda_src=CUDA_TOTAL,
        )

    def grad(self, upstream: Any) -> Any:
        return jt.zeros_like(self.saved) + upstream.reshape([1] * len(self.saved.shape))


def total(x: Any) -> Any:
    """Sum of all elements, shape (1,). Jittor's own adds 300,000 float32 class losses one after the other."""
    return Total.apply(x)
