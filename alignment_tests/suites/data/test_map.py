"""The COCO metric: published figures, pycocotools' own accumulation, best F1 by hand, and the paired bootstrap."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_ref.postprocess
from fixtures.evaluation import coco_metrics, detections
from fixtures.evaluation.coco_metrics import CocoMetrics, bootstrap_intervals, evaluate, paired_bootstrap
from fixtures.evaluation.match_tables import average_precisions, precisions
from fixtures.golden import PUBLIC, recorded_arrays, recorded_json
from fixtures.seeded import uniform

TEN_CLASSES = (1, 2, 3, 4, 6, 8, 17, 18, 44, 62)
Records = list[dict[str, Any]]


@pytest.fixture
def published() -> tuple[dict[str, Any], Records, dict[str, Any]]:
    """Annotations, detections, and COCO's own figures for them."""
    truth, records, expected = (recorded_json(f"coco_metric/{name}") for name in ("truth", "detections", "expected"))
    return truth, records, expected


def scene(images: int = 4, boxes: int = 5, classes: int = 3) -> dict[str, Any]:
    """Annotations of boxes that do not touch, class after class."""
    annotations: Records = []
    for number in range(images * boxes):
        image, place = divmod(number, boxes)
        box = [60.0 * place, 10.0, 40.0, 20.0 + 5 * place]
        annotations.append({"id": number + 1, "image_id": image, "category_id": number % classes, "bbox": box})
    return {
        "images": [{"id": image, "width": 320, "height": 320} for image in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(classes)],
        "annotations": annotations,
    }


def shaken(truth: dict[str, Any], noise: float, seed: int = 0, wrong: int = 3) -> Records:
    """Every box moved by some of its size, with a random score, and some boxes out of nowhere per image."""
    records: Records = []
    numbers = iter(uniform(seed, 8 * (len(truth["annotations"]) + wrong * len(truth["images"]))))
    for box in truth["annotations"]:
        left, top, width, height = box["bbox"]
        moves = [noise * (2 * next(numbers) - 1) for _ in range(4)]
        moved = [left + moves[0] * width, top + moves[1] * height, width * (1 + moves[2]), height * (1 + moves[3])]
        place = {"image_id": box["image_id"], "category_id": box["category_id"]}
        records.append({**place, "bbox": moved, "score": next(numbers)})
    for image in truth["images"]:
        for _ in range(wrong):
            category = truth["categories"][int(next(numbers) * len(truth["categories"]))]["id"]
            box = [300 * next(numbers), 200 * next(numbers), 1 + 60 * next(numbers), 1 + 60 * next(numbers)]
            records.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": next(numbers)})
    return records


@lru_cache(maxsize=1)
def crowded() -> tuple[dict[str, Any], Records]:
    """A set with crowd boxes, a class and an image without boxes, and equal scores."""
    truth = scene(images=12, boxes=7, classes=5)
    truth["categories"].append({"id": 9, "name": "never there"})
    truth["images"].append({"id": 99, "width": 320, "height": 320})
    for box in truth["annotations"][::6]:
        box["iscrowd"] = 1
    records = shaken(truth, 0.15, wrong=6) + shaken(truth, 0.3, seed=1)
    for record in records[::3]:
        record["score"] = round(record["score"], 1)
    return truth, records


# Figures of others


def test_published_figures(published: tuple[dict[str, Any], Records, dict[str, Any]]) -> None:
    annotations, records, expected = published
    stats = evaluate(annotations, records).stats
    assert len(stats) == 12
    assert max(abs(value - expected["published"][name]) for name, value in stats.items()) <= 1e-6


def test_figures_of_ten_classes(published: tuple[dict[str, Any], Records, dict[str, Any]]) -> None:
    annotations, records, expected = published
    found = evaluate(annotations, records, category_ids=TEN_CLASSES)
    assert len(found.per_class) == 10
    np.testing.assert_allclose(list(found.stats.values()), expected["ten_classes"], rtol=0, atol=1e-6)


def test_figures_of_the_public_evaluation() -> None:
    """Its annotations are numbered from 0, which pycocotools takes for no match."""
    folder = PUBLIC / "postprocess"
    expected = recorded_json("postprocess/report")["cocoeval_stats"]
    found = evaluate(folder / "coco_truth.json", folder / "coco_detections.json", renumber=False)
    np.testing.assert_allclose(list(found.stats.values()), expected, rtol=0, atol=1e-12)


