"""Makes stubs of the CUDA libraries: every call succeeds and nothing is computed.

With them Jittor believes in one device of compute capability 9.0, so the real nvcc compiles every kernel that Jittor
would run, on a machine without a GPU. All results are zeros. They belong where no other program looks.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from jt_impl.cuda.toolkit import Toolkit, find_library

PREFIXES = re.compile(r"^(__)?(cuda|cublas|cudnn|curand|cufft|cusparse)\w+$")
CREATES = re.compile(r"Create")
DRIVER = {
    "cuInit": "(unsigned flags) { return 0; }",
    "cuDriverGetVersion": "(int *v) { *v = VERSION; return 0; }",
    "cuDeviceGetCount": "(int *n) { *n = 1; return 0; }",
    "cuDeviceGet": "(int *d, int i) { *d = i; return 0; }",
    "cuDeviceGetName": '(char *t, int n, int d) { strncpy(t, "stand-in", n); return 0; }',
    "cuDeviceGetAttribute": "(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }",
}
PROPERTIES = """(struct cudaDeviceProp *p, int d) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in");
    p->major = 9;
    p->multiProcessorCount = 132;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->warpSize = 32;
    p->sharedMemPerBlock = 49152;
    p->totalGlobalMem = 1ull << 34;
    p->managedMemory = p->unifiedAddressing = 1;
    return 0;
}"""
KINDS = ("Forward", "BackwardData", "BackwardFilter")
# The three searches for a convolution's algorithm have the same arguments: one algorithm, number 0, is found.
FOUND = """(void *h, void *d1, void *v1, void *d2, void *v2, void *c, void *d3, void *v3, int wanted, int *found,
    int *results, void *w, size_t n) { *found = 1; results[0] = results[1] = 0; return 0; }"""
# So have the three that only guess, which Jittor asks once its list of tried shapes is full.
GUESSED = """(void *h, void *d1, void *d2, void *c, void *d3, int wanted, int *found, int *results) {
    *found = 1; results[0] = results[1] = 0; return 0; }"""
NO_WORKSPACE = "(void *h, void *a, void *b, void *c, void *d, int algorithm, size_t *n) { *n = 0; return 0; }"
ALLOCATE = "(void **p, size_t n) { *p = calloc(1, n ? n : 1); return 0; }"
SPECIAL = {
    "__cudaRegisterFatBinary": "POINTER",
    "cudaGetDeviceCount": "(int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "(int *d) { *d = 0; return 0; }",
    "cudaRuntimeGetVersion": "(int *v) { *v = VERSION; return 0; }",
    "cudaDriverGetVersion": "(int *v) { *v = VERSION; return 0; }",
    # 75 and 76 are the compute capability, 16 is the number of multiprocessors.
    "cudaDeviceGetAttribute": (
        "(int *v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? 0 : a == 16 ? 132 : 1024; return 0; }"
    ),
    "cudaMemGetInfo": "(size_t *f, size_t *t) { *f = *t = 1ull << 34; return 0; }",
    "cudaMalloc": ALLOCATE,
    "cudaMallocHost": ALLOCATE,
    "cudaMallocManaged": "(void **p, size_t n, unsigned f) { *p = calloc(1, n ? n : 1); return 0; }",
    "cudaHostAlloc": "(void **p, size_t n, unsigned f) { *p = calloc(1, n ? n : 1); return 0; }",
    "cudaFree": "(void *p) { free(p); return 0; }",
    "cudaFreeHost": "(void *p) { free(p); return 0; }",
    "cudaMemcpy": "(void *d, void *s, size_t n, int k) { memcpy(d, s, n); return 0; }",
    "cudaMemcpyAsync": "(void *d, void *s, size_t n, int k, void *q) { memcpy(d, s, n); return 0; }",
    "cudaMemset": "(void *p, int v, size_t n) { memset(p, v, n); return 0; }",
    "cudaMemsetAsync": "(void *p, int v, size_t n, void *q) { memset(p, v, n); return 0; }",
    # CUB chooses by these: what a kernel was compiled for, and how many blocks of it fit.
    "cudaFuncGetAttributes": (
        "(struct cudaFuncAttributes *a, void *f) { memset(a, 0, sizeof *a); a->ptxVersion = a->binaryVersion = 90;"
        " a->maxThreadsPerBlock = 1024; return 0; }"
    ),
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor": "(int *n, void *f, int b, size_t m) { *n = 1; return 0; }",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags": (
        "(int *n, void *f, int b, size_t m, unsigned g) { *n = 1; return 0; }"
    ),
    "cudaGetDeviceProperties": PROPERTIES,
    "cudaGetDeviceProperties_v2": PROPERTIES,
    "cufftCreate": "(int *plan) { *plan = 1; return 0; }",
    **{f"cudnnFindConvolution{kind}AlgorithmEx": FOUND for kind in KINDS},
    **{f"cudnnGetConvolution{kind}Algorithm_v7": GUESSED for kind in KINDS},
    **{f"cudnnGetConvolution{kind}WorkspaceSize": NO_WORKSPACE for kind in KINDS},
    **DRIVER,
}


def exported(library: Path) -> list[str]:
    """The functions of a library that programs call."""
    command = ["nm", "-D", "--defined-only", str(library)]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {row.split()[-1].split("@")[0] for row in rows if " T " in row}
    return sorted(name for name in names if PREFIXES.match(name))


def definition(name: str) -> str:
    """One function in C."""
    if name == "__cudaRegisterFatBinary":
        return f"void **{name}(void *f) {{ static void *handle; return &handle; }}"
    if name in SPECIAL:
        return f"int {name}{SPECIAL[name]}"
    if name.startswith(("cudaGetError", "cudnnGetErrorString", "cusparseGetError")):
        return f'const char *{name}(int e) {{ return "stand-in"; }}'
    if CREATES.search(name):
        return f"int {name}(void **handle) {{ if (handle) *handle = (void *)64; return 0; }}"
    return f"int {name}() {{ return 0; }}"


def source(names: Iterable[str], version: int) -> str:
    """A library in C. CUDA's structures come from its header, without the prototypes, which ours would clash with."""
    names = list(names)
    lines = ["#include <stddef.h>", "#include <stdlib.h>", "#include <string.h>", f"#define VERSION {version}"]
    if "cudaGetDeviceProperties" in names:
        lines += ["#define __CUDA_RUNTIME_API_H__", "#include <driver_types.h>"]
    return "\n".join([*lines, *map(definition, names)]) + "\n"


