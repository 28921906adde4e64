"""Both stages of training in turn."""

from pathlib import Path

from progeo.commands.train_encoder import check_encoder_settings, train_encoder
from progeo.commands.train_prompts import train_prompts
from progeo.config.training import EncoderSettings, PromptSettings
from progeo.training.loss_terms import needs_of


def train(stage1: PromptSettings, stage2: EncoderSettings) -> Path:
    """Run stage 1 if stage 2 uses texts and no prompts are given, then stage 2; returns the folder of stage 2."""
    from progeo.training.starting_encoder import check_starting_encoder

    check_encoder_settings(stage2)
    if "text" in needs_of(stage2.losses) and stage2.losses["text"].prompts is None:
        check_starting_encoder(stage2.model, stage2.encoder)  # before the hours of stage 1
        train_prompts(stage1)
    return train_encoder(stage2)
