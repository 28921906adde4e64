"""Configurations of CLIPs in open_clip's form: those of named architectures, and those that weights bring."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import timm
from open_clip import CLIPTextCfg, CLIPVisionCfg
from open_clip.coca_model import MultimodalCfg
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from progeo.files import read_json
from progeo.json_files import converted
from progeo.models.clip_files import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, tokenizer_files_of
from progeo.models.weight_files.tensor_files import read_metadata
from progeo.printable import printable

HUB = "hf-hub:"
"""Prefix of the address of a CLIP on Hugging Face's hub."""
FOLDER = "local-dir:"
"""Prefix, as open_clip has it, of the path of a folder with a configuration and weights, or of a file with both."""
CONFIGURATION = "configuration"
"""Key of the configuration, as JSON, in the metadata of a .safetensors file that we wrote."""
INTERPOLATION = "interpolation"
"""Key of the interpolation of pixels in the metadata of a .safetensors file that we wrote, see `EncoderSpec.resize`."""
UNNAMED = "clip"
"""Stands for the architecture of a CLIP whose configuration has no name."""
_PARTS = MappingProxyType({"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg})
"""Dataclasses of open_clip for the parts of a configuration."""
_NO_NUMBER = {
    *("custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "pad_id"),
    *("vision_cfg.output_tokens", "vision_cfg.patch_dropout", "vision_cfg.timm_drop", "vision_cfg.timm_drop_path"),
    *("vision_cfg.timm_model_pretrained", "vision_cfg.image_size"),
    *("text_cfg.output_tokens", "text_cfg.hf_model_pretrained"),
}
"""Settings that change no feature of given weights; position embeddings are resized to other image sizes."""
_NO_SHAPE = {
    *("quick_gelu", "vision_cfg.head_width", "vision_cfg.norm_kwargs", "vision_cfg.act_kwargs", "vision_cfg.pool_type"),
    *("vision_cfg.final_ln_after_pool", "text_cfg.heads", "text_cfg.pad_id", "text_cfg.eos_id", "text_cfg.pool_type"),
    *("text_cfg.no_causal_mask", "text_cfg.final_ln_after_pool", "text_cfg.norm_kwargs", "text_cfg.act_kwargs"),
    *("text_cfg.hf_tokenizer_name", "text_cfg.tokenizer_mode", "text_cfg.tokenizer_kwargs", "text_cfg.hf_pooler_type"),
}
"""Settings that change features, but no shape of the weights."""
_LIMITS = MappingProxyType(
    {
        **{"layers": 1000, "width": 2**16, "heads": 2**12, "head_width": 2**16, "mlp_ratio": 2**10},
        **{"image_size": 2**16, "patch_size": 2**12, "attn_pooler_queries": 2**16, "attn_pooler_heads": 2**12},
        **{"context_length": 2**12, "vocab_size": 2**24},
    }
)
"""Maximum values of settings, far above any CLIP, since a configuration may be a stranger's."""
_MAX_EMBEDDING = 2**27
"""Maximum numbers in the position embedding of a visual tower, which may be computed, not read."""
_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
"""Options of tokenizers that a configuration may set; others could name files, or run code that is fetched."""


@dataclass(frozen=True)
class ClipConfiguration:
    """The configuration of a CLIP, from which open_clip builds it."""

    values: Mapping[str, Any]
    """Settings in open_clip's form: `embed_dim`, `vision_cfg`, `text_cfg` and others; missing ones have defaults."""
    folder: Path | None = None
    """Folder that the configuration is from, which holds the files of a tokenizer of Hugging Face, too."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings under names such as `vision_cfg.layers`, with open_clip's defaults for missing ones."""
        settings = {"quick_gelu": False, **self.values}
        for part, kind in _PARTS.items():
            if part in self.values:
                values = dataclasses.asdict(kind(**settings.pop(part)))
                settings |= {f"{part}.{name}": value for name, value in values.items()}
        return settings

    @property
    def vision(self) -> CLIPVisionCfg:
        """Settings of the visual tower."""
        return CLIPVisionCfg(**self.values["vision_cfg"])

    @property
    def text(self) -> CLIPTextCfg:
        """Settings of the text tower."""
        return CLIPTextCfg(**self.values["text_cfg"])

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation is QuickGELU, as in OpenAI's CLIP."""
        return bool(self.values.get("quick_gelu", False))

    def feature_settings(self, *, visual_only: bool = False) -> dict[str, Any]:
        """Return all settings that change features of given weights, by name; those with false values are left out.

        Args:
            visual_only: return only those of the visual tower.
        """
        parts = ("vision_cfg.", "embed_dim", "quick_gelu") if visual_only else ("",)
        found = {
            name: value
            for name, value in sorted(self.settings.items())
            if name not in _NO_NUMBER and name.startswith(parts) and value and not name.startswith("multimodal_cfg")
        }
        return json.loads(json.dumps(found))

    @property
    def fingerprint(self) -> str:
        """SHA-256 digest of `feature_settings`."""
        return hashlib.sha256(json.dumps(self.feature_settings()).encode()).hexdigest()

    def with_quick_gelu(self, quick_gelu: bool) -> "ClipConfiguration":
        """Return the configuration with QuickGELU or GELU as activation."""
        if quick_gelu == self.quick_gelu:
            return self
        return dataclasses.replace(self, values={**self.values, "quick_gelu": quick_gelu})

    def to_json(self) -> dict[str, Any]:
        """Return the values for a JSON file, without those that are open_clip's defaults."""
        values = {
            name: _without_defaults(value, _PARTS[name]) if name in _PARTS else value
            for name, value in self.values.items()
        }
        return json.loads(json.dumps(values))


def configuration_of(clip: nn.Module) -> ClipConfiguration:
    """Return the configuration of a CLIP that `load_clip` built."""
    configuration = clip.configuration
    assert isinstance(configuration, ClipConfiguration)
    return configuration


def known_architectures() -> list[str]:
    """List the architectures of open_clip and our own."""
    _register_own_architectures()
    return open_clip.list_models()


def own_spelling(architecture: str) -> str:
    """Spell the name of a CLIP architecture as open_clip does: `ViT-B/16` and `open_clip/ViT-B-16` are `ViT-B-16`.

    The address of a hub or a folder stays as it is.
    """
    name = architecture.removeprefix("open_clip/")
    return name if is_address(name) else name.replace("/", "-")


def is_address(name: str) -> bool:
    """Return whether an architecture or weights are `hf-hub:owner/name` or `local-dir:path`."""
    return name.startswith((HUB, FOLDER))


def resolve_configuration(architecture: str, weights: str) -> ClipConfiguration:
    """Return the configuration of a CLIP with these weights, before the weights are fetched.

    Weights of a hub or a folder, and a file beside a configuration of open_clip, bring their own configuration, which
    is used. The activation of a tag's weights is known; of another file it is that of the architecture.

    Args:
        architecture: name of an architecture, or the address of the weights to take whatever they are.
        weights: see `load_clip`.

    Raises:
        ValueError: an unknown architecture, a configuration that cannot be read, or one with weights of other shapes
            than those of the named architecture.
    """
    architecture = own_spelling(architecture)
    if is_address(architecture):
        if weights not in (architecture, "random"):
            raise ValueError(f"`weights` {weights!r} are not of {architecture}: set `weights` to the same, or random.")
        if (own := brought_configuration(architecture)) is None:
            raise ValueError(f"`architecture` {architecture!r} has no configuration: name a CLIP of open_clip.")
        return own
    named = named_configuration(architecture)
    if (own := brought_configuration(weights, architecture)) is not None:
        _check_same_shapes(own, named, architecture=architecture, weights=weights)
        return own
    tag = open_clip.get_pretrained_cfg(architecture, weights) or {}
    return named.with_quick_gelu(named.quick_gelu or bool(tag.get("quick_gelu")))


def named_configuration(architecture: str) -> ClipConfiguration:
    """Return the configuration of a named architecture, see `own_spelling`.

    Raises:
        ValueError: the architecture is unknown.
    """
    name = own_spelling(architecture)
    if name not in known_architectures():
        raise ValueError(
            f"`architecture` {name!r} is not known. Use a CLIP of open_clip, for example RN50, RN101, ViT-B-16, "
            f"ViT-B-32, tiny-resnet or tiny-vit."
        )
    return ClipConfiguration(open_clip.get_model_config(name))


def has_named_tower(architecture: str, configuration: ClipConfiguration) -> bool:
    """Return whether the visual tower of a CLIP is what the name of its architecture says."""
    if own_spelling(architecture) not in known_architectures():  # an address, or `UNNAMED`
        return False
    own = configuration.feature_settings(visual_only=True)
    return own == named_configuration(architecture).feature_settings(visual_only=True)


def former_feature_settings(architecture: str, configuration: ClipConfiguration) -> dict[str, Any]:
    """Return the `feature_settings` of the CLIP that earlier versions used in place of one with this configuration.

    It was that of the named architecture, whose words were always read with CLIP's byte pair encoding; an address was
    not accepted.
    """
    if is_address(own_spelling(architecture)):
        return configuration.feature_settings()
    former = named_configuration(architecture).with_quick_gelu(configuration.quick_gelu).feature_settings()
    return {name: value for name, value in former.items() if name != "text_cfg.hf_tokenizer_name"}


def resolved_architecture(architecture: str, configuration: ClipConfiguration) -> str:
    """Return the architecture's name, that of its variant with QuickGELU if the CLIP has it and there is one."""
    name = own_spelling(architecture)
    with_quick_gelu = f"{name}-quickgelu"
    return with_quick_gelu if configuration.quick_gelu and with_quick_gelu in known_architectures() else name


def name_of(configuration: ClipConfiguration) -> str:
    """Return the name of an architecture with this visual tower, of the same text tower if possible, the shortest.

    Returns:
        The name, `UNNAMED` if there is none.
    """
    wanted, visual = configuration.feature_settings(), configuration.feature_settings(visual_only=True)
    known = {name: named_configuration(name) for name in known_architectures()}
    names = [name for name, each in known.items() if each.feature_settings(visual_only=True) == visual]
    return min(names, key=lambda name: (known[name].feature_settings() != wanted, len(name), name), default=UNNAMED)


def brought_configuration(weights: str, architecture: str = "") -> ClipConfiguration | None:
    """Read the configuration that weights bring: of a hub or a folder, or the one beside or in a file.

    Returns:
        The configuration, or None for weights that bring none, such as a tag of the architecture.

    Raises:
        ValueError: the configuration cannot be read, or is not one of a CLIP.
    """
    content, folder = brought_content(weights, architecture)
    values = None if content is None else content.get("model_cfg")
    return None if values is None else parse_configuration(values, weights, folder=folder)


def brought_content(weights: str, architecture: str = "") -> tuple[Mapping[str, Any] | None, Path | None]:
    """Read the sections of the configuration of weights, see `brought_configuration`, and its local folder.

    The configuration of a hub is downloaded unless it is in the hub's cache.
    """
    if weights.startswith(HUB):
        try:
            file = Path(download_pretrained_from_hf(weights.removeprefix(HUB), filename=OPEN_CLIP_CONFIG))
        except Exception as error:  # no connection, no such repository, or no such file in it
            raise ValueError(f"The {OPEN_CLIP_CONFIG} of `weights` {weights!r} cannot be read: {error}") from None
        return _content_of(file), None
    if weights == "random" or weights in open_clip.list_pretrained_tags_by_model(architecture):
        return None, None
    path = Path(weights.removeprefix(FOLDER))
    file = (path if path.is_dir() else path.parent) / OPEN_CLIP_CONFIG
    if path.is_dir() and not file.is_file():
        raise ValueError(f"`weights` {weights!r} is a folder without {OPEN_CLIP_CONFIG}: name a file in it.")
    if path.is_dir() or (file.is_file() and path.name in OPEN_CLIP_WEIGHTS):
        return _content_of(file), file.parent.absolute()
    return _content_in(path), path.parent.absolute() if tokenizer_files_of(path) else None


def parse_configuration(values: Any, source: str, *, folder: Path | None = None) -> ClipConfiguration:
    """Check the values of a configuration in open_clip's form, which may be a stranger's.

    Raises:
        ValueError: a part is missing, a setting is unknown, or a value is out of range; the message names the source.
    """
    try:
        return ClipConfiguration(_checked(values), folder)
    except ValueError as error:
        raise ValueError(f"The configuration of {source} is not of a CLIP of open_clip: {error}") from None


def _checked(values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError("it has no model_cfg.")
    found = {name: deepcopy(value) for name, value in values.items() if value is not None}
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - found.keys():
        raise ValueError(f"it has no {' and no '.join(sorted(missing))}.")
    if unknown := found.keys() - {"embed_dim", "quick_gelu", *_PARTS, *_NO_NUMBER}:
        raise ValueError(f"it has an unknown {printable(', '.join(sorted(map(str, unknown))))}.")
    for part, kind in _PARTS.items():
        if part in found:
            if not isinstance(found[part], Mapping):
                raise ValueError(f"its {part} is no mapping.")
            given = {name: value for name, value in found[part].items() if value is not None}
            checked = converted(given, kind)
            own = json.loads(json.dumps({name: getattr(checked, name) for name in given}))  # with lists again
            _check_limits(part, own)
            found[part] = dict.fromkeys(found[part]) | own  # some have null, such as the patch size of a ResNet
    if not isinstance(found["embed_dim"], int) or not 1 <= found["embed_dim"] <= _LIMITS["width"]:
        raise ValueError(f"its embed_dim is {found['embed_dim']!r}.")
    name = found["vision_cfg"].get("timm_model_name")
    if name is not None and (":" in name or "/" in name or not timm.is_model(name)):  # else timm would fetch it
        raise ValueError(f"its vision_cfg.timm_model_name {printable(name)} is no network of timm.")
    if unknown := (found["text_cfg"].get("tokenizer_kwargs") or {}).keys() - _TOKENIZER_OPTIONS:
        raise ValueError(f"its text_cfg.tokenizer_kwargs have an unknown {printable(', '.join(sorted(unknown)))}.")
    return found


def _check_limits(part: str, settings: Mapping[str, Any]) -> None:
    """Refuse sizes that no CLIP has, which would take memory or time before weights are compared with them."""
    for name, maximum in _LIMITS.items():
        value = settings.get(name, 1)
        numbers = value if isinstance(value, tuple | list) else (value,)
        if not all(0 < number <= maximum and (name == "mlp_ratio" or number >= 1) for number in numbers):
            raise ValueError(f"its {part}.{name} is {value}, which must be from 1 to {maximum}.")
    side, patch = settings.get("image_size", 1), settings.get("patch_size", 1)
    if (max(side) if isinstance(side, list) else side) // patch * settings.get("width", 1) ** 0.5 > _MAX_EMBEDDING**0.5:
        raise ValueError(f"its {part} has a position embedding of more than {_MAX_EMBEDDING:,} numbers.")


def _check_same_shapes(own: ClipConfiguration, named: ClipConfiguration, *, architecture: str, weights: str) -> None:
    """Refuse a configuration whose weights have other shapes than those of the named architecture."""
    found, wanted = own.settings, named.settings
    of_names = {"quick_gelu"} if named.quick_gelu else set()  # such as ViT-B-32-quickgelu
    for name in sorted((found.keys() | wanted.keys()) - _NO_NUMBER - (_NO_SHAPE - of_names)):
        if (found.get(name) or None) != (wanted.get(name) or None):
            kind = HUB if weights.startswith(HUB) else FOLDER
            raise ValueError(
                f"`weights` {weights!r} could not be loaded as {architecture}: it does not fit, its {name} is "
                f"{found.get(name)} where {architecture} has {wanted.get(name)}. To take whatever it is, set "
                f"`architecture` and `weights` to its {kind} address."
            )


def _content_in(file: Path) -> Mapping[str, Any] | None:
    """Read the sections of a configuration in the metadata of a .safetensors file; None without any."""
    metadata = read_metadata(file) if file.is_file() else {}
    try:
        found = {name: json.loads(metadata[name]) for name in (CONFIGURATION, "mean", "std") if name in metadata}
    except (ValueError, RecursionError):
        raise ValueError(f"The metadata of {file} have a configuration, a mean or a std that is not JSON.") from None
    pixels = {name: value for name, value in found.items() if name != CONFIGURATION}
    pixels["interpolation"] = metadata.get(INTERPOLATION, "bilinear")  # before it was recorded
    return {"model_cfg": found.get(CONFIGURATION), "preprocess_cfg": pixels} if metadata else None


def _content_of(file: Path) -> Mapping[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("model_cfg"), dict):
        raise ValueError(f"{file} is not a configuration of open_clip: it has no model_cfg.")
    pixels = content.get("preprocess_cfg")
    if not isinstance(pixels, dict | None):
        raise ValueError(
            f"{file} is not a configuration of open_clip: its preprocess_cfg is a {type(pixels).__name__}."
        )
    return content


def _without_defaults(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if value != defaults[name]}


@functools.cache
def _register_own_architectures() -> None:
    open_clip.add_model_config(Path(__file__).parents[1] / "architectures")
