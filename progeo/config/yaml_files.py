"""Read YAML files of settings as text, without YAML's guesses; the type of a setting decides how to parse its value."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from importlib.resources import files
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_TAGS = frozenset({_NULL, _MERGE, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})
"""Tags of values that are accepted as written; `!!int 5` and `!!python/object` are refused."""
_MAX_VALUES = 100_000
"""Maximum number of values in a file: aliases of aliases can repeat a few lines a billion times."""
RENAMED = MappingProxyType(
    {
        "run": "out",
        "to": "out",
        "index": "faiss",
        "class": "at",
        "data.max_unreadable_share": "data.max_unreadable_fraction",
        "data.val_folder": "validation.folder",
        "data.database": "validation.database",
        "data.queries": "validation.queries",
        "data.val_preprocessing": "validation.preprocessing",
        "data.positive_radius_m": "validation.positive_radius_m",
        "data.positive_angle_deg": "validation.positive_angle_deg",
        "data.test_folder": "test.folder",
        "data.test_queries": "test.queries",
        "data.descriptor_cache": "test.descriptor_cache",
        "data.cache_images": "training.cache_images",
        "model.image_size": "encoder.image_size",
        "model.descriptor_dim": "encoder.descriptor_dim",
        "model.normalized": "encoder.normalized",
        "model.normalised": "encoder.normalized",
        "model.frozen": "encoder.frozen",
        "model.aggregation": "encoder.aggregation",
        "model.aggregation_options": "encoder.aggregation_options",
        "model.normalisation": "model.normalization",
        "prompts.normalised": "prompts.normalized",
        "text.normalised": "text.normalized",
    }
)
"""Renamed settings: former dotted name -> current dotted name."""


class _TextLoader(yaml.SafeLoader):
    """YAML loader that keeps every plain scalar except null as text and refuses duplicate keys.

    YAML 1.1 would read `no` as false, `1:30` as 90 and `010` as 8, and would keep the last of several values of a key.
    """

    yaml_implicit_resolvers = MappingProxyType(
        {
            **{first: [(_NULL, re.compile("(~|null|Null|NULL)$"))] for first in "~nN"},
            "": [(_NULL, re.compile("$"))],
            "<": [(_MERGE, re.compile("<<$"))],
        }
    )

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.num_values: dict[yaml.Node, int] = {}
        """Number of values of each node, with those of its aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and node not in self.num_values:
            raise ValueError("has a value that contains itself")
        if node is not None and not is_alias:
            children = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
            is_text = isinstance(node, yaml.ScalarNode)
            self.num_values[node] = 1 if is_text else 1 + sum(self.num_values[child] for child in children)
            if self.num_values[node] > _MAX_VALUES:
                raise ValueError(f"has more than {_MAX_VALUES:,} values, with those that its aliases repeat")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            raise ValueError(f"uses {node.tag!r} in line {node.start_mark.line + 1}: write the value without it")
        return super().construct_object(node, deep)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and key.tag != _MERGE:
                raise ValueError(f"names {name} in line {lines[name]} and again in line {line}: keep one")
            lines[name] = line
        return node


def find_setting_file(name: str) -> Path:
    """Find a file of settings: a path, or the name of one that comes with the program, such as toy/tiny_resnet.

    Raises:
        FileNotFoundError: there is none; the message gives the nearest name, or all.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(files("progeo"))) / "configs"
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    if name not in known:
        near = [each for each in known if each.endswith(f"/{name}")] or get_close_matches(name, known, 1)
        advice = f"did you mean {near[0]}?" if near else f"by name there are {', '.join(known)}."
        raise FileNotFoundError(f"The file of settings {name} does not exist; {advice}")
    return known[name]


def read_setting_file(
    path: Path, names: Collection[str], others: Callable[[], Collection[str]] = tuple
) -> dict[str, Any]:
    """Read settings from a YAML file by their dotted names: values are text as written, lists of text, or None.

    Args:
        path: the YAML file.
        names: dotted names of the settings to read.
        others: returns the names of the settings of training, which other commands skip, with the folder `out` of the
            run; it is called if the file holds one that is not in `names`.

    Raises:
        ValueError: the file is not valid YAML, holds no mapping, or names an unknown or renamed setting; the message
            names the file.
    """
    try:
        content = yaml.load(path.read_bytes(), _TextLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"The file of settings {path} {_reason(error)}.") from None
    except RecursionError:
        raise ValueError(f"The file of settings {path} is nested too deeply.") from None
    if not isinstance(content, dict):
        held = "is empty" if content is None else f"holds a {'list' if isinstance(content, list) else 'text'}"
        raise ValueError(f"The file of settings {path} {held}: it must give settings as `name: value`.")
    sections = _sections(names)
    known = set(names)
    if any(name not in known or isinstance(value, dict) for name, value in _flat(content, sections)):
        known |= set(others())
        sections = _sections(known)
    values: dict[str, Any] = {}
    for name, value in _flat(content, sections):
        if name in sections and name not in names:
            raise ValueError(f"The file of settings {path} gives {name} the value {value}: give it settings by name.")
        if name not in known:
            if RENAMED.get(name) in known:
                raise ValueError(f"The file of settings {path} names {name}, which is now called {RENAMED[name]}.")
            near = get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else "see --help, or name the `plugin` that adds it."
            raise ValueError(f"The file of settings {path} names {name}, which is no setting: {advice}")
        if name in values:
            raise ValueError(f"The file of settings {path} names {name} twice: keep one.")
        values[name] = value
    found = {name: value for name, value in values.items() if name in names}
    if len(found) < len(values) and "resume" not in names:
        found.pop("out", None)  # of a file for training it is the folder of the run
    return found


def _sections(names: Collection[str]) -> set[str]:
    return {name[:end] for name in names for end in range(len(name)) if name[end] == "."}


def _flat(values: Mapping[Any, Any], sections: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in sections:
            yield name, value
        elif isinstance(value, dict):
            yield from _flat(value, sections, f"{name}.")
        elif value is not None:  # a section without settings changes nothing
            yield name, value


def _reason(error: Exception) -> str:
    """Join the multi-line message of a YAML error into one line."""
    if not isinstance(error, yaml.YAMLError):
        return "is nested too deeply" if isinstance(error, RecursionError) else str(error)
    parts = [part for name in ("context", "problem", "reason") if (part := getattr(error, name, None))]
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark is not None else ""
    advice = " (indent with spaces, not with tabs)" if "'\\t'" in parts[-1] else ""
    return f"is not valid YAML{line}: {', '.join(parts)}{advice}"
