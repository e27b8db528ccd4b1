"""Matrix product and convolution in float64.

On the CPU Jittor has no float64 BLAS or oneDNN path: its own convolution runs naive loops at under 1 GFLOP/s. On CUDA
it asks cuBLAS to sum doubles in float32 and hands cuDNN float factors for double maps. Here: one blocked kernel in C++
(8 to 24 GFLOP/s on 2 cores), one in CUDA, and convolution as unfold and product.
"""

from __future__ import annotations

from typing import Any

from jt_impl.kernels import code
from jt_impl.runtime import jittor as jt

# C = A @ B per batch; A is (batch or 1, M, K), B (batch or 1, K, N), row-major. Panels of B are packed so that the
# inner loop runs over contiguous memory; each thread takes whole panels, and every element of C is summed in the order
# of k, so the result does not depend on the number of threads.
GEMM = """
    const int64 batch = out_shape0, M = out_shape1, N = out_shape2, K = in0_shape2;
    const int64 stride_a = in0_shape0 == 1 ? 0 : M * K, stride_b = in1_shape0 == 1 ? 0 : K * N;
    const int64 panels = (N + W - 1) / W;
    for (int64 b = 0; b < batch; ++b) {
        const double* A = in0_p + b * stride_a;
        const double* B = in1_p + b * stride_b;
        double* C = out_p + b * M * N;
        #pragma omp parallel for schedule(dynamic, 1)
        for (int64 panel = 0; panel < panels; ++panel) {
            const int64 n0 = panel * W, width = std::min(W, N - n0);
            alignas(64) double packed[KC * W];
            for (int64 k0 = 0; k0 < K; k0 += KC) {
                const int64 depth = std::min(KC, K - k0);
                for (int64 k = 0; k < depth; ++k) {
                    const double* source = B + (k0 + k) * N + n0;
                    for (int64 j = 0; j < width; ++j) packed[k * W + j] = source[j];
                    for (int64 j = width; j < W; ++j) packed[k * W + j] = 0.0;
                }
                for (int64 m0 = 0; m0 < M; m0 += R) {
                    const int64 rows = std::min(R, M - m0);
                    alignas(64) double tile[R * W];
                    const double* a[R];  // rows past the end repeat the last one and are not stored
                    for (int64 i = 0; i < R; ++i) a[i] = A + (m0 + std::min(i, rows - 1)) * K + k0;
                    gemm_tile(a, packed, depth, tile);
                    for (int64 i = 0; i < rows; ++i) {
                        double* c = C + (m0 + i) * N + n0;
                        for (int64 j = 0; j < width; ++j) c[j] = k0 ? c[j] + tile[i * W + j] : tile[i * W + j];
                    }
                }
            }
        }
    }
"""
HEADER = """
#include <algorithm>
// The tile lives in registers: R x 2 vectors of the widest kind, one broadcast and two loads per step of k.
#ifdef __AVX512F__
typedef double Lanes __attribute__((vector_size(64), may_alias));
#else
typedef double Lanes __attribute__((vector_size(32), may_alias));
#endif
typedef long long int64;
constexpr int64 L = sizeof(Lanes) / sizeof(double), W = 2 * L, R = 6, KC = 256;
static inline void gemm_tile(const double* const* a, const double* packed, int64 depth, double* tile) {
    Lanes s[R][2] = {};
    for (int64 k = 0; k < depth; ++k) {
        const Lanes left = *(const Lanes*)(packed + k * W), right = *(const Lanes*)(packed + k * W + L);
        #pragma GCC unroll 6
        for (int i = 0; i < R; ++i) {
            s[i][0] += a[i][k] * left;
            s[i][1] += a[i][k] * right;
        }
    }
    #pragma GCC unroll 6
    for (int i = 0; i < R; ++i) {
        *(Lanes*)(tile + i * W) = s[i][0];
        *(Lanes*)(tile + i * W + L) = s[i][1];
    }
}
"""

