"""The doctor's look at CUDA and at the network: mostly for information, since the CPU path needs neither."""

from __future__ import annotations

import configparser
import ctypes
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jt_impl.cuda import toolkit
from jt_impl.doctor.checks import Check

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


def find_cuda(variables: Mapping[str, str]) -> Cuda:
    """Ask the machine for all parts of CUDA; what a build would use is found as the build finds it."""
    version, devices = find_driver()
    found = Cuda(version, devices)
    try:
        nvcc, release, includes, libraries = toolkit.look(variables)
        found = replace(found, nvcc=release, nvcc_path=str(nvcc))
        cudnn = toolkit.find_cudnn(includes, libraries, release[0])
        found = replace(found, cudnn=f"{cudnn.major}, headers in {cudnn.include}")
        prepared = toolkit.find(variables).description
        toolkit.check_driver(version, release)
    except toolkit.MissingPartError as error:
        return replace(found, missing=str(error))
    return replace(found, prepared=prepared, missing="")


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
        Check("cuDNN", "info", cuda.cudnn or ("none" if cuda.nvcc else "not looked for without nvcc")),
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
