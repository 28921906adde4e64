"""Both stages of training in turn."""

from pathlib import Path
from typing import TYPE_CHECKING

from progeo.commands.train_encoder import check_encoder_settings, dry_run_of_encoder, train_encoder
from progeo.commands.train_prompts import dry_run_of_prompts, train_prompts
from progeo.config.training import EncoderSettings, PromptSettings
from progeo.training.loss_terms import needs_of

if TYPE_CHECKING:
    from progeo.engine.dry_run import DryRun


def train(stage1: PromptSettings, stage2: EncoderSettings, *, dry_run: bool = False) -> "Path | list[DryRun]":
    """Run stage 1 if stage 2 uses texts and no prompts are given, then stage 2; returns the folder of stage 2.

    Args:
        dry_run: Check all settings, images and folders, take ten steps of each stage, and show the time, the memory and
            the space on the disk that the training would take. Nothing is written.

    Raises:
        ProblemsError: a dry run finds that files do not fit on the disk.
    """
    from progeo.engine.dry_run import checked
    from progeo.training.starting_encoder import check_starting_encoder

    check_encoder_settings(stage2)
    learns_prompts = "text" in needs_of(stage2.losses) and stage2.losses["text"].prompts is None
    if learns_prompts:
        check_starting_encoder(stage2.model, stage2.encoder)  # before the hours of stage 1
    if dry_run:
        return checked(_dry_runs(stage1 if learns_prompts else None, stage2))
    if learns_prompts:
        train_prompts(stage1)
    train_encoder(stage2)
    return stage2.out / "stage2"


def _dry_runs(stage1: PromptSettings | None, stage2: EncoderSettings) -> "list[DryRun]":
    if stage1 is None:
        return [dry_run_of_encoder(stage2)]
    of_prompts, text_dim = dry_run_of_prompts(stage1)
    return [of_prompts, dry_run_of_encoder(stage2, unlearned_dim=text_dim)]
