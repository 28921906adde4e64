"""CLIP as OpenAI wrote its weights down: the layout of the names, and what the weights mean, in plain functions."""

import torch
import torch.nn.functional as F


def transformer_state(prefix, width, layers, mlp_width=None):
    mlp_width, state = mlp_width or 4 * width, {}
    for layer in range(layers):
        block = f"{prefix}transformer.resblocks.{layer}."
        state |= {
            f"{block}attn.in_proj_weight": torch.randn(3 * width, width) * width**-0.5,
            f"{block}attn.in_proj_bias": torch.randn(3 * width) * 0.1,
            f"{block}attn.out_proj.weight": torch.randn(width, width) * width**-0.5,
            f"{block}attn.out_proj.bias": torch.randn(width) * 0.1,
            f"{block}mlp.c_fc.weight": torch.randn(mlp_width, width) * width**-0.5,
            f"{block}mlp.c_fc.bias": torch.randn(mlp_width) * 0.1,
            f"{block}mlp.c_proj.weight": torch.randn(width, mlp_width) * mlp_width**-0.5,
            f"{block}mlp.c_proj.bias": torch.randn(width) * 0.1,
            **norm_state(f"{block}ln_1", width),
            **norm_state(f"{block}ln_2", width),
        }
    return state


def norm_state(name, width):
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


def vit_state(prefix, *, width=128, layers=4, patch_px=16, grid=(8, 8), dim=128):
    return {
        f"{prefix}class_embedding": torch.randn(width) * 0.1,
        f"{prefix}positional_embedding": torch.randn(grid[0] * grid[1] + 1, width) * 0.1,
        f"{prefix}proj": torch.randn(width, dim) * width**-0.5,
        f"{prefix}conv1.weight": torch.randn(width, 3, patch_px, patch_px) * 0.05,
        **norm_state(f"{prefix}ln_pre", width),
        **norm_state(f"{prefix}ln_post", width),
        **transformer_state(prefix, width, layers),
    }


def text_state(prefix="", *, width=64, layers=2, dim=128, length=77, vocabulary=49408):
    return {
        f"{prefix}positional_embedding": torch.randn(length, width) * 0.01,
        f"{prefix}text_projection": torch.randn(width, dim) * width**-0.5,
        **norm_state(f"{prefix}ln_final", width),
        **transformer_state(prefix, width, layers),
        "token_embedding.weight": torch.randn(vocabulary, width) * 0.02,
    }


