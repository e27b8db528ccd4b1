"""Pictures of detections: what is drawn where, legible, the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fixtures.evaluation.drawing import (
    BLACK,
    GAP,
    PALETTE,
    WHITE,
    _readable_on,
    colour_of,
    draw_detections,
    save_image,
    side_by_side,
)

NAMES = tuple(f"class {k}" for k in range(25))
Pixels = npt.NDArray[np.uint8]


def grey(rows: int = 200, columns: int = 300) -> Pixels:
    return np.full((rows, columns, 3), 100, np.uint8)


def boxes(*rows: tuple[float, ...]) -> npt.NDArray[np.float64]:
    return np.array(rows, np.float64).reshape(-1, 6)


def area_of(picture: Pixels, label: int) -> int:
    """Pixels in the colour of a class."""
    return int((picture == np.array(colour_of(label))).all(-1).sum())


def test_edges_have_the_colour_of_the_class() -> None:
    picture = draw_detections(grey(), boxes((50, 60, 150, 160, 0.9, 3)), NAMES)
    for row, column in ((159, 100), (160, 100), (110, 50), (110, 150)):
        assert tuple(picture[row, column]) == colour_of(3)
    assert tuple(picture[110, 100]) == (100, 100, 100)


def test_input_is_left_alone_and_pictures_repeat() -> None:
    image, found = grey(), boxes((50, 60, 150, 160, 0.9, 3), (0, 0, 20, 20, 0.9, 4))
    first, second = (draw_detections(image, found, NAMES) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, grey())


def test_better_boxes_lie_above() -> None:
    picture = draw_detections(grey(), boxes((50, 60, 150, 160, 0.9, 1), (50, 60, 150, 160, 0.8, 2)), NAMES)
    assert tuple(picture[110, 50]) == colour_of(1)


def test_labels_of_one_place_do_not_cover_each_other() -> None:
    found = boxes(*[(50, 80, 150, 140, 0.9 - 0.1 * k, k) for k in range(4)])
    picture = draw_detections(grey(), found, NAMES)
    alone = area_of(draw_detections(grey(), found[:1], NAMES), 0)
    assert all(area_of(picture, k) > 0.4 * alone for k in range(4))


def test_the_best_box_has_its_label_in_a_crowd() -> None:
    crowd = boxes(*[(140, 90, 160, 110, 0.5 + 0.02 * k, k) for k in range(20)])
    picture = draw_detections(grey(), crowd, NAMES)
    alone = draw_detections(grey(), crowd[19:], NAMES)
    assert area_of(picture, 19) > 0.7 * area_of(alone, 19)  # labels of others cover some of its edges
    assert any(area_of(picture, k) == 0 for k in range(19))


@pytest.mark.parametrize(
    "box",
    [(0, 0, 40, 30), (270, 170, 299, 199), (-50, -50, 500, 500), (280, 0, 400, 10), (10, 10, 10, 10), (40, 30, 0, 0)],
)
def test_a_label_stays_on_the_image(box: tuple[float, ...]) -> None:
    middle = area_of(draw_detections(grey(), boxes((100, 100, 101, 101, 0.9, 3)), NAMES), 3)
    assert area_of(draw_detections(grey(), boxes((*box, 0.9, 3)), NAMES), 3) >= 0.9 * middle


def test_an_image_smaller_than_a_label() -> None:
    assert draw_detections(grey(6, 9), boxes((1, 1, 5, 5, 0.9, 3)), NAMES).shape == (6, 9, 3)


def test_colours_differ_and_text_on_them_is_readable() -> None:
    assert len(set(PALETTE)) == 20
    assert colour_of(21) == colour_of(1)

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = np.array(colour) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colour in PALETTE:
        text = _readable_on(colour)
        assert text in (BLACK, WHITE)
        low, high = sorted([luminance(colour), luminance(text)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def test_two_frameworks_side_by_side() -> None:
    sides = {"PyTorch": boxes((50, 60, 150, 160, 0.9, 3)), "Jittor": boxes()}
    picture = side_by_side(grey(), sides, NAMES, width=600)
    assert picture.shape[1] == 2 * 600 + GAP
    left, right = picture[:, :600], picture[:, 600 + GAP :]
    assert area_of(left, 3) > 0
    assert area_of(right, 3) == 0
    bar = picture.shape[0] - 400  # the image is twice as large, below its title
    assert tuple(left[bar + 220, 100]) == colour_of(3)


def test_wrong_arguments_are_named() -> None:
    wrong: list[tuple[str, Any, Any]] = [
        (r"`image` must be \(rows, columns, 3\), uint8", np.zeros((3, 8, 8), np.uint8), boxes()),
        ("`image` must be.*float32", np.zeros((8, 8, 3), np.float32), boxes()),
        (r"`detections` must be \(M, 6\)", grey(), np.zeros((2, 4))),
        ("`detections` must be finite", grey(), boxes((0, 0, np.nan, 5, 0.5, 1))),
        ("`names` must name every class.*class 25", grey(), boxes((0, 0, 5, 5, 0.5, 25))),
    ]
    for message, image, found in wrong:
        with pytest.raises(ValueError, match=message):
            draw_detections(image, found, NAMES)
    with pytest.raises(ValueError, match="at least one panel"):
        side_by_side(grey(), {}, NAMES)


def test_images_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", grey())
    with Image.open(tmp_path / "a.png") as file:
        np.testing.assert_array_equal(np.asarray(file), grey())
    with pytest.raises(ValueError, match="unknown file extension"):
        save_image(tmp_path / "a.nothing", grey())
    with pytest.raises(FileNotFoundError):
        save_image(tmp_path / "missing" / "a.png", grey())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
