"""Our own kernels for CUDA compute what they should: their source, compiled by g++, with a thread for each of CUDA's.

Blocks run one after the other, shared memory is static, and ``__syncthreads`` is a barrier. Only what is in the source
is tested so: not the launch, which Jittor's part of the source makes.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment_tests.cases.modules import signed
from jt_impl import postprocess
from jt_impl.kernels import float64, functional, statistics

DEVICE = """
#include <cmath>
#include <pthread.h>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
using std::isfinite;
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static thread_local dim3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static pthread_barrier_t gate;
static void __syncthreads() { pthread_barrier_wait(&gate); }
static int atomicAdd(int* place, int value) { return __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST); }
template <class F>
static void launch(dim3 grid, dim3 block, F kernel) {
    gridDim = grid, blockDim = block;
    pthread_barrier_init(&gate, 0, block.x * block.y);
    for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < block.x * block.y; ++t)
            threads.emplace_back([=] {
                blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
                threadIdx = dim3(t % block.x, t / block.x, 0);
                kernel();
            });
        for (auto& thread : threads) thread.join();
    }
    pthread_barrier_destroy(&gate);
}
"""
ENTRIES = """
typedef long long number;
extern "C" {
void run_product(const double* a, const double* b, double* c, number m, number n, number k, number batch) {
    launch(dim3((m + 63) / 64, (n + 63) / 64, batch), dim3(16, 16),
           [=] { batched_product(a, b, c, m, n, k, m * k, k * n); });
}
void run_statistics(const float* x, float* means, float* variances, number batch, number channels, number plane) {
    launch(dim3(channels), dim3(512), [=] { batch_statistics(x, means, variances, batch, plane); });
}
void run_backward(const double* x, const double* g, const double* means, const double* variances, const double* weights,
                  double* dx, double* dweights, double* dbiases, number batch, number channels, number plane) {
    launch(dim3(channels), dim3(512), [=] {
        batch_norm_backward(x, g, means, variances, weights, dx, dweights, dbiases, batch, plane, 1e-3);
    });
}
void run_total(const float* x, float* sum, number count) {
    launch(dim3(1), dim3(512), [=] { total_of(x, sum, count); });
}
void run_channels(const float* x, float* sums, number batch, number channels, number plane) {
    launch(dim3(channels), dim3(512), [=] { channel_sums(x, sums, batch, plane); });
}
void run_suppression(const float* rows, const double* settings, const bool* wanted, float* kept, int* counts,
                     float* scores, int* places, number images, number anchors, number classes, number limit) {
    launch(dim3(images), dim3(512), [=] {
        keep_best(rows, settings, wanted, anchors, classes, kept, limit, counts, scores, places);
    });
}
}
"""
FINITE_ENTRIES = "".join(
    f"""
