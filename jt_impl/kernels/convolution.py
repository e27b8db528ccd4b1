"""Convolutions of inference on the CPU: what does not change from call to call is kept.

Jittor's own operator makes oneDNN's primitive anew in every call, reorders the weights, and allocates what it reorders
the maps into; on small maps that takes longer than the convolution. Here primitives are kept by shape, reordered
weights by module, and two buffers serve all layers. oneDNN works with channels last; its reordering back to (N, C, H,
W) took up to thirteen times as long as the way there. The one in ``HEADER`` takes its place, and adds the bias and cuts
at zero on the way. A 1x1 convolution of stride 1 is a matrix product of each image, without any reordering.

Kept weights are found out of date by a fingerprint of the weights themselves, taken in every call: Jittor gives out
numpy views of a parameter's memory, so a number of the variable would miss changes.

Only where no gradients are recorded, in float32: see ``applies``.
"""

from __future__ import annotations

from typing import Any

from jt_impl import mixed, runtime
from jt_impl.runtime import jittor as jt

Var = Any
INCLUDE = runtime.onednn_target() / "include"

HEADER = """
#include <dnnl.hpp>
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>
namespace kept {
using namespace dnnl;
using tag = memory::format_tag;
using type = memory::data_type;

// Of a convolution: images, channels, rows, columns; output channels, kernel, stride, padding.
typedef std::array<int64_t, 8> Shape;

static inline engine& cpu() { static engine one(engine::kind::cpu, 0); return one; }
static inline stream& queue() { static stream one(cpu()); return one; }

static inline memory::dims input(const Shape& s) { return {s[0], s[1], s[2], s[3]}; }
static inline memory::dims output(const Shape& s) {
    return {s[0], s[4], (s[2] + 2 * s[7] - s[5]) / s[6] + 1, (s[3] + 2 * s[7] - s[5]) / s[6] + 1};
}
static inline memory::dims weights(const Shape& s) { return {s[4], s[1], s[5], s[5]}; }
static inline memory::desc plain(memory::dims d) { return memory::desc(d, type::f32, tag::nchw); }
static inline memory::desc channels_last(memory::dims d) { return memory::desc(d, type::f32, tag::nhwc); }

// Direct: Winograd's transforms, which `auto` may choose, round differently.
static inline convolution_forward::primitive_desc described(const Shape& s) {
    const memory::dims stride{s[6], s[6]}, padding{s[7], s[7]}, dilation{0, 0};
    const memory::desc in = channels_last(input(s)), out = channels_last(output(s));
    const memory::desc any_weights(weights(s), type::f32, tag::any);
    return convolution_forward::primitive_desc(
        convolution_forward::desc(prop_kind::forward_inference, algorithm::convolution_direct, in, any_weights, out,
            stride, dilation, padding, padding), cpu());
}

struct Convolution {
    primitive run, turn;
    memory given, source, weights, result;  // the map as it comes; then as oneDNN has them
    int64_t images, channels, places;       // of the result

    explicit Convolution(const Shape& s) {
        const auto pd = described(s);
        given = memory(plain(input(s)), cpu(), nullptr), source = memory(pd.src_desc(), cpu(), nullptr);
        weights = memory(pd.weights_desc(), cpu(), nullptr), result = memory(pd.dst_desc(), cpu(), nullptr);
        run = convolution_forward(pd), turn = reorder(given, source);
        const auto size = output(s);
        images = size[0], channels = size[1], places = size[2] * size[3];
    }
};

// NaN stays NaN, as it does in ReLU; an activation of oneDNN's would make it 0.
static inline float finished(float value, float bias, bool cut) {
    value += bias;
    return cut && value <= 0.0f ? 0.0f : value;
}

typedef float lanes __attribute__((vector_size(64)));
typedef int32_t order __attribute__((vector_size(64)));

// Rows of 16 become columns: four rounds, each of which pairs rows that are `apart`.
template <int apart> static inline void exchange(lanes* rows) {
    order low, high;
    for (int i = 0; i < 16; ++i) {
        low[i] = i & apart ? 16 + i - apart : i;
        high[i] = i & apart ? 16 + i : i + apart;
    }
    for (int i = 0; i < 16; ++i)
        if (!(i & apart)) {
            const lanes a = rows[i], b = rows[i + apart];
            rows[i] = __builtin_shuffle(a, b, low), rows[i + apart] = __builtin_shuffle(a, b, high);
        }
}

// Of one image: 16 places and 16 channels, from channels last to channels first.
static inline void turn_block(
    const float* from, float* to, int64_t channels, int64_t places, const float* bias, bool cut) {
    lanes rows[16];
    for (int i = 0; i < 16; ++i) memcpy(&rows[i], from + i * channels, sizeof(lanes));
    exchange<8>(rows), exchange<4>(rows), exchange<2>(rows), exchange<1>(rows);
    for (int i = 0; i < 16; ++i) {
        lanes value = rows[i] + (bias ? bias[i] : 0.0f);
        if (cut) value = value <= 0.0f ? lanes{} : value;
        memcpy(to + i * places, &value, sizeof(lanes));
    }
}

static inline void turn_back(const float* from, float* to, const Convolution& c, const float* bias, bool cut) {
    const int64_t C = c.channels, P = c.places, strips = (P + 15) / 16;
    #pragma omp parallel for collapse(2) if (c.images * C * P > 20000)
    for (int64_t image = 0; image < c.images; ++image)
        for (int64_t strip = 0; strip < strips; ++strip) {
            const int64_t first = strip * 16, whole = first + 16 <= P ? C / 16 * 16 : 0;
            const float* source = from + (image * P + first) * C;
            float* target = to + image * C * P + first;
            for (int64_t k = 0; k < whole; k += 16)
                turn_block(source + k, target + k * P, C, P, bias ? bias + k : nullptr, cut);
            for (int64_t i = 0; i < std::min<int64_t>(16, P - first); ++i)
                for (int64_t k = whole; k < C; ++k)
                    target[k * P + i] = finished(source[i * C + k], bias ? bias[k] : 0.0f, cut);
        }
}

// Changes with any single weight: each step is one-to-one in the value that it takes up. In 64 lanes and in blocks, so
// that it runs as fast as memory. Never 0, which marks weights that were not reordered yet.
static inline uint64_t block_fingerprint(const float* weights, int64_t count) {
    typedef uint32_t __attribute__((may_alias)) word;
    const word* p = (const word*)weights;
    uint32_t lanes[64] = {};
    int64_t i = 0;
    for (; i + 64 <= count; i += 64)
        for (int j = 0; j < 64; ++j) lanes[j] = (lanes[j] ^ p[i + j]) * 16777619u;
    for (int j = 0; i < count; ++i, ++j) lanes[j] = (lanes[j] ^ p[i]) * 16777619u;
    uint64_t all = 14695981039346656037ull;
    for (int j = 0; j < 64; ++j) all = (all ^ lanes[j]) * 1099511628211ull;
    return all;
}
static inline uint64_t fingerprint(const float* weights, int64_t count) {
    const int64_t size = 1 << 14, blocks = (count + size - 1) / size;
    std::vector<uint64_t> found(blocks);
    #pragma omp parallel for if (blocks > 4)
    for (int64_t b = 0; b < blocks; ++b)
        found[b] = block_fingerprint(weights + b * size, std::min(size, count - b * size));
    uint64_t all = 14695981039346656037ull;
    for (uint64_t one : found) all = (all ^ one) * 1099511628211ull;
    return all ? all : 1;
}

// Primitives that one kernel keeps, of about 0.15 MB each: images of many sizes must not fill the memory. A network has
// some forty shapes for one size of images.
static const size_t MOST = 1024;

// Reordered weights stand behind their fingerprint, on a cache line of their own.
static const int START = 16;

static inline void* buffer(int which, size_t bytes) {
    static std::vector<char> held[3];
    if (held[which].size() < bytes + 64) held[which].resize(bytes + 64);
    return (void*)(((size_t)held[which].data() + 63) / 64 * 64);
}
}
"""
SHAPE = """
    const kept::Shape shape{(int64_t)data["images"], (int64_t)data["channels"], (int64_t)data["rows"],
        (int64_t)data["columns"], (int64_t)data["outputs"], (int64_t)data["kernel"], (int64_t)data["stride"],
        (int64_t)data["padding"]};
"""
RUN = f"""{SHAPE}
    using namespace kept;
    static std::map<Shape, Convolution> known;
    auto found = known.find(shape);
    if (found == known.end()) {{
        if (known.size() == MOST) known.clear();
        found = known.emplace(shape, Convolution(shape)).first;
    }}
    auto& c = found->second;
    // Weights that take up more than was set aside are reordered in every call.
    const size_t bytes = c.weights.get_desc().get_size();
    const bool keeps = bytes <= (in2_shape0 - START) * sizeof(float);
    c.weights.set_data_handle(keeps ? (void*)(in2_p + START) : buffer(2, bytes));
    const uint64_t now = fingerprint(in1_p, in1->num);
    if (!keeps || now != *(uint64_t*)in2_p) {{
        memory from(plain(weights(shape)), cpu(), in1_p);
        reorder(from, c.weights).execute(queue(), from, c.weights);
        *(uint64_t*)in2_p = now;
    }}
    c.given.set_data_handle(in0_p);
    c.source.set_data_handle(buffer(0, c.source.get_desc().get_size()));
    c.result.set_data_handle(buffer(1, c.result.get_desc().get_size()));
    c.turn.execute(queue(), {{{{DNNL_ARG_FROM, c.given}}, {{DNNL_ARG_TO, c.source}}}});
    c.run.execute(queue(),
        {{{{DNNL_ARG_SRC, c.source}}, {{DNNL_ARG_WEIGHTS, c.weights}}, {{DNNL_ARG_DST, c.result}}}});
    queue().wait();
    turn_back((const float*)c.result.get_data_handle(), out_p, c, BIAS, data["cut"] != 0);
"""
PRODUCT = """
    const int64 outputs = in1_shape0, channels = in1_shape1, places = in0_shape2 * in0_shape3;
    const float* bias = BIAS;
    const bool cut = data["cut"] != 0;
    for (int64 image = 0; image < in0_shape0; ++image) {
        float* result = out_p + image * outputs * places;
        const auto status = dnnl_sgemm('N', 'N', outputs, places, channels, 1.f, in1_p, channels,
            in0_p + image * channels * places, places, 0.f, result, places);
        ASSERT(status == dnnl_success) << "oneDNN's product failed with status" << (int)status;
        if (!bias && !cut) continue;
        #pragma omp parallel for if (outputs * places > 20000)
        for (int64 k = 0; k < outputs; ++k)
            for (int64 i = 0; i < places; ++i)
                result[k * places + i] = kept::finished(result[k * places + i], bias ? bias[k] : 0.0f, cut);
    }
"""


