"""Benchmark protocols: database, queries, criterion for a correct prediction, and expected image counts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib import resources
from typing import Any

import numpy as np
import yaml

from progeo.evaluation.options import BenchmarkOptions


@dataclass(frozen=True)
class Published:
    """Recalls that somebody published for a protocol."""

    method: str
    backbone: str
    dim: int
    """Dimension of the descriptors."""
    recalls: Mapping[int, float]
    """Recall in percent as printed, by N."""
    source: str
    """Publication, year and table."""
    sees_other_images: bool = False
    """Whether descriptors depend on other test images, so that the recalls are not comparable."""

    @property
    def remark(self) -> str:
        """What sets the recalls apart from those of other methods, or ""."""
        return "not comparable: sees other test images" if self.sees_other_images else ""


@dataclass(frozen=True)
class Protocol:
    """A benchmark protocol, from `protocols/<name>.yaml`."""

    name: str
    description: str
    num_queries: int
    comparable: str
    """Publications whose numbers are comparable."""
    num_database: int | None = None
    """Number of database images; None if publications do not say it exactly, so that any is accepted."""
    database: str | None = None
    """Name of the database folder; None takes that of the options."""
    queries: str | None = None
    """Name of the query folder; None takes that of the options."""
    positive_radius_m: float = 25
    positives_given: bool = False
    """Whether the positives must be given with the queries, as they do not follow from positions in meters."""
    upload: bool = False
    """Whether queries may be without labels, and predictions are written as the file that the challenge's evaluator
    reads."""
    one_per_panorama: bool = False
    """Whether only the best-ranked view of each panorama counts as a prediction."""
    conditions: tuple[str, ...] = ()
    """Conditions (light) of the queries, repeating in the order of the numbers in their names."""
    published: tuple[Published, ...] = ()
    """Some published recalls, the lowest first."""

    def applied_to(self, options: BenchmarkOptions) -> BenchmarkOptions:
        """Return the options of a benchmark with the values of the protocol.

        Raises:
            ValueError: the options compare headings, which protocols ignore.
        """
        if options.positive_angle_deg is not None:
            raise ValueError(
                f"`protocol` {self.name} ignores headings, so recalls with `positive_angle_deg` "
                f"{options.positive_angle_deg:g} would not be comparable: omit one of them."
            )
        names = ("database", "queries", "positive_radius_m", "one_per_panorama")
        values = {name: getattr(self, name) for name in names}
        return replace(options, **{name: value for name, value in values.items() if value is not None})

    def check(self, folder: object, num_database: int | None, num_queries: int) -> None:
        """Check that a folder has the image counts of the protocol.

        Args:
            num_database: number of database images; None if none are read.

        Raises:
            ValueError: the counts differ; the message gives both.
        """
        num_database = None if self.num_database is None else num_database
        if num_database is None and num_queries != self.num_queries:
            raise ValueError(
                f"`protocol` {self.name} has {self.num_queries:,} queries, {folder} has {num_queries:,}, so its "
                f"recalls would not be comparable. Omit `protocol`, or complete the folder."
            )
        if num_database is not None and (num_database, num_queries) != (self.num_database, self.num_queries):
            raise ValueError(
                f"`protocol` {self.name} has {self.num_database:,} database images and {self.num_queries:,} queries, "
                f"{folder} has {num_database:,} and {num_queries:,}, so its recalls would not be comparable. Omit "
                f"`protocol`, or complete the folder."
            )

    def conditions_of(self, queries: Sequence[str]) -> np.ndarray | None:
        """Return the condition of each query, str (Q,), or None if the protocol has no conditions.

        Args:
            queries: paths of the queries; the number is in the name itself, or in the pano_id of a name that follows
                the convention.

        Raises:
            ValueError: a name has no number, or two names have the same.
        """
        if not self.conditions:
            return None
        names = [query.rsplit("/", 1)[-1] for query in queries]
        ids = [name.split("@")[7] if name.count("@") > 7 else name.partition("@")[0] for name in names]
        found = [re.search(r"\d+", each) for each in ids]
        if None in found or len({int(match[0]) for match in found if match}) < len(names):
            raise ValueError(
                f"`protocol` {self.name} assigns {', '.join(self.conditions)} by the numbers in the names of the "
                f"queries, but not every name has a unique number, such as {names[0]}."
            )
        ranks = np.argsort(np.argsort([int(match[0]) for match in found if match]))
        return np.array(self.conditions)[ranks % len(self.conditions)]


def protocol_names() -> list[str]:
    """List the names of all protocols."""
    files = resources.files(__package__).joinpath("protocols").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_protocol(name: str) -> Protocol:
    """Load a protocol by its name.

    Raises:
        ValueError: there is no protocol of this name.
    """
    if name not in protocol_names():
        raise ValueError(f"`protocol` {name!r} is not known: use one of {', '.join(protocol_names())}.")
    values = yaml.safe_load(resources.files(__package__).joinpath(f"protocols/{name}.yaml").read_text(encoding="utf-8"))
    published = tuple(_published(name, row) for row in values.get("published", ()))
    return Protocol(name, **{**values, "conditions": tuple(values.get("conditions", ())), "published": published})


def _published(protocol: str, row: Mapping[str, Any]) -> Published:
    """Check a row of `published` in the file of a protocol.

    Raises:
        ValueError: a value is missing, unknown or impossible.
    """
    names = [field.name for field in fields(Published)]
    required = {field.name for field in fields(Published) if field.default is MISSING}
    if not required <= row.keys() <= {*names}:
        raise ValueError(
            f"A row of `published` in {protocol}.yaml must have {', '.join(names)}, of which only sees_other_images "
            f"may be missing; got {', '.join(row)}."
        )
    found = Published(**row)
    ns, percents = list(found.recalls), list(found.recalls.values())
    if not ns or ns != sorted(ns) or percents != sorted(percents) or not 0 <= percents[0] <= percents[-1] <= 100:
        raise ValueError(f"`published` recalls in {protocol}.yaml must be percents at rising N, got {found.recalls}.")
    return found
