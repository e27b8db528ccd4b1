"""The architectures of both worlds, and a pair of one of them with the same seeded weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchvision

from alignment_tests.harness import copy_weights
from alignment_tests.harness.record.adapter import Array
from fixtures.seeded import seeded_images
from jt_impl.runtime import load

FUNCTION = "the candidate calls a function where the reference has a module; what follows is compared"
AUX_IN_EVAL = "the candidate computes its auxiliary heads in eval mode too, where nobody uses them"
AUX_IN_TRAIN = "the candidate returns the auxiliary heads' outputs to nobody, so they cannot be trained"
AUX_DROPOUT = "the candidate's auxiliary heads make their dropout anew in each call, where it never drops anything"


@dataclass(frozen=True)
class Case:
    """How one architecture is run.

    Attributes:
        size: rows and columns of the images. As few as possible, so that both sides take them.
        reference: arguments of torchvision's builder.
        candidate: arguments of Jittor's builder.
        places: pattern on names -> why a name has no partner, where that is no difference of values.
        differences: pattern on names -> how Jittor's model differs.
        adaptive: Jittor's adaptive pool cannot make the output that the classifier needs of images so small, so its
            corrected form is compared after the crash is on record.
    """

    size: int = 64
    reference: dict[str, Any] = field(default_factory=dict)
    candidate: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    differences: dict[str, str] = field(default_factory=dict)
    adaptive: bool = False


DENSE = "the candidate's dense layers return their input joined with the new features, the reference's those alone"

UNINITIALISED = {"init_weights": False}  # a slow constructor; the weights are set afterwards
# Windows of 3 must be smaller than the map they run over, or Jittor's pool raises; this fixes most sizes.
SPECIAL = {
    "alexnet": Case(size=224),
    "squeezenet": Case(size=96),
    "densenet": Case(differences={"activation/*.denselayer?#*": DENSE, "activation/*.denselayer??#*": DENSE}),
    "vgg": Case(reference=UNINITIALISED, adaptive=True),
    "inception_v3": Case(
        size=171,
        reference={"aux_logits": False, **UNINITIALISED},
        candidate={"aux_logits": False},
        places={f"activation/{name}#*": FUNCTION for name in ("maxpool1", "maxpool2", "avgpool", "dropout")},
    ),
    "googlenet": Case(
        size=128,
        reference={"aux_logits": True, **UNINITIALISED},
        differences={
            "activation/aux?.dropout#*": AUX_DROPOUT,
            "activation/aux*": AUX_IN_EVAL,
            "activation/#0/[12]": AUX_IN_TRAIN,
            "activation/#0/aux*": AUX_IN_TRAIN,
        },
    ),
}
# Deeper or wider forms of architectures that are run: the same code with other numbers, minutes each in float64.
ON_DEMAND = (
    "densenet161",
    "densenet169",
    "densenet201",
    "resnet152",
    "resnext101_32x8d",
    "wide_resnet101_2",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
)


def architectures() -> list[str]:
    """Builders that both packages have under one name."""
    load()
    import jittor.models

    return [name for name in torchvision.models.list_models() if hasattr(jittor.models, name)]


def case_of(name: str) -> Case:
    return next((case for prefix, case in SPECIAL.items() if name.startswith(prefix)), Case())


def images_of(name: str, batch: int = 2) -> Array:
    """(batch, 3, size, size) float32."""
    size = case_of(name).size
    return seeded_images((batch, 3, size, size))


def build(name: str) -> tuple[Any, Any]:
    """Reference and candidate as their builders make them, with weights of their own; nothing drops out."""
    load()
    import jittor.models

    case = case_of(name)
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None, **case.reference)
    candidate = getattr(jittor.models, name)(**case.candidate)
    for model in (reference, candidate):
        for module in model.modules():
            if type(module).__name__ == "Dropout":
                module.p = 0.0  # the frameworks draw from different generators
    return reference, candidate


def make_pair(name: str) -> tuple[Any, Any]:
    """Both with the reference's weights. The map of names is found, not given.

    Raises:
        NameMatchError: the models are built otherwise, so that one's weights have no place in the other.
    """
    reference, candidate = build(name)
    settle_norms(reference, torch.from_numpy(images_of(name)))
    copy_weights(reference, candidate)
    return reference, candidate


def settle_norms(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Norms that are not the identity: scales and shifts from a seed, running statistics of one batch."""
    random = np.random.default_rng(0)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.copy_(torch.from_numpy(random.uniform(0.75, 1.25, norm.num_features)))
            norm.bias.copy_(torch.from_numpy(random.normal(0.0, 0.1, norm.num_features)))
        if norms:
            model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