def build(target: Path, names: Iterable[str], toolkit: Toolkit) -> None:
    """Compile one library. Its symbols have its name as their version, as NVIDIA's have: what nvcc links against the
    real library asks for that, and the loader aborts where a library has no versions."""
    code, versions = target.with_suffix(".c"), target.with_suffix(".map")
    versions.write_text(f"{target.name} {{ global: *; }};\n", encoding="utf-8")
    code.write_text(source(names, 1000 * toolkit.version[0] + 10 * toolkit.version[1]), encoding="utf-8")
    include = [f"-I{folder}" for folder in toolkit.includes]
    command = ["gcc", "-w", "-shared", "-fPIC", *include, f"-Wl,-soname,{target.name}"]
    command += [f"-Wl,--version-script={versions}", "-o", str(target), str(code)]
    subprocess.run(command, check=True)


def make(folder: Path, toolkit: Toolkit, libraries: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Stand-ins for the driver and for these libraries, and how many functions each has."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"libcuda.so.1": len(DRIVER)}
    build(folder / "libcuda.so.1", DRIVER, toolkit)
    with suppress(FileExistsError):  # from an earlier call
        (folder / "libcuda.so").symlink_to("libcuda.so.1")
    for name, number in libraries:
        real = find_library(toolkit.libraries, name, number)
        assert real is not None, name
        names = exported(real)
        build(folder / real.name, names, toolkit)
        counts[real.name] = len(names)
    return counts
