"""Finds a CUDA toolkit and cuDNN: from the system, from Python packages, or from both together.

Nothing is changed and no framework is imported, so that the doctor may ask too.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]

# What Jittor 1.3.11 links, and the number in each library's file name. cuDNN's own number is found, not known.
LIBRARIES: dict[int, dict[str, int]] = {
    12: {"cudart": 12, "cublasLt": 12, "cublas": 12, "curand": 10, "cufft": 11, "cusparse": 12},
    13: {"cudart": 13, "cublasLt": 13, "cublas": 13, "curand": 10, "cufft": 12, "cusparse": 12},
}
CUDNN_LIBRARIES = {
    8: ("cudnn", "cudnn_ops_infer", "cudnn_ops_train", "cudnn_cnn_infer", "cudnn_cnn_train"),
    9: ("cudnn", "cudnn_ops", "cudnn_cnn"),
}
# One header of each part, and the Python package that brings it: as named for CUDA 13; CUDA 12 adds `-cu12`.
HEADERS = {
    "cuda_runtime.h": "nvidia-cuda-runtime",
    "crt/host_config.h": "nvidia-cuda-crt",
    "cub/cub.cuh": "nvidia-cuda-cccl",
    "cublas.h": "nvidia-cublas",
    "curand.h": "nvidia-curand",
    "cufft.h": "nvidia-cufft",
    "cusparse.h": "nvidia-cusparse",
}
PACKAGES = {"cudart": "cuda-runtime", "cublasLt": "cublas"}  # where a library's package has another name
# The folders of CUDA 12's Python packages below `nvidia/`; those of CUDA 13 share one, `cu13`.
FOLDERS_12 = (
    *("cuda_nvcc", "cuda_runtime", "cuda_cccl", "cuda_nvrtc"),
    *("cublas", "curand", "cufft", "cusparse", "nvjitlink"),
)


class MissingPartError(RuntimeError):
    """A part of CUDA is not there; the message says which, and what to do."""


@dataclass(frozen=True)
class Cudnn:
    """The header's folder, and the number in the library's file name."""

    include: Path
    major: int


@dataclass(frozen=True)
class Toolkit:
    """Where everything is. The folders stand in order: the first that has a file wins."""

    nvcc: Path
    version: Version
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    cudnn: Cudnn

    @property
    def description(self) -> str:
        """For a table or a report."""
        return f"CUDA {self.version[0]}.{self.version[1]} at {self.nvcc}, cuDNN {self.cudnn.major}"


def package_folders() -> list[Path]:
    """The `nvidia` folders of this Python's packages; several, where the path has several."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []


def nvcc_places(variables: Mapping[str, str], packages: Iterable[Path]) -> list[Path]:
    """Where a compiler may be: what the user named, and only that if anything was; else the usual places."""
    if variables.get("nvcc_path"):
        name = variables["nvcc_path"]
        return [Path(shutil.which(name, path=variables.get("PATH")) or name)]
    homes = [Path(variables[name]) for name in ("CUDA_HOME", "CUDA_PATH") if variables.get(name)]
    if homes:
        return [home / "bin" / "nvcc" for home in homes]
    found = shutil.which("nvcc", path=variables.get("PATH"))
    numbered = sorted(Path("/usr/local").glob("cuda-*"), key=numbers_in_name, reverse=True)
    roots = [Path("/usr/local/cuda"), *numbered, Path("/opt/cuda")]
    roots += [folder / name for folder in packages for name in ("cu13", "cuda_nvcc")]
    return [*([Path(found)] if found else []), *(root / "bin" / "nvcc" for root in roots)]


def numbers_in_name(path: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path.name)))


