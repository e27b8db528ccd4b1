"""Find the weights in an unpickled tree: a plain state dict, or a training checkpoint that holds whole modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.errors import CheckpointError
from converters.pickle_constructors import NumpyArray, TorchTensor
from converters.unpickle import Instance

# Where training checkpoints keep weights, best first: evaluation and fine-tuning take the averaged ones.
WEIGHT_ENTRIES = ("ema", "model", "state_dict")
MAX_MODULES = 100_000

Record = TorchTensor | NumpyArray


@dataclass
class FoundState:
    """Records of tensors by key in the order of ``state_dict``; facts of the file; what was left and why."""

    records: dict[str, Record] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def find_state(tree: Any) -> FoundState:
    """The weights of an unpickled checkpoint.

    A dictionary with a truthy ``ema``, ``model`` or ``state_dict`` (the first of these is taken) is a training
    checkpoint; its plain values (``epoch``, ``updates``) become ``meta``. Any other dictionary is a state dict. A
    whole pickled module is walked as ``state_dict`` would.

    Raises:
        CheckpointError: the tree holds no weights, or something else among them.
    """
    found = FoundState()
    if isinstance(tree, Mapping):
        source = next((name for name in WEIGHT_ENTRIES if is_container(tree.get(name))), None)
        if source is None:
            take(tree, found)
        else:
            found.meta["weights_from"] = source
            take(tree[source], found)
            note_rest(tree, source, found)
    else:
        take(tree, found)
    if not found.records:
        raise CheckpointError("the file holds no weights")
    return found


def is_container(value: Any) -> bool:
    return isinstance(value, Instance) or (isinstance(value, Mapping) and len(value) > 0)


def take(source: Any, found: FoundState) -> None:
    if isinstance(source, Mapping):
        for name, value in source.items():
            add(str(name), value, found)
    elif isinstance(source, Instance) and "_modules" in source.state:
        found.meta["model_class"] = str(source.origin)
        norms: Counter[tuple[Any, Any]] = Counter()
        for path, module in walk(source):
            take_module(path, module, found)
            if "running_mean" in entries(module, "_buffers"):
                norms[module.state.get("eps"), module.state.get("momentum")] += 1
        found.meta["norms"] = [[eps, momentum, count] for (eps, momentum), count in norms.most_common()]
    else:
        raise CheckpointError(f"expected a state dict or a module with weights. Received: a {type(source).__name__}")


def add(name: str, value: Any, found: FoundState) -> None:
    if not isinstance(value, TorchTensor | NumpyArray):
        raise CheckpointError(f"expected a tensor under {name[:80]!r}. Received: a {type(value).__name__}")
    found.records[name] = value


def note_rest(tree: Mapping[Any, Any], source: str, found: FoundState) -> None:
    """Plain values become ``meta``; the rest is ignored, with the reason."""
    for name, value in tree.items():
        if name == source or value is None:
            continue
        if isinstance(value, bool | int | float | str):
            found.meta[str(name)] = value
        elif name in WEIGHT_ENTRIES:
            found.ignored[str(name)] = f"the weights of `{source}` are taken"
        else:
            found.ignored[str(name)] = "state of the training run, not weights of the model"


def entries(module: Instance, group: str) -> dict[str, Any]:
    """``_parameters``, ``_buffers`` or ``_modules`` of a stand-in, without the unset ones."""
    held = module.state.get(group, {})
    if not isinstance(held, dict):
        raise CheckpointError(
            f"expected `{group}` of {module.origin} to be a dictionary, found a {type(held).__name__}"
        )
    return {str(name): value for name, value in held.items() if value is not None}


def walk(root: Instance) -> Iterator[tuple[str, Instance]]:
    """Every module of a pickled module with its path, parents first, in the order of ``named_modules``."""
    waiting: list[tuple[str, Instance, tuple[int, ...]]] = [("", root, ())]
    for _ in range(MAX_MODULES):
        if not waiting:
            return
        path, module, above = waiting.pop()
        yield path, module
        children = entries(module, "_modules")
        for name, child in reversed(children.items()):
            if not isinstance(child, Instance) or id(child) in (*above, id(module)):
                raise CheckpointError(f"expected a module of its own at {path}.{name}, found a loop or another object")
            waiting.append((f"{path}.{name}" if path else name, child, (*above, id(module))))
    raise CheckpointError(f"the file holds more than {MAX_MODULES} modules")


def take_module(path: str, module: Instance, found: FoundState) -> None:
    """A module's own parameters and persistent buffers, as ``state_dict`` lists them."""
    prefix = f"{path}." if path else ""
    temporary = module.state.get("_non_persistent_buffers_set", ())
    for name, value in (entries(module, "_parameters") | entries(module, "_buffers")).items():
        if isinstance(temporary, set) and name in temporary:
            found.ignored[prefix + name] = "a non-persistent buffer, which the model computes itself"
        else:
            add(prefix + name, value, found)


STEM_CHANNELS = {16: "gold_yolo_n", 32: "gold_yolo_s", 48: "gold_yolo_m", 64: "gold_yolo_l"}


def first_shape(shapes: Mapping[str, tuple[int, ...]], *prefixes: str) -> tuple[int, ...] | None:
    """Shape of the first convolution weight under the first of the prefixes that has one."""
    for prefix in prefixes:
        for name, shape in shapes.items():
            if name.startswith(prefix) and len(shape) == 4:
                return shape
    return None


def identify(state: Mapping[str, np.ndarray[Any, Any]]) -> tuple[str | None, int | None, dict[str, Any]]:
    """Config name, number of classes and head of a Gold-YOLO state, from its shapes; ``(None, None, {})`` for others.

    The stem's output channels tell n, s, m, l apart in every form (train, deploy); ``head`` is ``plain``,
    ``distill_ns`` (a second box branch) or ``fuse_ab`` (anchor-aided); ``reg_max`` 0 means no DFL.
    """
    shapes = {name: array.shape for name, array in state.items()}
    stem = first_shape(shapes, "backbone.stem.")
    classes = first_shape(shapes, "detect.cls_preds.0.", "detect.cls_preds_af.0.")
    boxes = first_shape(shapes, "detect.reg_preds.0.", "detect.reg_preds_af.0.")
    if stem is None or classes is None or boxes is None or stem[0] not in STEM_CHANNELS:
        return None, None, {}
    aided = any(name.startswith("detect.cls_preds_ab.") for name in shapes)
    doubled = any(name.startswith("detect.reg_preds_lrtb.") for name in shapes)
    head = "fuse_ab" if aided else "distill_ns" if doubled else "plain"
    return STEM_CHANNELS[stem[0]], classes[0], {"head": head, "reg_max": boxes[0] // 4 - 1}
