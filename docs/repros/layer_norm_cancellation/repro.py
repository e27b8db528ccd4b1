"""1 (LayerNorm), float32: 6 of 6 elements beyond 0.000241 (16 x the reference's own error 1.5e-05), worst 0.00776 at (0, 0, 0, 3)

    python repro.py              needs numpy, PyTorch and Jittor, and nothing else
"""

import pickle  # noqa: F401
import sys
from pathlib import Path

import numpy as np
import torch

try:
    from jt_impl.runtime import load  # this project's settings for Jittor, where it is at hand

    jt = load()
except ImportError:
    import jittor as jt

HERE = Path(__file__).resolve().parent
ARGUMENTS, PRECISION, TRAIN = {'dict': {'args': {'list': [{'leaf': 'args.0'}]}, 'kwargs': {'dict': {}}}}, 'float32', False
DATA = {
    'input args.0': np.array([[[[-171.0, -170.0, -171.0, -169.0, -170.0, -170.0]]]], np.float32),
    'reference weight': np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], np.float32),
    'reference bias': np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32),
    'candidate weight': np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], np.float32),
    'candidate bias': np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32),
}


def given(kind):
    return {name.partition(" ")[2]: array for name, array in DATA.items() if name.startswith(kind + " ")}


def cast(array):
    return np.ascontiguousarray(array.astype(PRECISION) if array.dtype.kind == "f" else array)


def filled(structure, leaf):
    kind, content = next(iter(structure.items()))
    if kind == "leaf":
        return leaf(content)
    if kind in ("list", "tuple"):
        items = [filled(item, leaf) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: filled(item, leaf) for key, item in content.items()}
    return content


def tensor_of_jittor(array):
    array = cast(array)
    return jt.array64(array) if array.dtype in (np.float64, np.int64) else jt.array(array)


def reference():
    module = torch.nn.LayerNorm(normalized_shape=(6,))
    module = module.to(getattr(torch, PRECISION)).train(TRAIN)
    state = {name: torch.tensor(cast(array)) for name, array in given("reference").items()}
    module.load_state_dict({**module.state_dict(), **state})
    made = filled(ARGUMENTS, lambda slot: torch.tensor(cast(given("input")[slot])))
    with torch.no_grad():
        return module(*made["args"], **made["kwargs"])


def candidate():
    module = jt.nn.LayerNorm(normalized_shape=(6,))
    state = given("candidate")
    for path, part in module.named_modules():
        part.is_train = TRAIN
        for name, value in list(vars(part).items()):
            if isinstance(value, jt.Var) and not name.startswith("_"):
                setattr(part, name, tensor_of_jittor(state[f"{path}.{name}" if path else name]))
    made = filled(ARGUMENTS, lambda slot: tensor_of_jittor(given("input")[slot]))
    with jt.no_grad():
        out = module(*made["args"], **made["kwargs"])
    jt.sync_all()
    return out


def main():
    for name, array in given("input").items():
        print(f"input {name}, shape {array.shape}:\n{array}")
    print("PyTorch:", reference())
    try:
        print("Jittor:", candidate())
    except Exception as error:
        print(f"Jittor raises {type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    sys.exit(main())
