"""``python -m jt_impl.cuda.compile_check``: does nvcc compile Jittor and all that Gold-YOLO-N needs, without a GPU?

Stand-ins for the CUDA libraries (``standins``) make Jittor believe in a device. A child process with a cache of its
own runs a forward pass in eval mode, the suppression, and a training step, at 64x64. Their results mean nothing;
which kernels the real nvcc compiled does. nvcc takes seconds for each, so it takes long on few cores; with ``--home`` a
second call goes on where the first one ended. Exit code 1 if a kernel or a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jt_impl.cuda import standins
from jt_impl.cuda.toolkit import CUDNN_LIBRARIES, LIBRARIES, MissingPartError, Toolkit, find

SIDE, CLASSES = 64, 10
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
    """What makes the child use CUDA, the stand-ins, and a cache of its own.

    The cache moves with HOME: Jittor writes the value of JITTOR_HOME into the user's own folder, and every other
    Jittor program would be sent there, even one that is started meanwhile.
    """
    ours = ("ALIGN_CUDA", "HOME", "JITTOR_HOME", "LD_LIBRARY_PATH", "cache_name")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "ALIGN_CUDA": "1", "HOME": str(home), "LD_LIBRARY_PATH": str(folder)}


def needed_libraries(toolkit: Toolkit) -> list[tuple[str, int]]:
    """Names and numbers of all that Jittor links."""
    cudnn = [(name, toolkit.cudnn.major) for name in CUDNN_LIBRARIES[toolkit.cudnn.major]]
    return [*LIBRARIES[toolkit.version[0]].items(), *cudnn]


def run_child(folder: Path, home: Path) -> tuple[dict[str, str], int]:
    """What each phase of the child came to, and how the process ended. Its messages go to stderr as they come."""
    command = [sys.executable, "-m", "jt_impl.cuda.compile_check", "--child"]
    results: dict[str, str] = {}
    environment = child_environment(folder, home)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"phase"'):
                row = json.loads(line)
                results[row["phase"]] = row["result"]
                print(f"{row['phase']}: {row['result']} ({row['seconds']:.0f} s)", flush=True)
    return results, process.returncode


def load() -> None:
    """Jittor's core and its CUDA modules."""
    from jt_impl import runtime

    module = runtime.load()
    if not module.has_cuda:
        raise RuntimeError("Jittor was built for the CPU")
    module.flags.use_cuda = 1


def forward() -> None:
    """One image through the network in eval mode."""
    import numpy as np

    from fixtures.config import load_config
    from jt_impl.model import build_model
    from jt_impl.runtime import jittor as jt

    model = build_model(load_config("gold_yolo_n", CLASSES))
    model.eval()
    with jt.no_grad():
        model(jt.array(np.zeros((1, 3, SIDE, SIDE), np.float32))).sync()
    jt.sync_all(True)


def suppression() -> None:
    """Predictions to detections."""
    import numpy as np

    from jt_impl.postprocess import non_max_suppression
    from jt_impl.runtime import jittor as jt

    predictions = np.zeros((1, 84, 5 + CLASSES), np.float32)
    non_max_suppression(jt.array(predictions))


def training_step() -> None:
    """Forward, loss, backward, and an update of the weights and of their average."""
    import numpy as np

    from fixtures.config import load_config
    from fixtures.schedule import Schedule
    from jt_impl.model import build_model
    from jt_impl.trainer import Trainer

    config = load_config("gold_yolo_n", CLASSES)
    schedule = Schedule(config.solver, 2, steps_per_epoch=1, epochs=1)
    trainer = Trainer(build_model(config), config, SIDE, 2, schedule, accumulate=1)
    targets = np.array([[0, 1, 0.5, 0.5, 0.4, 0.4], [1, 2, 0.4, 0.6, 0.3, 0.5]], np.float64)
    trainer.step(np.zeros((2, 3, SIDE, SIDE), np.float32), targets)


PHASES: dict[str, Callable[[], None]] = {
    "load Jittor": load,
    "forward in eval mode": forward,
    "suppression": suppression,
    "training step": training_step,
}


def child() -> None:
    """Run the phases; a failed one does not keep the later ones from compiling theirs."""
    for name, phase in PHASES.items():
        start = time.perf_counter()
        try:
            phase()
            result = "done"
        except Exception as error:
            result = f"{type(error).__name__}: {' '.join(str(error).split())[-600:]}"
        seconds = time.perf_counter() - start
        print(json.dumps({"phase": name, "result": result, "seconds": seconds}), flush=True)
        if name == "load Jittor" and result != "done":
            return


def check(home: Path) -> int:
    """Make the stand-ins, compile with them, and print what came of it.

    The stand-ins lie in the same folder as the cache: the name of the cache depends on their place, and a second call
    must meet the kernels of the first.
    """
    toolkit, folder = find(), home / "standins"
    print(toolkit.description, flush=True)
    counts = standins.make(folder, toolkit, needed_libraries(toolkit))
    print(f"stand-ins: {len(counts)} libraries, {sum(counts.values())} functions", flush=True)
    results, code = run_child(folder, home)
    kernels = find_kernels(home)
    print(f"kernels for the GPU: {len(kernels.compiled)} compiled, {len(kernels.failed)} failed")
    for name in kernels.failed:
        print(f"failed: {name}")
    if len(results) < len(PHASES):
        print(f"the child process ended early, with code {code}")
    print("Nothing was run on a GPU.")
    return int(bool(kernels.failed) or len(results) < len(PHASES) or any(r != "done" for r in results.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jt_impl.cuda.compile_check", description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=Path, help="keep Jittor's cache in this folder (default: a temporary one)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child()
        return 0
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