class Kept:
    """The reordered weights of one module, for the shape of input that came last. Neither copied nor pickled."""

    def __init__(self) -> None:
        self.made_for: dict[str, int] | None = None
        self.weights: Var = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def applies(x: Var) -> bool:
    """Whether ``conv2d`` may take the place of Jittor's operator: float32, CPU, no gradients, no mixed precision."""
    wanted = jt.flags.no_grad and not jt.flags.use_cuda and not mixed.active()
    return bool(wanted) and str(x.dtype) == "float32" and jt.compile_extern.mkl_ops is not None


def conv2d(x: Var, weight: Var, bias: Var | None, stride: int, padding: int, kept: Kept, *, relu: bool = False) -> Var:
    """Convolution.

    Args:
        x: (N, C, H, W) float32.
        weight: (O, C, K, K), a parameter.
        bias: (O,) or None.
        kept: of the module that owns the weight.
        relu: cut the result at zero; bit for bit what ``layers.ReLU`` makes of it.
    """
    images, channels, rows, columns = x.shape
    outputs, kernel = weight.shape[0], weight.shape[2]
    if kernel == stride == 1 and not padding:
        return code((images, outputs, rows, columns), [x, weight], bias, PRODUCT, {"cut": int(relu)})
    shape = {"images": images, "channels": channels, "rows": rows, "columns": columns}
    shape |= {"outputs": outputs, "kernel": kernel, "stride": stride, "padding": padding}
    if kept.made_for != shape:
        # oneDNN rounds channels up to blocks of 16 and skews some layouts. Nothing may be waited for here: Jittor would
        # run what is pending, fuse it otherwise than in later passes, and compile kernels for both.
        blocks = -(-channels // 16) * -(-outputs // 16) * 256
        kept.weights = jt.zeros((blocks * kernel * kernel * 9 // 8 + 4096,)).stop_grad()
        kept.made_for = shape
    places = [(n + 2 * padding - kernel) // stride + 1 for n in (rows, columns)]
    return code((images, outputs, *places), [x, weight, kept.weights], bias, RUN, {**shape, "cut": int(relu)})


def code(shape: tuple[int, ...], inputs: list[Var], bias: Var | None, source: str, data: dict[str, int]) -> Var:
    source = source.replace("BIAS", "nullptr" if bias is None else f"in{len(inputs)}_p")
    given = inputs if bias is None else [*inputs, bias]
    result = jt.code(shape, "float32", given, cpu_header=HEADER, cpu_src=source, data=data)
    result.compile_options = {f'FLAGS: -I"{INCLUDE}" ': 1}
    return result
