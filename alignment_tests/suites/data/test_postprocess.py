"""Post-processing: both frameworks against recordings of the public implementation and each other, bit for bit."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import torch_ref.postprocess
from fixtures.evaluation import detections
from fixtures.golden import recorded_arrays, recorded_json
from fixtures.seeded import uniform

Array = npt.NDArray[Any]
PACKAGES = ("torch_ref", "jt_impl")
RECORDED = [
    *[
        f"{classes}_{case}"
        for classes in ("nc10", "nc1")
        for case in ("eval", "eval_maxdet20", "single", "agnostic", "infer", "infer_agnostic", "classes", "iou_half")
    ],
    *("nc10_conf001", "nc1_conf001", "nc80_eval", "nc80_single", "nc80_infer"),
]
ARGUMENTS = {"conf_thres": "conf_threshold", "iou_thres": "iou_threshold", "max_det": "max_detections"}


def run(package: str, predictions: Array, **settings: Any) -> list[Array]:
    """Detections by one of the packages, as arrays."""
    if package == "torch_ref":
        return detections.per_image(
            torch_ref.postprocess.non_max_suppression(torch.from_numpy(predictions), **settings)
        )
    from jt_impl import postprocess
    from jt_impl.runtime import jittor as jt

    make = jt.array64 if predictions.dtype == np.float64 else jt.array
    return detections.per_image(postprocess.non_max_suppression(make(predictions), **settings))


def assert_equal_bits(actual: list[Array], expected: list[Array]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@lru_cache(maxsize=1)
def recordings() -> tuple[dict[str, Array], dict[str, Any]]:
    return recorded_arrays("postprocess/nms"), recorded_json("postprocess/report")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("case", RECORDED)
def test_detections_are_the_recorded_ones(case: str, package: str) -> None:
    arrays, report = recordings()
    settings = {"multi_label": False} | {ARGUMENTS.get(k, k): v for k, v in report[case]["kw"].items()}
    found = run(package, arrays[f"{case.split('_')[0]}_pred"], **settings)
    assert [len(rows) for rows in found] == report[case]["n"]
    assert_equal_bits(found, [arrays[f"{case}_out{image}"] for image in range(3)])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("case", ["pad", "pad2"])
def test_boxes_are_scaled_back_as_recorded(case: str, exact: bool) -> None:
    recorded = recordings()[1]["scale_coords"]
    network, image, (ratio, pad) = recorded["args"][case]
    boxes = np.array(recorded["input"], np.float32)
    found = detections.scale_boxes(network, boxes, image, ratio, pad, exact)
    np.testing.assert_array_equal(found, np.array(recorded["out"][f"{case}_exact{int(exact)}"], np.float32))


@pytest.mark.parametrize("coco", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_coco_records_are_the_recorded_ones(exact: bool, coco: bool) -> None:
    recorded = recorded_json("postprocess/coco_records")
    found = run("torch_ref", recordings()[0]["nc10_pred"], conf_threshold=0.3)
    records = []
    for rows, (shape, (ratio, pad)), path in zip(found, recorded["shapes"], recorded["paths"], strict=True):
        rows[:, :4] = detections.scale_boxes((640, 640), rows[:, :4], shape, ratio, pad, exact)
        name, categories = Path(path).stem, recorded["coco80_to_91"] if coco else range(10)
        records += detections.to_coco_records(int(name) if coco else name, rows, categories)
    assert records == recorded["results"][f"exact{int(exact)}_coco{int(coco)}"]


# Both frameworks, equal bits


def drawn_predictions(seed: int, dtype: str, coarse: bool, shape: tuple[int, int, int] = (3, 500, 12)) -> Array:
    """Crowded boxes. Coarse ones lie on a grid and have one of 10 scores: equal scores, equal boxes, boxes without
    area, and overlaps that are exactly a threshold abound."""
    numbers = uniform(seed, int(np.prod(shape))).reshape(shape)
    numbers[..., :2] *= 60
    numbers[..., 2:4] *= 24
    numbers[..., 4] = np.where(numbers[..., 4] < 0.5, 1.0, 0.5)
    if coarse:
        numbers[..., :4] = np.floor(numbers[..., :4] / 4) * 4
        numbers[..., 5:] = np.floor(numbers[..., 5:] * 10) / 10
    return numbers.astype(dtype)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"conf_threshold": 0.0, "iou_threshold": 1 / 3, "max_detections": 10_000},
    {"conf_threshold": 0.4, "iou_threshold": 0.5, "agnostic": True, "max_detections": 1000},
    {"conf_threshold": 0.2, "iou_threshold": 0.6, "multi_label": False},
    {"conf_threshold": 0.2, "iou_threshold": 0.0, "agnostic": True},
    {"iou_threshold": 1.0, "classes": [1, 5], "max_detections": 50},
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_jittor_keeps_the_same_detections(settings: dict[str, Any], coarse: bool, dtype: str) -> None:
    for seed in range(4):
        predictions = drawn_predictions(seed, dtype, coarse)
        expected = run("torch_ref", predictions, **settings)
        assert all(len(rows) for rows in expected)
        assert_equal_bits(run("jt_impl", predictions, **settings), expected)


def image_of(*anchors: tuple[float, ...]) -> Array:
    """Predictions (1, A, 5 + classes) from (cx, cy, w, h, scores...)."""
    rows = np.array(anchors, np.float32)
    return np.concatenate([rows[:, :4], np.ones_like(rows[:, :1]), rows[:, 4:]], axis=1)[None]


# Name: predictions, settings, and the (x1, class) of what is kept, in order.
EDGE_CASES: dict[str, tuple[Array, dict[str, Any], list[tuple[float, int]]]] = {
    "nothing above the threshold": (image_of((10, 10, 4, 4, 0.01, 0.02)), {}, []),
    "a score at the threshold": (
        image_of((10, 10, 4, 4, 0.4), (30, 10, 4, 4, 0.40000004)),
        {"conf_threshold": 0.4},
        [(28, 0)],
    ),
    "equal scores, anchor before class": (
        image_of((50, 10, 4, 4, 0.5, 0.5), (10, 10, 4, 4, 0.5, 0.5)),
        {},
        [(48, 0), (48, 1), (8, 0), (8, 1)],
    ),
    "equal best classes, one label": (image_of((10, 10, 4, 4, 0.2, 0.5, 0.5)), {"multi_label": False}, [(8, 1)]),
    "identical boxes": (image_of((10, 10, 4, 4, 0.5), (10, 10, 4, 4, 0.6), (10, 10, 4, 4, 0.6)), {}, [(8, 0)]),
    "identical boxes of two classes": (image_of((10, 10, 4, 4, 0.5, 0.4)), {}, [(8, 0), (8, 1)]),
    "the same, agnostic": (image_of((10, 10, 4, 4, 0.5, 0.4)), {"agnostic": True}, [(8, 0)]),
    "no area suppresses nothing": (image_of((10, 10, 0, 4, 0.5), (10, 10, 0, 4, 0.4)), {}, [(10, 0), (10, 0)]),
    "an overlap at the threshold": (
        image_of((10, 10, 4, 4, 0.5), (11, 10, 2, 4, 0.4)),
        {"iou_threshold": 0.5},
        [(8, 0), (10, 0)],
    ),
    # In float32 the overlap is 1/3 rounded up, and it is compared as a double.
    "an overlap rounded up": (image_of((10, 10, 4, 4, 0.5), (12, 10, 4, 4, 0.4)), {"iou_threshold": 1 / 3}, [(8, 0)]),
    "suppressed by a suppressed one": (
        image_of((10, 10, 8, 8, 0.9), (12, 10, 8, 8, 0.8), (14, 10, 8, 8, 0.7)),
        {"iou_threshold": 0.5},
        [(6, 0), (10, 0)],
    ),
    "the best two": (
        image_of((10, 10, 4, 4, 0.3), (30, 10, 4, 4, 0.5), (50, 10, 4, 4, 0.4)),
        {"max_detections": 2},
        [(28, 0), (48, 0)],
    ),
    "a class filter": (image_of((10, 10, 4, 4, 0.9, 0.4, 0.5)), {"classes": [1, 2, 7]}, [(8, 2), (8, 1)]),
    # The best class is chosen before the filter.
    "a class filter, one label": (image_of((10, 10, 4, 4, 0.9, 0.4)), {"classes": [1], "multi_label": False}, []),
    "an empty class filter": (image_of((10, 10, 4, 4, 0.9, 0.4)), {"classes": []}, []),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases(name: str, package: str) -> None:
    predictions, settings, expected = EDGE_CASES[name]
    (found,) = run(package, predictions, **settings)
    assert found.shape == (len(expected), 6)
    assert found[:, [0, 5]].tolist() == [list(pair) for pair in expected]


@pytest.mark.parametrize("package", PACKAGES)
def test_objectness_counts(package: str) -> None:
    """In the product, and by itself: the last anchor's class score, no probability, does not make up for it."""
    predictions = image_of(*[(20 * k, 10, 4, 4, score) for k, score in enumerate((0.5, 0.5, 0.5, 2.0))])
    predictions[0, :, 4] = 0.5, 0.03, 0.05, 0.02
    (found,) = run(package, predictions)
    assert found[:, 4].tolist() == [0.25]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7)])
