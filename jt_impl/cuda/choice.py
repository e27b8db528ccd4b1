"""Whether Jittor is to be built for CUDA: only where it is asked for, a device is there, and all of CUDA is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jt_impl.cuda import home, toolkit

# nvcc reads the first two by itself, Jittor the third: kernels made with other ones must not be met again.
FLAG_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "nvcc_flags")
NO_DEVICE = (
    "no NVIDIA driver that reports a device was found. Install the driver, or in a container let the device in: "
    "`nvidia-smi` must list it"
)


@dataclass(frozen=True)
class Choice:
    """The toolkit to build with, or None for the CPU; ``reason`` says why a wish for CUDA was not fulfilled."""

    toolkit: toolkit.Toolkit | None = None
    reason: str = ""

    def identity(self, variables: Mapping[str, str]) -> str:
        """What kernels depend on, for the name of the cache; nothing on the CPU, whose name stays as it is."""
        if self.toolkit is None:
            return ""
        flags = "|".join(variables.get(name, "") for name in FLAG_VARIABLES)
        return f"{home.name_of(home.plan(self.toolkit))}|{flags}"


def choose(
    variables: Mapping[str, str],
    has_device: Callable[[], bool],
    driver_version: Callable[[], toolkit.Version | None] = toolkit.driver_version,
) -> Choice:
    """``ALIGN_CUDA=1`` demands CUDA, ``nvcc_path`` wishes for it, ``ALIGN_CUDA=0`` forbids it; else it is the CPU.

    Raises:
        ValueError: ``ALIGN_CUDA`` has another value.
        MissingPartError: CUDA is demanded and something is missing.
    """
    demand = variables.get("ALIGN_CUDA", "")
    if demand not in ("", "0", "1"):
        raise ValueError(f"ALIGN_CUDA must be 0 or 1. Received: {demand!r}")
    if demand == "0" or not (demand or variables.get("nvcc_path")):
        return Choice()
    try:
        if not has_device():
            raise toolkit.MissingPartError(NO_DEVICE)
        found = toolkit.find(variables)
        toolkit.check_driver(driver_version(), found.version)
        return Choice(found)
    except toolkit.MissingPartError as error:
        if demand:
            raise toolkit.MissingPartError(f"ALIGN_CUDA=1 asks for a GPU, but {error}") from None
        return Choice(reason=f"nvcc_path is set, but {error}")
