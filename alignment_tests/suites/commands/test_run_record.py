"""Records of training runs, first weights, recipes and schedules of short runs (data, cli)."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
from alignment_tests.cases.commands import dataset
from converters.run_files import fine_tune, read_weights
from fixtures.config import load_config
from fixtures.data.dataset import DetectionDataset, load_dataset
from fixtures.evaluation.coco_metrics import evaluate
from fixtures.evaluation.detections import without_negative_sides
from fixtures.runs.record import COLUMNS, RunRecord, commit_of, finite, read_record
from fixtures.runs.splits import annotations_of
from fixtures.runs.train_options import parse, read_recipe, recipe_names
from fixtures.seeded import DFL_CONSTANTS, initial_state
from fixtures.training.schedule import Schedule
from torch_ref import build_model

STEM = "backbone.stem.rbr_dense.conv.weight"
WORDS = ["--data", "d.yaml", "--output-dir", "out"]


def filled(steps: int, per_epoch: int) -> RunRecord:
    made = RunRecord({"framework": "pytorch"})
    for step in range(steps):
        epoch = step // per_epoch
        made.add_step(**{**dict.fromkeys(COLUMNS, float(step)), "step": step, "epoch": epoch})
        if (step + 1) % per_epoch == 0:
            made.epochs.append({"epoch": epoch, "next_step": step + 1})
    return made


# ---- the record


def test_data_of_a_record_survive_the_disk(tmp_path: Path) -> None:
    made = filled(5, 2)
    made.save(tmp_path)
    assert read_record(tmp_path) == json.loads(json.dumps(made.as_json()))


@pytest.mark.parametrize(("step", "epochs"), [(5, 2), (4, 2), (3, 1), (2, 1), (1, 0), (0, 0)])
def test_data_beyond_the_saved_step_are_dropped_on_resume(step: int, epochs: int) -> None:
    """A killed process may have logged more than it had saved."""
    resumed = RunRecord({"framework": "pytorch"})
    resumed.take_over(filled(5, 2).as_json(), step)
    assert resumed.steps["step"] == list(range(step))
    assert [entry["epoch"] for entry in resumed.epochs] == list(range(epochs))
    assert resumed.head["resumed"] == [step]


def test_data_of_an_overflowed_step_are_gone_on_with() -> None:
    """Mixed precision logs a NaN, which JSON holds as null."""
    older = finite({**filled(2, 2).as_json(), "steps": {**filled(2, 2).steps, "total": [math.nan, 1.0]}})
    resumed = RunRecord({"framework": "pytorch"})
    resumed.take_over(older, 2)
    assert math.isnan(resumed.losses_of(0)["total"])
    assert resumed.losses_of(0)["iou"] == 0.5


def test_data_that_are_not_finite_are_null() -> None:
    value = {"a": [1.0, math.nan], "b": {"c": math.inf}, "d": (2, "x", None)}
    assert finite(value) == {"a": [1.0, None], "b": {"c": None}, "d": [2, "x", None]}


# ---- first weights


@pytest.mark.parametrize("head", ["plain", "fuse_ab"])
def test_first_weights_spread_as_those_of_the_constructor(head: str) -> None:
    """Mean and deviation of every random array; everything else is the constructor's own, bit for bit."""
    built = converters.read_state(build_model(load_config("gold_yolo_s", 3, head=head)))
    drawn, drawn_count = initial_state(built, 7), 0
    for name, array in built.items():
        if array.ndim != 4 or name in DFL_CONSTANTS or np.ptp(array) == 0:
            continue
        drawn_count += 1
        assert drawn[name].std() == pytest.approx(array.std(), rel=6 / math.sqrt(array.size) + 0.02), name
        assert abs(drawn[name].mean()) <= 5 * array.std() / math.sqrt(array.size), name
    kept = [name for name in built if not name.endswith((".weight", ".bias")) or built[name].ndim == 1]
    changed = [name for name in kept if name.endswith(".weight") and not np.array_equal(drawn[name], built[name])]
    assert drawn_count > 100
    assert changed == []


def test_first_weights_follow_from_the_seed_alone() -> None:
    config = load_config("gold_yolo_n", 3)
    first, again = (initial_state(converters.read_state(build_model(config)), 7) for _ in range(2))
    other = initial_state(converters.read_state(build_model(config)), 8)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first[STEM], other[STEM])


def test_first_weights_are_the_same_numbers_in_both_precisions() -> None:
    config = load_config("gold_yolo_n", 3)
    single, double = (initial_state(converters.read_state(build_model(config, t)), 0) for t in ("float32", "float64"))
    name = "neck.Inject_p4.local_embedding.conv.weight"
    assert double[name].dtype == np.float64
    assert np.array_equal(single[name].astype(np.float64), double[name])


