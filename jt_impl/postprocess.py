"""From raw predictions to detections: thresholds, labels and greedy non-maximum suppression in one kernel.

``jt.nms`` adds a pixel to every side, so it keeps other boxes than torchvision does (of 64 normalised ones, 4). Here
the overlap is computed in torchvision's order of operations, so that the same boxes are kept, bit for bit. A batch is
one operator with one read by the host. Thresholds are inputs of the kernel: other values compile nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fixtures.evaluation.detections import CLASS_OFFSET, COLUMNS, NotFiniteError, Suppression, suppression
from jt_impl.kernels import code
from jt_impl.layers import Var, to_var
from jt_impl.runtime import jittor as jt

# For both devices. Settings: score threshold, IoU threshold, agnostic, every label. Place: anchor * classes + class.
COMMON = """
#ifdef __CUDACC__
#define DEVICE __device__
#else
#define DEVICE
#endif
// nvcc joins products with sums and, with Jittor's flags, divides inexactly: not these.
static DEVICE inline float times(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
static DEVICE inline double times(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}
static DEVICE inline float ratio(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}
static DEVICE inline double ratio(double a, double b) { return a / b; }

template <class T> struct Box { T x1, y1, x2, y2, area; };

template <class T>
static DEVICE inline Box<T> box_of(const T* row, T shift) {
    const T half_w = row[2] * T(0.5), half_h = row[3] * T(0.5);
    Box<T> box;
    box.x1 = row[0] - half_w + shift, box.y1 = row[1] - half_h + shift;
    box.x2 = row[0] + half_w + shift, box.y2 = row[1] + half_h + shift;
    box.area = times(box.x2 - box.x1, box.y2 - box.y1);
    return box;
}
template <class T>
static DEVICE inline T overlap(const Box<T>& a, const Box<T>& b) {
    const T w = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1);
    const T h = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
    const T common = times(w > 0 ? w : T(0), h > 0 ? h : T(0));
    return ratio(common, a.area + b.area - common);  // NaN for two boxes without area: not greater than a threshold
}
// Calls visit(label, score) for what an anchor detects.
template <class T, class Visit>
static DEVICE inline void visit_labels(
    const T* row, const double* settings, const bool* wanted, int classes, Visit visit) {
    const T threshold = settings[0];
    int best = 0, most = 0;
    for (int c = 1; c < classes; ++c) {
        if (row[5 + c] > row[5 + most]) most = c;
        if (times(row[4], row[5 + c]) > times(row[4], row[5 + best])) best = c;
    }
    if (!(row[4] > threshold && row[5 + most] > threshold)) return;
    const bool every = settings[3] != 0;
    for (int c = every ? 0 : best; c < (every ? classes : best + 1); ++c) {
        const T score = times(row[4], row[5 + c]);
        if (score > threshold && wanted[c]) visit(c, score);
    }
}
template <class T>
static DEVICE inline Box<T> box_at(const T* rows, const double* settings, int classes, int place) {
    const int label = place % classes;
    const T shift = settings[2] != 0 ? T(0) : T(label) * T(OFFSET);
    return box_of(rows + (long long)(place / classes) * (classes + 5), shift);
}
template <class T>
static DEVICE inline void write(const T* rows, int classes, int place, T score, T* kept) {
    const Box<T> box = box_of(rows + (long long)(place / classes) * (classes + 5), T(0));
    kept[0] = box.x1, kept[1] = box.y1, kept[2] = box.x2, kept[3] = box.y2;
    kept[4] = score, kept[5] = place % classes;
}
""".replace("OFFSET", str(CLASS_OFFSET))

CPU_HEADER = f"""
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>
{COMMON}
// Number of detections of an image, or -1 if a prediction is not finite.
template <class T>
static int keep_best(const T* rows, const double* settings, const bool* wanted, long long anchors, int classes,
                     T* kept, int limit) {{
    std::fill(kept, kept + (long long)limit * 6, T(0));
    const long long width = classes + 5;
    if (!std::all_of(rows, rows + anchors * width, [](T value) {{ return std::isfinite(value); }})) return -1;
    std::vector<std::pair<T, int>> found;  // minus the score, and the place: in ascending order the best come first
    for (long long anchor = 0; anchor < anchors; ++anchor)
        visit_labels(rows + anchor * width, settings, wanted, classes,
                     [&](int label, T score) {{ found.emplace_back(-score, int(anchor) * classes + label); }});
    std::sort(found.begin(), found.end());
    std::vector<Box<T>> boxes;
    for (const auto& candidate : found) {{
        if ((int)boxes.size() == limit) break;
        const Box<T> box = box_at(rows, settings, classes, candidate.second);
        if (std::any_of(boxes.begin(), boxes.end(),
                        [&](const Box<T>& better) {{ return (double)overlap(better, box) > settings[1]; }})) continue;
        write(rows, classes, candidate.second, -candidate.first, kept + boxes.size() * 6);
        boxes.push_back(box);
    }}
    return boxes.size();
}}
"""
CPU_SOURCE = """
    const int classes = in0_shape2 - 5, limit = out0_shape1;
    const int64 size = in0_shape1 * in0_shape2;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int64 i = 0; i < in0_shape0; ++i)
        out1_p[i] = keep_best(in0_p + i * size, in1_p, in2_p, in0_shape1, classes, out0_p + i * limit * 6, limit);
