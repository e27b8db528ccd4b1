"""The doctor's checks of the CPU path: small functions that look, change nothing and import no framework.

Status ``fail`` means that Jittor cannot work on the CPU here; ``warn`` that it works, but not as tested.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jt_impl import runtime

PROJECT_FILE = Path(__file__).resolve().parents[2] / "pyproject.toml"
PACKAGES = ("jittor", "torch", "torchvision", "numpy", "pycocotools", "safetensors")
SETTINGS = (
    *("JITTOR_HOME", "cache_name", "cc_path", "cc_flags", "kernel_flags", "nvcc_path", "nvcc_flags", "use_mkl"),
    *("python_config_path", "log_silent", "log_v", "debug", "enable_lto", "use_mpi", "use_nccl", "use_cutlass"),
    *("use_cutt", "use_parallel_op_compiler", "lazy_execution", "disable_lock", "OMP_NUM_THREADS"),
    *("ALIGN_PROGRESS", "ALIGN_PRECOMPILED", "ALIGN_CUDA", "CUDA_HOME", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"),
)
CORE_SECONDS = "3 to 6 minutes on 2 cores"
GIB = 1024**3


@dataclass(frozen=True)
class Check:
    """One finding. ``remedy`` is a command, or says what to do; it is empty where nothing is wrong."""

    name: str
    status: Literal["ok", "info", "warn", "fail"]
    detail: str
    remedy: str = ""


def output_of(command: list[str], timeout: float = 10) -> str | None:
    """What the command prints, or None when it is not there, fails or takes too long."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Jittor 1.3.11 and the pinned packages share 3.10 to 3.12."""
    text = ".".join(map(str, version))
    if version[:2] == (3, 12):
        detail = f"{text}; a model that calls jt.isfinite, isnan, isinf or searchsorted may end the process here"
        return Check("Python", "info", detail, "see docs/jittor.md, 'Kernels that Python writes'")
    if (3, 10) <= version[:2] < (3, 12):
        return Check("Python", "ok", text)
    return Check("Python", "fail", f"{text}; 3.10 to 3.12 are supported", "make clean setup PYTHON=python3.11")


def check_platform(system: str = platform.system(), machine: str = platform.machine()) -> Check:
    """Linux on x86-64 is tested; the oneDNN packages exist for nothing else."""
    if system != "Linux":
        return Check("system", "fail", f"{system} {machine}", "use Linux (a container or WSL 2 will do)")
    if machine != "x86_64":
        detail = f"{system} {machine}: untested, and the oneDNN packages are for x86-64 only"
        return Check("system", "warn", detail, "export use_mkl=0   (convolutions become slow)")
    return Check("system", "ok", f"{system} {machine}")


