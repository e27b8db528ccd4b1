"""Comparing runs: what is read and measured, and every reason against the word "aligned"."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment_tests.cases.run_records import (
    FRAMEWORKS,
    IMAGES,
    SUFFIXES,
    Lab,
    both,
    clean,
    detections,
    edit,
    evidence_of,
    harness_report,
    record_of_test,
    reported,
    seeds,
    write,
)
from alignment_tests.comparison import accuracy, boxes, curves, judge
from alignment_tests.comparison.evidence import gather
from alignment_tests.comparison.findings import FREE_OPTIONS, UNLIKELY
from alignment_tests.comparison.seed_spread import allowed


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bootstrap: its thousand take most of the time and are tested with it."""
    monkeypatch.setattr(accuracy, "SAMPLES", 100)


# ---- reading -----------------------------------------------------------------------------------------------------


def test_several_folders_of_a_side_are_one_side(tmp_path: Path) -> None:
    lab = clean()
    for side in FRAMEWORKS:
        folder = tmp_path / f"{side}_0_tested"
        folder.mkdir()
        for name, part in (("test_results", "test"), ("detections", "detections")):
            lab[side]["test"]["weights"]["sha256"] = hashlib.sha256(lab[side]["weights"]).hexdigest()
            (folder / f"{name}.json").write_text(json.dumps(lab[side][part]))
        lab[side].update(test=None, detections=None)
    folders = {side: [*places, tmp_path / f"{side}_0_tested"] for side, places in write(lab, tmp_path).items()}
    assert judge.judge(gather(folders["jittor"], folders["torch"])).verdict == judge.ALIGNED


def test_runs_of_one_seed_are_paired(tmp_path: Path) -> None:
    evidence = gather(*seeds(tmp_path, jittor=(1, 0), torch=(2, 0, 1)))
    assert [pair.seed for pair in evidence.trainings] == [0, 1]
    assert [tested.pair.seed for tested in evidence.tests] == [0, 1]


def test_the_reference_spread_over_seeds_takes_the_place_of_the_bound(tmp_path: Path) -> None:
    evidence = gather(*seeds(tmp_path, jittor=(0,), torch=(0, 1, 2)))
    total = next(one for one in evidence.distances if one.loss == "total")
    assert total.spread is not None
    assert total.nearest < 1e-6 < total.spread < 0.1


def test_the_spread_over_seeds_stands_beside_the_difference(tmp_path: Path) -> None:
    report = reported(gather(*seeds(tmp_path, jittor=(0,), torch=(0, 1, 2))))
    row = next(row for row in report["accuracy"]["spreads"] if row["metric"] == "ap")
    assert row["jittor"] is None
    assert row["torch"]["runs"] == 3
    assert report["accuracy"]["pairs"][0]["rows"][1]["margin"] == max(0.01, row["torch"]["width"])


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    lab = clean()
    lab["jittor"]["training"]["steps"]["total"][3:5] = [math.nan, math.inf]
    assert evidence_of(lab, tmp_path).trainings[0].jittor.steps["total"][3:5] == [None, None]


# ---- the verdict -------------------------------------------------------------------------------------------------


def test_clean_runs_are_aligned(tmp_path: Path) -> None:
    judgement = judge.judge(evidence_of(clean(), tmp_path))
    assert judgement.verdict == judge.ALIGNED, judgement.reasons
    assert {one.outcome for one in judgement.findings} == {"holds", "note"}
    assert judgement.speed_stated


def test_every_check_says_something(tmp_path: Path) -> None:
    findings = judge.judge(evidence_of(clean(), tmp_path)).findings
    assert [one.check for one in findings] == [check.__name__ for check in judge.CHECKS]


def test_good_reports_of_the_harness_hold(tmp_path: Path) -> None:
    layers, steps = (harness_report(tmp_path, steps=steps) for steps in (False, True))
    judgement = judge.judge(evidence_of(clean(), tmp_path, layers=layers, steps=steps))
    assert judgement.verdict == judge.ALIGNED
    assert [one.fact for one in judgement.findings[-2:]] == ["aligned", "aligned"]


def finds(found: list[dict[str, Any]], *sides: str) -> Callable[[Lab], None]:
    """Other detections, with the accuracy that they give."""

    def change(lab: Lab) -> None:
        for side in sides:
            lab[side].update(test=record_of_test(side, 0, found), detections=found)

    return change


def each(*changes: Callable[[Lab], None]) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        for one in changes:
            one(lab)

    return change


