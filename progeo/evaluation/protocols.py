"""Protocols: which database and queries, what counts as right, and how many images there must be."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import yaml


@dataclass(frozen=True)
class Protocol:
    """One way in which the field evaluates, from `protocols/<name>.yaml`."""

    name: str
    what: str
    database: str
    """Name of the database's folder."""
    queries: str
    """Name of the queries' folder."""
    positive_radius_m: float
    num_database: int
    num_queries: int
    comparable: str
    """With whose numbers a result can be compared."""
    one_per_panorama: bool = False
    """Whether only the nearest part of a panorama is a prediction."""
    conditions: tuple[str, ...] = ()
    """In what light queries were taken, in turn, in the order of the numbers in their names."""

    def check(self, folder: object, num_database: int, num_queries: int) -> None:
        """Refuse a folder that is not the protocol's.

        Raises:
            ValueError: with both counts.
        """
        if (num_database, num_queries) != (self.num_database, self.num_queries):
            raise ValueError(
                f"The protocol {self.name} has {self.num_database:,} database images and {self.num_queries:,} queries, "
                f"{folder} has {num_database:,} and {num_queries:,}: its numbers could not be compared. Leave out "
                f"--protocol, or complete the folder."
            )

    def conditions_of(self, queries: Sequence[str]) -> np.ndarray | None:
        """The condition of each query, str (Q,); None where the protocol tells none apart.

        Args:
            queries: their paths; a number is in the name itself, or in its pano_id where it follows the convention.

        Raises:
            ValueError: a name without a number, or two of the same.
        """
        if not self.conditions:
            return None
        names = [query.rsplit("/", 1)[-1] for query in queries]
        ids = [name.split("@")[7] if name.count("@") > 7 else name.partition("@")[0] for name in names]
        found = [re.search(r"\d+", each) for each in ids]
        if None in found or len({int(match[0]) for match in found if match}) < len(names):
            raise ValueError(
                f"The protocol {self.name} tells {', '.join(self.conditions)} apart by the numbers of the queries, but "
                f"not all names have one of their own, such as {names[0]}."
            )
        ranks = np.argsort(np.argsort([int(match[0]) for match in found if match]))
        return np.array(self.conditions)[ranks % len(self.conditions)]


def protocol_names() -> list[str]:
    """All protocols, by name."""
    files = resources.files(__package__).joinpath("protocols").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_protocol(name: str) -> Protocol:
    """Read a protocol by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in protocol_names():
        raise ValueError(f"There is no protocol {name!r}; there are {', '.join(protocol_names())}.")
    values = yaml.safe_load(resources.files(__package__).joinpath(f"protocols/{name}.yaml").read_text(encoding="utf-8"))
    return Protocol(name, **{**values, "conditions": tuple(values.get("conditions", ()))})
