"""``python -m torch_ref.info gold_yolo_s --num-classes 10``: is this the network it should be?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import converters
from fixtures.config import GoldYoloConfig
from fixtures.seeded import seeded_images, seeded_state
from fixtures.structure import (
    DEPLOY_SHAPE,
    GFLOPS_FORMS,
    Entries,
    Facts,
    Shape,
    Size,
    main,
    output_shapes,
    relative_error,
)
from torch_ref.model import GoldYolo, build_model, fuse


def measure(config: GoldYoloConfig, size: Size) -> Facts:
    """Build the model with seeded weights and take all facts of it."""
    model = build_model(config)
    converters.load_into(model, seeded_state(dict(entries(model))))
    forms = {"train": model, "deploy": fuse(model, fold_norms=False), "fused": fuse(model)}
    return Facts(
        entries={name: entries(form) for name, form in forms.items()},
        parameters={name: sum(p.numel() for p in form.parameters()) for name, form in forms.items()},
        gflops={name: 2e-9 * sum(conv_macs(forms[name], size).values()) for name in GFLOPS_FORMS},
        deploy_error=relative_error(detections(forms["fused"]), detections(model)),
        shapes={mode: part_shapes(model, size, train=mode == "train") for mode in ("eval", "train")},
    )


def entries(model: GoldYolo) -> Entries:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def detections(model: GoldYolo) -> Any:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(seeded_images(DEPLOY_SHAPE))).numpy()


def conv_macs(model: GoldYolo, size: Size) -> dict[str, int]:
    """MACs of every convolution that runs in eval mode for one image. Nothing is computed: only shapes flow."""
    macs: dict[str, int] = {}

    def count(path: str, module: Any, output: Any) -> None:
        kernel = module.kernel_size[0] * module.kernel_size[1]
        macs[path] = macs.get(path, 0) + output.numel() * (module.in_channels // module.groups) * kernel

    shapes = copy.deepcopy(model).to("meta").eval()
    for path, module in shapes.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, _inputs, output, path=path: count(path, module, output))
    with torch.no_grad():
        shapes(torch.empty(1, 3, *size, device="meta"))
    return macs


def part_shapes(model: GoldYolo, size: Size, *, train: bool) -> dict[str, list[Shape]]:
    """Output shapes of backbone, neck and head for a batch of 2."""
    shapes = copy.deepcopy(model).to("meta").train(train)
    with torch.no_grad():
        backbone = shapes.backbone(torch.empty(2, 3, *size, device="meta"))
        neck = shapes.neck(backbone)
        outputs = {"backbone": backbone, "neck": neck, "head": shapes.detect(neck)}
    return {part: output_shapes(output) for part, output in outputs.items()}


if __name__ == "__main__":
    raise SystemExit(main("torch_ref", measure))
