"""Networks: CLIP, learned prompts, backbones, pooling, margin heads and the image encoder that is exported."""