def shorter(lab: Lab) -> None:
    for column in lab["jittor"]["training"]["steps"].values():
        column.pop()


def losses_apart(factor: float) -> Callable[[Lab], None]:
    def plant(lab: Lab) -> None:
        for epoch in lab["jittor"]["training"]["epochs"][-2:]:
            epoch["losses"]["cls"] *= factor

    return plant


NO_BOX = detections(shift=200.0)
LEFT, RIGHT = (detections()[:IMAGES] + detections()[IMAGES + (4 if right else 0) :][:4] for right in (False, True))
AGAINST, UNPROVEN = judge.NOT_ALIGNED, judge.NOT_PROVEN

# name: (what is planted, the check and the fact that must find it, the verdict)
PLANTED: dict[str, tuple[Callable[[Lab], None], str, str]] = {
    "no training": (edit("training", None), "records no_training", UNPROVEN),
    "no test": (edit("test", None, "torch"), "records no_test", UNPROVEN),
    "unfinished": (edit("training.status", "interrupted"), "records unfinished", UNPROVEN),
    "no epochs": (edit("training.epochs", []), "records no_steps", UNPROVEN),
    "accuracy null": (edit("test.accuracy", None), "records no_accuracy", UNPROVEN),
    "detections gone": (edit("detections", None), "records no_detections", UNPROVEN),
    "annotations gone": (both("test.data.annotations", "nowhere.json"), "records no_annotations", UNPROVEN),
    "another seed": (edit("training.options.seed", 1), "records no_seed", UNPROVEN),
    "tests of other seeds": (edit("training.options.seed", 1), "records no_pair", UNPROVEN),
    "a loss is NaN": (edit("training.steps.total.5", math.nan), "finite one_side", AGAINST),
    "a loss is infinite": (edit("training.steps.iou.5", math.inf, "torch"), "finite one_side", AGAINST),
    "an epoch's loss is null": (edit("training.epochs.3.losses.cls", None), "finite one_side", AGAINST),
    "accuracy of one side is null": (edit("test.accuracy.recall", None), "finite one_side", AGAINST),
    "null on both sides": (both("training.steps.total.5", None), "finite both", UNPROVEN),
    "config": (edit("training.config.head.use_dfl", True), "config differ", UNPROVEN),
    "config of the test": (edit("test.config.name", "gold_yolo_s"), "config differ", UNPROVEN),
    "option": (edit("training.options.epochs", 13), "options differ", UNPROVEN),
    "option of one side": (edit("training.options.clip_norm", 10.0), "options differ", UNPROVEN),
    "option of the test": (edit("test.options.image_size", [96, 96]), "options differ", UNPROVEN),
    "training data": (edit("training.data.train.checksum", "x"), "data differ", UNPROVEN),
    "tested data": (edit("test.data.checksum", "x"), "data differ", UNPROVEN),
    "no checksum": (both("training.data.val.checksum", None), "data unrecorded", UNPROVEN),
    "class names": (edit("training.data.names", ["disc", "box"]), "data names", UNPROVEN),
    "parameters": (edit("training.model.parameters", 1001), "parameters differ", AGAINST),
    "parameters of a part": (edit("test.model.by_part.neck", 301), "parameters differ", AGAINST),
    "trainable": (edit("training.model.trainable", 1000), "parameters differ", AGAINST),
    "structure": (edit("test.model.structure", "3 modules differ"), "structure wrong", AGAINST),
    "structure unknown": (edit("test.model.structure", None), "structure unrecorded", UNPROVEN),
    "batch": (edit("training.steps.batch.7", "x"), "batches differ", AGAINST),
    "batch unknown": (both("training.steps.batch.7", None), "batches unrecorded", UNPROVEN),
    "fewer steps": (shorter, "batches length", AGAINST),
    "learning rate": (edit("training.steps.lr.20", 0.011), "schedule differ", AGAINST),
    "other start": (edit("training.steps.total.0", 3.1), "start differ", AGAINST),
    "weights of another run": (edit("test.weights.sha256", "x"), "weights unknown", UNPROVEN),
    "last against best": (edit("test.weights.path", "runs/jittor/last.pkl"), "weights kinds", UNPROVEN),
    "loss curves": (losses_apart(1.5), "curves beyond_bound", AGAINST),
    "loss curves, slightly": (losses_apart(1.3), "curves between_bound", UNPROVEN),
    "recorded AP": (edit("test.accuracy.ap", 0.5), "recomputed differ", UNPROVEN),
    "AP near zero on both": (finds(NO_BOX, "jittor", "torch"), "learned near_zero", UNPROVEN),
    "AP near zero on one": (finds(NO_BOX, "torch"), "learned near_zero", AGAINST),
    "AP apart": (finds(detections(keep=4), "jittor"), "interval beyond", AGAINST),
    "too few images": (each(finds(LEFT, "jittor"), finds(RIGHT, "torch")), "interval wide", UNPROVEN),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_reason_is_found(name: str, tmp_path: Path) -> None:
    plant, wanted, verdict = PLANTED[name]
    lab = clean()
    plant(lab)
    judgement = judge.judge(evidence_of(lab, tmp_path))
    assert wanted in {f"{one.check} {one.fact}" for one in judgement.reasons}
    assert judgement.verdict == verdict


ALONE = [name for name in PLANTED if name not in (
    "another seed", "tests of other seeds", "AP near zero on one", "option of one side", "fewer steps",
)]  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_planted_reason_is_the_only_one(name: str, tmp_path: Path) -> None:
    plant, wanted, _ = PLANTED[name]
    lab = clean()
    plant(lab)
    judgement = judge.judge(evidence_of(lab, tmp_path))
    assert {one.check for one in judgement.reasons} == {wanted.split()[0]}


def test_the_first_step_whose_batch_differs_is_named(tmp_path: Path) -> None:
    lab = clean()
    for step in (30, 7, 12):
        lab["torch"]["training"]["steps"]["batch"][step] = "x"
    reason = judge.judge(evidence_of(lab, tmp_path)).reasons[0]
    assert reason.values["step"] == 7


FREE = [
    (name, value) for name, value in (("workers", 7), ("output_dir", "elsewhere"), ("device", "cuda"), ("rounds", 3))
]


@pytest.mark.parametrize(("name", "value"), FREE)
def test_options_that_decide_nothing_may_differ(name: str, value: Any, tmp_path: Path) -> None:
    assert name in FREE_OPTIONS
    lab = clean()
    lab["jittor"]["training"]["options"][name] = value
    assert judge.judge(evidence_of(lab, tmp_path)).verdict == judge.ALIGNED


def test_weights_that_are_gone_are_taken_on_the_records_word(tmp_path: Path) -> None:
    lab = clean()
    folders = write(lab, tmp_path)
    for side, (folder,) in folders.items():
        (folder / f"best{SUFFIXES[side]}").unlink()
        record = json.loads((folder / "test_results.json").read_text())
        record["weights"]["path"] = f"far/away/{folder.name}/best{SUFFIXES[side]}"
        (folder / "test_results.json").write_text(json.dumps(record))
    judgement = judge.judge(gather(folders["jittor"], folders["torch"]))
    assert judgement.verdict == judge.ALIGNED
    assert "weights unseen" in {f"{one.check} {one.fact}" for one in judgement.findings}


@pytest.mark.parametrize(
    ("torch", "factor", "wanted"),
    [((0, 1), 1.08, "between_seeds"), ((0, 1, 2, 3, 4), 1.08, "beyond_seeds"), ((0, 1, 2), 1.0, "within_seeds")],
)
def test_curves_are_judged_by_the_seeds_of_the_reference(
    torch: tuple[int, ...], factor: float, wanted: str, tmp_path: Path
) -> None:
    folders = seeds(tmp_path, jittor=(0,), torch=torch)
    path = folders[0][0] / "training_log.json"
    record = json.loads(path.read_text())
    for epoch in record["epochs"]:
        epoch["losses"]["total"] *= factor  # 1.08: within the bound without seeds
    path.write_text(json.dumps(record))
    assert wanted in {one.fact for one in judge.judge(gather(*folders)).findings if one.check == "curves"}


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("judged", [1, 3])
@pytest.mark.parametrize("partners", [None, 1])
def test_a_further_seed_of_the_reference_is_hardly_ever_evidence_against_it(
    count: int, judged: int, partners: int | None
) -> None:
    options: dict[str, Any] = {
        "least": 0.0,
        "convention": (0.1, 0.3),
        "judged": judged,
        "partners": partners,
        "most": 9e9,
    }
    outcomes = []
    for run in np.random.default_rng(5).normal(3.0, 0.2, (4000, judged, count + 1)):
        seeds, further = run[:, :-1], run[:, -1:]
        away = np.abs(further - seeds[:, :partners]).min(axis=1)
        limits = [allowed(np.ptp(one), count, **options) for one in seeds]
        outcomes.append({limit.outcome(value) for limit, value in zip(limits, away, strict=True)})
    alarms = sum("against" in one for one in outcomes) / len(outcomes)
    assert UNLIKELY / 2 < alarms < UNLIKELY * 1.3
    assert alarms < sum(one != {"holds"} for one in outcomes) / len(outcomes)


def test_seeds_that_differ_wildly_prove_nothing(tmp_path: Path) -> None:
    folders = seeds(tmp_path, jittor=(0,), torch=(0, 1))
    path = folders[1][1] / "training_log.json"
    record = json.loads(path.read_text())
    for epoch in record["epochs"]:
        epoch["losses"]["total"] *= 3
    path.write_text(json.dumps(record))
    assert {one.fact for one in judge.judge(gather(*folders)).reasons} == {"loose"}


def test_ap_of_seeds_that_differ_wildly_proves_nothing(tmp_path: Path) -> None:
    lab = clean(seed=1)
    lab["torch"].update(test=record_of_test("torch", 1, detections(keep=4)), detections=detections(keep=4))
    write({"torch": lab["torch"]}, tmp_path, 1)
    folders = write(clean(), tmp_path)
    judgement = judge.judge(gather(folders["jittor"], [*folders["torch"], tmp_path / "torch_1"]))
    assert {(one.check, one.fact) for one in judgement.reasons} == {("interval", "loose")}


def test_nan_in_a_run_without_partner_is_found(tmp_path: Path) -> None:
    folders = seeds(tmp_path, jittor=(0,), torch=(0, 1))
    path = folders[1][1] / "training_log.json"
    record = json.loads(path.read_text())
    record["steps"]["total"][0] = None
    path.write_text(json.dumps(record))
    assert {one.fact for one in judge.judge(gather(*folders)).reasons} == {"unpaired"}


FAILS = {"name": "a", "verdict": "fail", "precision": "float64", "step": None}
REPORTS: dict[str, tuple[dict[str, Any], bool, str, str]] = {
    "layers diverged": ({"aligned": False, "problems": ["first divergence at a"]}, False, "layers diverged", AGAINST),
    "steps diverged": ({"aligned": False}, True, "steps diverged", AGAINST),
    "rows fail though it says aligned": ({"rows": [FAILS]}, False, "layers diverged", AGAINST),
    "nothing compared": ({"rows": []}, False, "layers diverged", AGAINST),
    "layers of another size": ({"title": "gold_yolo_s, 64x64"}, False, "layers other", UNPROVEN),
    "steps of another size": ({"title": "gold_yolo_s"}, True, "steps other", UNPROVEN),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_the_harness_that_does_not_hold_is_found(name: str, tmp_path: Path) -> None:
    changes, steps, wanted, verdict = REPORTS[name]
    path = harness_report(tmp_path, steps=steps, **changes)
    judgement = judge.judge(evidence_of(clean(), tmp_path, **{"steps" if steps else "layers": path}))
    assert [f"{one.check} {one.fact}" for one in judgement.reasons] == [wanted]
    assert judgement.verdict == verdict


def test_a_gradient_that_informs_only_is_no_worst_ratio(tmp_path: Path) -> None:
    informs = {"passed": False, "max_abs_error": 1.0, "scale": 1.0, "ratio": 500.0}
    row = {"name": "g", "verdict": "pass", "precision": "float32", "step": 0, "accumulated": informs, "isolated": None}
    path = harness_report(tmp_path, steps=True, rows=[row])
    proof = evidence_of(clean(), tmp_path, steps=path).steps
    assert proof is not None
    assert proof.ratio is None


# ---- speed -------------------------------------------------------------------------------------------------------

SPEED = {
    "not synchronised": (edit("test.speed.0.synchronized", False), "unsynchronised"),
    "synchronisation unknown": (edit("test.speed.1.synchronized", None), "unsynchronised"),
    "cold": (edit("test.speed.0.warmup", 0), "cold"),
    "compiled": (edit("test.speed.0.kernels_compiled", 3), "compiled"),
    "null": (edit("test.speed.0.latency_ms", None), "null"),
    "no records": (edit("test.speed", None), "no_records"),
    "other batch sizes": (edit("test.speed", []), "no_records"),
    "another device": (edit("test.environment.device", "cuda"), "machine"),
    "other threads": (edit("test.environment.threads", 8), "machine"),
    "another form": (edit("test.model.form", "train"), "machine"),
}


@pytest.mark.parametrize("name", SPEED)
def test_no_statement_on_speed(name: str, tmp_path: Path) -> None:
    plant, wanted = SPEED[name]
    lab = clean()
    plant(lab)
    judgement = judge.judge(evidence_of(lab, tmp_path))
    assert [one.fact for one in judgement.speed] == [wanted]
    assert judgement.verdict == judge.ALIGNED


def test_a_refused_speed_has_no_ratio(tmp_path: Path) -> None:
    lab = clean()
    edit("test.speed.0.synchronized", False)(lab)
    assert {row["ratio"] for row in reported(evidence_of(lab, tmp_path))["speed"]["rows"]} == {None}


# ---- curves and boxes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([1.0] * 20, [1.0] * 20, 0.0),
        ([0.0] * 20, [0.0] * 20, 0.0),
        ([3.0] * 20, [1.0] * 20, 1.0),
        ([1.0] * 18 + [3.0, 3.0], [1.0] * 20, 1.0),  # the last tenth alone
        ([1.0] * 19 + [3.0], [1.0] * 20, 2 / 3),  # a single epoch is softened by its neighbour
        ([1.0], [3.0], 1.0),
        ([0.0] * 5, [1.0] * 5, 2.0),
    ],
)
def test_distance_of_curves(a: list[float], b: list[float], wanted: float) -> None:
    assert curves.distance(np.array(a), np.array(b)) == pytest.approx(wanted)
    assert curves.distance(np.array(b), np.array(a)) == pytest.approx(wanted)


