"""Letterbox and augmentation against recordings of the public recipe, and what is drawn for a sample."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import fixtures.data.augment
from fixtures.config import AugmentConfig, load_config
from fixtures.data.augment import (
    AffineDraw,
    affine_matrix,
    augment_hsv,
    flip_left_right,
    flip_up_down,
    letterbox,
    mixup,
    mosaic,
    random_affine,
    resize_to,
    survivors,
    to_pixels,
    to_shares,
    warp,
)
from fixtures.data.recipe import MosaicDraw, SampleDraw, check_augment, draw_sample, make_sample
from fixtures.data.sampler import sample_generator
from fixtures.golden import PUBLIC, recorded_arrays, recorded_json

Array = npt.NDArray[Any]

EPS32 = float(np.finfo(np.float32).eps)
# The recordings' boxes are float32 and went through a few sums in it.
LABEL_BAR = 4 * EPS32  # of the image's side
LETTERBOXES = (
    "val_320_noauto", "val_320_int", "infer_320_auto", "infer_rect", "up_1280_noauto", "noup_1280_noauto", "train_303",
)  # fmt: skip
RECIPE = load_config("gold_yolo_s").augment
# The recordings' boxes in pixels of base1: an ordinary one, one too flat, a tiny one, one that leaves the image.
BOXES = np.array([[0, 20, 30, 120, 140], [1, 100, 60, 180, 66], [2, 3, 3, 9, 8], [3, 150, 100, 199, 199]], np.float64)
# OpenCV 4 adds coordinates rounded to 1/1024 pixel and rounds the sum to 1/32; weights have 15 bits.
COORDINATE_ERROR, VALUE_ERROR = 1 / 64 + 1 / 1024, 0.5 + 255 * 4 / 2**16


@lru_cache(maxsize=1)
def recorded() -> dict[str, Array]:
    return recorded_arrays("images/augmentations")


@lru_cache(maxsize=1)
def report() -> dict[str, Any]:
    return recorded_json("images/report")


def photograph(number: int) -> Array:
    """One of the three that the recordings were made from, BGR."""
    with Image.open(PUBLIC / "images" / f"image{number}.png") as file:
        return np.ascontiguousarray(np.asarray(file)[..., ::-1])


def exact_values(image: Array, x: Array, y: Array) -> Array:
    """Linear interpolation, in the precision of the places x, y; grey outside."""
    height, width = image.shape[:2]
    framed = np.full((height + 2, width + 2, 3), 114, x.dtype)
    framed[1:-1, 1:-1] = image
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = (x - np.floor(x))[..., None], (y - np.floor(y))[..., None]

    def at(dy: int, dx: int) -> Array:
        return framed[np.clip(row + dy, -1, height) + 1, np.clip(column + dx, -1, width) + 1]

    upper, lower = (at(dy, 0) + across * (at(dy, 1) - at(dy, 0)) for dy in (0, 1))
    return upper + down * (lower - upper)


def fused(a: Any, b: Any, c: Any) -> Array:
    """a * b + c in float32, rounded once."""
    return np.asarray(np.float64(a) * np.float64(b) + np.float64(c), np.float32)


def recorded_warp(image: Array, matrix: Array, new_shape: tuple[int, int]) -> Array:
    """The warp of OpenCV 5, which made the recordings: float32 coordinates that are not rounded."""
    m = np.linalg.inv(matrix).astype(np.float32)
    y, x = np.mgrid[0 : new_shape[0], 0 : new_shape[1]].astype(np.float32)
    places = [fused(x, m[axis, 0], y * m[axis, 1] + m[axis, 2]) for axis in (0, 1)]
    return np.rint(exact_values(image, *places)).astype(np.uint8)


@pytest.fixture
def as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the warp is then compared with the recordings bit for bit."""
    monkeypatch.setattr(fixtures.data.augment, "warp", recorded_warp)