def batch_norm_state(name, channels):
    return {
        **norm_state(name, channels),
        f"{name}.running_mean": torch.randn(channels) * 0.1,
        f"{name}.running_var": 1 + torch.rand(channels),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def conv(inputs, outputs, side):
    return torch.randn(outputs, inputs, side, side) * (inputs * side * side) ** -0.5


def resnet_state(prefix, *, blocks=(1, 1, 1, 1), width=16, grid=4, dim=128):
    half = width // 2
    state = {
        f"{prefix}conv1.weight": conv(3, half, 3),
        f"{prefix}conv2.weight": conv(half, half, 3),
        f"{prefix}conv3.weight": conv(half, width, 3),
        **batch_norm_state(f"{prefix}bn1", half),
        **batch_norm_state(f"{prefix}bn2", half),
        **batch_norm_state(f"{prefix}bn3", width),
    }
    inputs = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for block in range(count):
            name = f"{prefix}layer{stage + 1}.{block}."
            state |= {
                f"{name}conv1.weight": conv(inputs, planes, 1),
                f"{name}conv2.weight": conv(planes, planes, 3),
                f"{name}conv3.weight": conv(planes, 4 * planes, 1),
                **batch_norm_state(f"{name}bn1", planes),
                **batch_norm_state(f"{name}bn2", planes),
                **batch_norm_state(f"{name}bn3", 4 * planes),
            }
            if block == 0:
                state[f"{name}downsample.0.weight"] = conv(inputs, 4 * planes, 1)
                state |= batch_norm_state(f"{name}downsample.1", 4 * planes)
            inputs = 4 * planes
    state[f"{prefix}attnpool.positional_embedding"] = torch.randn(grid * grid + 1, inputs) * 0.1
    for layer, outputs in (("k_proj", inputs), ("q_proj", inputs), ("v_proj", inputs), ("c_proj", dim)):
        state[f"{prefix}attnpool.{layer}.weight"] = torch.randn(outputs, inputs) * inputs**-0.5
        state[f"{prefix}attnpool.{layer}.bias"] = torch.randn(outputs) * 0.1
    return state


def quick_gelu(values):
    return values * torch.sigmoid(1.702 * values)


def attention(query, key, value, heads):
    """(B, T, W) each -> (B, T, W)."""
    parts = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
    scores = parts[0] @ parts[1].transpose(2, 3) / parts[0].shape[-1] ** 0.5
    return (scores.softmax(dim=-1) @ parts[2]).transpose(1, 2).flatten(2)


def layer_norm(state, name, tokens):
    return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def vit_features(state, prefix, images, *, heads=4, activation=quick_gelu):
    """The projected class token (B, D)."""
    patch_px = state[f"{prefix}conv1.weight"].shape[-1]
    patches = F.conv2d(images, state[f"{prefix}conv1.weight"], stride=patch_px).flatten(2).transpose(1, 2)
    first = state[f"{prefix}class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([first, patches], dim=1) + state[f"{prefix}positional_embedding"]
    tokens = layer_norm(state, f"{prefix}ln_pre", tokens)
    layers = len({name.split("resblocks.")[1].split(".")[0] for name in state if f"{prefix}transformer" in name})
    for layer in range(layers):
        block = f"{prefix}transformer.resblocks.{layer}."
        inputs = layer_norm(state, f"{block}ln_1", tokens)
        mixed = inputs @ state[f"{block}attn.in_proj_weight"].T + state[f"{block}attn.in_proj_bias"]
        mixed = attention(*mixed.chunk(3, dim=2), heads)
        tokens = tokens + mixed @ state[f"{block}attn.out_proj.weight"].T + state[f"{block}attn.out_proj.bias"]
        inputs = layer_norm(state, f"{block}ln_2", tokens)
        hidden = activation(inputs @ state[f"{block}mlp.c_fc.weight"].T + state[f"{block}mlp.c_fc.bias"])
        tokens = tokens + hidden @ state[f"{block}mlp.c_proj.weight"].T + state[f"{block}mlp.c_proj.bias"]
    return layer_norm(state, f"{prefix}ln_post", tokens[:, 0]) @ state[f"{prefix}proj"]


def resnet_map(state, prefix, images):
    """The feature map (B, C, h, w) of layer4."""

    def norm(name, values):
        named = (state[f"{prefix}{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(values, *named)

    def convolved(name, values, **options):
        return F.conv2d(values, state[f"{prefix}{name}.weight"], **options)

    values = images
    for layer, stride in ((1, 2), (2, 1), (3, 1)):
        values = F.relu(norm(f"bn{layer}", convolved(f"conv{layer}", values, stride=stride, padding=1)))
    values = F.avg_pool2d(values, 2)
    for stage in range(1, 5):
        block = 0
        while f"{prefix}layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            inner = F.relu(norm(f"{name}bn1", convolved(f"{name}conv1", values)))
            inner = F.relu(norm(f"{name}bn2", convolved(f"{name}conv2", inner, padding=1)))
            inner = norm(f"{name}bn3", convolved(f"{name}conv3", F.avg_pool2d(inner, stride)))
            if block == 0:
                values = convolved(f"{name}downsample.0", F.avg_pool2d(values, stride))
                values = norm(f"{name}downsample.1", values)
            values = F.relu(inner + values)
            block += 1
    return values


def attention_pooled(state, prefix, feature_map, *, heads):
    """Features (B, D) of a feature map (B, C, h, w)."""
    tokens = feature_map.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    tokens = tokens + state[f"{prefix}attnpool.positional_embedding"]

    def linear(layer, values):
        return values @ state[f"{prefix}attnpool.{layer}.weight"].T + state[f"{prefix}attnpool.{layer}.bias"]

    mixed = attention(linear("q_proj", tokens[:, :1]), linear("k_proj", tokens), linear("v_proj", tokens), heads)
    return linear("c_proj", mixed[:, 0])


def gem_descriptors(state, feature_map):
    """CosPlace's head, written out: length 1 along the channels, generalised mean, linear, length 1."""
    power = state["aggregation.1.p"]
    values = feature_map / feature_map.norm(dim=1, keepdim=True).clamp(min=1e-12)
    pooled = values.clamp(min=1e-6).pow(power).mean(dim=(2, 3)).pow(1 / power)
    moved = pooled @ state["aggregation.3.weight"].T + state["aggregation.3.bias"]
    return moved / moved.norm(dim=1, keepdim=True)


def gem_state(channels, dim):
    return {
        "aggregation.1.p": torch.tensor([2.7]),
        "aggregation.3.weight": torch.randn(dim, channels) * channels**-0.5,
        "aggregation.3.bias": torch.randn(dim) * 0.1,
    }