def test_distance_to_nan_is_nan() -> None:
    assert math.isnan(curves.distance(np.array([1.0, math.nan]), np.array([1.0, 1.0])))


def test_the_step_at_which_runs_part(tmp_path: Path) -> None:
    lab = clean()
    lab["jittor"]["training"]["steps"]["total"][9] *= 1.02
    pair = evidence_of(lab, tmp_path).trainings[0]
    assert curves.parted_at(curves.step_differences(pair)) == 9


def rows(*boxes_of: tuple[float, ...]) -> boxes.Floats:
    return np.array(boxes_of, np.float64).reshape(-1, 6)


BOX = (10.0, 10.0, 30.0, 30.0, 0.9, 0.0)
MATCHES = {
    "equal": (rows(BOX), rows(BOX), (1, 0, 0)),
    "moved": (rows(BOX), rows((12.0, 10.0, 32.0, 30.0, 0.8, 0.0)), (1, 0, 0)),
    "moved too far": (rows(BOX), rows((20.0, 10.0, 40.0, 30.0, 0.9, 0.0)), (0, 1, 1)),
    "another class": (rows(BOX), rows((*BOX[:5], 1.0)), (0, 1, 1)),
    "one for two": (rows(BOX, BOX), rows(BOX), (1, 1, 0)),
    "none": (rows(), rows(BOX), (0, 0, 1)),
    "nothing": (rows(), rows(), (0, 0, 0)),
    "without area": (rows((10.0, 10.0, 10.0, 10.0, 0.9, 0.0)), rows((10.0, 10.0, 10.0, 10.0, 0.9, 0.0)), (0, 1, 1)),
}


