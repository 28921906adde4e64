"""A small CLIP for each kind of visual tower that open_clip has, of the same classes as the published ones."""

import functools
from collections.abc import Callable
from functools import partial

import open_clip
from timm.models import eva, fastvit, register_model, resnet, swin_transformer, vision_transformer, vitamin
from timm.models import vision_transformer_hybrid as hybrid
from torch import nn

from progeo.models.backbones.clip_configurations import known_architectures

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_VIT = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
_TIMM = {"image_size": 64, "timm_pool": "", "timm_proj": "linear"}
_BLOCKS = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
_ROTARY = {"use_rot_pos_emb": True, "ref_feat_shape": (6, 6)}

_NETWORKS: dict[str, tuple[Callable, dict]] = {
    "small_siglip": (
        vision_transformer._create_vision_transformer,
        {**_BLOCKS, "class_token": False, "global_pool": "map"},
    ),
    "small_siglip14": (  # the last four pixels of a side of 74 are in no patch
        vision_transformer._create_vision_transformer,
        {**_BLOCKS, "img_size": 74, "patch_size": 14, "class_token": False, "global_pool": "map"},
    ),
    "small_gap": (
        vision_transformer._create_vision_transformer,
        {**_BLOCKS, "class_token": False, "global_pool": "avg", "init_values": 1e-6, "fc_norm": False},
    ),
    "small_eva01": (eva._create_eva, {**_BLOCKS, "mlp_ratio": 4}),
    "small_eva02": (
        eva._create_eva,
        {**_BLOCKS, **_ROTARY, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True},
    ),
    "small_pe": (
        eva._create_eva,
        {
            **{**_BLOCKS, **_ROTARY, "global_pool": "map", "attn_type": "rope", "use_pre_transformer_norm": True},
            **{"rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "attn_pool_num_heads": 2},
            **{"attn_pool_mlp_ratio": 4.0, "norm_layer": partial(nn.LayerNorm, eps=1e-5)},
        },
    ),
    "small_resnet": (
        resnet._create_resnet,
        {"block": resnet.BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 16, 32, 64)},
    ),
    "small_swin": (
        swin_transformer._create_swin_transformer,
        {
            **{"img_size": 64, "patch_size": 4, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 1)},
            **{"num_heads": (1, 1, 2, 2)},
        },
    ),
    "small_fastvit": (
        fastvit._create_fastvit,
        {
            **{"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "mlp_ratios": (2, 2, 2, 2)},
            **{"se_downsamples": (False, False, True, True), "lkc_use_act": True},
            **{"pos_embs": (None, None, None, partial(fastvit.RepConditionalPosEnc, spatial_shape=(7, 7)))},
            **{"token_mixers": ("repmixer", "repmixer", "repmixer", "attention")},
        },
    ),
}


def _mci(variant, pretrained=False, **options):
    stem = {"stride": (4, 2, 2), "kernel_size": (4, 2, 2), "padding": 0, "in_chans": 3, "act_layer": nn.GELU}
    backbone = hybrid.ConvStem(channels=(16, 16, 64), **stem)
    return hybrid._create_vision_transformer_hybrid(
        variant, backbone=backbone, embed_args={"proj": False}, pretrained=pretrained, **options
    )


def _vitamin(variant, pretrained=False, **options):
    convolutions = vitamin.VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    widths = vitamin.VitCfg(embed_dim=(16, 32, 64), depths=(1, 1, 1), stem_width=16, conv_cfg=convolutions)
    return vitamin._create_vitamin(variant, pretrained=pretrained, embed_cfg=widths, **options)


_LAYERS = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 2}
_PLAIN_VITAMIN = {**_LAYERS, "mlp_layer": vitamin.GeGluMlp, "mlp_ratio": 2.0, "class_token": False}
_NETWORKS |= {
    "small_mci": (_mci, {**_LAYERS, "no_embed_class": True}),
    "small_vitamin": (_vitamin, {**_PLAIN_VITAMIN, "global_pool": "avg"}),
    "small_vitamin_xl": (_vitamin, {**_PLAIN_VITAMIN, "global_pool": "avg", "pos_embed": "none"}),
}


def _timm(name, **settings):
    return {**_TIMM, "timm_model_name": name, **settings}


_COCA = {
    "multimodal_cfg": {**_TEXT, "context_length": 76, "attn_pooler_heads": 2, "layers": 1},
    "text_cfg": {**_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
    "custom_text": True,
}
_TOWERS = {
    "vit": _VIT,
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None},
    "clipa": {**_VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "sincos": {**_VIT, "pos_embed_type": "sin_cos_2d"},
    "custom-attention": {**_VIT, "qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_fc": True},
    "coca": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True},
    "siglip": _timm("small_siglip", timm_pool="map", timm_proj="none"),
    "siglip14": _timm("small_siglip14", image_size=74, timm_pool="map", timm_proj="none"),
    "eva01": _timm("small_eva01", timm_pool="token", timm_proj=None),
    "eva02": _timm("small_eva02", timm_pool="token", timm_proj=None),
    "pe": _timm("small_pe", timm_pool="map", timm_proj=None),
    "mci": _timm("small_mci", timm_pool="token", timm_proj=None),
    "vitamin": _timm("small_vitamin", timm_drop_path=0.1),
    "vitamin-xl": _timm("small_vitamin_xl", image_size=96, timm_drop_path=0.1),
    "convnext": _timm("test_convnext2"),
    "convnext-mlp": _timm("test_convnext2", timm_proj="mlp"),
    "fastvit": _timm("small_fastvit", timm_pool="avg", timm_proj=None),
    "gap": _timm("small_gap"),
    "swin": _timm("small_swin"),
    "relpos": _timm("test_vit_relpos", image_size=160),
    "attention-pool": _timm("small_resnet", timm_pool="abs_attn", timm_proj=None),
}
SMALL_TOWERS = {f"small-{name}": vision for name, vision in _TOWERS.items()}
"""The `vision_cfg` of each CLIP by its name."""


def configuration(name):
    """Return the configuration of a small CLIP in open_clip's form."""
    vision = SMALL_TOWERS[name]
    values = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": _TEXT}
    return values | (_COCA if "attentional_pool" in vision else {})


@functools.cache
def register_small_towers():
    """Make the small CLIPs known to open_clip, and their networks to timm."""
    known_architectures()
    for name, (create, options) in _NETWORKS.items():
        register_model(_builder(name, create, options))
    for name in SMALL_TOWERS:
        open_clip.factory._MODEL_CONFIGS[name] = configuration(name)


def _builder(name, create, options):
    size = options.get("img_size", 64)

    def build(pretrained=False, **changed):
        known = {"architecture": name, "input_size": (3, size, size), "pool_size": (2, 2) if "resnet" in name else None}
        return create(name, pretrained=False, **{**options, **changed, "pretrained_cfg": known})

    build.__name__, build.__module__ = name, __name__
    return build