class Replay:
    """The numbers that the recordings drew, in the order in which the public recipe draws them."""

    def __init__(self, seed: int) -> None:
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)

    def affine(self, degrees: float = 0.0, shear: float = 0.0) -> AffineDraw:
        draw = self.python.uniform
        angle, scale = draw(-degrees, degrees), draw(0.5, 1.5)
        return AffineDraw(angle, scale, (draw(-shear, shear), draw(-shear, shear)), (draw(0.4, 0.6), draw(0.4, 0.6)))

    def centre(self, size: int) -> tuple[int, int]:
        y, x = (int(self.python.uniform(size // 2, 2 * size - size // 2)) for _ in range(2))
        return x, y

    def mosaic(self, index: int, size: int) -> MosaicDraw:
        a, b, c, d = self.shuffled([index, *self.python.choices(range(3), k=3)])
        return MosaicDraw((a, b, c, d), self.centre(size), self.affine())

    def shuffled(self, values: list[int]) -> list[int]:
        self.python.shuffle(values)
        return values

    def gains(self) -> tuple[float, float, float]:
        hue, saturation, value = self.numpy.uniform(-1, 1, 3) * [0.015, 0.7, 0.4] + 1
        return hue, saturation, value


def replayed_item(with_mosaic: bool, with_mixup: bool) -> SampleDraw:
    """The draws of the recorded training samples: image 1 of three, seed 3."""
    replay = Replay(3)
    replay.python.random()  # mosaic or not
    mosaics, ratio, affine = [], 1.0, AffineDraw()
    if with_mosaic:
        mosaics.append(replay.mosaic(1, 256))
        replay.python.random()  # mixup or not
    if with_mixup:
        mosaics.append(replay.mosaic(replay.python.randint(0, 2), 256))
        ratio = replay.numpy.beta(32, 32)
    if not with_mosaic:
        affine = replay.affine()
    gains = replay.gains()
    _, left_right = replay.python.random(), replay.python.random()
    return SampleDraw(1, tuple(mosaics), affine, ratio, gains, False, left_right < 0.5)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_photographs_have_the_recorded_bits(number: int) -> None:
    assert hashlib.sha256(photograph(number).tobytes()).hexdigest() == report()[f"image{number}"]["sha256"]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("case", LETTERBOXES)
def test_letterbox_is_the_recorded_one(number: int, case: str) -> None:
    expected = report()[f"letterbox_{number}_{case}"]
    arguments = dict(expected["kw"])
    shape = arguments.pop("new_shape")
    image, ratio, pad = letterbox(photograph(number), tuple(shape) if isinstance(shape, list) else shape, **arguments)
    assert (list(image.shape), ratio, list(pad)) == (expected["out_shape"], expected["ratio"], expected["pad"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == expected["sha256"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_shrinking_by_areas_is_the_recorded_one(number: int) -> None:
    made = resize_to(photograph(number), 160, average=True)
    np.testing.assert_array_equal(made, recorded()[f"base{number}"])


@pytest.mark.parametrize("seed", [0, 1])
def test_colours_are_the_recorded_ones(seed: int) -> None:
    arrays, gains = recorded(), report()[f"hsv_gains_{seed}"]
    assert gains == list(Replay(seed).gains())
    np.testing.assert_array_equal(augment_hsv(arrays["base2"], gains), arrays[f"hsv_{seed}"])


@pytest.mark.parametrize(("name", "degrees", "shear"), [("official", 0.0, 0.0), ("rot_shear", 10.0, 2.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_affine_matrices_are_the_recorded_ones(name: str, degrees: float, shear: float, seed: int) -> None:
    expected, draw = report()[f"transform_seed{seed}_{name}"], Replay(seed).affine(degrees, shear)
    assert draw.scale == expected["s"]
    assert np.abs(affine_matrix((240, 320), (320, 320), draw) - expected["M"]).max() <= 1e-12


AFFINES = [(name, degrees, shear, s) for name, degrees, shear in (("official", 0, 0), ("rot", 10, 2)) for s in (0, 1)]


@pytest.mark.parametrize(("name", "degrees", "shear", "seed"), AFFINES)
@pytest.mark.usefixtures("as_recorded")
def test_affine_images_and_boxes_are_the_recorded_ones(name: str, degrees: float, shear: float, seed: int) -> None:
    arrays = recorded()
    image, boxes = random_affine(arrays["base1"], BOXES, Replay(seed).affine(degrees, shear), (256, 256))
    np.testing.assert_array_equal(image, arrays[f"affine_{name}_{seed}_img"])
    np.testing.assert_allclose(boxes, arrays[f"affine_{name}_{seed}_labels"], rtol=0, atol=256 * LABEL_BAR)


def outside_of_what_rounding_allows(actual: Array, image: Array, matrix: Array) -> int:
    """Values of a warp that no reading within ``COORDINATE_ERROR`` of the right place explains.

    Between grid lines the interpolation is linear along each axis, so its extremes over the rectangle of possible
    places are at corners or where a grid line crosses it.
    """
    inverse = np.linalg.inv(matrix)
    y, x = np.mgrid[0 : actual.shape[0], 0 : actual.shape[1]].astype(np.float64)
    spots = []
    for axis in (0, 1):
        spot = inverse[axis, 0] * x + inverse[axis, 1] * y + inverse[axis, 2]
        low, high = spot - COORDINATE_ERROR, spot + COORDINATE_ERROR
        spots.append((low, high, np.clip(np.rint(spot), low, high)))
    values = np.stack([exact_values(image, across, down) for across in spots[0] for down in spots[1]])
    return int(((actual < values.min(0) - VALUE_ERROR) | (actual > values.max(0) + VALUE_ERROR)).sum())


@pytest.mark.parametrize(("name", "degrees", "shear", "seed"), AFFINES)
def test_warp_is_exact_but_for_its_fixed_point_coordinates(name: str, degrees: float, shear: float, seed: int) -> None:
    """OpenCV 5 made the recordings and OpenCV 4 is installed; see fixtures.data.augment.warp."""
    base = recorded()["base1"]
    matrix = affine_matrix((134, 160), (256, 256), Replay(seed).affine(degrees, shear))
    assert outside_of_what_rounding_allows(warp(base, matrix, (256, 256)), base, matrix) == 0
    moved = matrix.copy()
    moved[0, 2] += 0.1
    assert outside_of_what_rounding_allows(warp(base, moved, (256, 256)), base, matrix) > 1000


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("as_recorded")
def test_mosaics_are_the_recorded_ones(seed: int) -> None:
    arrays, labels = recorded(), report()["mosaic_labels_in"]
    images = [arrays[f"base{number}"] for number in (1, 2, 3, 2)]
    boxes = [to_pixels(np.array(r).reshape(-1, 5), i.shape[:2]) for r, i in zip(labels, images, strict=True)]
    replay = Replay(seed)
    centre = replay.centre(256)
    image, made = random_affine(*mosaic(images, boxes, centre, 256), replay.affine(), (256, 256))
    np.testing.assert_array_equal(image, arrays[f"mosaic_{seed}_img"])
    np.testing.assert_allclose(made, arrays[f"mosaic_{seed}_labels"], rtol=0, atol=512 * LABEL_BAR)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixup_is_the_recorded_one(seed: int) -> None:
    import cv2

    arrays, ratio = recorded(), report()[f"mixup_r_{seed}"]
    first, second = (np.asarray(cv2.resize(arrays[name], (96, 96)), np.uint8) for name in ("base1", "base2"))
    image, boxes = mixup(first, BOXES[:2], second, BOXES[2:], ratio)
    np.testing.assert_array_equal(image, arrays[f"mixup_{seed}"])
    np.testing.assert_array_equal(boxes, arrays[f"mixup_{seed}_labels"])


@pytest.mark.parametrize(("with_mosaic", "with_mixup"), [(False, False), (True, False), (True, True)])
@pytest.mark.usefixtures("as_recorded")
def test_training_samples_are_the_recorded_ones(with_mosaic: bool, with_mixup: bool) -> None:
    """Loading, mosaic, affine map, mixup, colours, flip and boxes in one."""
    arrays, name = recorded(), f"train_item_mosaic{with_mosaic:d}_mixup{with_mixup:d}"
    labels = [[[0, 0.5, 0.5, 0.4, 0.6], [3, 0.2, 0.3, 0.1, 0.1]], [[1, 0.31, 0.42, 0.25, 0.33]], []]

    def load(index: int) -> tuple[Array, Array]:
        image = resize_to(photograph(index + 1), 256, average=False)
        return image, to_pixels(np.array(labels[index], np.float64).reshape(-1, 5), image.shape[:2])

    image, rows = make_sample(replayed_item(with_mosaic, with_mixup), load, 256)
    np.testing.assert_array_equal(image[..., ::-1].transpose(2, 0, 1), arrays[f"{name}_img"])
    np.testing.assert_allclose(rows, arrays[f"{name}_labels"][:, 1:], rtol=0, atol=2 * LABEL_BAR)


# Before (at the new scale) and after, x1, y1, x2, y2 in pixels.
SURVIVORS = {
    "unchanged": ([0, 0, 10, 10], [0, 0, 10, 10], True),
    "2 pixels high": ([0, 0, 10, 2], [0, 0, 10, 2], False),
    "just above 2 pixels": ([0, 0, 10, 2.01], [0, 0, 10, 2.01], True),
    "a tenth is left": ([0, 0, 100, 100], [0, 0, 10, 100], False),
    "more than a tenth is left": ([0, 0, 100, 100], [0, 0, 11, 100], True),
    "20 times as wide as high": ([0, 0, 60, 3], [0, 0, 60, 3], False),
    "19 times as high as wide": ([0, 0, 3, 57], [0, 0, 3, 57], True),
    "outside": ([300, 0, 340, 20], [256, 0, 256, 20], False),
}


@pytest.mark.parametrize("case", SURVIVORS)
def test_boxes_that_nearly_vanish_are_left_out(case: str) -> None:
    before, after, kept = SURVIVORS[case]
    assert survivors(np.array([before], np.float64), np.array([after], np.float64)).tolist() == [kept]


def test_shrinking_loses_no_box() -> None:
    """How much of a box is left is measured at the new scale: a quarter of each side is all of it."""
    image, box = np.zeros((128, 128, 3), np.uint8), np.array([[0.0, 32, 32, 96, 96]])
    _, after = random_affine(image, box, AffineDraw(scale=0.25), (128, 128))
    np.testing.assert_allclose(after, [[0, 56, 56, 72, 72]], rtol=0, atol=1e-12)


def test_a_mosaic_cuts_boxes_at_its_edge() -> None:
    image, box = np.zeros((50, 60, 3), np.uint8), np.array([[0.0, 10, 5, 60, 50]])
    _, boxes = mosaic([image] * 4, [box] * 4, (40, 100), 64)
    assert boxes[:, 1:].tolist() == [[0, 55, 40, 100], [50, 55, 100, 100], [0, 105, 40, 128], [50, 105, 100, 128]]


@pytest.mark.parametrize("average", [False, True])
def test_enlarging_is_linear(average: bool) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 160
    assert resize_to(image, 4, average=average)[0, :, 0].tolist() == [0, 40, 120, 160]


def test_flips_move_pixels_and_boxes_alike() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[2:6, 4:12] = 255
    rows = to_shares(np.array([[7.0, 4, 2, 12, 6]]), (20, 40))
    for flip in (flip_left_right, flip_up_down):
        image, rows = flip(image, rows)
        _, x1, y1, x2, y2 = np.rint(to_pixels(rows, (20, 40))[0]).astype(int)
        assert image[y1:y2, x1:x2].min() == 255
        assert image.sum() == 3 * 255 * 32


def test_shares_end_just_before_the_edge() -> None:
    rows = to_shares(np.array([[0.0, -5, 10, 400, 90]]), (100, 200))
    np.testing.assert_allclose(to_pixels(rows, (100, 200)), [[0, 0, 10, 199.999, 90]], rtol=0, atol=1e-12)


def test_long_thin_images_keep_a_pixel() -> None:
    assert resize_to(np.zeros((1, 2000, 3), np.uint8), 320, average=True).shape == (1, 320, 3)
    assert letterbox(np.zeros((1, 2000, 3), np.uint8), 320, auto=False)[0].shape == (320, 320, 3)


def test_a_mosaic_has_four_images() -> None:
    with pytest.raises(ValueError, match=r"must be four each\. Received: 1 and 1"):
        mosaic([np.zeros((4, 4, 3), np.uint8)], [np.zeros((0, 5))], (4, 4), 4)


def draws(config: AugmentConfig, count: int = 400) -> Iterator[SampleDraw]:
    return (draw_sample(sample_generator(5, 2, index), config, index, count, 320) for index in range(count))


def test_draws_stay_in_their_ranges() -> None:
    config = replace(RECIPE, degrees=10.0, shear=2.0, mosaic=0.5, mixup=0.5, flip_up_down=0.5)
    for draw in draws(config):
        affine = draw.affine
        assert abs(affine.angle) <= 10
        assert 0.1 <= affine.scale <= 1.9
        assert max(map(abs, affine.shear)) <= 2
        assert all(0.4 <= share <= 0.6 for share in affine.shift)
        assert affine.shift[0] != affine.shift[1]
        assert affine.shear[0] != affine.shear[1]
        assert all(abs(gain - 1) <= s for gain, s in zip(draw.gains, (0.015, 0.7, 0.4), strict=True))
        for tiles in draw.mosaics:
            assert all(160 <= place < 480 for place in tiles.centre)
            assert all(0 <= index < 400 for index in tiles.indices)
        assert not draw.mosaics or draw.index in draw.mosaics[0].indices


def test_draws_are_as_probable_as_the_recipe_says() -> None:
    """Four standard deviations of the share in 400 draws."""
    made = list(draws(replace(RECIPE, mosaic=0.7, mixup=0.2, flip_up_down=0.3)))
    for wanted, hits in (
        (0.7, [bool(draw.mosaics) for draw in made]),
        (0.2, [len(draw.mosaics) == 2 for draw in made if draw.mosaics]),
        (0.3, [draw.flip_up_down for draw in made]),
        (0.5, [draw.flip_left_right for draw in made]),
        (0.25, [draw.mosaics[0].indices[2] == draw.index for draw in made if draw.mosaics]),
    ):
        assert abs(np.mean(hits) - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / len(hits))


def test_the_ratio_of_mixup_is_beta_distributed() -> None:
    """Beta(32, 32) has mean 1/2 and variance 1 / (4 * 65)."""
    ratios = np.array([draw.mix_ratio for draw in draws(RECIPE, 2000)])
    deviation = np.sqrt(1 / 260)
    assert abs(ratios.mean() - 0.5) <= 4 * deviation / np.sqrt(2000)
    assert abs(ratios.std() / deviation - 1) <= 4 / np.sqrt(2 * 2000)


def test_another_probability_changes_no_other_draw() -> None:
    changed = draws(replace(RECIPE, flip_left_right=0.0, mosaic=0.0))
    for draw, other in zip(draws(RECIPE), changed, strict=True):
        assert replace(draw, flip_left_right=False, mosaics=()) == other


NOTHING = AugmentConfig(**{field.name: 0.0 for field in fields(AugmentConfig)})


@pytest.mark.parametrize(("flip_up_down", "flip_left_right"), [(False, False), (True, False), (False, True)])
def test_without_augmentation_a_sample_is_letterboxed(flip_up_down: bool, flip_left_right: bool) -> None:
    """But for the flips, where they are drawn."""
    image = np.random.Generator(np.random.Philox(1)).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    config = replace(NOTHING, flip_up_down=float(flip_up_down), flip_left_right=float(flip_left_right))
    draw = draw_sample(sample_generator(0, 0, 0), config, 0, 1, 320)
    made, rows = make_sample(draw, lambda _: (image, np.array([[1.0, 32, 0, 64, 24]])), 320)
    turned = made[:: -1 if flip_up_down else 1, :: -1 if flip_left_right else 1]
    np.testing.assert_array_equal(turned, letterbox(image, 320, auto=False)[0])
    x, y = 0.15, 52 / 320
    wanted = [[1, 1 - x if flip_left_right else x, 1 - y if flip_up_down else y, 0.1, 24 / 320]]
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mosaic": 1.5}, "`augment.mosaic` must be a probability, 0..1. Received: 1.5"),
        ({"scale": 1.0}, "`augment.scale` must be below 1"),
        ({"degrees": -1.0}, "`augment.degrees` must be at least 0"),
        ({"hsv_h": float("nan")}, "`augment.hsv_h` must be at least 0"),
    ],
)
def test_augmentation_out_of_range_is_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_augment(replace(RECIPE, **change))
