"""Faults around the network: data, post-processing, evaluation, conversion, measuring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import converters
from alignment_tests.meta_tests.experiments.pipeline import Converting, Evaluating, Loading, Suppressing
from alignment_tests.meta_tests.faults.fault import Patch, fault
from fixtures.data import augment, batching, loader, recipe
from fixtures.runs import splits
from jt_impl import postprocess
from jt_impl.runtime import jittor as jt

POST, DATA, EVALUATION, CONVERSION, MEASURING = (
    "post-processing",
    "data",
    "evaluation",
    "conversion",
    "measuring",
)

# Post-processing: the kernel's text is changed


def change_kernel(patch: Patch, *changes: tuple[str, str]) -> None:
    source = postprocess.CPU_HEADER
    for right, wrong in changes:
        if right not in source:
            raise ValueError(
                f"`postprocess.CPU_HEADER` must hold {right!r}: the kernel changed, and this fault with it"
            )
        source = source.replace(right, wrong)
    patch.set(postprocess, "CPU_HEADER", source)


@fault(POST, "detections/count", POST)
def classes_not_moved_apart(patch: Patch, subject: Suppressing) -> None:
    """Boxes of different classes suppress each other: they are not moved apart."""
    change_kernel(patch, ("T(label) * T(4096.0)", "T(label) * T(0)"))


@fault(POST, "detections/count", POST)
def a_pixel_added_to_every_side(patch: Patch, subject: Suppressing) -> None:
    """Sides of boxes count one pixel more, the convention of Jittor's own suppression."""
    change_kernel(
        patch,
        ("times(box.x2 - box.x1, box.y2 - box.y1)", "times(box.x2 - box.x1 + 1, box.y2 - box.y1 + 1)"),
        ("(a.x1 > b.x1 ? a.x1 : b.x1);", "(a.x1 > b.x1 ? a.x1 : b.x1) + 1;"),
        ("(a.y1 > b.y1 ? a.y1 : b.y1);", "(a.y1 > b.y1 ? a.y1 : b.y1) + 1;"),
    )


@fault(POST, "detections/count", POST)
def overlap_at_the_threshold_suppresses(patch: Patch, subject: Suppressing) -> None:
    """A box goes where its overlap equals the threshold, not only above."""
    change_kernel(patch, ("overlap(better, box) > settings[1]", "overlap(better, box) >= settings[1]"))


@fault(POST, "detections/count", POST)
def objectness_ignored(patch: Patch, subject: Suppressing) -> None:
    """A score is the class score alone, without objectness."""
    change_kernel(patch, ("const T score = times(row[4], row[5 + c]);", "const T score = row[5 + c];"))


@fault(POST, "detections/count", POST)
def last_of_equal_scores_first(patch: Patch, subject: Suppressing) -> None:
    """Of equal scores the last place comes first, so other boxes stay, and another number of them."""
    before = "a.first < b.first || (a.first == b.first && a.second > b.second)"
    order = "[](const std::pair<T, int>& a, const std::pair<T, int>& b) { return " + before + "; }"
    change_kernel(patch, ("std::sort(found.begin(), found.end());", f"std::sort(found.begin(), found.end(), {order});"))


@fault(POST, "detections/count", POST)
def best_label_only(patch: Patch, subject: Suppressing) -> None:
    """Every anchor gives its best class only."""
    patch.set(subject, "settings", {**subject.settings, "multi_label": False})


@fault(POST, "detections/count", POST)
def limit_before_suppression(patch: Patch, subject: Suppressing) -> None:
    """The number of detections is limited before suppression in place of after it."""
    change_kernel(
        patch,
        ("if ((int)boxes.size() == limit) break;", "if (&candidate - &found[0] == limit) break;"),
    )


@fault(POST, "detections/box", "box format")
def detections_as_centre_and_size(patch: Patch, subject: Suppressing) -> None:
    """Detections are handed out as centre and size."""

    def centred(rows: list[Any]) -> list[Any]:
        made = [one.copy() for one in rows]
        for one in made:
            one[:, :4] = np.concatenate([(one[:, :2] + one[:, 2:4]) / 2, one[:, 2:4] - one[:, :2]], axis=1)
        return made

    patch.set(subject, "finish", centred)


# Data


@fault(DATA, "val 0/pixels", DATA)
def letterbox_rounded_the_other_way(patch: Patch, subject: Loading) -> None:
    """Where the padding is odd, its odd pixel goes to the left and the top in place of the right and the bottom."""

    def make(right: Any) -> Any:
        def letterbox(*arguments: Any, **options: Any) -> Any:
            image, ratio, pad = right(*arguments, **options)
            odd = [round(2 * side) % 2 for side in pad]
            return np.roll(image, (odd[1], odd[0]), (0, 1)), ratio, pad

        return letterbox

    patch.wrap(loader, "letterbox", make)


