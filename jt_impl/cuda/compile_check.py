"""``python -m jt_impl.cuda.compile_check``: does nvcc compile Jittor and all that Gold-YOLO-N needs, without a GPU?

Stubs of the CUDA libraries (``stub_libraries``) make Jittor believe in a device. A child process with a cache of its
own goes through the phases of ``phases``. Their results mean nothing; which kernels the real nvcc compiled does. nvcc
takes seconds for each, so it takes long on few cores; with ``--home`` a second call goes on where the first one ended.
Exit code 1 if a kernel or a phase failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jt_impl.cuda import stub_libraries
from jt_impl.cuda.phases import PHASES, STUB_LIBRARIES, Outcome, outcome_of
from jt_impl.cuda.toolkit import CUDNN_LIBRARIES, LIBRARIES, MissingPartError, Toolkit, find

COMMAND = (sys.executable, "-m", "jt_impl.cuda.phases")
KERNEL_OF_CUDA = "#define JIT_cuda 1"


@dataclass(frozen=True)
class Kernels:
    """Names of the kernels for the GPU in a cache of Jittor's."""

    compiled: tuple[str, ...]
    failed: tuple[str, ...]


def find_kernels(home: Path) -> Kernels:
    """The sources that Jittor wrote for CUDA, by whether there is a library of the same name beside them."""
    sources = sorted(home.rglob("jit/*.cc"))
    cuda = [path for path in sources if KERNEL_OF_CUDA in path.read_text(encoding="utf-8", errors="replace")]
    built = {path for path in cuda if path.with_suffix(".so").exists()}
    return Kernels(tuple(p.stem for p in cuda if p in built), tuple(p.stem for p in cuda if p not in built))


def child_environment(folder: Path, home: Path) -> dict[str, str]:
    """What makes the child use CUDA, the stub libraries, and a cache of its own.

    The cache moves with HOME: Jittor writes the value of JITTOR_HOME into the user's own folder, and every other
    Jittor program would be sent there, even one that is started meanwhile.
    """
    ours = ("ALIGN_CUDA", "HOME", "JITTOR_HOME", "LD_LIBRARY_PATH", "cache_name")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "ALIGN_CUDA": "1", STUB_LIBRARIES: "1", "HOME": str(home), "LD_LIBRARY_PATH": str(folder)}


def needed_libraries(toolkit: Toolkit) -> list[tuple[str, int]]:
    """Names and numbers of all that Jittor links."""
    cudnn = [(name, toolkit.cudnn.major) for name in CUDNN_LIBRARIES[toolkit.cudnn.major]]
    return [*LIBRARIES[toolkit.version[0]].items(), *cudnn]


def run_child(folder: Path, home: Path, command: Sequence[str] = COMMAND) -> Iterator[Outcome]:
    """What each phase of the child comes to, as it comes. Its messages go to stderr."""
    with subprocess.Popen(command, env=child_environment(folder, home), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from filter(None, map(outcome_of, process.stdout))


def make_stub_libraries(home: Path) -> Path:
    """The folder of the stub libraries, made below ``home``.

    It lies in the same folder as the cache: the name of the cache depends on its place, and a second call must meet
    the kernels of the first.

    Raises:
        MissingPartError: a part of CUDA is not here.
    """
    toolkit, folder = find(), home / "stub_libraries"
    print(toolkit.description, flush=True)
    counts = stub_libraries.make(folder, toolkit, needed_libraries(toolkit))
    print(f"stub libraries: {len(counts)} libraries, {sum(counts.values())} functions", flush=True)
    return folder


def check(home: Path) -> int:
    """Make the stub libraries, compile with them, and print what came of it."""
    folder = make_stub_libraries(home)
    outcomes = []
    for outcome in run_child(folder, home):
        outcomes.append(outcome)
        print(f"{outcome.phase}: {outcome.result} ({outcome.seconds:.0f} s, {outcome.kernels} kernels)", flush=True)
    kernels = find_kernels(home)
    print(f"kernels for the GPU: {len(kernels.compiled)} compiled, {len(kernels.failed)} failed")
    for name in kernels.failed:
        print(f"failed: {name}")
    if len(outcomes) < len(PHASES):
        print("the child process ended early")
    print("Nothing was run on a GPU.")
    failed = kernels.failed or len(outcomes) < len(PHASES) or any(o.result != "done" for o in outcomes)
    return int(bool(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jt_impl.cuda.compile_check", description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=Path, help="keep Jittor's cache in this folder (default: a temporary one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="compile-check-") as temporary:
        home = options.home or Path(temporary) / "home"
        home.mkdir(parents=True, exist_ok=True)
        try:
            return check(home.absolute())
        except MissingPartError as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
