"""Records of runs (docs/runs.md), read from their folders and checked as far as the comparison relies on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 1
JITTOR, TORCH = "jittor", "torch"  # the two sides, as the options are called
FRAMEWORKS = {JITTOR: "jittor", TORCH: "pytorch"}  # as the records say it
TITLES = {JITTOR: "Jittor", TORCH: "PyTorch"}
LOSSES = ("total", "iou", "dfl", "cls")
COLUMNS = ("step", "epoch", *LOSSES, "batch")  # of a training record's steps, as far as they are needed
METRICS = ("ap50", "ap", "precision", "recall")
COSTS = ("seconds", "images_per_second", "memory_bytes")  # of an epoch

Spec = Mapping[str, type | tuple[type, ...]]
HEAD: Spec = {"options": dict, "config": dict, "environment": dict, "data": dict, "model": dict}
NOTHING = type(None)
NUMBER = (float, int, NOTHING)
RATES = ("lr", "bias_lr", "momentum")
SPEED: Spec = {
    "batch_size": int,
    "latency_ms": NUMBER,
    "latency_ms_quartiles": (list, NOTHING),
    "throughput_fps": NUMBER,
}
MEMORY: Spec = {"batch_size": int, "peak_bytes": NUMBER, "allocator_bytes": NUMBER}


@dataclass(frozen=True)
class Run:
    """A record as it was read; numbers that are not finite are None."""

    folder: Path
    record: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """By name, with underscores."""
        return {name.replace("-", "_"): value for name, value in self.record["options"].items()}

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def environment(self) -> dict[str, Any]:
        return self.record["environment"]

    @property
    def data(self) -> dict[str, Any]:
        return self.record["data"]

    @property
    def model(self) -> dict[str, Any]:
        return self.record["model"]


class Training(Run):
    """A ``training_log.json``."""

    @property
    def seed(self) -> int:
        return self.options["seed"]

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def steps(self) -> dict[str, list[Any]]:
        return self.record["steps"]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return self.record["epochs"]


class Test(Run):
    """A ``test_results.json``."""

    @property
    def weights(self) -> dict[str, Any]:
        return self.record["weights"]

    @property
    def accuracy(self) -> dict[str, Any]:
        """Empty where the record holds none."""
        return self.record.get("accuracy") or {}

    @property
    def detections(self) -> Path | None:
        name = self.record.get("detections")
        return None if name is None else self.folder / name

    @property
    def annotations(self) -> Path | None:
        name = self.data.get("annotations")
        return None if name is None else self.folder / name

    def by_batch_size(self, part: str) -> dict[int, dict[str, Any]]:
        """The entries of "speed" or "memory"."""
        return {entry["batch_size"]: entry for entry in self.record.get(part) or []}


@dataclass(frozen=True)
class Side:
    """The runs of one framework; trainings in the order of their seeds, tests as given."""

    name: str
    trainings: tuple[Training, ...]
    tests: tuple[Test, ...]

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def runs(self) -> tuple[Run, ...]:
        return (*self.trainings, *self.tests)


R = TypeVar("R", bound=Run)


def read_side(name: str, folders: Sequence[Path]) -> Side:
    """All records in the folders of one side.

    Args:
        name: JITTOR or TORCH.
        folders: each holds a training record, a test record, or both.

    Raises:
        ValueError: a folder is missing, is given twice or holds neither; a record is damaged, of another format or of
            the other framework; two trainings have the same seed.
    """
    trainings: list[Training] = []
    tests: list[Test] = []
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if not folder.is_dir():
            raise ValueError(f"`--{name}` must name folders of runs. Received: {folder}")
        if places.count(place) > 1:
            raise ValueError(f"`--{name}` must name each folder once. Received: {folder} more than once")
        training, test = (folder / file for file in ("training_log.json", "test_results.json"))
        if not training.is_file() and not test.is_file():
            raise ValueError(
                f"`--{name}` must name folders with training_log.json or test_results.json. Received: {folder}"
            )
        if training.is_file():
            trainings.append(_training(training, name))
        if test.is_file():
            tests.append(_test(test, name))
    seeds = [one.seed for one in trainings]
    twice = [seed for seed in seeds if seeds.count(seed) > 1]
    if twice:
        raise ValueError(f"`--{name}` must have one training per seed. Received: more than one of seed {twice[0]}")
    return Side(name, tuple(sorted(trainings, key=lambda one: one.seed)), tuple(tests))


def load_json(path: Path, what: str) -> dict[str, Any]:
    """An object; NaN and infinities, which are not JSON but which Python writes, become None.

    Raises:
        ValueError: it cannot be read or is no object. The message begins with ``what``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{what} must be JSON. Received: {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} must hold an object. Received: {path}, a {type(content).__name__}")
    return content