@fault(DATA, "val 0/pixels", DATA)
def colours_not_turned(patch: Patch, subject: Loading) -> None:
    """Images go to the network as BGR, as OpenCV reads them."""

    def put(image: Any, place: Any) -> None:
        batching.put(image[..., ::-1], place)

    patch.set(loader, "put", put)


@fault(DATA, "val 0/pixels", DATA)
def padding_of_another_grey(patch: Patch, subject: Loading) -> None:
    """The letterbox is padded with 128 in place of 114."""
    patch.set(augment, "GREY", (128, 128, 128))


@fault(DATA, "val 0/pixels", DATA)
def shrunk_linearly(patch: Patch, subject: Loading) -> None:
    """Evaluation shrinks images linearly in place of averaging areas."""
    patch.wrap(loader, "resize_to", lambda right: lambda image, size, average: right(image, size, average=False))


@fault(DATA, "val 0/targets", DATA)
def boxes_not_padded(patch: Patch, subject: Loading) -> None:
    """Boxes are scaled with the letterbox but not moved by its padding."""
    patch.wrap(loader, "to_pixels", lambda right: lambda rows, shape, pad=(0.0, 0.0): right(rows, shape))


@fault(DATA, "val 0/images", DATA)
def pixels_over_256(patch: Patch, subject: Loading) -> None:
    """Pixels are divided by 256."""
    patch.set(batching.Batch, "images", property(lambda batch: batch.pixels.astype(np.float32) / np.float32(256)))


@fault(DATA, "train */targets", DATA)
def boxes_not_flipped(patch: Patch, subject: Loading) -> None:
    """A flipped image keeps its boxes."""
    patch.wrap(recipe, "flip_left_right", lambda right: lambda image, rows: (right(image, rows)[0], rows))


@fault(DATA, "train 0/indices", DATA)
def another_seed(patch: Patch, subject: Loading) -> None:
    """The order of the images was drawn from another seed."""
    patch.set(subject, "seed", subject.seed + 1)


# Evaluation


def set_evaluation(patch: Patch, subject: Evaluating, **settings: float) -> None:
    patch.set(subject, "settings", {**subject.settings, **settings})


@fault(EVALUATION, "detections/count", EVALUATION)
def confidence_of_the_demo(patch: Patch, subject: Evaluating) -> None:
    """Detections below 0.25, the threshold of pictures, are left out of the evaluation."""
    set_evaluation(patch, subject, conf_threshold=0.25)


@fault(EVALUATION, "detections/count", EVALUATION)
def overlap_of_another_recipe(patch: Patch, subject: Evaluating) -> None:
    """Suppression begins at an overlap of 0.45 in place of 0.65."""
    set_evaluation(patch, subject, iou_threshold=0.45)


@fault(EVALUATION, "records/box", EVALUATION)
def padding_not_taken_off(patch: Patch, subject: Evaluating) -> None:
    """Detections are scaled back to the image without taking the padding off."""

    def make(right: Any) -> Any:
        return lambda network, boxes, image, ratio, pad, exact: right(network, boxes, image, ratio, (0.0, 0.0), exact)

    patch.wrap(splits, "scale_boxes", make)


@fault(EVALUATION, "records/category", EVALUATION)
def categories_from_zero(patch: Patch, subject: Evaluating) -> None:
    """Classes are written as category ids one too low, where the annotations count from 1."""

    def lower(records: list[Any]) -> list[Any]:
        least = min(record["category_id"] for record in records)
        return [record | {"category_id": max(record["category_id"] - 1, least)} for record in records]

    patch.set(subject, "change_records", lower)


@fault(EVALUATION, "records/box", "box format")
def corners_in_the_records(patch: Patch, subject: Evaluating) -> None:
    """Records hold left, top, right, bottom where COCO has width and height."""

    def corners(records: list[Any]) -> list[Any]:
        made = []
        for record in records:
            left, top, width, height = record["bbox"]
            made.append(record | {"bbox": [left, top, left + width, top + height]})
        return made

    patch.set(subject, "change_records", corners)


# Conversion

Change = Callable[[dict[str, Any]], dict[str, Any]]
FIRST, SECOND = "backbone.ERBlock_3.1.conv1.rbr_dense.conv.weight", "backbone.ERBlock_3.1.block.0.rbr_dense.conv.weight"


@fault(CONVERSION, f"missing/{FIRST}", CONVERSION)
def key_dropped(patch: Patch, subject: Converting) -> None:
    """A key gets lost on the way."""
    patch.set(subject, "change", lambda state: {name: array for name, array in state.items() if name != FIRST})