def output_of(nvcc: Path, *arguments: str) -> str:
    """What the compiler says, on either stream; nothing where it does not run."""
    try:
        result = subprocess.run([str(nvcc), *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout + result.stderr


def version_of(nvcc: Path) -> Version | None:
    match = re.search(r"release (\d+)\.(\d+)", output_of(nvcc, "--version"))
    return (int(match[1]), int(match[2])) if match else None


def root_of(nvcc: Path) -> Path:
    """The toolkit's folder. `nvcc` may be a script that starts another one, so it is asked rather than looked at."""
    match = re.search(r"^#\$ TOP=(.+?)\s*$", output_of(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    return Path(match[1]).resolve() if match else nvcc.parent.parent


def find_nvcc(variables: Mapping[str, str], packages: Iterable[Path]) -> tuple[Path, Version]:
    """The real compiler, behind links and scripts.

    Raises:
        MissingPartError: there is none, or one of a version that is not prepared.
    """
    places = nvcc_places(variables, packages)
    for place in places:
        version = version_of(place.resolve())
        if version is None:
            continue
        if version[0] not in LIBRARIES:
            text = f"CUDA 12 and 13 are prepared for Jittor. Received: {version[0]}.{version[1]} at {place}"
            raise MissingPartError(f"{text}. Install CUDA 13, or name another compiler: export nvcc_path=...")
        nvcc = root_of(place.resolve()) / "bin" / "nvcc"
        return nvcc if nvcc.is_file() else place.resolve(), version
    where = ", ".join(map(str, places)) if len(places) == 1 else "nvcc_path, CUDA_HOME, PATH, /usr/local/cuda*"
    remedy = "Install the CUDA toolkit, or: pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl"
    raise MissingPartError(f"the CUDA compiler `nvcc` was not found ({where}). {remedy}")


def package_roots(packages: Iterable[Path], major: int) -> list[Path]:
    """The folders of the Python packages for that CUDA; none where the packages are for another one.

    cuDNN's files have the same names for both, so its package alone does not tell which CUDA it was built for.
    """
    names = ("cu13",) if major == 13 else FOLDERS_12
    roots = [folder / name for folder in packages for name in names if (folder / name).is_dir()]
    marks = (f"libcudart.so.{major}", f"libcublas.so.{major}")
    if not any((root / "lib" / mark).exists() for root in roots for mark in marks):
        return []
    return roots + [folder / "cudnn" for folder in packages if (folder / "cudnn").is_dir()]


def find(variables: Mapping[str, str] | None = None, packages: Iterable[Path] | None = None) -> Toolkit:
    """A whole toolkit with cuDNN.

    Raises:
        MissingPartError: something is missing.
    """
    nvcc, version, includes, libraries = look(variables, packages)
    check_parts(includes, libraries, version[0])
    return Toolkit(nvcc, version, includes, libraries, find_cudnn(includes, libraries, version[0]))


def look(
    variables: Mapping[str, str] | None = None, packages: Iterable[Path] | None = None
) -> tuple[Path, Version, tuple[Path, ...], tuple[Path, ...]]:
    """The compiler, its version, and the folders of headers and of libraries that go with it.

    Headers come from the toolkit first, since they must suit its compiler. Libraries come from the folders of
    LD_LIBRARY_PATH first, then from the Python packages: PyTorch loads these, and one process must not load two.
    """
    variables = os.environ if variables is None else variables
    packages = package_folders() if packages is None else list(packages)
    nvcc, version = find_nvcc(variables, packages)
    root, target = nvcc.parent.parent, f"{platform.machine()}-linux"
    roots = package_roots(packages, version[0])
    includes = [root / "include", root / "targets" / target / "include", *(place / "include" for place in roots)]
    loader = [Path(place) for place in variables.get("LD_LIBRARY_PATH", "").split(":") if place]
    own = [root / "lib64", root / "lib", root / "targets" / target / "lib"]
    system = [Path("/usr/lib") / f"{target}-gnu", Path("/usr/lib64")]
    libraries = existing([*loader, *(place / "lib" for place in roots), *own, *system])
    return nvcc, version, with_cccl(includes), libraries


def existing(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Those that are there, each once."""
    return tuple(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


def with_cccl(folders: Iterable[Path]) -> tuple[Path, ...]:
    """CUDA 13 keeps cub and thrust one level deeper."""
    return existing(place for folder in folders for place in (folder, folder / "cccl"))


def package_name(name: str, major: int) -> str:
    return name if major == 13 else f"{name}-cu{major}"


def driver_version() -> Version | None:
    """The newest CUDA that the driver knows, or None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def check_driver(driver: Version | None, version: Version) -> None:
    """A driver serves every CUDA of its own first number and of smaller ones; under a newer one Jittor aborts."""
    if driver is not None and driver[0] < version[0]:
        text = f"the NVIDIA driver is for CUDA {driver[0]}.{driver[1]}, the toolkit is {version[0]}.{version[1]}"
        raise MissingPartError(f"{text}. Update the driver, or name an older compiler: export nvcc_path=...")


def check_parts(includes: Iterable[Path], libraries: Iterable[Path], major: int) -> None:
    """Name every header and library that is missing, and the packages that bring them."""
    headers = {**HEADERS, "crt/host_config.h": "nvidia-cuda-nvcc"} if major == 12 else HEADERS
    missing = {name: brought for name, brought in headers.items() if not any((f / name).is_file() for f in includes)}
    for name, number in LIBRARIES[major].items():
        if find_library(libraries, name, number) is None:
            missing[f"lib{name}.so.{number}"] = f"nvidia-{PACKAGES.get(name, name)}"
    if missing:
        packages = " ".join(dict.fromkeys(package_name(name, major) for name in missing.values()))
        text = f"parts of CUDA {major} were not found: {', '.join(missing)}"
        raise MissingPartError(f"{text}. Install them with the toolkit, or: pip install {packages}")


def find_library(folders: Iterable[Path], name: str, number: int) -> Path | None:
    """The first `lib<name>.so.<number>`."""
    files = (folder / f"lib{name}.so.{number}" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def find_cudnn(includes: Iterable[Path], libraries: Iterable[Path], cuda: int) -> Cudnn:
    """A header of cuDNN whose library is there too: of a package, of the toolkit, of the system."""
    seen = []
    system = [Path("/usr/include"), Path(f"/usr/include/{platform.machine()}-linux-gnu")]
    for folder in existing([*reversed(list(includes)), *system]):
        major = cudnn_major(folder)
        if major is None:
            continue
        names = CUDNN_LIBRARIES.get(major, ())
        missing = [f"lib{name}.so.{major}" for name in names if find_library(libraries, name, major) is None]
        if names and not missing:
            return Cudnn(folder, major)
        seen.append(f"{folder} has the header of version {major}, " + (f"no {missing[0]}" if names else "not 8 or 9"))
    reason = "; ".join(seen) or "no cudnn.h"
    remedy = f"Install it with its development files, or: pip install nvidia-cudnn-cu{cuda}"
    raise MissingPartError(f"cuDNN 8 or 9 for CUDA {cuda} was not found ({reason}). {remedy}")


def cudnn_major(include: Path) -> int | None:
    """The version that the header in that folder states."""
    for name in ("cudnn_version.h", "cudnn.h"):
        file = include / name
        match = file.is_file() and re.search(r"#define CUDNN_MAJOR (\d+)", file.read_text(errors="replace"))
        if match and (include / "cudnn.h").is_file():
            return int(match[1])
    return None
