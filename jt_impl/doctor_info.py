"""The doctor's look at CUDA and at the network: mostly for information, since the CPU path needs neither."""

from __future__ import annotations

import configparser
import ctypes
import ctypes.util
import os
import re
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jt_impl.cuda import toolkit
from jt_impl.doctor_checks import Check, installed_version, output_of

NVCC_PLACES = ("nvcc", "/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/opt/cuda/bin/nvcc")  # as Jittor looks for it
DEFAULT_INDEX = "https://pypi.org/simple"
UNTRIED = "nothing of this project was ever run on a GPU"
Version = tuple[int, ...]


@dataclass(frozen=True)
class Cuda:
    """What of CUDA this machine has; None or empty where a part is missing."""

    driver: toolkit.Version | None = None
    devices: tuple[str, ...] = ()
    nvcc: Version | None = None
    nvcc_path: str | None = None
    cudnn: str | None = None
    prepared: str = ""  # what a build for CUDA would use
    missing: str = "not looked for"  # what keeps it from being prepared; empty where nothing does


def dotted(version: Version) -> str:
    return ".".join(map(str, version))


def find_driver() -> tuple[toolkit.Version | None, tuple[str, ...]]:
    """Version of the CUDA driver and names of its devices, asked in C without creating a context."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, ()
    version, count, device = toolkit.driver_version(), ctypes.c_int(0), ctypes.c_int(0)
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return version, ()
    names = []
    for index in range(count.value):
        text = ctypes.create_string_buffer(128)
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(text, len(text), device)
        names.append(text.value.decode(errors="replace"))
    return version, tuple(names)


def find_nvcc(chosen: str | None = None) -> tuple[Version | None, str | None]:
    """Version and path of CUDA's compiler: the user's choice, else where Jittor looks."""
    for place in (chosen,) if chosen else NVCC_PLACES:
        path = shutil.which(place)
        match = re.search(r"release (\d+)\.(\d+)", output_of([path, "--version"]) or "") if path else None
        if match:
            return (int(match[1]), int(match[2])), path
    return None, None


def find_cudnn() -> str | None:
    """cuDNN of the system, else of a Python package."""
    packages = (installed_version(f"nvidia-cudnn-cu{major}") for major in (13, 12, 11))
    package = next((version for version in packages if version), None)
    return ctypes.util.find_library("cudnn") or (f"{package} (Python package)" if package else None)


def find_cuda(variables: Mapping[str, str]) -> Cuda:
    """Ask the machine for all parts of CUDA."""
    version, devices = find_driver()
    prepared = missing = ""
    try:
        found = toolkit.find(variables)
        prepared = found.description
        toolkit.check_driver(version, found.version)
    except toolkit.MissingPartError as error:
        missing = str(error)
    return Cuda(version, devices, *find_nvcc(variables.get("nvcc_path")), find_cudnn(), prepared, missing)


def cuda_verdict(cuda: Cuda, wish: str = "") -> Check:
    """Whether Jittor 1.3.11 can be built for this CUDA. ``wish`` is ALIGN_CUDA or nvcc_path where one asks for it.

    Only ALIGN_CUDA stands in the way of the CPU path: where nvcc_path alone cannot be fulfilled, the CPU is used.
    """
    name, asked = "Jittor on a GPU", f" ({wish} is set)" if wish else ""
    if cuda.devices and not cuda.missing:
        if wish:
            return Check(name, "warn", f"yes, as far as compiling tells: {UNTRIED}{asked}", f"unset {wish}")
        return Check(name, "info", f"can be prepared (export ALIGN_CUDA=1), but {UNTRIED}")
    why = cuda.missing if cuda.devices else "there is no NVIDIA device"
    if not wish:
        return Check(name, "info", f"no: {why}; this project runs on the CPU")
    if wish == "ALIGN_CUDA":
        return Check(name, "fail", f"no: {why}{asked}", "unset ALIGN_CUDA")
    return Check(name, "warn", f"no: {why}; the CPU is used{asked}", f"unset {wish}")


def wish_for_cuda(variables: Mapping[str, str]) -> str:
    """The variable that asks for CUDA, or nothing."""
    demand = variables.get("ALIGN_CUDA", "")
    if demand == "0":
        return ""
    return "ALIGN_CUDA" if demand else "nvcc_path" if variables.get("nvcc_path") else ""


def cuda_checks(cuda: Cuda, wish: str = "") -> list[Check]:
    """Driver, toolkit, cuDNN, what would be built with, and what it comes to."""
    driver = f"CUDA {dotted(cuda.driver)}: {', '.join(cuda.devices) or 'no device'}" if cuda.driver else "none"
    compiler = f"{dotted(cuda.nvcc)} at {cuda.nvcc_path}" if cuda.nvcc else "none"
    return [
        Check("NVIDIA driver", "info", driver),
        Check("nvcc", "info", compiler),
        Check("cuDNN", "info", cuda.cudnn or "none"),
        Check("CUDA for Jittor", "info", cuda.prepared or f"cannot be prepared: {cuda.missing}"),
        cuda_verdict(cuda, wish),
    ]


def pip_config_files() -> list[Path]:
    """pip's configuration files, the strongest first."""
    named = os.environ.get("PIP_CONFIG_FILE")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [Path(sys.prefix) / "pip.conf", home / "pip" / "pip.conf", Path.home() / ".pip" / "pip.conf"]
    return ([Path(named)] if named else []) + [*places, Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]


def package_index() -> str:
    """The index that ``pip install`` asks."""
    if os.environ.get("PIP_INDEX_URL"):
        return os.environ["PIP_INDEX_URL"]
    for file in pip_config_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, ValueError, configparser.Error):
            continue
        for section in ("install", "global"):
            if parser.has_option(section, "index-url"):
                return parser.get(section, "index-url")
    return DEFAULT_INDEX


def answers(url: str, timeout: float) -> bool:
    """Whether anything answers there; a refusal, or a certificate that we do not trust, is an answer too."""
    request = urllib.request.Request(f"{url.rstrip('/')}/pip/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (OSError, ValueError) as error:
        return "CERTIFICATE_VERIFY_FAILED" in str(error)


def start_index_check(url: str | None = None, timeout: float = 2.0) -> Callable[[], Check]:
    """Ask the index beside the other checks. The result waits ``timeout`` seconds at most, whatever is stuck."""
    answer: list[bool] = []
    target = url or package_index()
    thread = threading.Thread(target=lambda: answer.append(answers(target, timeout)), daemon=True)
    thread.start()

    def result() -> Check:
        thread.join(timeout)
        return Check("package index", "info", f"package index reachable: {'yes' if any(answer) else 'no'}")

    return result