def test_empty_batches(shape: tuple[int, int, int], package: str) -> None:
    assert [rows.shape for rows in run(package, np.zeros(shape, np.float32))] == [(0, 6)] * shape[0]


def test_a_limit_cuts_what_all_would_be() -> None:
    """The reference tries the best candidates first and must go on where these are not enough."""
    predictions = drawn_predictions(7, "float32", coarse=False)
    every = run("torch_ref", predictions, max_detections=100_000)
    for limit in (1, 3, 40, 150):
        cut = run("torch_ref", predictions, max_detections=limit)
        assert_equal_bits(cut, [rows[:limit] for rows in every])


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 3, 4, 6])
def test_what_is_not_finite_is_refused(column: int, value: float, package: str) -> None:
    predictions = drawn_predictions(1, "float32", coarse=False)
    predictions[2, 499, column] = value
    with pytest.raises(ValueError, match=r"`predictions` must be finite.*image 2"):
        run(package, predictions)


WRONG: list[tuple[str, Array, dict[str, Any]]] = [
    (r"must be \(N, A, 5 \+ classes\).*\(3, 5\)", np.zeros((3, 5), np.float32), {}),
    (r"must be \(N, A, 5 \+ classes\).*\(1, 3, 5\)", np.zeros((1, 3, 5), np.float32), {}),
    ("must be float32 or float64.*float16", np.zeros((1, 3, 6), np.float16), {}),
    ("`conf_threshold` must be in 0..1.*1.5", np.zeros((1, 3, 6), np.float32), {"conf_threshold": 1.5}),
    ("`iou_threshold` must be in 0..1.*nan", np.zeros((1, 3, 6), np.float32), {"iou_threshold": np.nan}),
    ("`max_detections` must be at least 1.*0", np.zeros((1, 3, 6), np.float32), {"max_detections": 0}),
]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("message", "predictions", "settings"), WRONG)
def test_wrong_arguments_are_named(message: str, predictions: Array, settings: dict[str, Any], package: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(package, predictions, **settings)


def test_predictions_are_left_alone() -> None:
    predictions = drawn_predictions(1, "float32", coarse=True)
    before = predictions.copy()
    for package in PACKAGES:
        run(package, predictions)
    np.testing.assert_array_equal(predictions, before)


def test_jittor_compiles_nothing_for_other_sizes_and_thresholds() -> None:
    from jt_impl.runtime import jittor as jt

    folder = Path(jt.compiler.cache_path) / "jit"
    run("jt_impl", drawn_predictions(1, "float32", coarse=False))
    before = sorted(os.listdir(folder))
    never_seen = 0.1 + time.time_ns() % 1_000_003 / 1e8  # else an earlier run's kernels could hide it
    for shape, settings in (
        ((1, 40, 6), {"max_detections": 7}),
        ((2, 1, 8), {"conf_threshold": never_seen, "iou_threshold": never_seen}),
        ((5, 900, 15), {"classes": [3], "agnostic": True, "multi_label": False}),
    ):
        run("jt_impl", drawn_predictions(2, "float32", coarse=False, shape=shape), **settings)
    assert sorted(os.listdir(folder)) == before


# The CUDA kernel, on the CPU: a block's threads are threads, run block after block. The result may not depend on them.
EMULATION = """
#include <barrier>
#include <thread>
#include <vector>
#define __global__
#define __shared__ static
struct Index {{ unsigned x; }};
static thread_local Index threadIdx;
static Index blockIdx, blockDim;
static std::barrier<>* gate;
static void __syncthreads() {{ gate->arrive_and_wait(); }}
static int atomicAdd(int* place, int value) {{ return __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST); }}
#include <cmath>
using std::isfinite;
{kernel}
template <class T>
static void launch(int threads, int blocks, const T* rows, const double* settings, const bool* wanted,
                   long long anchors, int classes, T* kept, int limit, int* counts, T* scores, int* places) {{
    std::barrier<> barrier(threads);
    gate = &barrier, blockDim.x = threads;
    for (int block = 0; block < blocks; ++block) {{
        blockIdx.x = block;
        std::vector<std::thread> all;
        for (int thread = 0; thread < threads; ++thread)
            all.emplace_back([=] {{
                threadIdx.x = thread;
                keep_best(rows, settings, wanted, anchors, classes, kept, limit, counts, scores, places);
            }});
        for (auto& one : all) one.join();
    }}
}}
#define EXPORT(T)                                                                                                    \\
    extern "C" void launch_##T(int threads, int blocks, const T* rows, const double* settings, const bool* wanted,   \\
                               long long anchors, int classes, T* kept, int limit, int* counts, T* scores,           \\
                               int* places) {{                                                                       \\
        launch(threads, blocks, rows, settings, wanted, anchors, classes, kept, limit, counts, scores, places);      \\
    }}
EXPORT(float)
EXPORT(double)
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from jt_impl.postprocess import CUDA_HEADER

    source = tmp_path_factory.mktemp("emulated") / "kernel.cc"
    source.write_text(EMULATION.format(kernel=CUDA_HEADER))
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    library = source.with_suffix(".so")
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def launch(library: Any, predictions: Array, threads: int, **settings: Any) -> tuple[Array, Array]:
    """Padded detections and their numbers, by the kernel for CUDA."""
    defaults = {"conf_threshold": 0.03, "iou_threshold": 0.65, "classes": None, "agnostic": False, "multi_label": True}
    chosen = detections.suppression(
        predictions.shape, str(predictions.dtype), **{**defaults, "max_detections": 300, **settings}
    )
    images, anchors, width = predictions.shape
    numbers = [chosen.conf_threshold, chosen.iou_threshold, chosen.agnostic, chosen.every_label]
    inputs = [np.ascontiguousarray(predictions), np.array(numbers, np.float64), chosen.wanted]
    kept = np.full((images, chosen.max_detections, 6), 7, predictions.dtype)
    counts = np.full(images, 7, np.int32)
    memory = [np.empty((images, anchors * (width - 5)), dtype) for dtype in (predictions.dtype, np.int32)]
    run_kernel = library.launch_float if predictions.dtype == np.float32 else library.launch_double
    (rows, thresholds, wanted), (best, number), (scores, places) = (
        [array.ctypes.data_as(ctypes.c_void_p) for array in group] for group in (inputs, (kept, counts), memory)
    )
    run_kernel(
        threads,
        images,
        rows,
        thresholds,
        wanted,
        ctypes.c_longlong(anchors),
        width - 5,
        best,
        chosen.max_detections,
        number,
        scores,
        places,
    )
    return kept, counts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_cuda_kernel_emulated_keeps_the_same_detections(emulated: Any, settings: dict[str, Any], dtype: str) -> None:
    settings = settings | {"max_detections": min(settings.get("max_detections", 60), 60)}
    predictions = drawn_predictions(3, dtype, coarse=True, shape=(2, 90, 12))
    expected = run("torch_ref", predictions, **settings)
    for threads in (1, 8):
        kept, counts = launch(emulated, predictions, threads, **settings)
        assert counts.tolist() == [len(rows) for rows in expected]
        assert_equal_bits([rows[:count] for rows, count in zip(kept, counts, strict=True)], expected)
        assert not any(rows[count:].any() for rows, count in zip(kept, counts, strict=True))


def test_cuda_kernel_emulated_finds_what_is_not_finite(emulated: Any) -> None:
    predictions = drawn_predictions(3, "float32", coarse=True, shape=(2, 90, 12))
    predictions[1, 89, 11] = np.nan
    assert launch(emulated, predictions, 4)[1].tolist()[1] == -1


# Between the network and the metric


def test_scaling_without_a_ratio_is_that_of_a_letterbox() -> None:
    boxes = np.array([[0.0, 80.0, 640.0, 560.0], [-9.0, 0.0, 320.0, 320.0]])
    found = detections.scale_boxes((640, 640), boxes, (960, 1280))
    np.testing.assert_allclose(found, [[0, 0, 1280, 960], [0, 0, 640, 480]])


def test_records_hold_plain_numbers() -> None:
    rows = np.array([[1.23456, 2.0, 4.0, 8.5, 0.123456789, 1]], np.float32)
    records = detections.to_coco_records(7, rows, [3, 9])
    assert json.loads(json.dumps(records)) == [
        {"image_id": 7, "category_id": 9, "bbox": [1.235, 2.0, 2.765, 6.5], "score": 0.12346}
    ]


def test_wrong_detections_are_named() -> None:
    with pytest.raises(ValueError, match=r"`detections\[1\]` must be \(M, 6\).*\(2, 5\)"):
        detections.per_image([np.zeros((3, 6)), np.zeros((2, 5))])
    with pytest.raises(ValueError, match=r"must have class in 0\.\.1.*2"):
        detections.to_coco_records(1, np.array([[0, 0, 1, 1, 0.5, 2.0]]), [3, 9])
    with pytest.raises(ValueError, match=r"`boxes` must be \(M, 4\)"):
        detections.scale_boxes((64, 64), np.zeros((2, 6)), (64, 64))
    with pytest.raises(ValueError, match="must be given together"):
        detections.scale_boxes((64, 64), np.zeros((2, 4)), (64, 64), ratio=(1.0, 1.0))
