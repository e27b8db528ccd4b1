"""Folders that look like CUDA toolkits, for the tests of jt_impl.cuda: in one root, or spread over Python packages."""

from __future__ import annotations

from pathlib import Path

from jt_impl.cuda import toolkit

# A compiler that says what nvcc says to the two questions that it is asked.
FAKE_NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V{version}.88"; exit; fi
echo "#\\$ TOP=$(dirname "$0")/.." >&2
"""
PARTS = {
    "cuda_runtime": (["cuda_runtime.h"], ["cudart"]),
    "cuda_nvcc": (["crt/host_config.h"], []),
    "cuda_cccl": (["cub/cub.cuh", "cub/config.cuh", "thrust/version.h"], []),
    "cublas": (["cublas.h"], ["cublas", "cublasLt"]),
    "curand": (["curand.h"], ["curand"]),
    "cufft": (["cufft.h"], ["cufft"]),
    "cusparse": (["cusparse.h"], ["cusparse"]),
}


def touch(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text or file.name)


def place_nvcc(root: Path, version: str) -> Path:
    nvcc = root / "bin" / "nvcc"
    touch(nvcc, FAKE_NVCC.format(version=version))
    nvcc.chmod(0o755)
    return nvcc


def place_part(part: str, include: Path, lib: Path, cuda: int) -> None:
    headers, libraries = PARTS[part]
    for name in headers:
        touch(include / "cccl" / name if cuda == 13 and part == "cuda_cccl" else include / name)
    for name in libraries:
        touch(lib / f"lib{name}.so.{toolkit.LIBRARIES[cuda][name]}")


def place_cudnn(include: Path, lib: Path, major: int) -> None:
    touch(include / "cudnn.h")
    touch(include / "cudnn_version.h", f"#define CUDNN_MAJOR {major}\n")
    for name in (*toolkit.CUDNN_LIBRARIES[major], "cudnn_adv"):
        touch(lib / f"lib{name}.so.{major}")


def system_layout(root: Path, version: str = "13.0", cudnn: int = 9) -> dict[str, str]:
    """Everything in one folder; the variables that lead there."""
    place_nvcc(root, version)
    for part in PARTS:
        place_part(part, root / "include", root / "lib64", int(version[:2]))
    place_cudnn(root / "include", root / "lib64", cudnn)
    return {"CUDA_HOME": str(root)}


def package_layout(nvidia: Path, cuda: int) -> dict[str, str]:
    """The Python packages: one folder for CUDA 13, one per library for CUDA 12."""
    for part in PARTS:
        folder = nvidia / ("cu13" if cuda == 13 else part)
        place_part(part, folder / "include", folder / "lib", cuda)
    place_cudnn(nvidia / "cudnn" / "include", nvidia / "cudnn" / "lib", 9)
    nvcc = place_nvcc(nvidia / ("cu13" if cuda == 13 else "cuda_nvcc"), f"{cuda}.4")
    return {"nvcc_path": str(nvcc)}