@fault(CONVERSION, f"weights/{FIRST}", CONVERSION)
def key_skipped_in_silence(patch: Patch, subject: Converting) -> None:
    """A key gets lost, and Jittor's own loader, which says nothing of it, is used."""
    patch.set(subject, "change", lambda state: {name: array for name, array in state.items() if name != FIRST})
    patch.set(subject, "load", lambda model, state: model.load_state_dict(numbers(state)))


def numbers(state: Any) -> dict[str, Any]:
    return {name: array for name, array in state.items() if "num_batches" not in name}


@fault(CONVERSION, f"weights/{FIRST}", CONVERSION)
def two_keys_swapped(patch: Patch, subject: Converting) -> None:
    """Two kernels of one shape are swapped."""
    patch.set(subject, "change", lambda state: state | {FIRST: state[SECOND], SECOND: state[FIRST]})


@fault(CONVERSION, "weights/backbone.stem.rbr_dense.conv.weight", CONVERSION)
def through_half(patch: Patch, subject: Converting) -> None:
    """All weights went through float16."""
    patch.set(subject, "change", lambda state: converters.to_half(state)[0])


@fault(CONVERSION, "weights/backbone.stem.rbr_dense.bn.weight", CONVERSION)
def norms_in_another_order(patch: Patch, subject: Converting) -> None:
    """Weight and bias of every norm are swapped."""

    def swapped(state: dict[str, Any]) -> dict[str, Any]:
        made = dict(state)
        for name in state:
            if name.endswith(".running_mean"):
                path = name.removesuffix("running_mean")
                made[f"{path}weight"], made[f"{path}bias"] = state[f"{path}bias"], state[f"{path}weight"]
        return made

    patch.set(subject, "change", swapped)


@fault(CONVERSION, "weights/backbone.stem.rbr_dense.bn.running_mean", CONVERSION)
def running_statistics_not_written(patch: Patch, subject: Converting) -> None:
    """Only parameters are written; running statistics are what they were."""

    def load(model: Any, state: Any) -> None:
        own = converters.read_state(model)
        kept = {name: own[name] if ".running_" in name else array for name, array in numbers(state).items()}
        converters.load_into(model, kept)

    patch.set(subject, "load", load)


@fault("conversion of a training", "momentum/*", CONVERSION)
def momentum_by_position(patch: Patch, subject: Converting) -> None:
    """Velocities are handed over by position, and the other framework lists its parameters in another order."""

    def shifted(state: dict[str, Any]) -> dict[str, Any]:
        made = dict(state)
        shapes: dict[Any, list[str]] = {}
        for name, array in state.items():
            if name.startswith("momentum/"):
                shapes.setdefault(array.shape, []).append(name)
        for names in shapes.values():
            made |= {name: state[other] for name, other in zip(names, reversed(names), strict=True)}
        return made

    patch.set(subject, "change", shifted)


@fault("conversion of a training", "ema/*", CONVERSION)
def average_begun_anew(patch: Patch, subject: Converting) -> None:
    """The average of the weights begins anew from the weights."""

    def anew(state: dict[str, Any]) -> dict[str, Any]:
        weights = {name.split("/", 1)[1]: a for name, a in state.items() if name.startswith(("parameter/", "buffer/"))}
        return state | {name: weights[name.removeprefix("ema/")] for name in state if name.startswith("ema/")}

    patch.set(subject, "change", anew)


@fault("conversion of a training", "position/ema_updates", CONVERSION)
def count_of_updates_lost(patch: Patch, subject: Converting) -> None:
    """The average's count of updates begins at 0, so its decay is that of a first update."""
    patch.set(subject, "change", lambda state: state | {"position/ema_updates": np.array(0)})


# Measuring


@fault(MEASURING, "speed/synchronized", MEASURING)
def no_synchronisation(patch: Patch, subject: Any) -> None:
    """The clock stops without waiting for anything."""
    patch.set(subject, "forward", lambda images: lazily(subject.model, images))
    patch.set(subject, "wait", lambda: None)


@fault(MEASURING, "speed/synchronized", MEASURING)
def lazy_graph_timed_empty(patch: Patch, subject: Any) -> None:
    """What is waited for is an intermediate map; the predictions themselves are still to be computed."""

    def forward(images: Any) -> Any:
        model = subject.model
        with jt.no_grad():
            maps = model.backbone(images)
            maps[-1].sync()
            return model.detect(model.neck(maps))

    patch.set(subject, "forward", forward)
    patch.set(subject, "wait", lambda: None)


def lazily(model: Any, images: Any) -> Any:
    with jt.no_grad():
        return model(images)
