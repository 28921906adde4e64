"""Networks: CLIP, prompts, backbones, pooling, margin heads and the encoder that leaves."""