def test_annotations_numbered_from_0_are_found() -> None:
    truth = scene()
    for number, box in enumerate(truth["annotations"]):
        box["id"] = number
    perfect = shaken(truth, 0.0, wrong=0)
    assert evaluate(truth, perfect).ap == pytest.approx(1.0)
    assert evaluate(truth, perfect, renumber=False).ap < 0.99


def test_equal_detections_of_both_frameworks_have_equal_ap() -> None:
    from jt_impl import postprocess
    from jt_impl.runtime import jittor as jt

    predictions = recorded_arrays("postprocess/nms")["nc10_pred"]
    found = [
        detections.per_image(torch_ref.postprocess.non_max_suppression(torch.from_numpy(predictions))),
        detections.per_image(postprocess.non_max_suppression(jt.array(predictions))),
    ]
    records = [
        [record for image, rows in enumerate(side) for record in detections.to_coco_records(image, rows, range(10))]
        for side in found
    ]
    truth = scene(images=3, boxes=0, classes=10)
    truth["annotations"] = [{"id": 1 + number, **record} for number, record in enumerate(records[0][:40:2])]
    reference, candidate = (evaluate(truth, side) for side in records)
    assert 0.1 < reference.ap < 1.0
    assert abs(candidate.ap - reference.ap) <= 1e-12
    assert candidate == reference


# Tables


def test_accumulation_is_that_of_pycocotools() -> None:
    truth, records = crowded()
    found = evaluate(truth, records)
    once = np.ones((1, found.images), np.int64)
    (by_threshold,) = average_precisions(found.matches, once)
    assert 0.1 < found.ap < 0.9
    assert abs(by_threshold.mean() - found.ap) <= 1e-12
    assert abs(by_threshold[0] - found.ap50) <= 1e-12
    for table, one in zip(found.matches, found.per_class.values(), strict=True):
        if one.boxes:
            assert abs(precisions(table, once).mean() - one.ap) <= 1e-12
        else:
            assert one.ap == one.ap50 == -1.0


