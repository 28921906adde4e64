"""Training: prompts per place, and the image encoder with its batches, loss terms and validation."""