"""

# One block per image. Candidates are gathered in any order; each round strikes those that the last one kept suppresses,
# and finds the best of the others: the greatest score, of equal ones the first place.
CUDA_HEADER = f"""
#include <cmath>
{COMMON}
template <class T>
__global__ void keep_best(const T* rows, const double* settings, const bool* wanted, long long anchors, int classes,
                          T* kept, int limit, int* counts, T* scores, int* places) {{
    __shared__ int found, broken, best[THREADS];
    const int thread = threadIdx.x, threads = blockDim.x;
    const long long width = classes + 5;
    rows += blockIdx.x * anchors * width, kept += (long long)blockIdx.x * limit * 6;
    scores += blockIdx.x * anchors * classes, places += blockIdx.x * anchors * classes;
    if (thread == 0) found = broken = 0;
    __syncthreads();
    for (long long i = thread; i < limit * 6; i += threads) kept[i] = 0;
    for (long long i = thread; i < anchors * width; i += threads)
        if (!isfinite(rows[i])) broken = 1;
    for (long long anchor = thread; anchor < anchors; anchor += threads)
        visit_labels(rows + anchor * width, settings, wanted, classes, [&](int label, T score) {{
            const int slot = atomicAdd(&found, 1);
            scores[slot] = score, places[slot] = int(anchor) * classes + label;
        }});
    __syncthreads();
    // Whether the candidate of slot a goes before that of slot b; -1 is none.
    auto before = [&](int a, int b) {{
        if (a < 0 || b < 0) return b < 0;
        return scores[a] > scores[b] || (scores[a] == scores[b] && places[a] < places[b]);
    }};
    int count = broken ? limit : 0, last = -1;
    Box<T> taken = {{}};
    for (; count < limit; ++count) {{
        int mine = -1;
        for (int slot = thread; slot < found; slot += threads) {{
            if (scores[slot] < 0) continue;  // struck
            const bool gone = last >= 0 && (places[slot] == last ||
                (double)overlap(taken, box_at(rows, settings, classes, places[slot])) > settings[1]);
            if (gone) scores[slot] = -1;
            else if (before(slot, mine)) mine = slot;
        }}
        best[thread] = mine;
        __syncthreads();
        for (int half = threads / 2; half > 0; half /= 2) {{
            if (thread < half && before(best[thread + half], best[thread])) best[thread] = best[thread + half];
            __syncthreads();
        }}
        const int slot = best[0];
        const T score = slot < 0 ? T(0) : scores[slot];  // read before the barrier: the next round strikes it
        __syncthreads();
        if (slot < 0) break;
        last = places[slot], taken = box_at(rows, settings, classes, last);
        if (thread == 0) write(rows, classes, last, score, kept + count * 6);
    }}
    if (thread == 0) counts[blockIdx.x] = broken ? -1 : count;
}}
""".replace("THREADS", "512")
CUDA_SOURCE = """
    keep_best<<<in0_shape0, 512>>>(in0_p, in1_p, in2_p, in0_shape1, int(in0_shape2 - 5),
                                   out0_p, int(out0_shape1), out1_p, out2_p, out3_p);
"""


def non_max_suppression(
    predictions: Var,
    conf_threshold: float = 0.03,
    iou_threshold: float = 0.65,
    classes: Iterable[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = True,
    max_detections: int = 300,
) -> list[Var]:
    """The detections of each image, best first; equal scores in the order of anchor, then class.

    An anchor counts if its objectness and its best class score are greater than the threshold. A label's score is
    their product. Boxes of different classes are moved apart by 4096 pixels per class, in their own dtype.

    Args:
        predictions: (N, A, 5 + classes), float32 or float64: cx, cy, w, h in pixels, objectness, class scores.
        conf_threshold: a score must be greater.
        iou_threshold: a box goes if its IoU with a better one that stays is greater.
        classes: only these, or None for all.
        agnostic: boxes suppress those of other classes too.
        multi_label: every class above the threshold gives a detection, not only the best; without effect on one class.
        max_detections: the best so many are kept.

    Returns:
        Per image (M, 6): x1, y1, x2, y2, score, class, in the dtype of ``predictions``.

    Raises:
        ValueError: an argument is out of its range; ``NotFiniteError`` if a prediction is not finite.
    """
    settings = suppression(
        predictions.shape,
        str(predictions.dtype),
        conf_threshold,
        iou_threshold,
        classes,
        agnostic,
        multi_label,
        max_detections,
    )
    if 0 in predictions.shape[:2]:
        return [to_var(np.zeros((0, len(COLUMNS))), predictions) for _ in range(predictions.shape[0])]
    kept, counts = jt.fetch_sync(list(suppress(predictions, settings)))
    if (counts < 0).any():
        raise NotFiniteError(int(np.argmax(counts < 0)))
    return [to_var(rows[:count], predictions) for rows, count in zip(kept, counts.tolist(), strict=True)]


def suppress(predictions: Var, settings: Suppression) -> tuple[Var, Var]:
    """Detections (N, max_detections, 6), padded with zeros, and their number (N,); -1 where a value is not finite."""
    images, anchors, width = predictions.shape
    dtype, limit = predictions.dtype, settings.max_detections
    numbers = [settings.conf_threshold, settings.iou_threshold, settings.agnostic, settings.every_label]
    inputs = [predictions, jt.array64(np.array(numbers, np.float64)), jt.array(settings.wanted)]
    shapes, dtypes = [(images, limit, len(COLUMNS)), (images,)], [dtype, "int32"]
    if jt.flags.use_cuda:  # working memory: the score and the place of each candidate
        shapes, dtypes = [*shapes, *[(images, anchors * (width - len(COLUMNS) + 1))] * 2], [*dtypes, dtype, "int32"]
    found = code.code(
        shapes,
        dtypes,
        inputs,
        cpu_header=CPU_HEADER,
        cpu_src=CPU_SOURCE,
        cuda_header=CUDA_HEADER,
        cuda_src=CUDA_SOURCE,
    )
    return found[0], found[1]
