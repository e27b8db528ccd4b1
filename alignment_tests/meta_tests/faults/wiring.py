"""Faults between layers: order of concatenation, slices, axes, and what the head makes of its maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignment_tests.meta_tests.faults.fault import Patch, fault
from alignment_tests.meta_tests.faults.helpers import at, during, instead, reordered, set_values
from fixtures.anchors import anchor_points
from jt_impl import attention, head
from jt_impl.layers import to_var
from jt_impl.runtime import jittor as jt

Module = Any
ORDER, SLICES, AXES, SCALE, BOXES, ANCHORS, DFL = (
    "order of concat and split",
    "slices",
    "axes",
    "scale",
    "box format",
    "anchors",
    "DFL",
)


@fault("neck", "low_FAM", ORDER)
def maps_concatenated_in_another_order(patch: Patch, model: Module) -> None:
    """The gathered maps are concatenated finest last."""
    during(patch, at(model, "low_FAM"), jt, "concat", reordered((3, 2, 1, 0)))


@fault("backbone", "ERBlock_5.2", ORDER)
def pyramid_concatenated_backwards(patch: Patch, model: Module) -> None:
    """The pyramid's maps are concatenated from the most pooled one to the map itself."""
    during(patch, at(model, "ERBlock_5.2"), jt, "concat", reordered((3, 2, 1, 0)))


@fault("blocks of M and L", "0", ORDER)
def halves_of_a_csp_block_swapped(patch: Patch, model: Module) -> None:
    """The two halves of a CSP block are concatenated in the other order."""
    during(patch, at(model, "0"), jt, "concat", reordered((1, 0)))


@fault("neck", "LAF_n4", ORDER)
def finer_map_last(patch: Patch, model: Module) -> None:
    """An adjacent fusion puts the coarser map first."""
    during(patch, at(model, "LAF_n4"), jt, "concat", reordered((1, 0)))


@fault("head", "", ORDER)
def levels_concatenated_backwards(patch: Patch, model: Module) -> None:
    """The head lists its levels from coarse to fine."""
    during(patch, model, jt, "concat", reordered((2, 1, 0)))


@fault("head, training", "", ORDER)
def levels_of_training_concatenated_backwards(patch: Patch, model: Module) -> None:
    """In training the head lists its levels from coarse to fine."""
    during(patch, model, jt, "concat", reordered((2, 1, 0)))


@fault("neck", "", SLICES)
def split_one_channel_early(patch: Patch, model: Module) -> None:
    """The second part of a split begins one channel early, at the last one of the first part."""

    def make(right: Any) -> Any:
        def split(x: Any, sizes: Any, dim: int) -> Any:
            first, second = sizes
            return x[:, :first], x[:, first - 1 : first - 1 + second]

        return split

    during(patch, model, jt.Var, "split", make)


@fault("head", "", SLICES)
def sides_cut_one_late(patch: Patch, model: Module) -> None:
    """Decoding takes top and right for left and top: the slice of the distances is off by one."""

    def make(right: Any) -> Any:
        return lambda distances, scores, sizes: right(
            jt.concat([distances[..., 1:], distances[..., :1]], dim=-1), scores, sizes
        )

    patch.wrap(model, "decode", make)


@fault("neck", "high_IFM.transformer_blocks.0.attn", AXES)
def softmax_over_queries(patch: Patch, model: Module) -> None:
    """The weights of attention are normalised over the queries in place of the keys."""
    attn = at(model, "high_IFM.transformer_blocks.0.attn")
    during(patch, attn, attention, "softmax", lambda right: lambda x, dim: right(x, -2))


@fault("head", "", AXES)
def softmax_over_sides(patch: Patch, model: Module) -> None:
    """The distributions of the distances are normalised over the four sides in place of the bins."""
    during(patch, model, head, "softmax", lambda right: lambda x, dim: right(x, 2))


@fault("head", "", AXES)
def rows_and_columns_swapped(patch: Patch, model: Module) -> None:
    """A level's cells are listed column by column."""
    during(patch, model, head, "rows", lambda right: lambda x: right(x.permute(0, 1, 3, 2)))


@fault("neck", "LAF_p4", AXES)
def size_taken_as_columns_and_rows(patch: Patch, model: Module) -> None:
    """Rows and columns are swapped on the way to the resizing of a map that is not square: a transposed result."""
    laf = at(model, "LAF_p4")

    def wrapped(right: Any) -> Any:
        def run(maps: Any) -> Any:
            return right([maps[0], maps[1], flipped(maps[2])])

        return run

    instead(patch, laf, wrapped)


