"""One precompiled header for all of Jittor's kernels: most of a kernel's compile time goes into reading headers."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What kernels on the CPU begin with. The macros stand first in each of them, and the headers depend on them.
HEADER = """#define JIT 1
#define JIT_cpu 1
#include "op.h"
#include "var.h"
#include "fused_op.h"
#include "ops/op_register.h"
#include "misc/cpu_math.h"
#include "misc/intrin.h"
#include <cmath>
#include <algorithm>
"""
NAME = "kernel.h"
LINKER = ("-l", "-L", "-Wl,", "-shared")


def text() -> str:
    """The header, or nothing where ``ALIGN_PRECOMPILED=0`` switches it off."""
    return "" if os.environ.get("ALIGN_PRECOMPILED") == "0" else HEADER


def compiler_flags(flags: str) -> list[str]:
    """The flags of Jittor that the compiler takes, without the linker's."""
    return [flag for flag in shlex.split(flags) if not flag.startswith(LINKER)]


def prepare(module: Any) -> None:
    """Give Jittor's kernels the header, and compile it if no earlier process has.

    A failure costs speed only: kernels are then compiled as Jittor does by itself.
    """
    if not text():
        return
    source = Path(module.compiler.jittor_path) / "src"
    flags = compiler_flags(module.flags.cc_flags)
    folder = Path(module.compiler.cache_path) / "precompiled" / identity(source, flags)
    header, compiled = folder / NAME, folder / f"{NAME}.gch"
    try:
        if not compiled.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(header, HEADER)
            # -g, since Jittor adds it to each kernel and the compiled form must be made with the same flags.
            compile_whole([module.compiler.cc_path, *flags, "-g", "-x", "c++-header", str(header)], compiled)
    except (OSError, subprocess.CalledProcessError):
        return
    module.flags.cc_flags += f' -include "{header}" '


def identity(source: Path, flags: Sequence[str]) -> str:
    """Changes with the flags and with Jittor's headers; g++ itself does not look whether they have changed."""
    stated = [f"{path.relative_to(source)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in headers(source)]
    return hashlib.sha256("\n".join([HEADER, *flags, *stated]).encode()).hexdigest()[:12]


def headers(source: Path) -> list[Path]:
    return sorted(source.rglob("*.h"))


def write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)


def compile_whole(command: Sequence[str], target: Path) -> None:
    """Other processes see the whole file or none."""
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        subprocess.run([*command, "-o", str(partial)], check=True, capture_output=True)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
