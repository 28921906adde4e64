"""Import folders of CLIPs in the format of Hugging Face's transformers."""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from progeo.convert.clip_encoder import ClipProperties, convert_clip
from progeo.convert.configurations import MIN_STD, read_configuration
from progeo.convert.converted_encoder import Choices, ConvertedEncoder, tensor_named
from progeo.convert.source import Source
from progeo.image_files import Resize
from progeo.printable import printable

TRANSFORMERS_CONFIG = "config.json"
VISION_MARK = "vision_model.embeddings.class_embedding"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_RESAMPLE: Mapping[int, Resize] = {2: "bilinear", 3: "bicubic"}
"""Interpolations by their numbers in Pillow."""
_EPS = 1e-5
_LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    VISION_MARK: "visual.class_embedding",
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


def is_hugging_face(source: Source) -> bool:
    """Return whether a folder has a configuration of transformers, or a file of weights that of a CLIP beside it."""
    config = source.folder / TRANSFORMERS_CONFIG
    if source.path.is_dir():
        return config.is_file()
    return source.path.name in _WEIGHTS and read_configuration(config).values.get("model_type") == "clip"


def read_hugging_face(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert a CLIP of transformers, with the activation and preprocessing of its configuration.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: the configuration is not of a plain CLIP; for further errors see `convert_clip`.
    """
    properties = _properties(source)
    found = source.weights(_WEIGHTS)
    return convert_clip(replace(found, state=_open_clip_names(found.state)), choices, properties)


def _properties(source: Source) -> ClipProperties:
    """Read the configuration; missing values get the defaults of transformers."""
    config = read_configuration(source.folder / TRANSFORMERS_CONFIG)
    kind = config.values.get("model_type")
    if kind != "clip":
        raise ValueError(f"{config.path} is of a {kind!r}, not of a clip.")
    vision, text = config.part("vision_config"), config.part("text_config")
    activations = {part.word("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys():
        raise ValueError(
            f"{config.path} sets hidden_act {printable(', '.join(sorted(activations)))}: it must be one of "
            f"{', '.join(_ACTIVATIONS)}, and the same for images and texts."
        )
    for part in (vision, text):
        if (eps := part.number("layer_norm_eps", _EPS)) != _EPS:
            raise ValueError(f"{config.path} is not of a plain CLIP: its layer_norm_eps is {eps}, not {_EPS}.")
    pixels = read_configuration(source.folder / "processor_config.json").part("image_processor")
    if not pixels.values:
        pixels = read_configuration(source.folder / "preprocessor_config.json")
    return ClipProperties(
        quickgelu=_ACTIVATIONS[activations.pop()],
        head_width=vision.number("hidden_size", 768) // vision.number("num_attention_heads", 12),
        text_heads=text.number("num_attention_heads", 8),
        mean=pixels.color("image_mean", 0),
        std=pixels.color("image_std", MIN_STD),
        resize=pixels.choice("resample", _RESAMPLE, 3) if pixels.values else "bilinear",
    )


def _open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
