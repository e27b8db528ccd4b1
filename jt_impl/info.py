"""``python -m jt_impl.info gold_yolo_s --num-classes 10``: is this the network it should be?"""

from __future__ import annotations

import math
from typing import Any

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
from jt_impl.layers import BatchNorm2d, Conv2d
from jt_impl.model import GoldYolo, build_model, fuse
from jt_impl.runtime import jittor as jt


def measure(config: GoldYoloConfig, size: Size) -> Facts:
    """Build the model with seeded weights and take all facts of it."""
    model = build_model(config)
    converters.load_into(model, seeded_state(dict(entries(model))))
    forms = {"train": model, "deploy": fuse(model, fold_norms=False), "fused": fuse(model)}
    return Facts(
        entries={name: entries(form) for name, form in forms.items()},
        parameters={name: parameter_count(form) for name, form in forms.items()},
        gflops={name: 2e-9 * sum(conv_macs(forms[name], size).values()) for name in GFLOPS_FORMS},
        deploy_error=relative_error(detections(forms["fused"]), detections(model)),
        shapes={mode: part_shapes(model, size, train=mode == "train") for mode in ("eval", "train")},
    )


def entries(model: GoldYolo) -> Entries:
    return [(name, tuple(value.shape)) for name, value in converters.read_state(model).items()]


def parameter_count(model: GoldYolo) -> int:
    """Elements of all Vars but the running statistics: Jittor itself makes no difference between them."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]
    everything = sum(math.prod(shape) for _, shape in entries(model))
    return everything - 2 * sum(norm.num_features for norm in norms)


def detections(model: GoldYolo) -> Any:
    model.eval()
    with jt.no_grad():
        return model(jt.array(seeded_images(DEPLOY_SHAPE))).numpy()


def conv_macs(model: GoldYolo, size: Size) -> dict[str, int]:
    """MACs of every convolution that runs in eval mode for one image. Nothing is computed: Jittor is lazy."""
    macs: dict[str, int] = {}

    def count(path: str, module: Any, output: Any) -> None:
        weights = (module.in_channels // module.groups) * module.kernel**2
        macs[path] = macs.get(path, 0) + math.prod(output.shape) * weights

    model.eval()
    convolutions = {path: module for path, module in model.named_modules() if isinstance(module, Conv2d)}
    for path, module in convolutions.items():
        module.register_forward_hook(lambda module, _inputs, output, path=path: count(path, module, output))
    with jt.no_grad():
        model(jt.zeros((1, 3, *size)))
    for module in convolutions.values():
        module.remove_forward_hook()
    return macs


def part_shapes(model: GoldYolo, size: Size, *, train: bool) -> dict[str, list[Shape]]:
    """Output shapes of backbone, neck and head for a batch of 2."""
    model.train() if train else model.eval()
    with jt.no_grad():
        backbone = model.backbone(jt.zeros((2, 3, *size)))
        neck = model.neck(backbone)
        outputs = {"backbone": backbone, "neck": neck, "head": model.detect(neck)}
    return {part: output_shapes(output) for part, output in outputs.items()}


if __name__ == "__main__":
    raise SystemExit(main("jt_impl", measure))
