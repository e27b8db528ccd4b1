"""CUDA for Jittor: found in every layout, laid out whole, never in the way of the CPU; and the headers compile."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alignment_tests.cases.cuda_toolkits import package_layout, place_nvcc, system_layout, touch
from jt_impl import postprocess
from jt_impl.cuda import home, toolkit
from jt_impl.cuda.toolkit import MissingPartError
from jt_impl.kernels import float64, functional, statistics
from jt_impl.runtime import jittor


def remove(root: Path, pattern: str) -> None:
    files = list(root.rglob(pattern))
    assert files
    for file in files:
        file.unlink()


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A cuDNN of the system would be found where a test took its own away."""
    if "real_home" not in request.fixturenames:
        monkeypatch.setattr(platform, "machine", lambda: "none")
        found = toolkit.existing
        monkeypatch.setattr(toolkit, "existing", lambda folders: found(f for f in folders if f.parts[1] != "usr"))


# Finding


@pytest.mark.parametrize(("version", "cudnn"), [("12.2", 8), ("12.4", 9), ("13.0", 9)])
def test_system_toolkit_is_found(version: str, cudnn: int, tmp_path: Path) -> None:
    found = toolkit.find(system_layout(tmp_path, version, cudnn), [])
    assert (found.nvcc, found.cudnn.major) == (tmp_path / "bin" / "nvcc", cudnn)
    assert found.description == f"CUDA {version} at {tmp_path}/bin/nvcc, cuDNN {cudnn}"


@pytest.mark.parametrize("cuda", [12, 13])
def test_python_packages_are_found(cuda: int, tmp_path: Path) -> None:
    found = toolkit.find(package_layout(tmp_path, cuda), [tmp_path])
    assert found.version == (cuda, 4)
    assert found.cudnn == toolkit.Cudnn(tmp_path / "cudnn" / "include", 9)


def test_packages_are_found_without_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_layout(tmp_path, 13)
    monkeypatch.setattr(toolkit, "version_of", lambda nvcc: (13, 4) if tmp_path in nvcc.parents else None)
    assert toolkit.find({"PATH": ""}, [tmp_path]).nvcc == tmp_path / "cu13" / "bin" / "nvcc"


def test_compiler_behind_a_link_and_a_script_is_found(tmp_path: Path) -> None:
    system_layout(tmp_path / "cuda")
    script, link = tmp_path / "bin" / "nvcc", tmp_path / "link"
    touch(script, f'#!/bin/sh\nexec {tmp_path}/cuda/bin/nvcc "$@"\n')
    script.chmod(0o755)
    link.symlink_to(script)
    assert toolkit.find({"nvcc_path": str(link)}, []).nvcc == tmp_path / "cuda" / "bin" / "nvcc"


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("nvcc", "the CUDA compiler `nvcc` was not found"),
        ("curand.h", "not found: curand.h. .* pip install nvidia-curand$"),
        ("libcufft.so.*", "not found: libcufft.so.12. .* pip install nvidia-cufft$"),
        ("libcudart.so.*", "not found: libcudart.so.13. .* pip install nvidia-cuda-runtime$"),
        ("cub.cuh", "not found: cub/cub.cuh. .* pip install nvidia-cuda-cccl$"),
        ("*curand*", "not found: curand.h, libcurand.so.10. .* pip install nvidia-curand$"),
        ("cudnn.h", "cuDNN 8 or 9 for CUDA 13 was not found \\(no cudnn.h\\). .* nvidia-cudnn-cu13$"),
        ("libcudnn_ops.so.9", "has the header of version 9, no libcudnn_ops.so.9"),
    ],
)
def test_what_is_missing_is_named(pattern: str, words: str, tmp_path: Path) -> None:
    variables = system_layout(tmp_path)
    remove(tmp_path, pattern)
    with pytest.raises(MissingPartError, match=words):
        toolkit.find(variables, [])


def test_package_of_cuda_12_has_another_name(tmp_path: Path) -> None:
    variables = system_layout(tmp_path, "12.4")
    remove(tmp_path, "curand.h")
    with pytest.raises(MissingPartError, match=r"pip install nvidia-curand-cu12$"):
        toolkit.find(variables, [])


