"""The resolved configuration of a CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip


@dataclass(frozen=True)
class ClipConfiguration:
    """Stand-in until `clip_configurations` has it."""

    values: Mapping[str, Any]
    folder: Path | None = None

    @property
    def text(self) -> open_clip.CLIPTextCfg:
        """The text tower's part."""
        return open_clip.CLIPTextCfg(**self.values["text_cfg"])


def configuration_of(clip: open_clip.CLIP) -> ClipConfiguration:
    """Return the configuration of a CLIP."""
    if not hasattr(clip, "configuration"):
        text = {"context_length": clip.context_length, "vocab_size": clip.vocab_size}
        return ClipConfiguration({"text_cfg": text})
    return clip.configuration


def resolve_configuration(architecture: str, weights: str) -> ClipConfiguration:
    """Return the configuration of a CLIP with these weights."""
    from progeo.models.backbones.clip_configurations import plain_architecture

    return ClipConfiguration(open_clip.get_model_config(plain_architecture(architecture)))