# A block of 16 x 16 threads makes 64 x 64 elements of C, each summed in the order of k.
CUDA_HEADER = """
static __global__ void batched_product(const double* A, const double* B, double* C, long long M, long long N,
                                       long long K, long long stride_a, long long stride_b) {
    __shared__ double a[16][64 + 1], b[16][64];
    A += blockIdx.z * stride_a, B += blockIdx.z * stride_b, C += blockIdx.z * M * N;
    const long long m0 = blockIdx.x * 64LL, n0 = blockIdx.y * 64LL;
    const int x = threadIdx.x, y = threadIdx.y;
    double sum[4][4] = {};
    for (long long k0 = 0; k0 < K; k0 += 16) {
        for (int i = y * 16 + x; i < 16 * 64; i += 256) {
            const long long m = m0 + i / 16, ka = k0 + i % 16, kb = k0 + i / 64, n = n0 + i % 64;
            a[i % 16][i / 16] = m < M && ka < K ? A[m * K + ka] : 0.0;
            b[i / 64][i % 64] = kb < K && n < N ? B[kb * N + n] : 0.0;
        }
        __syncthreads();
        for (int k = 0; k < 16; ++k)
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) sum[i][j] += a[k][y + 16 * i] * b[k][x + 16 * j];
        __syncthreads();
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const long long m = m0 + y + 16 * i, n = n0 + x + 16 * j;
            if (m < M && n < N) C[m * N + n] = sum[i][j];
        }
}
"""
CUDA_SOURCE = """
    const int64 batch = out_shape0, M = out_shape1, N = out_shape2, K = in0_shape2;
    const dim3 grid((M + 63) / 64, (N + 63) / 64, batch);
    batched_product<<<grid, dim3(16, 16)>>>(in0_p, in1_p, out_p, M, N, K, in0_shape0 == 1 ? 0 : M * K,
                                            in1_shape0 == 1 ? 0 : K * N);
"""


def _product(a: Any, b: Any) -> Any:
    shape = [max(a.shape[0], b.shape[0]), a.shape[1], b.shape[2]]
    return code.code(
        shape,
        "float64",
        [a, b],
        cpu_header=HEADER,
        cpu_src=GEMM,
        cuda_header=CUDA_HEADER,
        cuda_src=CUDA_SOURCE,
    )


class BatchedProduct(jt.Function):
    """(B or 1, M, K) @ (B or 1, K, N) -> (B, M, N), with gradients for both."""

    def execute(self, a: Any, b: Any) -> Any:
        self.saved = a, b
        return _product(a, b)

    def grad(self, upstream: Any) -> tuple[Any, Any]:
        a, b = self.saved
        by_a, by_b = _product(upstream, b.transpose(0, 2, 1)), _product(a.transpose(0, 2, 1), upstream)
        return (
            by_a.sum(0, keepdims=True) if a.shape[0] < by_a.shape[0] else by_a,
            by_b.sum(0, keepdims=True) if b.shape[0] < by_b.shape[0] else by_b,
        )


def matmul(a: Any, b: Any) -> Any:
    """Product over the last two dimensions of float64 arrays with equal leading dimensions."""
    lead = tuple(a.shape[:-2])
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    product = BatchedProduct.apply(a.reshape(-1, rows, inner), b.reshape(-1, inner, columns))
    return product.reshape(*lead, rows, columns)


def unfold(x: Any, kernel: int, stride: int, padding: int) -> Any:
    """(N, C, H, W) to columns (N, C * kernel * kernel, out_h * out_w), zeros outside."""
    batch, channels, height, width = x.shape
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    shape = [batch, channels, kernel, kernel, rows, columns]
    places = ["i0", "i1", f"i4*{stride}+i2-{padding}", f"i5*{stride}+i3-{padding}"]
    return x.reindex(shape, places).reshape(batch, channels * kernel * kernel, rows * columns)


def conv2d(x: Any, weight: Any, stride: int, padding: int) -> Any:
    """Square convolution without groups and bias, (N, C, H, W) to (N, O, H', W')."""
    out_channels, _, kernel, _ = weight.shape
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in x.shape[-2:])
    if kernel == 1 and stride == 1 and padding == 0:
        patches = x.reshape(x.shape[0], x.shape[1], -1)
    else:
        patches = unfold(x, kernel, stride, padding)
    product = BatchedProduct.apply(weight.reshape(1, out_channels, -1), patches)
    return product.reshape(x.shape[0], out_channels, rows, columns)


def depthwise_conv2d(x: Any, weight: Any, stride: int, padding: int) -> Any:
    """Convolution of each channel with its own kernel; weight (C, 1, k, k)."""
    channels, _, kernel, _ = weight.shape
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in x.shape[-2:])
    patches = unfold(x, kernel, stride, padding).reshape(x.shape[0], channels, kernel * kernel, rows * columns)
    return (patches * weight.reshape(1, channels, kernel * kernel, 1)).sum(2).reshape(-1, channels, rows, columns)