@pytest.mark.parametrize("name", MATCHES)
def test_boxes_are_matched(name: str) -> None:
    mine, other, wanted = MATCHES[name]
    found, swapped = boxes.match_image(0, "a", mine, other), boxes.match_image(0, "a", other, mine)
    assert (found.both, found.only_jittor, found.only_torch) == wanted
    assert (swapped.both, swapped.only_torch, swapped.only_jittor) == wanted


def test_the_best_overlap_is_matched_first() -> None:
    near, far = (11.0, 10.0, 31.0, 30.0, 0.5, 0.0), (14.0, 10.0, 34.0, 30.0, 0.9, 0.0)
    found = boxes.match_image(0, "a", rows(BOX), rows(far, near))
    assert found.alone_torch == (0,)
    assert found.score_difference == pytest.approx(0.4)


def test_the_gallery_shows_the_most_different_and_typical_images() -> None:
    images = [boxes.match_image(i, "a", rows(*[BOX] * (i + 1)), rows(BOX)) for i in range(40)]
    shown = boxes.chosen(images)
    assert [image.only_jittor for kind, image in shown if kind == "different"] == list(range(39, 31, -1))
    assert [image.only_jittor for kind, image in shown if kind == "typical"] == [21, 20, 19, 18]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 12, 13])
def test_the_gallery_shows_each_image_once(count: int) -> None:
    images = [boxes.match_image(i, "a", rows(BOX), rows(BOX)) for i in range(count)]
    shown = [image.image_id for _, image in boxes.chosen(images)]
    assert len(shown) == len(set(shown)) == min(count, boxes.GALLERY)
