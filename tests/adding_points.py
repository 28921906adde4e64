"""Add points to Qdrant Edge in a process that can be killed: python adding_points.py FOLDER."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from progeo.localization.engines.connecting import EngineMetadata, connect
from progeo.localization.engines.writer import EngineWriter
from progeo.places.catalogue import Catalogue

NUM_ROWS = 20_000
VALUES = np.random.default_rng(0).standard_normal((NUM_ROWS, 8)).astype(np.float32)
PART = "part_00000 0"


@dataclass
class Rows:
    """Rows that print the first of those that are read."""

    unread: int = 0
    """Rows before this one cannot be read."""
    width = 8

    def __len__(self):
        return NUM_ROWS

    def take(self, rows):
        assert rows[0] >= self.unread
        print(rows[0], flush=True)
        return VALUES[rows]


def images():
    unknown = np.full(NUM_ROWS, np.nan)
    paths = pa.array([f"/{row}.jpg" for row in range(NUM_ROWS)], pa.large_string())
    return Catalogue(Path(), pa.table({"path": paths, "latitude": unknown, "longitude": unknown, "heading": unknown}))


def writer(folder):
    engine = EngineMetadata("qdrant", str(folder), "", "owner")
    return EngineWriter(connect(engine, folder), engine, "encoder")


if __name__ == "__main__":
    writer(Path(sys.argv[1])).add(PART, Rows(), images())
