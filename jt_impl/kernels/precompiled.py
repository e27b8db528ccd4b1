"""One precompiled header for all of Jittor's kernels: most of a kernel's compile time goes into reading headers."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
            with whole(header) as partial:
                partial.write_text(HEADER, encoding="utf-8")
            # -g, since Jittor adds it to each kernel and the compiled form must be made with the same flags.
            command = [module.compiler.cc_path, *flags, "-g", "-x", "c++-header", str(header)]
            with whole(compiled) as partial:
                subprocess.run([*command, "-o", str(partial)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return
    module.flags.cc_flags += f' -include "{header}" '


def identity(source: Path, flags: Sequence[str]) -> str:
    """Changes with the flags and with Jittor's headers; g++ itself does not look whether they have changed."""
    stated = [
        f"{path.relative_to(source)} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(source.rglob("*.h"))
    ]
    return hashlib.sha256("\n".join([HEADER, *flags, *stated]).encode()).hexdigest()[:12]


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A name to write to; afterwards the file is at ``target``. Other processes see all of it or nothing."""
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
