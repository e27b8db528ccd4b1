"""From a diverged report to the smallest input of the blamed module, and a script that shows it in both frameworks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from alignment_tests.harness.judge.arguments import constructor
from alignment_tests.harness.judge.budget import Budget
from alignment_tests.harness.judge.compare import Comparison, compare_arrays
from alignment_tests.harness.judge.report import load_report_json
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.adapters import adapter_for
from alignment_tests.harness.record.capture import output_arrays
from alignment_tests.harness.record.nested import Structure, paired_slots, unflatten
from alignment_tests.harness.record.temporary import write_text_atomically
from alignment_tests.harness.report.figures import TEMPLATES
from alignment_tests.harness.shrink import Inputs, shrink

SCRIPT = TEMPLATES / "bisected.py.txt"
RAISES = "the candidate raises"
INLINE = 400  # numbers that a script holds itself; more go to a file beside it


@dataclass(frozen=True)
class Bisected:
    """Where the script is, what is called, on how large inputs, and by how much the outputs part."""

    script: Path
    call: str
    shapes: dict[str, tuple[int, ...]]
    reason: str


@dataclass(frozen=True)
class Blamed:
    """The blamed call of a report: both modules in its state, arguments, inputs."""

    reference: Any
    candidate: Any
    arguments: Structure
    inputs: Inputs
    precision: str
    train: bool
    name: str
    budget: Budget


def bisect(report: Path, output: Path, notify: Callable[[str], None] = lambda text: None) -> Bisected:
    """Shrink the call that a report blames and write ``repro.py`` (and ``data.npz``, if it is large) to ``output``.

    Args:
        report: the report's report.json, or its folder. Its repro folder holds pickled modules: open only your own.
        output: folder of the script.
        notify: called with a line of text at each step.

    Raises:
        ValueError: the report is aligned, has no repro, is one of mixed precision, or its modules agree when they run
            alone.
    """
    blamed = load_blamed(report)
    raises = (judged(blamed, blamed.inputs) or "").startswith(RAISES)
    tried = [0]

    def diverges(inputs: Inputs) -> bool:
        """In the same way: an error is another fault than a value."""
        tried[0] += 1
        reason = judged(blamed, inputs)
        return reason is not None and reason.startswith(RAISES) == raises

    small = shrink(blamed.inputs, diverges)
    reason = judged(blamed, small)
    assert reason is not None
    shapes = {slot: array.shape for slot, array in small.items()}
    notify(f"{tried[0]} calls tried; smallest inputs {shapes}")
    script = write_script(blamed, small, reason, output)
    return Bisected(script, blamed.name, shapes, reason)


def load_blamed(report: Path) -> Blamed:
    file = report / "report.json" if report.is_dir() else report
    data = load_report_json(file)
    divergence = data["first_divergence"]
    if divergence is None or divergence.get("repro") is None:
        raise ValueError(f"`report` must blame a call and have its repro folder. Received: {file}, which has none")
    folder = Path(divergence["repro"])
    folder = folder if folder.is_dir() else file.parent / "repro"
    modules = {side: stored_module(folder / f"module_{side}.pickle") for side in ("reference", "candidate")}
    facts = json.loads((folder / "call.json").read_text(encoding="utf-8"))
    inputs = dict(load_file(folder / "inputs.safetensors"))
    half = [slot for slot, array in inputs.items() if array.dtype == np.float16]
    if half:
        raise ValueError(f"reports in mixed precision cannot be bisected. Received: {file}, inputs {half} in float16")
    return Blamed(
        **modules,
        arguments=facts["call"]["arguments"],
        inputs=inputs,
        precision=divergence["precision"],
        train=facts["train"],
        name=f"{divergence['module'] or 'the model'} ({divergence['kind']})",
        budget=Budget(**data["budget"]),
    )


def stored_module(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(
            f"the module could not be stored when the report was made: {path.name} is not in {path.parent}"
        )
    return pickle.loads(path.read_bytes())


def judged(blamed: Blamed, inputs: Inputs) -> str | None:
    """Why the call diverges on these inputs; None where it does not, or PyTorch cannot make it."""
    try:
        exact, recorded = outputs_of(blamed.reference, blamed, inputs, "float64")
        single = blamed.precision == "float32"
        expected = outputs_of(blamed.reference, blamed, inputs, "float32")[0] if single else exact
    except Exception:  # the reference refuses inputs of this size
        return None
    try:
        given, own = outputs_of(blamed.candidate, blamed, inputs, blamed.precision)
    except Exception as error:  # of the candidate's module: that is the divergence
        return f"{RAISES} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    slots = paired_slots(own, recorded)
    found = {slots.get(slot, slot): array for slot, array in given.items()}
    for slot, array in expected.items():
        if slot not in found:
            return f"the candidate has no output {slot}"
        oracle = exact[slot] if single and array.dtype.kind == "f" else None
        comparison: Comparison = compare_arrays(found[slot], array, oracle=oracle, budget=blamed.budget, brief=True)
        if not comparison.passed and not comparison.reason.startswith(("nothing compared", "proves nothing")):
            return comparison.reason
    return None


def outputs_of(module: Any, blamed: Blamed, inputs: Inputs, precision: str) -> tuple[dict[str, Array], Structure]:
    adapter = adapter_for(module)

    def leaf(slot: str) -> Any:
        array = inputs[slot]
        return adapter.from_numpy(array.astype(precision) if array.dtype.kind == "f" else array)

    with adapter.in_precision(module, precision) as model, adapter.running(model, train=blamed.train):
        made = unflatten(blamed.arguments, leaf)
        return output_arrays(adapter, model(*made["args"], **made["kwargs"]))


def write_script(blamed: Blamed, inputs: Inputs, reason: str, output: Path) -> Path:
    """Constructors in words where both modules are stock layers, else the pickles of the report beside the script."""
    output.mkdir(parents=True, exist_ok=True)
    built = {side: constructor(getattr(blamed, side)) for side in ("reference", "candidate")}
    arrays = {f"input {slot}": array for slot, array in inputs.items()}
    for side in ("reference", "candidate"):
        module = getattr(blamed, side)
        state = adapter_for(module).state(module).items()
        arrays |= {f"{side} {name}": array for name, (_, array) in state if not name.endswith("num_batches_tracked")}
        if built[side] is None:
            (output / f"module_{side}.pickle").write_bytes(pickle.dumps(module))
            built[side] = f'pickle.loads((HERE / "module_{side}.pickle").read_bytes())'
    small = sum(array.size for array in arrays.values()) <= INLINE
    if not small:
        np.savez(output / "data.npz", **arrays)
    words = {
        "REASON": f"{blamed.name}, {blamed.precision}: {reason}",
        "DATA": inline(arrays) if small else 'dict(np.load(HERE / "data.npz"))',
        "REFERENCE": str(built["reference"]),
        "CANDIDATE": str(built["candidate"]),
        "ARGUMENTS": repr(blamed.arguments),
        "PRECISION": repr(blamed.precision),
        "TRAIN": repr(blamed.train),
    }
    text = SCRIPT.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"<{word}>", value)
    write_text_atomically(output / "repro.py", text)
    return output / "repro.py"


def inline(arrays: Mapping[str, Array]) -> str:
    lines = [
        f"    {name!r}: np.array({array.tolist()!r}, {str(array.dtype)!r}).reshape({array.shape}),"
        for name, array in arrays.items()
    ]
    return "\n".join(["{", *lines, "}"])
