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

from jt_impl.doctor_checks import Check, installed_version, output_of

NVCC_PLACES = ("nvcc", "/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/opt/cuda/bin/nvcc")  # as Jittor looks for it
DEFAULT_INDEX = "https://pypi.org/simple"
Version = tuple[int, ...]


@dataclass(frozen=True)
class Cuda:
    """What of CUDA this machine has; None or empty where a part is missing."""

    driver: Version | None = None
    devices: tuple[str, ...] = ()
    nvcc: Version | None = None
    nvcc_path: str | None = None
    cudnn: str | None = None

    @property
    def cudnn_major(self) -> int:
        """9 for ``9.26.0.51`` and for ``libcudnn.so.9``; 0 where cuDNN is missing."""
        numbers = re.findall(r"\d+", self.cudnn or "0")
        return int(numbers[0]) if numbers else 0


def dotted(version: Version) -> str:
    return ".".join(map(str, version))


def find_driver() -> tuple[Version | None, tuple[str, ...]]:
    """Version of the CUDA driver and names of its devices, asked in C without creating a context."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, ()
    number, count, device = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    version = (number.value // 1000, number.value % 1000 // 10)
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
    return Cuda(*find_driver(), *find_nvcc(variables.get("nvcc_path")), find_cudnn())


def cuda_verdict(cuda: Cuda, asked_for: str) -> Check:
    """Whether Jittor 1.3.11 can use this CUDA. It stands in the way of the CPU path only when it was asked for."""
    works = False
    if not cuda.devices:
        why = "no: there is no NVIDIA device" + (", and with nvcc alone Jittor's core aborts" if asked_for else "")
    elif cuda.nvcc is None:
        why = "no: the CUDA toolkit (nvcc) is missing"
    elif cuda.nvcc >= (13,) or cuda.cudnn_major >= 9:
        why = "no: Jittor 1.3.11 does not build on CUDA 13 or cuDNN 9 as they come"
    elif cuda.cudnn is None:
        why = "no: cuDNN is missing, and Jittor's import then fails"
    else:
        why, works = "perhaps: the versions suit Jittor, but nothing here was tested on a GPU", True
    if asked_for:
        return Check("Jittor on a GPU", "warn" if works else "fail", f"{why} (nvcc_path is set)", "unset nvcc_path")
    return Check("Jittor on a GPU", "info", f"{why}; this project runs on the CPU, its GPU support is not there yet")


def cuda_checks(cuda: Cuda, asked_for: str = "") -> list[Check]:
    """Driver, toolkit, cuDNN, and what they come to. ``asked_for`` is the user's ``nvcc_path``."""
    driver = f"CUDA {dotted(cuda.driver)}: {', '.join(cuda.devices) or 'no device'}" if cuda.driver else "none"
    toolkit = f"{dotted(cuda.nvcc)} at {cuda.nvcc_path}" if cuda.nvcc else "none"
    return [
        Check("NVIDIA driver", "info", driver),
        Check("nvcc", "info", toolkit),
        Check("cuDNN", "info", cuda.cudnn or "none"),
        cuda_verdict(cuda, asked_for),
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