def test_a_sample_of_images_is_the_evaluation_of_these_images() -> None:
    """Against pycocotools on a data set in which the images of the sample are there as often as they were drawn."""
    truth, _ = crowded()
    records = shaken(truth, 0.2, wrong=8)  # no equal scores within an image: their order would be another
    found = evaluate(truth, records)
    samples = np.array([[2, 0, 1, 3, 0, 0, 1, 1, 2, 0, 1, 1, 1], [0, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    for times, by_threshold in zip(samples, average_precisions(found.matches, samples), strict=True):
        assert abs(by_threshold.mean() - repeated(truth, records, times).ap) <= 1e-12


def repeated(truth: dict[str, Any], records: Records, times: Any) -> CocoMetrics:
    """Evaluation with each image as many times as that."""
    places = [(image["id"], copy_) for image, n in zip(truth["images"], times, strict=True) for copy_ in range(n)]
    images = [{"id": number} for number in range(len(places))]
    groups: list[Records] = [
        [
            {**one, "image_id": number}
            for number, (image, _) in enumerate(places)
            for one in group
            if one["image_id"] == image
        ]
        for group in (truth["annotations"], records)
    ]
    return evaluate({**truth, "images": images, "annotations": groups[0]}, groups[1])


def test_best_f1_by_hand() -> None:
    """Class 0: right, wrong, right, of 3 boxes; class 1: right, wrong, of 1 box; class 2: wrong, without a box."""
    truth = scene(images=1, boxes=4, classes=1)
    truth["categories"] += [{"id": 1, "name": "class 1"}, {"id": 2, "name": "class 2"}]
    truth["annotations"][3]["category_id"] = 1
    boxes = [one["bbox"] for one in truth["annotations"]]
    nowhere = [200.0, 200.0, 20.0, 20.0]
    rows = [
        (0, boxes[0], 0.9),
        (0, nowhere, 0.8),
        (0, boxes[1], 0.6),
        (1, boxes[3], 0.7),
        (1, nowhere, 0.5),
        (2, nowhere, 0.95),
    ]
    found = evaluate(truth, [{"image_id": 0, "category_id": k, "bbox": box, "score": score} for k, box, score in rows])
    # Class 0 at 0.6: 2 hits of 3, 3 boxes: F1 4/6; class 1: 1 of 1, 1 box: F1 1. Lower, class 1 falls to 2/3.
    assert found.best.confidence == 0.6
    np.testing.assert_allclose(
        [found.f1, found.precision, found.recall], [(2 / 3 + 1) / 2, (2 / 3 + 1) / 2, (2 / 3 + 1) / 2]
    )
    # Pooled at 0.6: 3 hits, 2 others (that of class 2 too), 4 boxes.
    np.testing.assert_allclose(
        [found.pooled.confidence, found.pooled.precision, found.pooled.recall, found.pooled.f1],
        [0.6, 3 / 5, 3 / 4, 6 / 9],
    )


def test_crowd_boxes_are_neither_right_nor_wrong() -> None:
    truth = scene(images=1, boxes=2, classes=1)
    truth["annotations"][1]["iscrowd"] = 1
    found = evaluate(truth, shaken(truth, 0.0, wrong=0))
    assert (found.ap, found.precision, found.recall) == pytest.approx((1.0, 1.0, 1.0))
    assert found.per_class["class 0"][2:] == (1, 1)


def test_images_and_boxes_of_a_class_are_counted() -> None:
    truth = scene(images=3, boxes=2, classes=2)
    truth["annotations"][0]["iscrowd"] = 1
    truth["categories"].append({"id": 2, "name": "never there"})
    assert [one[2:] for one in evaluate(truth, []).per_class.values()] == [(2, 2), (3, 3), (0, 0)]


# Use


def test_no_detections_are_zeros() -> None:
    found = evaluate(scene(), [])
    assert found.ap == found.ap50 == found.precision == found.recall == found.f1 == found.pooled.f1 == 0.0
    assert {one.ap for one in found.per_class.values()} == {0.0}
    assert found.detections == 0


def test_a_subset_of_images() -> None:
    truth, records = crowded()
    chosen = {1, 4, 5, 99}
    parts = {
        "images": [image for image in truth["images"] if image["id"] in chosen],
        "annotations": [box for box in truth["annotations"] if box["image_id"] in chosen],
    }
    cut = evaluate({**truth, **parts}, [record for record in records if record["image_id"] in chosen])
    found = evaluate(truth, records, image_ids=sorted(chosen))
    assert found == cut
    assert found.images == 4


def test_more_detections_count_when_asked_for() -> None:
    truth = scene(images=1, boxes=2, classes=1)
    first = {"image_id": 0, "category_id": 0, "bbox": [200.0, 200.0, 9.0, 9.0], "score": 0.9}
    records = [first] * 20 + shaken(truth, 0.0, wrong=0)
    for record in records[20:]:
        record["score"] = 0.5
    assert evaluate(truth, records, max_detections=20).ap == 0.0
    found = evaluate(truth, records, max_detections=22)
    assert found.ap > 0.0
    assert found.stats["AR22"] == 1.0


def test_nothing_is_changed_or_printed(capsys: pytest.CaptureFixture[str]) -> None:
    truth, records = scene(), shaken(scene(), 0.1)
    before = copy.deepcopy((truth, records))
    evaluate(truth, records)
    assert (truth, records) == before
    assert capsys.readouterr() == ("", "")


def test_metrics_are_written_as_json() -> None:
    found = evaluate(*crowded())
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["ap"] == found.ap
    assert written["per_class"]["class 1"]["ap50"] == found.per_class["class 1"].ap50


GOOD: dict[str, Any] = {"image_id": 0, "category_id": 0, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5}
BAD_RECORDS = [
    (r"`detections\[1\]` must have a known `image_id` \(0, 1, 2.*Received: '0'", {**GOOD, "image_id": "0"}),
    (r"`detections\[1\]` must have a known `category_id`.*Received: 7", {**GOOD, "category_id": 7}),
    (r"`detections\[1\]` must have a finite score.*nan", {**GOOD, "score": float("nan")}),
    (r"must have a bbox \(left, top, width, height\)", {**GOOD, "bbox": [0, 0, -1, 5]}),
    (r"must have a bbox", {**GOOD, "bbox": [0, 0, 5]}),
    (r"must have a bbox", {**GOOD, "bbox": [0, 0, float("inf"), 5]}),
    (r"Missing: score", {key: GOOD[key] for key in ("image_id", "category_id", "bbox")}),
]


@pytest.mark.parametrize(("message", "record"), BAD_RECORDS)
def test_bad_detections_are_named(message: str, record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(scene(), [GOOD, record])


def test_bad_annotations_are_named(tmp_path: Path) -> None:
    truth, broken = scene(), tmp_path / "broken.json"
    broken.write_text('{"images": [')
    twice = {**truth, "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}]}
    wrong: list[tuple[str, Any]] = [
        ("must be a JSON file.*broken.json", broken),
        ("Missing: categories", {"images": [], "annotations": []}),
        ("one category per name.*2 named 'cat'", twice),
        (r"`annotations\[0\]` must have a known `image_id`", {**truth, "images": [{"id": 77}]}),
        ("must hold a box to find", {**truth, "annotations": []}),
    ]
    for message, bad in wrong:
        with pytest.raises(ValueError, match=message):
            evaluate(bad, [])
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / "none.json", [])


def test_bad_arguments_are_named() -> None:
    truth = scene()
    with pytest.raises(ValueError, match=r"`max_detections` must be at least 11.*10"):
        evaluate(truth, [], max_detections=10)
    with pytest.raises(ValueError, match=r"`image_ids` must be among those of the annotations.*77"):
        evaluate(truth, [], image_ids=[0, 77])
    with pytest.raises(ValueError, match=r"`category_ids` must be among.*none"):
        evaluate(truth, [], category_ids=[])
    with pytest.raises(ValueError, match="`metric` must be one of"):
        paired_bootstrap(truth, [], [], metric="ap75")
    with pytest.raises(ValueError, match="`samples` must be at least 1"):
        paired_bootstrap(truth, [], [], samples=0)
    with pytest.raises(ValueError, match="of the same images and classes"):
        bootstrap_intervals(evaluate(truth, []), evaluate(truth, [], image_ids=[0, 1]))


# Bootstrap


def test_equal_detections_have_no_difference() -> None:
    truth, records = crowded()
    found = paired_bootstrap(truth, records, records, samples=50)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert (found.level, found.samples) == (0.95, 50)


def test_better_detections_are_told_apart() -> None:
    truth = scene(images=40)
    good, poor = shaken(truth, 0.05), shaken(truth, 0.3, seed=1)
    found = paired_bootstrap(truth, good, poor, samples=200)
    assert 0.0 < found.low < found.difference < found.high
    assert abs(found.difference - (evaluate(truth, good).ap - evaluate(truth, poor).ap)) <= 1e-12


def test_the_seed_decides() -> None:
    truth = scene(images=20)
    sides = evaluate(truth, shaken(truth, 0.2)), evaluate(truth, shaken(truth, 0.2, seed=1))
    one, same, other = (bootstrap_intervals(*sides, samples=100, seed=seed)["ap50"] for seed in (3, 3, 4))
    assert one == same
    assert one != other
    turned = bootstrap_intervals(*sides[::-1], samples=100, seed=3)["ap50"]
    np.testing.assert_allclose([turned.low, turned.high], [-one.high, -one.low], rtol=0, atol=1e-12)


def test_the_interval_is_the_spread_of_resampled_evaluations() -> None:
    """Against evaluating every sample as a data set of its own."""
    truth = scene(images=6, boxes=4, classes=2)
    sides = shaken(truth, 0.2), shaken(truth, 0.3, seed=1)
    found = paired_bootstrap(truth, *sides, samples=20, seed=5)
    weights = coco_metrics._resampled(6, 20, 5)
    assert weights.sum(1).tolist() == [6] * 20
    drawn = [repeated(truth, sides[0], times).ap - repeated(truth, sides[1], times).ap for times in weights]
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), rtol=0, atol=1e-12)


def test_samples_without_a_box_are_left_out() -> None:
    truth = scene(images=3, boxes=1, classes=1)
    truth["annotations"] = truth["annotations"][:1]
    found = paired_bootstrap(truth, shaken(truth, 0.0, wrong=0), [], samples=40)
    assert (found.difference, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
