"""Protocols: which database and queries, what counts as right, and how many images there must be."""

from dataclasses import dataclass, fields
from importlib import resources

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
    assert values.keys() == {field.name for field in fields(Protocol)} - {"name"}
    return Protocol(name, **values)
