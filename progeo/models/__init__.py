"""Networks: CLIP, learned prompts, backbones, aggregations, margin heads and the image encoder that is exported."""
