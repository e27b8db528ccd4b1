"""Neck: gather-and-distribute in a low and a high stage (arXiv 2309.11331)."""

from __future__ import annotations

from torch import Tensor, nn

from fixtures.config import GoldYoloConfig
from torch_ref.attention import Transformer
from torch_ref.fusion import AdjacentFusion, HighAlign, Injection, LowAlign, ThreeMapFusion
from torch_ref.layers import BLOCKS, ConvNormAct, conv2d, repeat_stage, silu


class Neck(nn.Module):
    """Input (c2, c3, c4, c5) at strides 4, 8, 16, 32; output (p3, n4, n5) at strides 8, 16, 32."""

    def __init__(self, config: GoldYoloConfig) -> None:
        super().__init__()
        settings, c, norm = config.neck, config.channels, config.norm
        global_norm = settings.global_norm
        low, high = settings.trans_channels[:2], settings.trans_channels[2:]
        self.low_split, self.high_split = list(low), list(high)
        self.last_fusion = settings.last_fusion

        self.low_FAM = LowAlign(settings.pool_mode)
        self.low_IFM = _low_fusion(config)
        self.reduce_layer_c5 = ConvNormAct(c[4], c[5], 1, norm=norm)
        self.LAF_p4 = ThreeMapFusion(c[3], c[5], settings.pool_mode, norm=norm)
        self.Inject_p4 = Injection(c[5], c[5], low[0], norm=global_norm)
        self.Rep_p4 = _stage(config, c[5], c[5], 5)
        self.reduce_layer_p4 = ConvNormAct(c[5], c[6], 1, norm=norm)
        self.LAF_p3 = ThreeMapFusion(c[2], c[6], settings.pool_mode, norm=norm)
        self.Inject_p3 = Injection(c[6], c[6], low[1], norm=global_norm)
        self.Rep_p3 = _stage(config, c[6], c[6], 6)

        self.high_FAM = HighAlign(settings.transformer.pool_stride, settings.pool_mode)
        self.high_IFM = Transformer(settings.transformer, norm=global_norm)
        self.conv_1x1_n = conv2d(settings.transformer.dim, sum(high), 1, bias=True)
        self.LAF_n4 = AdjacentFusion(settings.pool_mode)
        self.Inject_n4 = Injection(c[8], c[8], high[0], norm=global_norm)
        self.Rep_n4 = _stage(config, c[6] + c[7], c[8], 7)
        self.LAF_n5 = AdjacentFusion(settings.pool_mode)
        self.Inject_n5 = Injection(c[10], c[10], high[1], norm=global_norm)
        self.Rep_n5 = _stage(config, c[5] + c[9], c[10], 8)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        c2, c3, c4, c5 = maps
        to_p4, to_p3 = self.low_IFM(self.low_FAM([c2, c3, c4, c5])).split(self.low_split, dim=1)
        c5_half = self.reduce_layer_c5(c5)
        p4 = self.Rep_p4(self.Inject_p4(self.LAF_p4([c3, c4, c5_half]), to_p4))
        p4_half = self.reduce_layer_p4(p4)
        p3 = self.Rep_p3(self.Inject_p3(self.LAF_p3([c2, c3, p4_half]), to_p3))

        gathered = self.conv_1x1_n(self.high_IFM(self.high_FAM([p3, p4, c5])))
        to_n4, to_n5 = gathered.split(self.high_split, dim=1)
        n4 = self.Rep_n4(self.Inject_n4(self.LAF_n4(p3, p4_half), to_n4))
        n5 = self.Rep_n5(self.Inject_n5(self.LAF_n5(p4 if self.last_fusion == "p4" else n4, c5_half), to_n5))
        return p3, n4, n5


def _low_fusion(config: GoldYoloConfig) -> nn.Sequential:
    settings, norm = config.neck, config.norm
    embed, block = settings.embed_channels, BLOCKS[config.backbone.block]
    return nn.Sequential(
        ConvNormAct(settings.low_fusion_in, embed, 1, norm=norm, act=silu),
        *[block(embed, embed, norm=norm) for _ in range(settings.fuse_blocks)],
        ConvNormAct(embed, sum(settings.trans_channels[:2]), 1, norm=norm, act=silu),
    )


def _stage(config: GoldYoloConfig, in_channels: int, out_channels: int, index: int) -> nn.Module:
    settings = config.backbone
    return repeat_stage(
        in_channels,
        out_channels,
        config.repeats[index],
        kind=config.neck.kind,
        block=settings.block,
        ratio=settings.csp_ratio,
        norm=config.norm,
    )
