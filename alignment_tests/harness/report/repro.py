"""Write what reproduces one diverged module call: inputs, weights, both outputs, and a script that runs both sides."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from alignment_tests.harness.judge.report import Divergence
from alignment_tests.harness.record.adapter import Array
from alignment_tests.harness.record.trace import Call, Trace
from alignment_tests.harness.report.figures import TEMPLATES

SCRIPT = TEMPLATES / "repro.py.txt"
NO_BUILD = 'raise SystemExit("this module could not be stored: write here what binds `model` on the {side} side")'


def write_repro(
    folder: Path,
    blamed: Divergence,
    call: Call,
    trace: Trace,
    sides: tuple[Any, Any],
    outputs: Mapping[str, Mapping[str, Array]],
    build: tuple[str, str] | None,
) -> Path:
    """Write the folder (whole, then renamed into place; an older one is replaced) and return it.

    Args:
        folder: where.
        blamed: the divergence.
        call: the module's call in the reference.
        trace: the reference's trace that holds its inputs.
        sides: reference and candidate.
        outputs: what each side's module returned, by slot; empty where it raised.
        build: source that binds ``model``, for either side, where modules cannot be stored themselves.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".repro-") as temporary:
        place = Path(temporary) / "repro"
        place.mkdir()
        prefix = f"input/{call.name}/"
        inputs = {name.removeprefix(prefix): trace[name] for name in trace if name.startswith(prefix)}
        save_arrays(place / "inputs.safetensors", inputs)
        for name, arrays in outputs.items():
            save_arrays(place / f"output_{name}.safetensors", arrays)
        models = {}
        for index, (name, side) in enumerate(zip(("reference", "candidate"), sides, strict=True)):
            module = side.modules(side.model)[call.module]
            weights = {key: array for key, (_, array) in side.adapter.state(module).items()}
            save_arrays(place / f"weights_{name}.safetensors", weights)
            stored = store_module(place / f"module_{name}.pickle", module)
            models[name] = "" if stored else (build[index] if build else NO_BUILD.format(side=name))
        facts = {"divergence": asdict(blamed), "call": call.to_json(), "train": sides[0].train}
        (place / "call.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (place / "repro.py").write_text(script(models), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        place.rename(folder)
    return folder


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}, path)


def store_module(path: Path, module: Any) -> bool:
    """Pickle the module as it is, with whatever made it diverge; False where that is not possible."""
    try:
        data = pickle.dumps(copy.copy(module))
    except Exception:  # local classes, lambdas, open handles: many ways, one meaning
        return False
    path.write_bytes(data)
    return True


def script(models: Mapping[str, str]) -> str:
    text = SCRIPT.read_text(encoding="utf-8")
    for name, source in models.items():
        indented = "\n".join(f"    {line}" if line else "" for line in source.splitlines())
        text = text.replace(f"    # BUILD {name}", indented or f"    model = None  # stored in module_{name}.pickle")
    return text
