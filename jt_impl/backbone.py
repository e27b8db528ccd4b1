"""Backbone: EfficientRep (sizes N, S) and its CSP form (M, L), one class, since only the stages differ."""

from __future__ import annotations

from fixtures.config import GoldYoloConfig
from jt_impl.layers import BLOCKS, POOLING, Var, activation_of, nn, repeat_stage


class Backbone(nn.Module):
    """Stem and four stages, each halving the size.

    Input (N, 3, H, W); output (P2, P3, P4, P5) at strides 4, 8, 16, 32.
    """

    def __init__(self, config: GoldYoloConfig) -> None:
        super().__init__()
        settings, channels, norm = config.backbone, config.channels, config.norm
        block = BLOCKS[settings.block]
        self.stem = block(3, channels[0], stride=2, norm=norm)
        for i in range(1, 5):
            stage = nn.Sequential(
                block(channels[i - 1], channels[i], stride=2, norm=norm),
                repeat_stage(
                    channels[i],
                    channels[i],
                    config.repeats[i],
                    kind=settings.kind,
                    block=settings.block,
                    ratio=settings.csp_ratio,
                    norm=norm,
                ),
            )
            if i == 4:
                pooling = POOLING[settings.pooling]
                stage.append(pooling(channels[i], channels[i], norm=norm, act=activation_of(settings.block)))
            setattr(self, f"ERBlock_{i + 1}", stage)

    def execute(self, x: Var) -> tuple[Var, Var, Var, Var]:
        p2 = self.ERBlock_2(self.stem(x))
        p3 = self.ERBlock_3(p2)
        p4 = self.ERBlock_4(p3)
        return p2, p3, p4, self.ERBlock_5(p4)