def test_old_cuda_is_refused(tmp_path: Path) -> None:
    place_nvcc(tmp_path, "11.8")
    with pytest.raises(MissingPartError, match=r"CUDA 12 and 13 are prepared for Jittor. Received: 11.8"):
        toolkit.find({"CUDA_HOME": str(tmp_path)}, [])


def test_cudnn_of_another_cuda_is_not_taken(tmp_path: Path) -> None:
    variables = system_layout(tmp_path / "cuda", "12.4")
    remove(tmp_path / "cuda", "*cudnn*")
    package_layout(tmp_path / "nvidia", 13)
    with pytest.raises(MissingPartError, match="cuDNN 8 or 9 for CUDA 12 was not found"):
        toolkit.find(variables, [tmp_path / "nvidia"])


def test_libraries_are_those_that_pytorch_loads(tmp_path: Path) -> None:
    variables = system_layout(tmp_path / "cuda")
    package_layout(tmp_path / "nvidia", 13)
    links = home.library_links(toolkit.find(variables, [tmp_path / "nvidia"]))
    assert links["libcudart.so.13"] == tmp_path / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
    assert home.plan(toolkit.find(variables, []))["include/curand.h"] == tmp_path / "cuda" / "include" / "curand.h"


# Laying out


def make(tmp_path: Path, *layout: Any) -> Path:
    return home.make(toolkit.find(system_layout(tmp_path / "cuda", *layout), []), tmp_path / "homes")


@pytest.mark.parametrize("layout", [("12.2", 8), ("12.4", 9), ("13.0", 9)])
def test_home_has_the_names_that_jittor_asks_for(layout: tuple[str, int], tmp_path: Path) -> None:
    made = make(tmp_path, *layout)
    libraries = ["cudart", "cublas", "cublasLt", "curand", "cufft", "cusparse", "cudnn", *home.NAMES_OF_CUDNN_8]
    assert [name for name in libraries if not (made / "lib64" / f"lib{name}.so").is_file()] == []
    headers = ["cuda_runtime.h", "cudnn.h", "cublas.h", "curand.h", "cufft.h", "cusparse.h", "cub/config.cuh", "npp.h"]
    assert [name for name in headers if not (made / "include" / name).is_file()] == []
    assert os.access(made / "bin" / "nvcc", os.X_OK)


@pytest.mark.parametrize("cuda", [12, 13])
def test_home_of_packages(cuda: int, tmp_path: Path) -> None:
    made = home.make(toolkit.find(package_layout(tmp_path / "nvidia", cuda), [tmp_path / "nvidia"]), tmp_path / "homes")
    assert (made / "lib64" / "libcudnn_ops_infer.so").resolve().name == "libcudnn_ops.so.9"
    assert (made / "include" / "thrust" / "version.h").is_file()


def test_our_headers_stand_in_front_of_the_vendors(tmp_path: Path) -> None:
    made = make(tmp_path)
    for name in ("cuda_runtime.h", "cudnn.h", "cub/cub.cuh"):
        assert (made / "include" / name).read_text() == (home.OURS / name).read_text()
        assert (made / "include" / "vendor" / name).read_text() == Path(name).name


def test_nothing_but_links_and_our_own_files(tmp_path: Path) -> None:
    made = make(tmp_path)
    files = {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file() and not file.is_symlink()}
    assert {file for file in files if "/vendor/cub/" not in file} - {"include/thrust/version.h"} == {
        "bin/nvcc",
        *(f"include/{name}" for name in home.our_headers()),
    } | {file for file in files if file.startswith("include/crt/")}


def test_libraries_are_loaded_after_those_that_they_need(tmp_path: Path) -> None:
    names = [library.name for library in home.preload_order(make(tmp_path))]
    assert names[:3] == ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"]
    assert names[-1] == "libcudnn.so.9"


def test_second_home_is_the_first(tmp_path: Path) -> None:
    made = make(tmp_path)
    before = made.stat().st_mtime_ns
    assert make(tmp_path) == made
    assert (made.stat().st_mtime_ns, [place.name for place in made.parent.iterdir()]) == (before, [made.name])


