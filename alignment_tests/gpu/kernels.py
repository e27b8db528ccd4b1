"""``python -m alignment_tests.gpu.kernels``: has Jittor compile what the comparison of layers needs on CUDA.

In a comparison every module runs by itself, so its kernels are others than those of a network that runs as a whole.
Each precision is a phase as in ``jt_impl.cuda.phases``. Under the stubs of ``compile_check`` PyTorch stays on the
CPU; results mean nothing either way.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from fixtures.cli import Parser, fail
from jt_impl.cuda import phases
from jt_impl.cuda.compile_check import find_kernels, make_stub_libraries, run_child
from jt_impl.cuda.toolkit import MissingPartError


def compile_for(precision: str) -> None:
    """Record the reference on a small image, and let Jittor prepare for the same modules."""
    import torch

    from alignment_tests.cases import arithmetic
    from alignment_tests.cases.pairs import make_pair
    from alignment_tests.harness.align_layers import prepare, record_reference
    from alignment_tests.harness.record.adapters import adapter_for
    from alignment_tests.harness.record.side import Side
    from alignment_tests.harness.record.temporary import Scratch
    from fixtures.config import load_config
    from fixtures.images import drawn_images

    chosen = arithmetic.ARITHMETICS[precision]
    # PyTorch would believe the stub libraries too, and compute nothing.
    device = "cuda" if torch.cuda.is_available() and os.environ.get(phases.STUB_LIBRARIES) != "1" else "cpu"
    pair = make_pair(load_config("gold_yolo_n", phases.CLASSES))
    pair.reference.to(device)
    scopes = arithmetic.scopes(chosen, device)
    side = phases.HALF_SIDE if chosen.half else phases.SIDE
    images = drawn_images(1, (side, side))
    reference = Side(adapter_for(pair.reference), pair.reference, images, False, scope=scopes[0])
    candidate = Side(adapter_for(pair.candidate), pair.candidate, images, False, scope=scopes[1])
    run = chosen.runs[0]
    with Scratch("kernels") as place:
        traces = record_reference(reference, place, (run,), lambda text: None)
        with candidate.adapter.in_precision(candidate.model, run), candidate.context(run):
            prepare(candidate, run, traces[run], isolated=True)


PHASES: dict[str, phases.Phase] = {
    phases.LOAD: phases.load,
    **{f"modules alone, {name}": partial(compile_for, name) for name in ("float32", "half", "float64")},
}


def with_stub_libraries(home: Path) -> int:
    """The same in a child process that takes stub libraries for CUDA."""
    outcomes = list(run_child(make_stub_libraries(home), home, (sys.executable, "-m", "alignment_tests.gpu.kernels")))
    for outcome in outcomes:
        print(json.dumps(asdict(outcome)))
    kernels = find_kernels(home)
    print(f"kernels for the GPU: {len(kernels.compiled)} compiled, {len(kernels.failed)} failed")
    for name in kernels.failed:
        print(f"failed: {name}")
    print("Nothing was run on a GPU.")
    done = [outcome.phase for outcome in outcomes if outcome.result == "done"]
    return int(bool(kernels.failed) or done != list(PHASES))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m alignment_tests.gpu.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--stub-libraries", type=Path, metavar="HOME", help="without a GPU: stubs and cache, kept there"
    )
    options = parser.parse_args(arguments)
    if options.stub_libraries is not None:
        options.stub_libraries.mkdir(parents=True, exist_ok=True)
        try:
            return with_stub_libraries(options.stub_libraries.absolute())
        except MissingPartError as error:
            return fail(str(error))
    return phases.report(phases.run(PHASES))


if __name__ == "__main__":
    sys.exit(main())