extern "C" void run_finite_{kind}(const {word}* x, bool* finite, number count) {{
    launch(dim3((count + 255) / 256), dim3(256), [=] {{ are_finite<{word}>(x, finite, count, {mask}); }});
}}"""
    for kind, (word, mask) in functional.EXPONENTS.items()
)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("device")
    channels = statistics.CUDA_CHANNEL_HEADER.removeprefix(statistics.CUDA_HEADER)
    ours = [float64.CUDA_HEADER, statistics.CUDA_TOTAL_HEADER, channels, postprocess.CUDA_HEADER]
    ours.append(functional.CUDA_FINITE_HEADER)
    source = "\n".join([DEVICE, *ours, ENTRIES, FINITE_ENTRIES])
    (folder / "kernels.cc").write_text(source, encoding="utf-8")
    flags = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["g++", *flags, str(folder / "kernels.cc"), "-o", str(folder / "kernels.so")], check=True)
    return ctypes.CDLL(str(Path(folder) / "kernels.so"))


def call(function: Any, *arguments: Any) -> None:
    """Arrays go as pointers, numbers as 64-bit ones."""
    function(*(ctypes.c_longlong(a) if isinstance(a, int) else a.ctypes.data_as(ctypes.c_void_p) for a in arguments))


@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 16), (3, 5, 1), (70, 66, 19)])
def test_product_in_float64(device: ctypes.CDLL, m: int, n: int, k: int) -> None:
    a, b, found = signed(1, 2, m, k), signed(2, 2, k, n), np.full((2, m, n), np.nan)
    call(device.run_product, a, b, found, m, n, k, 2)
    assert np.abs(found - a @ b).max() <= 1e-14 * k


def test_statistics_of_a_batch_far_from_zero(device: ctypes.CDLL) -> None:
    x = (signed(3, 2, 3, 35, 20) + 1000.0).astype(np.float32)
    mean, variance = np.empty(3, np.float32), np.empty(3, np.float32)
    call(device.run_statistics, x, mean, variance, 2, 3, 700)
    exact = x.astype(np.float64)
    assert np.array_equal(mean, exact.mean((0, 2, 3)).astype(np.float32))
    assert np.abs(variance / exact.var((0, 2, 3)) - 1.0).max() < 1e-7


def test_backward_of_batch_norm(device: ctypes.CDLL) -> None:
    import torch

    x, g, weight = (torch.from_numpy(a) for a in (signed(4, 2, 3, 9, 7) + 2.0, signed(5, 2, 3, 9, 7), signed(6, 3)))
    bias = torch.zeros(3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
    expected = [grad.numpy() for grad in torch.autograd.grad(y, inputs, g)]
    values = x.detach().numpy()
    mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3))
    found = [np.empty_like(values), np.empty(3), np.empty(3)]
    call(device.run_backward, values, g.numpy(), mean, variance, weight.detach().numpy(), *found, 2, 3, 63)
    assert [float(np.abs(a - b).max()) < 1e-13 for a, b in zip(found, expected, strict=True)] == [True] * 3


def test_sum_of_many_is_that_in_double(device: ctypes.CDLL) -> None:
    x = (signed(7, 30_001) + 1.0).astype(np.float32)
    found = np.empty(1, np.float32)
    call(device.run_total, x, found, 30_001)
    assert found[0] == np.float32(x.astype(np.float64).sum())


def test_sums_of_channels_are_those_in_double(device: ctypes.CDLL) -> None:
    x = (signed(9, 2, 3, 35, 20) + 1000.0).astype(np.float32)
    found = np.empty(3, np.float32)
    call(device.run_channels, x, found, 2, 3, 700)
    assert np.array_equal(found, x.astype(np.float64).sum((0, 2, 3)).astype(np.float32))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_what_is_finite(device: ctypes.CDLL, kind: str) -> None:
    info = np.finfo(kind)
    x = np.array([0.0, info.max, -info.max, -info.smallest_subnormal, np.inf, -np.inf, np.nan] * 40, kind)
    found = np.empty(280, bool)
    call(device[f"run_finite_{kind}"], x, found, 280)
    assert np.array_equal(found, np.isfinite(x))


def test_suppression_keeps_what_the_cpu_keeps(device: ctypes.CDLL) -> None:
    from jt_impl.runtime import jittor as jt

    predictions = np.abs(signed(8, 2, 60, 8)).astype(np.float32)
    predictions[..., :4] = predictions[..., :4] * 40 + 10
    predictions[0, :, 5:] = np.round(predictions[0, :, 5:], 1)  # equal scores
    limit, kept, counts = 12, np.empty((2, 12, 6), np.float32), np.empty(2, np.int32)
    work = [np.empty((2, 180), np.float32), np.empty((2, 180), np.int32)]
    settings = np.array([0.03, 0.5, 0.0, 1.0])  # confidence, IoU, not agnostic, every label
    call(device.run_suppression, predictions, settings, np.ones(3, bool), kept, counts, *work, 2, 60, 3, limit)
    expected = postprocess.non_max_suppression(jt.array(predictions), 0.03, 0.5, max_detections=limit)
    assert [np.array_equal(kept[i, : counts[i]], rows.numpy()) for i, rows in enumerate(expected)] == [True, True]