def test_broken_home_is_made_anew(tmp_path: Path) -> None:
    made = make(tmp_path)
    (made / "include" / "curand.h").unlink()
    assert make(tmp_path) == made
    assert (made / "include" / "curand.h").is_file()


def test_another_toolkit_gets_another_home(tmp_path: Path) -> None:
    assert make(tmp_path, "12.4", 9) != make(tmp_path, "13.0", 9)


def test_cut_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(link: Path, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "symlink_to", full_disk)
    with pytest.raises(OSError, match="no space left"):
        make(tmp_path)
    assert list((tmp_path / "homes").iterdir()) == []


def test_another_process_may_be_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = home.write

    def write_while_another_finishes(folder: Path, entries: Any) -> None:
        write(folder, entries)
        write(tmp_path / "homes" / folder.name, entries)

    monkeypatch.setattr(home, "write", write_while_another_finishes)
    assert (make(tmp_path) / "bin" / "nvcc").is_file()


def test_compiler_script_drops_fast_math(tmp_path: Path) -> None:
    echo = tmp_path / "a folder" / "nvcc"
    touch(echo, '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    touch(tmp_path / "script", home.script(echo))
    command = ["sh", str(tmp_path / "script"), "a b.cu", "-std=c++14", "--use_fast_math", "-I$x"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["a b.cu", "-I$x", "-std=c++17", "--fmad=false"]


# With a real compiler


@pytest.fixture(scope="module")
def real_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiler and the headers of this machine, laid out; no library is needed to compile."""
    try:
        nvcc, version, includes, libraries = toolkit.look()
        cudnn = toolkit.find_cudnn(includes, libraries, version[0])
    except MissingPartError as error:
        pytest.skip(f"needs nvcc and cuDNN's headers: {error}")
    found = toolkit.Toolkit(nvcc, version, includes, libraries, cudnn)
    folder = tmp_path_factory.mktemp("home")
    home.write(folder, {"bin/nvcc": home.script(nvcc), **home.header_entries(found)})
    return folder


def compiled(real_home: Path, tmp_path: Path, source: str, *flags: str) -> Path:
    """Compile a few lines as Jittor does."""
    touch(tmp_path / "few.cu", source)
    jittors = ["-std=c++14", "--use_fast_math", "-w", f"-I{real_home}/include", "-arch=compute_90"]
    command = [str(real_home / "bin" / "nvcc"), *jittors, *flags, str(tmp_path / "few.cu"), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return tmp_path / "out"


SOURCES = {
    "cuda_runtime.h": """
        #include <cuda_runtime.h>
        int f() {
            cudaDeviceProp p;
            if (cudaGetDeviceProperties(&p, 0) || p.computeMode == cudaComputeModeProhibited) return 0;
            return p.clockRate * p.multiProcessorCount;
        }""",
    "npp.h": """
        #include <npp.h>
        static_assert(NPP_MIN_32U == 0 && NPP_MAX_32U == 0xffffffffu && NPP_MIN_32S == -NPP_MAX_32S - 1, "32 bits");
        static_assert(NPP_MIN_64U == 0 && NPP_MAX_64U == ~0ull && NPP_MIN_64S == -NPP_MAX_64S - 1, "64 bits");
        """,
    "cub/cub.cuh": """
        #include <cub/cub.cuh>
        struct NonZero { __host__ __device__ bool operator()(const float &x) const { return x != 0; } };
        __global__ void f(float *x, int *n) {
            typedef cub::BlockReduce<float, 32> Reduce;
            __shared__ typename Reduce::TempStorage storage;
            float most = Reduce(storage).Reduce(x[threadIdx.x], cub::Max());
            cub::CountingInputIterator<int> counting(0);
            cub::TransformInputIterator<bool, NonZero, float *> flags(x, NonZero());
            if (cub::LaneId() == 0) *n = counting[3] + flags[2] + (most > 0);
        }""",
    "cudnn.h": """
        #include <cudnn.h>
        int f(cudnnHandle_t h, cudnnRNNDescriptor_t r, cudnnTensorDescriptor_t *x, cudnnTensorDescriptor_t t,
              cudnnFilterDescriptor_t w, cudnnDropoutDescriptor_t d, void *p, size_t n) {
            return cudnnSetRNNDescriptor_v6(h, r, 1, 1, d, CUDNN_LINEAR_INPUT, CUDNN_UNIDIRECTIONAL, CUDNN_LSTM,
                                            CUDNN_RNN_ALGO_STANDARD, CUDNN_DATA_FLOAT)
                 + cudnnGetRNNParamsSize(h, r, *x, &n, CUDNN_DATA_FLOAT)
                 + cudnnGetRNNWorkspaceSize(h, r, 1, x, &n)
                 + cudnnGetRNNTrainingReserveSize(h, r, 1, x, &n)
                 + cudnnGetRNNLinLayerMatrixParams(h, r, 0, t, w, p, 0, w, &p)
                 + cudnnGetRNNLinLayerBiasParams(h, r, 0, t, w, p, 0, w, &p)
                 + cudnnRNNForwardTraining(h, r, 1, x, p, t, p, t, p, w, p, x, p, t, p, t, p, p, n, p, n)
                 + cudnnRNNForwardInference(h, r, 1, x, p, t, p, t, p, w, p, x, p, t, p, t, p, p, n)
                 + cudnnRNNBackwardData(h, r, 1, x, p, x, p, t, p, t, p, w, p, t, p, t, p, x, p, t, p, t, p, p, n, p, n)
                 + cudnnRNNBackwardWeights(h, r, 1, x, p, t, p, x, p, p, n, w, p, p, n);
        }""",
}


@pytest.mark.parametrize("header", SOURCES)
def test_header_gives_back_what_was_taken(header: str, real_home: Path, tmp_path: Path) -> None:
    compiled(real_home, tmp_path, SOURCES[header], "-code=sm_90", "-c")


CALLS = """
    template <class T> void f(T *p, double *d, bool *b, int *i, long long n) {
        batch_statistics<<<1, 512>>>(p, p, p, n, n);
        batch_norm_backward<<<1, 512>>>(p, p, p, p, p, p, p, p, n, n, 1e-3);
        total_of<<<1, 512>>>(p, p, n);
        channel_sums<<<1, 512>>>(p, p, n, n);
        keep_best<<<1, 512>>>(p, d, b, n, 80, p, 300, i, p, i);
        are_finite<unsigned short><<<1, 256>>>((unsigned short *)i, b, n, 0x7c00);
        are_finite<unsigned int><<<1, 256>>>(p, b, n, 0x7f800000);
    }
    template void f(float *, double *, bool *, int *, long long);
    template void f(double *, double *, bool *, int *, long long);
    void g(double *d, long long n) { batched_product<<<1, dim3(16, 16)>>>(d, d, d, n, n, n, 0, 0); }
    """


def test_kernels_of_our_own_compile(real_home: Path, tmp_path: Path) -> None:
    channels = statistics.CUDA_CHANNEL_HEADER.removeprefix(statistics.CUDA_HEADER)
    headers = [float64.CUDA_HEADER, statistics.CUDA_TOTAL_HEADER, channels, postprocess.CUDA_HEADER]
    source = "\n".join([*headers, functional.CUDA_FINITE_HEADER, CALLS])
    compiled(real_home, tmp_path, source, "-code=sm_90", "-c")


CONVOLUTION = """
    #include <cudnn.h>
    int f(cudnnConvolutionDescriptor_t c, const int *n) {
        return cudnnSetConvolutionNdDescriptor(c, 2, n, n, n, CUDNN_CROSS_CORRELATION, CUDNN_DATA_HALF)
             + cudnnSetConvolutionMathType(c, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION);
    }"""


def test_convolutions_are_set_up_by_us(real_home: Path, tmp_path: Path) -> None:
    text = compiled(real_home, tmp_path, CONVOLUTION, "-E").read_text()
    assert "return align_set_convolution(c, 2, n" in text
    assert "+ align_set_math(c, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION)" in text


@pytest.mark.parametrize("name", ["cudnn_conv_op", "cudnn_conv_backward_x_op", "cudnn_conv_backward_w_op"])
def test_jittor_lists_as_many_algorithms_as_it_tries(name: str, real_home: Path, tmp_path: Path) -> None:
    operators = Path(jittor.compiler.jittor_path) / "extern" / "cuda" / "cudnn" / "ops"
    text = (operators / f"{name}.cc").read_text(encoding="utf-8")
    listed = re.search(r"algos\[\] = \{(.*?)\}", text, re.DOTALL)
    count = re.search(r"num_algos = (CUDNN_\w+_ALGO_COUNT)", text)
    assert listed is not None
    assert count is not None
    entries = len(re.findall(r"CUDNN_\w+", listed[1]))
    source = f'#include <cudnn.h>\nstatic_assert({count[1]} <= {entries}, "beyond the end of the list");'
    compiled(real_home, tmp_path, source, "-code=sm_90", "-c")


def test_fast_math_does_not_arrive(real_home: Path, tmp_path: Path) -> None:
    source = "__global__ void f(float *x, float a) { x[0] = x[1] / a + sqrtf(x[2]) * a + expf(x[3]) + sinf(x[4]); }"
    text = compiled(real_home, tmp_path, source, "-ptx").read_text()
    assert "div.rn.f32" in text
    assert "sqrt.rn.f32" in text
    assert "sin.approx" not in text


# What a convolution is set to

FAKE_CUDNN = """
    #define CUDNN_MAJOR 8
    enum cudnnStatus_t { CUDNN_STATUS_SUCCESS };
    enum cudnnMathType_t {
        CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION, CUDNN_FMA_MATH
    };
    enum cudnnDataType_t { CUDNN_DATA_FLOAT, CUDNN_DATA_DOUBLE, CUDNN_DATA_HALF, CUDNN_DATA_BFLOAT16 };
    enum cudnnConvolutionMode_t { CUDNN_CROSS_CORRELATION };
    struct Convolution { cudnnMathType_t math; cudnnDataType_t sums; };
    typedef Convolution *cudnnConvolutionDescriptor_t;
    cudnnStatus_t cudnnSetConvolutionNdDescriptor(Convolution *c, int, const int *, const int *, const int *,
                                                  cudnnConvolutionMode_t, cudnnDataType_t sums) {
        return c->sums = sums, c->math = CUDNN_DEFAULT_MATH, CUDNN_STATUS_SUCCESS;
    }
    cudnnStatus_t cudnnSetConvolutionMathType(Convolution *c, cudnnMathType_t math) {
        return c->math = math, CUDNN_STATUS_SUCCESS;
    }
    cudnnStatus_t cudnnGetConvolutionMathType(Convolution *c, cudnnMathType_t *math) {
        return *math = c->math, CUDNN_STATUS_SUCCESS;
    }
    """
PROGRAM = """
    #include <cudnn.h>
    #include <cstdio>
    int main() {
        for (int type = 0; type < 4; ++type)
            for (int tensor_cores = 0; tensor_cores < 2; ++tensor_cores) {
                Convolution c;
                cudnnSetConvolutionNdDescriptor(&c, 2, 0, 0, 0, CUDNN_CROSS_CORRELATION, cudnnDataType_t(type));
                if (tensor_cores || type > 1) cudnnSetConvolutionMathType(&c, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION);
                std::printf("%d%d ", c.math, c.sums);
            }
    }
    """


def test_float32_stays_float32_and_half_is_summed_in_float32(tmp_path: Path) -> None:
    """Math (0: TF32 where the card has it, 1: tensor cores, 3: neither), type of the sums (0: float32, 1: float64)."""
    touch(tmp_path / "vendor" / "cudnn.h", FAKE_CUDNN)
    touch(tmp_path / "p.cc", PROGRAM)
    command = ["g++", "-w", f"-I{tmp_path}", f"-I{home.OURS}", str(tmp_path / "p.cc"), "-o", str(tmp_path / "p")]
    subprocess.run(command, check=True)
    found = subprocess.run([str(tmp_path / "p")], capture_output=True, text=True, check=True).stdout.split()
    single, double, half, brain = found[:2], found[2:4], found[4:6], found[6:]
    assert (single, double, half, brain) == (["30", "00"], ["01", "01"], ["10", "10"], ["10", "10"])
