"""Data sets that encoders are compared on: folders with their protocols."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 200
"""Length of a file name: file systems allow 255 bytes, of which a number before it takes some."""


@dataclass(frozen=True)
class DataSet:
    """A data set that encoders are compared on."""

    folder: Path
    protocol: str | None
    name: str
    """The protocol if there is one, else the folder; both if several data sets have the same protocol."""

    @property
    def part(self) -> str:
        """Name for a folder of results."""
        return as_file_name(self.protocol or "_".join(self.folder.parts[-2:]))


def data_sets(folders: Sequence[Path], protocols: Sequence[str]) -> list[DataSet]:
    """Pair folders with protocols.

    Args:
        protocols: none, one for all folders, or one for each; `none` is no protocol.

    Raises:
        ValueError: there is no folder, one is given twice with the same protocol, or protocols are neither one nor one
            for each folder.
    """
    if not folders:
        raise ValueError("Name at least one `folder` of a data set; got none.")
    if len(protocols) not in (0, 1, len(folders)):
        raise ValueError(
            f"`protocol` takes one name for all {len(folders)} folders, or one for each in their order; got "
            f"{len(protocols)}: {', '.join(protocols)}. Write none for a folder without a protocol."
        )
    each = [*protocols] * len(folders) if len(protocols) == 1 else [*protocols] or ["none"] * len(folders)
    pairs = [
        (folder, None if protocol in ("none", "null") else protocol)
        for folder, protocol in zip(folders, each, strict=True)
    ]
    found = []
    for number, (folder, protocol) in enumerate(pairs):
        if (folder, protocol) in pairs[:number]:
            raise ValueError(f"Name each `folder` once, or with another `protocol`; {folder} is given twice.")
        is_only = [other for _, other in pairs].count(protocol) == 1
        name = str(folder) if protocol is None else protocol if is_only else f"{protocol}, {folder}"
        found.append(DataSet(folder, protocol, name))
    return found


def as_file_name(text: str) -> str:
    """Replace all but letters, digits, `.` and `-` in the name of an encoder or a data set by `_`; keep its end."""
    return re.sub(r"[^\w.-]+", "_", text).encode()[-_MAX_BYTES:].decode(errors="ignore")