def test_weights_of_80_classes_start_a_model_of_three(tmp_path: Path) -> None:
    eighty = converters.read_state(build_model(load_config("gold_yolo_n", 80)))
    first = converters.read_state(build_model(load_config("gold_yolo_n", 3)))
    start = fine_tune(first, converters.Checkpoint(eighty), tmp_path)
    assert {name.rsplit(".", 2)[0] for name in start.kept} == {"detect.cls_preds"}
    assert len(start.kept) == 6
    assert np.array_equal(start.state[STEM], eighty[STEM])
    assert start.unused == ()


def test_plain_weights_learn_from_the_file_beside_them_what_they_are(tmp_path: Path) -> None:
    config = load_config("gold_yolo_n", 3)
    state = converters.read_state(build_model(config))
    facts = {"image_size": 64, "head": "plain", "reg_max": 0}
    for end in (".pt", ".safetensors"):
        converters.write_checkpoint(tmp_path / f"last{end}", converters.Checkpoint(state, "gold_yolo_n", 3, facts))
    assert read_weights(tmp_path / "last.pt").meta["image_size"] == 64
    changed = {name: array + 1 if array.dtype.kind == "f" else array for name, array in state.items()}
    converters.write_checkpoint(tmp_path / "last.pt", converters.Checkpoint(changed))
    assert "image_size" not in read_weights(tmp_path / "last.pt").meta


# ---- options and recipes


def test_cli_recipes_are_complete_options() -> None:
    assert {"demo", "minicoco_256", "rtx4060_8gb"} <= set(recipe_names())
    for name in recipe_names():
        options = parse("train", "PyTorch", [*WORDS, "--recipe", name])
        assert options.recipe == name
        for key, value in read_recipe(name).items():
            if key != "augment":
                assert getattr(options, key) == value, key


def test_cli_options_win_over_the_recipe() -> None:
    options = parse("train", "PyTorch", [*WORDS, "--recipe", "rtx4060_8gb", "--batch_size", "3", "--no-amp"])
    assert (options.image_size, options.batch_size, options.grad_accum, options.amp) == (512, 3, 2, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batchsize = 3", "did you mean batch_size"),
        ("[augment]\nmosaics = 1.0", "did you mean mosaic"),
        ("a = ", "TOML"),
    ],
)
def test_cli_recipes_with_mistakes_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        read_recipe(str(path))


def test_cli_rate_is_the_rate_itself() -> None:
    options = parse("train", "PyTorch", [*WORDS, "--lr", "0.03", "--batch-size", "6", "--warmup-steps", "2"])
    config = options.model_config(3)
    schedule = options.schedule(config, 100)
    highest = max(schedule.at(step).lr for step in range(10_000))
    assert highest <= 0.03
    assert highest == pytest.approx(0.03, rel=0.01)


def test_short_warm_up_ends_where_it_is_told_to() -> None:
    solver = load_config("gold_yolo_n").solver
    assert Schedule(solver, 8, 5, 10).warmup_steps == 1000
    assert Schedule(solver, 8, 5, 10, least_warmup_steps=8).warmup_steps == 15  # three epochs


# ---- commit


def test_a_commit_is_marked_where_files_differ_but_for_folders_that_the_run_writes(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", *names, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert commit_of(tmp_path) == "unknown"
    for name in ("code", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "new").write_text("1")
    assert commit_of(tmp_path) == commit
    (tmp_path / "docs" / "file").write_text("2")
    assert (commit_of(tmp_path), commit_of(tmp_path, ("docs",))) == (f"{commit}+changes", commit)
    (tmp_path / "code" / "file").write_text("2")
    assert commit_of(tmp_path / "docs", ("docs",)) == f"{commit}+changes"


# ---- detections and annotations


def test_boxes_with_negative_sides_cover_nothing() -> None:
    boxes = np.array([[1.0, 2.0, 5.0, 6.0], [9.0, 8.0, 3.0, 9.0]])
    assert without_negative_sides(boxes).tolist() == [[1.0, 2.0, 5.0, 6.0], [9.0, 8.0, 9.0, 9.0]]


def test_map_by_labels_is_that_by_coco_json(tmp_path: Path) -> None:
    """A data set without COCO JSON is evaluated by what its label files say."""
    config = load_dataset(dataset(tmp_path))
    given = DetectionDataset(config, "val")
    bare: Any = DetectionDataset(type(config)(config.path, config.root, config.names, config.splits, {}), "val")
    found = annotations_of(bare)
    boxes = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in found["annotations"]
    ]
    assert evaluate(found, boxes).ap == pytest.approx(1.0)
    assert len(found["annotations"]) == sum(map(len, given.labels))