def pins() -> dict[str, str]:
    """The exact versions of pyproject.toml, or of the installed project where there is no clone."""
    if PROJECT_FILE.is_file():
        lines = re.findall(r'^\s*"([^"]+)"', PROJECT_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    else:
        try:
            lines = importlib.metadata.requires("gold-yolo-alignment") or []
        except importlib.metadata.PackageNotFoundError:
            lines = []
    matches = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def installed_version(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_package(package: str, installed: str | None, pinned: str | None) -> Check:
    """Installed, and in the pinned version. numpy 2 makes Jittor 1.3.11 return garbage for integers."""
    wanted = f"{package}=={pinned}" if pinned else package
    remedy = f"pip install '{wanted}'"
    if installed is None:
        return Check(package, "fail", "not installed", remedy)
    if package == "numpy" and int(installed.split(".")[0]) >= 2:
        return Check(package, "fail", f"{installed}: Jittor returns garbage for integers under numpy 2", remedy)
    if pinned and installed.split("+")[0] != pinned:
        return Check(package, "warn", f"{installed}, tested with {pinned}", remedy)
    return Check(package, "ok", installed)


def check_compiler(command: str) -> Check:
    """Jittor compiles its core and every kernel; it tells the kind of compiler from its name."""
    name = "C++ compiler"
    if shutil.which(command) is None:
        prefix = "" if command == "g++" else "unset cc_path; "
        return Check(name, "fail", f"`{command}` not found", f"{prefix}apt-get install -y g++")
    if "clang" in Path(command).name:
        return Check(name, "fail", runtime.CLANG_FAILS, "unset cc_path")
    if not any(kind in Path(command).name for kind in ("icc", "g++")):
        return Check(name, "fail", f"Jittor knows g++ and icc by name, not `{command}`", "export cc_path=g++")
    version = output_of([command, "--version"])
    if version is None:
        return Check(name, "fail", f"`{command} --version` fails", "apt-get install -y --reinstall g++")
    return Check(name, "ok", version.splitlines()[0])


def check_headers() -> Check:
    """Python.h, and the python3-config script that Jittor asks for its place."""
    script = runtime.variable("python_config_path", "") or runtime.python_config()
    package = f"python3.{sys.version_info.minor}-dev"
    remedy = f"apt-get install -y {package}   (or python3-dev)"
    if script is None:
        return Check("Python headers", "fail", f"no python3.{sys.version_info.minor}-config script", remedy)
    flags = (output_of([str(script), "--includes"]) or "").split()
    folders = [Path(flag[2:]) for flag in flags if flag.startswith("-I")]
    found = [place for place in folders if (place / "Python.h").is_file()]
    if not found:
        expected = folders[0] if folders else sysconfig.get_paths()["include"]
        return Check("Python headers", "fail", f"no Python.h in {expected}", remedy)
    return Check("Python headers", "ok", str(found[0]))


def check_openmp(command: str) -> Check:
    """Compile and link three lines with OpenMP, and find its library as Jittor does."""
    library, remedy = "gomp", "apt-get install -y g++ libgomp1"
    source = "#include <omp.h>\n#include <cmath>\nint main() { return omp_get_max_threads() < 1; }\n"
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        file = Path(folder) / "probe.cc"
        file.write_text(source)
        built = output_of([command, "-fopenmp", str(file), "-o", str(file.with_suffix(""))], timeout=60)
    if built is None:
        return Check("OpenMP", "fail", "a three-line program does not compile and link", remedy)
    if ctypes.util.find_library(library) is None:
        return Check("OpenMP", "fail", f"compiles, but lib{library} is not found by the loader", remedy)
    return Check("OpenMP", "ok", f"compiles and links, lib{library}")


def check_onednn(target: Path, source: tuple[Path, Path] | None, use_mkl: str = "1") -> Check:
    """Jittor's convolutions; without it they run in naive loops."""
    remedy = f"pip install {runtime.ONEDNN_PACKAGES}"
    if use_mkl != "1":
        return Check("oneDNN", "warn", f"switched off (use_mkl={use_mkl}): convolutions are slow", "unset use_mkl")
    if runtime.onednn_is_whole(target):
        return Check("oneDNN", "ok", f"2.2.0 in {target}")
    if source is None:
        return Check("oneDNN", "fail", "neither placed nor in this environment: Jittor would download it", remedy)
    return Check("oneDNN", "ok", f"2.2.0 in {source[1]}; the first run copies it to {target}")


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_cache_folder(home: Path) -> Check:
    """Jittor's cache: kernels, oneDNN, downloads."""
    place = existing_parent(home)
    free = shutil.disk_usage(place).free / GIB
    detail = f"{home}, {free:.1f} GiB free"
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("cache folder", "fail", f"{place} is not writable", f"sudo chown -R $USER {place}")
    if free < 2:
        status: Literal["warn", "fail"] = "fail" if free < 0.3 else "warn"
        remedy = f"free some space on the disk of {place} (2 GiB are enough to align, the kernels of all tests take 4)"
        return Check("cache folder", status, detail, remedy)
    config = Path.home() / ".cache" / "jittor" / "config.json"
    if home != config.parent and "JITTOR_HOME" not in os.environ:
        return Check("cache folder", "info", f"{detail}; {config} sends Jittor there", f"rm {config}   (if unwanted)")
    return Check("cache folder", "ok", detail)


def compiler_folder(command: str) -> str:
    """Jittor's cache has a folder per kind and version of compiler, such as ``g++12.2.0``."""
    kind = next((kind for kind in ("icc", "g++") if kind in Path(command).name), "*")
    numbers = re.findall(r"\d+\.\d+\.\d+", output_of([command, "--version"]) or "")
    return kind + (numbers[-1] if numbers else "*")


def check_core(home: Path, cache_name: str, compiler: str = "*") -> Check:
    """Whether Jittor has to compile its core first. ``compiler`` is a name from ``compiler_folder``."""
    folder = f"jt*/{compiler}/py{platform.python_version()}/*/*/*/{cache_name}"
    if any(next(home.glob(f"{folder}/{core}"), None) for core in ("jittor_core*.so", "cu*/jittor_core*.so")):
        return Check("Jittor's core", "ok", f"built, cache `{cache_name}`")
    detail = f"not built yet in cache `{cache_name}`: the first run does it, {CORE_SECONDS}"
    return Check("Jittor's core", "info", detail, "python -m jt_impl.runtime")


def cgroup_limit(file: str, folder: Path = Path("/sys/fs/cgroup")) -> float | None:
    """A container's limit (cgroup version 2): bytes of memory, or cores; None where there is none."""
    try:
        words = (folder / file).read_text().split()
    except OSError:
        return None
    if not words or words[0] == "max":
        return None
    return float(words[0]) / float(words[1]) if len(words) == 2 else float(words[0])


def check_machine() -> list[Check]:
    """Cores and memory. A compiler process takes up to 1 GiB, the comparison of Gold-YOLO-S at 640x640 a few."""
    cores = min(len(os.sched_getaffinity(0)), cgroup_limit("cpu.max") or float("inf"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory_gib = min(memory, cgroup_limit("memory.max") or float("inf")) / GIB
    text = f"{memory_gib:.1f} GiB"
    if memory_gib < 4:
        memory_check = Check("memory", "warn", f"{text}: compiling may run out of it", "give it 4 GiB, or add swap")
    else:
        memory_check = Check("memory", "info", text)
    return [Check("CPU cores", "info", f"{cores:g}"), memory_check]


def check_flags(variables: Mapping[str, str]) -> Check:
    """Jittor adds -Ofast when cc_flags holds no -O: NaN tests vanish from kernels and subnormals become zero."""
    cc_flags = variables.get("cc_flags", runtime.CC_FLAGS)
    kernel_flags = variables.get("kernel_flags", runtime.KERNEL_FLAGS)
    detail = " ".join(f"{cc_flags} | {kernel_flags}".split())
    if " -O" not in cc_flags or re.search(r"-Ofast|-ffast-math", cc_flags + kernel_flags):
        detail = f"{detail}: in effect -Ofast, which drops NaN tests and subnormals"
        return Check("build flags", "warn", detail, "unset cc_flags kernel_flags")
    return Check("build flags", "ok", detail)


def check_variables(variables: Mapping[str, str]) -> Check:
    """The user's own settings: they win over this project's."""
    chosen = [f"{name}={variables[name]!r}" for name in SETTINGS if name in variables]
    if not chosen:
        return Check("your variables", "ok", "none set: this project's settings hold")
    if "JITTOR_HOME" in variables:
        detail = f"{', '.join(chosen)}; Jittor writes JITTOR_HOME down and keeps to it in every later program"
        return Check("your variables", "warn", detail, "unset JITTOR_HOME")
    return Check("your variables", "info", f"{', '.join(chosen)} (they win over this project's settings)")
