"""The limit that inference is held against: its work is the model's, and more work or a slower machine takes longer."""

from __future__ import annotations

import pytest
import torch

import torch_ref
from alignment_tests.bench.limits import Work, convolution_works, limit_seconds
from fixtures.config import load_config
from fixtures.structure import expected_gflops

SIZE = (640, 640)


def test_work_is_that_of_the_model() -> None:
    config = load_config("gold_yolo_n")
    works = convolution_works(torch_ref.fuse(torch_ref.build_model(config)).eval(), torch.zeros(1, 3, *SIZE))
    assert sum(work.flops for work in works) / 1e9 == pytest.approx(expected_gflops(config, "fused", SIZE), rel=1e-9)


def test_bytes_of_a_convolution_are_maps_and_weights_once() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1, bias=False))
    (work,) = convolution_works(model, torch.zeros(2, 4, 5, 6))
    assert work == Work(flops=2.0 * 2 * 8 * 5 * 6 * 4 * 9, bytes=4.0 * (2 * 4 * 30 + 8 * 4 * 9 + 2 * 8 * 30))


def test_each_convolution_counts_what_holds_it_up() -> None:
    works = [Work(flops=10.0, bytes=1.0), Work(flops=1.0, bytes=10.0)]
    assert limit_seconds(works, flops_per_second=5.0, bytes_per_second=2.0) == 10 / 5 + 10 / 2


def test_hooks_are_gone_afterwards() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    convolution_works(model, torch.zeros(1, 3, 2, 2))
    assert not model[0]._forward_hooks
