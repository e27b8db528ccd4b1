"""Records of runs that never ran, for the tests of their comparison: what both sides leave behind, and edits of it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignment_tests.comparison import judge, page
from alignment_tests.comparison.evidence import Evidence, gather
from alignment_tests.comparison.report import report_of
from fixtures.evaluation.coco_metrics import evaluate

FRAMEWORKS = {"jittor": "jittor", "torch": "pytorch"}
SUFFIXES = {"jittor": ".pkl", "torch": ".pt"}
EPOCHS, STEPS_PER_EPOCH, IMAGES, SIDE = 12, 3, 8, 64
NAMES = ["disc", "square"]

Lab = dict[str, dict[str, Any]]  # side -> "training", "test" and "detections" (None: not there), "weights" (bytes)


def coco() -> dict[str, Any]:
    """IMAGES images with a disc and a square each."""
    boxes_of = [([4 + i, 6, 20, 18], 1) for i in range(IMAGES)], [([30, 28 + i, 24, 24], 2) for i in range(IMAGES)]
    annotations = [
        {"id": 2 * i + k + 1, "image_id": i, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for k, group in enumerate(boxes_of)
        for i, (box, kind) in enumerate(group)
    ]
    images = [{"id": i, "file_name": f"{i:03d}.png", "height": SIDE, "width": SIDE} for i in range(IMAGES)]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def detections(shift: float = 1.0, keep: int = IMAGES) -> list[dict[str, Any]]:
    """Every box of the first ``keep`` images, moved by ``shift`` pixels, as COCO results."""
    return [
        {**{key: box[key] for key in ("image_id", "category_id")}, "bbox": [box["bbox"][0] + shift, *box["bbox"][1:]],
         "score": round(0.9 - 0.01 * place, 3)}
        for place, box in enumerate(coco()["annotations"])
        if box["image_id"] < keep
    ]  # fmt: skip


def head(side: str, kind: str, seed: int) -> dict[str, Any]:
    options = {"seed": seed, "batch-size": 4, "epochs": EPOCHS, "amp": False, "device": "cpu", "workers": 2,
               "output_dir": f"runs/{side}", "image_size": [64, 64]}  # fmt: skip
    environment = {"framework": f"{side} 1.0", "device": "cpu", "processor": "Some CPU", "threads": 2, "commit": "abc"}
    environment |= {"flags": "-O2"} if side == "jittor" else {"cudnn": "none"}
    model = {"parameters": 1000, "trainable": 990, "by_part": {"backbone": 600, "neck": 300, "detect": 100}}
    return {
        "format": 1,
        "kind": kind,
        "framework": FRAMEWORKS[side],
        "command": ["python", "-m", "train"],
        "options": options,
        "config": {"name": "gold_yolo_n", "head": {"use_dfl": False}},
        "environment": environment,
        "model": model,
    }


def training(side: str, seed: int) -> dict[str, Any]:
    count = EPOCHS * STEPS_PER_EPOCH
    noise = np.random.Generator(np.random.Philox(seed)).normal(0, 0.02, count)
    tiny = 1e-7 if side == "jittor" else 0.0
    total = ((3 * 0.97 ** np.arange(count) + noise) * (1 + tiny)).tolist()
    steps: dict[str, list[Any]] = {
        "step": list(range(count)),
        "epoch": [step // STEPS_PER_EPOCH for step in range(count)],
        "total": total,
        "iou": [0.4 * value for value in total],
        "dfl": [0.0] * count,
        "cls": [0.6 * value for value in total],
        "batch": [hashlib.sha256(f"{seed} {step}".encode()).hexdigest()[:16] for step in range(count)],
        "updated": [True] * count,
    }
    steps |= {rate: [0.01] * count for rate in ("lr", "bias_lr", "momentum")}
    epochs = [
        {"epoch": epoch, "losses": losses_of(steps, epoch), "seconds": 2.0, "images_per_second": 6.0,
         "memory_bytes": 2**28, "ap": 0.04 * epoch, "ap50": 0.08 * epoch, "precision": 0.5, "recall": 0.5, "f1": 0.5}
        for epoch in range(EPOCHS)
    ]  # fmt: skip
    splits = {split: {"images": 12, "boxes": 24, "checksum": f"sum-{split}"} for split in ("train", "val")}
    times = {"started": "2026-11-01T10:00:00+00:00", "finished": "2026-11-01T10:01:00+00:00", "resumed": []}
    data = {"yaml": "data.yaml", "names": NAMES, **splits}
    return {
        **head(side, "training", seed),
        **times,
        "status": "finished",
        "data": data,
        "steps": steps,
        "epochs": epochs,
    }


def losses_of(steps: dict[str, list[Any]], epoch: int) -> dict[str, float]:
    places = slice(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)
    return {loss: float(np.mean(steps[loss][places])) for loss in ("total", "iou", "dfl", "cls")}


def record_of_test(side: str, seed: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = evaluate(coco(), found)
    accuracy: dict[str, Any] = {key: getattr(metrics, key) for key in ("ap", "ap50", "precision", "recall", "f1")}
    accuracy["per_class"] = {name: one._asdict() for name, one in metrics.per_class.items()}
    speed = [
        {"batch_size": size, "latency_ms": 10.0 * size, "latency_ms_quartiles": [9.0 * size, 11.0 * size],
         "rounds": 20, "warmup": 5, "throughput_fps": 100.0, "synchronized": True, "kernels_compiled": 0}
        for size in (1, 4)
    ]  # fmt: skip
    memory = [
        {"batch_size": size, "peak_bytes": 2**27 * size, "allocator_bytes": None, "fits": True} for size in (1, 4)
    ]
    data = {"yaml": "data.yaml", "names": NAMES, "split": "val", "images": IMAGES, "boxes": 16, "checksum": "sum-val"}
    record = head(side, "test", seed)
    record["model"] |= {"form": "deploy", "structure": "ok"}
    return {
        **record,
        "weights": {"path": f"runs/{side}/best{SUFFIXES[side]}", "sha256": None, "epoch": EPOCHS - 1},
        "data": {**data, "annotations": "../annotations.json"},
        "accuracy": accuracy,
        "detections": "detections.json",
        "speed": speed,
        "memory": memory,
        "samples": [],
    }


def clean(seed: int = 0, shift: float = 1.0) -> Lab:
    """What both sides leave behind, equal but for rounding."""
    found = detections(shift)
    return {
        side: {
            "training": training(side, seed),
            "test": record_of_test(side, seed, found),
            "detections": copy.deepcopy(found),
            "weights": f"{side} {seed}".encode(),
        }
        for side in FRAMEWORKS
    }


def write(lab: Lab, root: Path, seed: int = 0) -> dict[str, list[Path]]:
    """One folder per side with both records, beside the annotations; parts that are None are left out."""
    (root / "annotations.json").write_text(json.dumps(coco()))
    folders = {}
    for side, parts in lab.items():
        folder = root / f"{side}_{seed}"
        folder.mkdir(parents=True)
        weights = folder / f"best{SUFFIXES[side]}"
        weights.write_bytes(parts["weights"])
        record = parts["test"]
        if record is not None and record["weights"]["sha256"] is None:
            record["weights"]["sha256"] = hashlib.sha256(parts["weights"]).hexdigest()
        contents = {"training_log": parts["training"], "test_results": record, "detections": parts["detections"]}
        for name, content in contents.items():
            if content is not None:
                (folder / f"{name}.json").write_text(json.dumps(content))
        folders[side] = [folder]
    return folders


def draw_images(root: Path) -> None:
    folder = root / "images" / "val"
    folder.mkdir(parents=True)
    for entry in coco()["images"]:
        Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(folder / entry["file_name"])


def evidence_of(lab: Lab, root: Path, **options: Any) -> Evidence:
    folders = write(lab, root)
    return gather(folders["jittor"], folders["torch"], **options)


def command(folders: dict[str, list[Path]], root: Path, *more: str) -> list[str]:
    sides = [word for side, places in folders.items() for word in (f"--{side}", *map(str, places))]
    return [*sides, "--output-dir", str(root / "out"), *more]


def harness_report(root: Path, *, steps: bool, **changes: Any) -> Path:
    """A report.json of the harness with two rows."""
    compared = {"passed": True, "max_abs_error": 1e-15, "scale": 1.0, "ratio": 1.5}
    rows = [
        {"name": f"activation/a#{i}/0", "verdict": "pass", "precision": precision, "step": 1 if steps else None,
         "accumulated": compared, "isolated": compared}
        for i, precision in enumerate(("float64", "float32"))
    ]  # fmt: skip
    content = {"format": 1, "aligned": True, "problems": [], "title": "gold_yolo_n", "rows": rows}
    content["checks"] = {"hooks": "equal"}
    path = root / f"{'steps' if steps else 'layers'}.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def seeds(root: Path, jittor: tuple[int, ...], torch: tuple[int, ...]) -> tuple[list[Path], list[Path]]:
    """Folders of both sides, of runs whose losses and detections differ by seed."""
    folders: dict[str, list[Path]] = {"jittor": [], "torch": []}
    for side, numbers in (("jittor", jittor), ("torch", torch)):
        for seed in numbers:
            part = clean(seed, shift=1.0 + 0.2 * seed)[side]
            folders[side] += write({side: part}, root, seed)[side]
    return folders["jittor"], folders["torch"]


def edit(path: str, value: Any, *sides: str) -> Callable[[Lab], None]:
    """Set a value, ``training.steps.total.5`` for instance, in the records of some sides, or of Jittor's."""

    def change(lab: Lab) -> None:
        *way, last = path.split(".")
        for side in sides or ("jittor",):
            place: Any = lab[side]
            for key in way:
                place = place[int(key)] if isinstance(place, list) else place[key]
            place[int(last) if isinstance(place, list) else last] = value

    return change


def both(path: str, value: Any) -> Callable[[Lab], None]:
    return edit(path, value, "jittor", "torch")


def reported(evidence: Evidence, lang: str = "en") -> dict[str, Any]:
    return report_of(evidence, judge.judge(evidence), page.language(lang), Path("out"))