def flipped(x: Any) -> Any:
    """Read in the other order and put back into the shape, as a reshape in place of a transpose does."""
    return x.permute(0, 1, 3, 2).reshape(x.shape)


@fault("head", "", SCALE)
def sigmoid_twice(patch: Patch, model: Module) -> None:
    """Class scores go through the sigmoid twice."""
    during(patch, model, head, "sigmoid", lambda right: lambda x: right(right(x)))


@fault("head", "", SCALE)
def sigmoid_missing(patch: Patch, model: Module) -> None:
    """The head returns logits in place of scores."""
    during(patch, model, head, "sigmoid", lambda right: lambda x: x)


@fault("head", "", SCALE)
def strides_missing(patch: Patch, model: Module) -> None:
    """Boxes stay in units of their level's stride."""
    points_of(patch, model, lambda points, strides: (points, np.ones_like(strides)))


@fault("head", "", SCALE)
def strides_in_another_order(patch: Patch, model: Module) -> None:
    """The levels have the strides 32, 16, 8."""
    patch.set(model, "strides", tuple(reversed(model.strides)))


@fault("head", "", BOXES)
def corners_for_centre_and_size(patch: Patch, model: Module) -> None:
    """Decoded boxes are left, top, right, bottom in place of centre and size."""

    def make(right: Any) -> Any:
        def decode(distances: Any, scores: Any, sizes: Any) -> Any:
            found = right(distances, scores, sizes)
            centre, size, rest = found[..., :2], found[..., 2:4], found[..., 4:]
            return jt.concat([centre - size / 2, centre + size / 2, rest], dim=-1)

        return decode

    patch.wrap(model, "decode", make)


@fault("head", "", ANCHORS)
def anchors_at_corners(patch: Patch, model: Module) -> None:
    """Anchor points are the cells' corners: the offset of half a cell is missing."""
    points_of(patch, model, lambda points, strides: (points - 0.5, strides))


@fault("head", "", ANCHORS)
def anchors_as_row_and_column(patch: Patch, model: Module) -> None:
    """Anchor points are (y, x)."""
    points_of(patch, model, lambda points, strides: (points[:, ::-1], strides))


@fault("head", "", ANCHORS)
def anchors_half_a_pixel_off(patch: Patch, model: Module) -> None:
    """Anchor points count from the centre of the first pixel, half a pixel from its corner."""
    points_of(patch, model, lambda points, strides: (points - 0.5 / strides, strides))


def points_of(patch: Patch, model: Module, change: Any) -> None:
    """Other anchor points, or strides, for decoding."""
    patch.set(head, "anchor_points", lambda sizes, strides: change(*anchor_points(sizes, strides)))


@fault("head", "proj_conv", DFL)
def bins_numbered_from_one(patch: Patch, model: Module) -> None:
    """The bins of the distributions are numbered from 1."""
    set_values(patch, at(model, "proj_conv"), "weight", lambda w: w + 1)


@fault("head", "proj_conv", DFL)
def bins_stretched_to_the_range(patch: Patch, model: Module) -> None:
    """The 17 bins stand for 0 to 15 in place of 0 to 16."""
    set_values(patch, at(model, "proj_conv"), "weight", lambda w: w * (15 / 16))


@fault("head", "", DFL)
def bins_before_sides(patch: Patch, model: Module) -> None:
    """The channels of the distances are read as bins times sides in place of sides times bins."""

    def make(right: Any) -> Any:
        def expected(distances: Any) -> Any:
            batch, channels, height, width = distances.shape
            parts = distances.reshape(batch, model.bins, 4, height, width).permute(0, 2, 1, 3, 4)
            return right(parts.reshape(batch, channels, height, width))

        return expected

    patch.wrap(model, "expected_distances", make)


@fault("neck", "high_IFM.transformer_blocks.0.attn", SCALE)
def attention_scaled(patch: Patch, model: Module) -> None:
    """Attention divides the products by the root of the key's width, as is customary, where the original does not."""
    attn = at(model, "high_IFM.transformer_blocks.0.attn")
    factor = 1.0 / math.sqrt(attn.key_dim)
    scaled = lambda right: lambda x, dim: right(x * to_var(np.array([factor]), x), dim)  # noqa: E731
    during(patch, attn, attention, "softmax", scaled)
