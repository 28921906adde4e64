"""A file or folder of weights to import, which is read only once and only when a format needs it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from progeo.convert.configurations import read_configuration
from progeo.models.weight_files.checkpoints import FoundWeights, find_weights, read_content

_INDEX = ".index.json"


@dataclass(frozen=True)
class Source:
    """A file or folder to import."""

    path: Path
    marks: Collection[str]
    """Tensor names that identify a state dict of a known format, see `find_weights`."""
    part: str | None = None
    """Dotted address of the weights in a checkpoint, see `find_weights`."""

    @property
    def folder(self) -> Path:
        """The folder, or the one that the file is in."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def content(self) -> Any:
        """The content of the file, see `read_content`."""
        return read_content(self.path)

    @cached_property
    def found(self) -> FoundWeights:
        """The state dict in the file."""
        return find_weights(self.content, self.path, self.marks, self.part)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors of the file by name; empty for a folder."""
        return {} if self.path.is_dir() else self.found.state

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """The first parts of all tensor names of the file."""
        return frozenset(name.partition(".")[0] for name in self.state)

    def holds_weights(self, names: tuple[str, ...]) -> bool:
        """Return whether the folder has a weights file of one of these names, or the index of a sharded one."""
        return any((self.folder / f"{name}{ending}").is_file() for name in names for ending in ("", _INDEX))

    def weights(self, names: tuple[str, ...]) -> FoundWeights:
        """Read the state dict in the file; of a folder in the first of these files, possibly sharded with an index.

        Raises:
            FileNotFoundError: the folder has none of the files, or a shard is missing.
            ValueError: the index lists no files.
        """
        if not self.path.is_dir():
            return self.found
        for file in (self.path / name for name in names):
            if file.is_file():
                return find_weights(read_content(file), file, self.marks, self.part)
            index = file.with_name(f"{file.name}{_INDEX}")
            if index.is_file():
                return find_weights(_read_shards(index), index, self.marks, self.part)
        raise FileNotFoundError(f"{self.path} holds no weights: neither {' nor '.join(names)}.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = read_configuration(index).part("weight_map").values.values()
    if not names:
        raise ValueError(f"{index} lists no files of weights.")
    files = [index.parent / name for name in sorted({Path(str(name)).name for name in names})]
    states = [find_weights(read_content(file), file, ()).state for file in files]
    return {name: tensor for state in states for name, tensor in state.items()}
