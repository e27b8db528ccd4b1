"""What is recorded: every file and array of ``fixtures/golden`` has one description, and nothing is recorded twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fixtures.golden import FOLDER, PUBLIC, recorded_arrays, recorded_json, recorded_names, stored_forms

LARGEST = 20_000_000  # bytes of all recordings
TRIVIAL = 16  # elements; fewer may be there twice: a reference would take as many bytes
ARRAYS = ".npz"

# Pattern of a file, or of a file and an array in it -> what it is. Where arrays come in pairs, `stats` and `samples`
# are the two halves of a summary.
CONTENTS = {
    "README.md": "how the recordings were made",
    "structure.json": "keys, counts and GFLOPs of torch_ref, for fixtures.structure",
    "public/stored.json": "the form of arrays that are not stored as they are",
    "public/names.json.gz": "names of modules, statistics and parameters, by the recording whose rows have them",
    "public/weights.json": "sha256 of single weights, whole states and images, all seeded",
    # structure
    "public/structure/[nsml]_*nc*.json.gz": "rows of a state dict: key, shape, dtype, kind, trainable; three forms",
    "public/structure/counts.json": "parameters, buffers, norms and GFLOPs, and parameters with each head",
    "public/structure/initial_values.json.gz": "mean, deviation and extremes of N's and L's parameters as built",
    # modules
    "public/modules/alone.npz:*": "the output of one module on a signed input; units.py has its arguments",
    "public/modules/eval_*.npz:s*": "every module's output in eval mode, for a variant and an input",
    "public/modules/train.npz:*_modules_*": "every module's output in train mode",
    "public/modules/train.npz:*_bn_*": "running statistics after that pass",
    "public/modules/train.npz:*_cls_*": "scores of that pass",
    "public/modules/train.npz:*_reg_*": "raw distances of that pass",
    "public/modules/train.json": "side of the images of that pass",
    # detections
    "public/detections/*.npz:[sn]*_f64": "detections of the network as built or (switch) re-parameterised, float64",
    "public/detections/*.npz:[sn]*_f32": "detections of the network as built, float32",
    "public/detections/*.npz:fused_*_f32": "detections of the fused network, float32",
    # heads
    "public/heads/runs.json": "losses, and the norm of all gradients, of a run with a training head",
    "public/heads/runs.npz:*_grad_l2": "the norm of each parameter's gradient in that run",
    "public/heads/runs.npz:*_eval": "five statistics and 1024 samples of the detections with that head",
    # losses
    "public/losses/targets.npz:nc*": "boxes of four images",
    "public/losses/iou.npz:pred": "64 boxes",
    "public/losses/iou.npz:target": "64 boxes that these should be",
    "public/losses/iou.npz:*_loss_f64": "IoU loss of each pair",
    "public/losses/iou.npz:*_grad_f64": "gradient of their sum by the first boxes",
    "public/losses/losses.json": "losses and number of foreground anchors, by targets, IoU loss, form and assigner",
    "public/losses/gradients.npz:*_gs_*": "gradient of the total by the scores",
    "public/losses/gradients.npz:*_gr_*": "gradient of the total by the raw distances",
    "public/losses/assignments.npz:*_fg_mask": "which anchors are foreground",
    "public/losses/assignments.npz:*_target_labels": "the class that each anchor learns",
    "public/losses/assignments.npz:*_target_bboxes": "the box that each anchor learns",
    "public/losses/assignments.npz:*_target_scores": "the scores that each anchor learns",
    "public/losses/anchors_4x6.npz:anchors": "ATSS's boxes around the cells of levels 4x6, 2x3 and 1x2, in pixels",
    "public/losses/anchors_4x6.npz:points": "centres of these cells in pixels",
    "public/losses/anchors_4x6.npz:eval_points": "centres in units of the stride",
    "public/losses/anchors_4x6.npz:ab_points": "centres with three anchors each",
    # optimizer
    "public/optimizer/report.json.gz": "parameter groups, schedules, EMA decays; settings and losses of traced steps",
    "public/optimizer/steps.npz:*_model": "weights and running statistics after each traced step",
    "public/optimizer/steps.npz:*_ema": "their average after the last one",
    # images
    "public/images/image?.png": "a photograph",
    "public/images/report.json": "sizes, paddings, sha256, matrices, gains and labels of what is made from them",
    "public/images/augmentations.npz:base?": "a photograph, shrunk by areas",
    "public/images/augmentations.npz:*_img": "an image after an affine map, a mosaic, or all steps of training",
    "public/images/augmentations.npz:*_labels": "its boxes, or those of a mixture",
    "public/images/augmentations.npz:hsv_?": "an image with other colours",
    "public/images/augmentations.npz:mixup_?": "a mixture of two images",
    # postprocess
    "public/postprocess/nms.npz:*_pred": "drawn predictions",
    "public/postprocess/nms.npz:*_out?": "what is kept of them for one image: x1, y1, x2, y2, score, class",
    "public/postprocess/report.json": "arguments and counts of these cases, boxes scaled back, and an AP",
    "public/postprocess/coco_records.json.gz": "detections as COCO records",
    "public/postprocess/coco_truth.json": "annotations for that AP",
    "public/postprocess/coco_detections.json": "detections for that AP",
    # checkpoint
    "public/checkpoint/official_like_n.json.gz": "sha256 of the checkpoint, and the keys of the weights left out",
    "public/checkpoint/official_like_n.npz:rest": "the checkpoint's bytes without these weights",
    "public/checkpoint/official_like_n.npz:starts": "where they begin in it",
    "public/checkpoint/detections.npz:n_*": "what it detects as it is and fused, float32",
    # COCO's evaluation
    "public/coco_metric/truth.json.gz": "annotations of 100 images",
    "public/coco_metric/detections.json.gz": "detections in them",
    "public/coco_metric/expected.json": "the 12 figures for all classes and for ten",
    "public/coco_metric/LICENSE.*.txt": "of the two projects that these come from",
}


@lru_cache(maxsize=1)
def files() -> list[Path]:
    return sorted(path for path in FOLDER.rglob("*") if path.is_file())


def stored() -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every array as it lies in its file."""
    for path in files():
        if path.suffix == ARRAYS:
            with np.load(path, allow_pickle=False) as file:
                yield from ((f"{path.relative_to(FOLDER).as_posix()}:{name}", file[name]) for name in file.files)


def digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def test_every_file_and_array_is_described_once() -> None:
    names = [path.relative_to(FOLDER).as_posix() for path in files() if path.suffix != ARRAYS]
    for path in PUBLIC.rglob("*.npz"):
        name = path.relative_to(PUBLIC).with_suffix("").as_posix()
        names += [f"public/{name}.npz:{key}" for key in recorded_arrays(name)]
    found = {name: [pattern for pattern in CONTENTS if fnmatchcase(name, pattern)] for name in names}
    assert {name: patterns for name, patterns in found.items() if len(patterns) != 1} == {}
    assert set(CONTENTS) == {pattern for patterns in found.values() for pattern in patterns}


def test_nothing_is_recorded_twice() -> None:
    arrays = {name: digest(array) for name, array in stored() if array.size >= TRIVIAL}
    assert len(arrays) > 200
    others = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files() if path.suffix != ARRAYS}
    seen: dict[str, str] = {}
    twice = [(name, seen[key]) for name, key in (arrays | others).items() if seen.setdefault(key, name) != name]
    assert twice == []
    lists = [names for names in recorded_json("names").values() if isinstance(names, list)]
    assert all(names not in lists[:place] for place, names in enumerate(lists))


def test_the_recordings_stay_small() -> None:
    assert sum(path.stat().st_size for path in files()) <= LARGEST


@pytest.mark.parametrize("file", stored_forms())
def test_arrays_come_out_as_they_were_recorded(file: str) -> None:
    arrays = recorded_arrays(file)
    for name, how in stored_forms()[file].items():
        assert digest(arrays[name]) == (digest(arrays[how["as"]]) if how["form"] == "same" else how["sha256"]), name


def test_names_belong_to_recordings() -> None:
    for recording in recorded_json("names"):
        assert (PUBLIC / f"{recording.split(':')[0]}.npz").is_file()
        assert len(recorded_names(recording)) == len(set(recorded_names(recording))) > 0


def test_the_readme_tells_of_every_folder() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PUBLIC.iterdir() if path.is_dir() and f"| `{path.name}/` |" not in text] == []
    message = {
        name for line in text.splitlines() if line.startswith("| `") for name in line.split("|")[-2].split("`")[1::2]
    }
    assert {path.stem for path in Path(__file__).parents[1].rglob("test_*.py")} >= message