def _training(path: Path, name: str) -> Training:
    content = _record(path, name, "training", {**HEAD, "status": str, "steps": dict, "epochs": list})
    _check(content["options"], {"seed": int}, f"options in {path}")
    _check(content["data"], {"train": dict, "val": dict}, f"data in {path}")
    _check(content["steps"], dict.fromkeys(COLUMNS, list), f"steps in {path}")
    lengths = {column: len(content["steps"][column]) for column in COLUMNS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"`steps` in {path} must have columns of equal length. Received: {lengths}")
    for column in (*LOSSES, *RATES):
        for value in content["steps"].get(column) or ():
            _check({column: value}, {column: NUMBER}, f"steps in {path}")
    for place, epoch in enumerate(content["epochs"]):
        where = f"epochs[{place}] in {path}"
        _check(epoch, {"epoch": int, "losses": dict, **dict.fromkeys((*METRICS, *COSTS), NUMBER)}, where)
        _check(epoch["losses"], dict.fromkeys(LOSSES, NUMBER), where)
    return Training(path.parent, content)


def _test(path: Path, name: str) -> Test:
    optional = {"accuracy": (dict, NOTHING), "detections": (str, NOTHING)}
    spec = {**HEAD, **optional, "weights": dict, "speed": (list, NOTHING), "memory": (list, NOTHING)}
    content = _record(path, name, "test", spec)
    _check(content["weights"], {"path": str, "sha256": (str, NOTHING)}, f"weights in {path}")
    _check(content["data"], {"annotations": (str, NOTHING)}, f"data in {path}")
    if content["accuracy"]:
        where = f"accuracy in {path}"
        _check(content["accuracy"], {**dict.fromkeys(METRICS, NUMBER), "per_class": (dict, NOTHING)}, where)
        for name, entry in (content["accuracy"]["per_class"] or {}).items():
            _check(entry, {"ap": NUMBER, "ap50": NUMBER}, f"{name} of {where}")
    for part, parts in (("speed", SPEED), ("memory", MEMORY)):
        for place, entry in enumerate(content[part] or []):
            _check(entry, parts, f"{part}[{place}] in {path}")
    return Test(path.parent, content)


def _record(path: Path, name: str, kind: str, spec: Spec) -> dict[str, Any]:
    """A record with the keys of ``spec``, of the right format, kind and framework."""
    content = load_json(path, "a record")
    for key, wanted in (("format", FORMAT), ("kind", kind), ("framework", FRAMEWORKS[name])):
        if content.get(key) != wanted:
            raise ValueError(f"`{key}` in {path} must be {wanted!r}. Received: {content.get(key)!r}")
    _check(content, spec, str(path))
    _check(content["model"], {"parameters": int, "by_part": dict}, f"model in {path}")
    return content


def _check(content: Any, spec: Spec, where: str) -> None:
    """Raise ``ValueError`` for the first key that is missing or of another type."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be an object. Received: {type(content).__name__}")
    for key, kinds in spec.items():
        optional = isinstance(kinds, tuple)
        if key not in content and not optional:
            raise ValueError(f"{where} must have `{key}`. Received: {', '.join(content) or 'nothing'}")
        value = content.setdefault(key, None)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = (kinds[0] if isinstance(kinds, tuple) else kinds).__name__
            raise ValueError(f"`{key}` in {where} must be of type {wanted}. Received: {value!r:.60}")
