"""Convert a CLIP's weights from the names and shapes of Hugging Face's transformers to those of open_clip."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from progeo.convert.translation import tensor_named

_LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_QUERY = re.compile(r"self_attn\.q_proj\.(weight|bias)")


def with_open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a CLIP's weights to open_clip's names; unexpected keys keep their names.

    Raises:
        ValueError: a query projection whose key or value projection is missing or has another shape.
    """
    renamed = {}
    for name, tensor in state.items():
        if name in _OUTSIDE:
            renamed[_OUTSIDE[name]] = tensor
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor_named(state, name, 2).T
        elif found := _LAYER.fullmatch(name):
            renamed |= _layer(state, name, *found.groups())
        elif not name.endswith(".embeddings.position_ids"):  # indexes from 0, which older versions stored
            renamed[name] = tensor
    return renamed


def _layer(state: Mapping[str, Tensor], name: str, tower: str, number: str, rest: str) -> dict[str, Tensor]:
    """Convert a weight or bias of a layer; query, key and value projections are one tensor in open_clip."""
    prefix = f"{'visual.' if tower == 'vision_model' else ''}transformer.resblocks.{number}."
    module, _, ending = rest.rpartition(".")
    if module in _IN_LAYER:
        return {f"{prefix}{_IN_LAYER[module]}.{ending}": state[name]}
    if found := _QUERY.fullmatch(rest):
        num_dims = 2 if found[1] == "weight" else 1
        parts = [tensor_named(state, name.replace(".q_proj.", f".{part}_proj."), num_dims) for part in "qkv"]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"{name} should have the shape of its key and of its value, has {tuple(parts[0].shape)}.")
        return {f"{prefix}attn.in_proj_{found[1]}": torch.cat(parts)}
    return {} if re.fullmatch(r"self_attn\.[kv]_proj\.(weight|bias)", rest) else {name: state[name]}
