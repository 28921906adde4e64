"""Search for each query only near a rough position of it, or in the direction that it looks in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from progeo.engine.log import LOGGER
from progeo.evaluation.search import Neighbors, nearest_among
from progeo.features.store import ShardedRows
from progeo.places.catalogue import Catalogue
from progeo.places.cell_order import CellOrder, build_cell_order
from progeo.places.geographic import degrees_of
from progeo.places.nearby import HeadingRange, Near, OwnPosition, check_known, looks_toward
from progeo.progress import followed


@dataclass(frozen=True)
class Regions:
    """The database images that may match each of Q queries."""

    order: CellOrder
    headings: np.ndarray
    """Heading of each database image in degrees, (N,), NaN where unknown."""
    circles: Sequence[Near | None]
    """Where each query was taken; None for anywhere."""
    ranges: Sequence[HeadingRange | None]
    """Where each query looks; None for any direction."""
    prior: str
    """What is known of the queries, in words."""

    def __len__(self) -> int:
        return len(self.circles)

    def without_queries(self, rows: np.ndarray) -> "Regions":
        """Return the regions without those of the queries at `rows`."""
        stay = np.delete(np.arange(len(self)), rows).tolist()
        return replace(self, circles=[self.circles[row] for row in stay], ranges=[self.ranges[row] for row in stay])

    def rows(self, query: int) -> np.ndarray:
        """Find the database rows that may match a query, sorted, int64 (n,)."""
        near, heading = self.circles[query], self.ranges[query]
        rows = np.arange(len(self.headings)) if near is None else self.order.rows_within(near)
        return rows if heading is None else rows[looks_toward(self.headings[rows], heading)]

    def neighbors(self, database: ShardedRows, queries: np.ndarray, count: int) -> Neighbors:
        """Search the region of each query exactly.

        Args:
            database: descriptors (N, D).
            queries: descriptors float32 (Q, C, D) of C crops of each query.
            count: neighbors per crop, K; the row is -1 and the distance infinite where there are fewer.

        Returns:
            neighbors of all crops, (Q C, K), as rows of the database without its missing ones.
        """
        found = np.full((*queries.shape[:2], count), -1, np.int64)
        distances = np.full(found.shape, np.inf, np.float32)
        regions = followed(self._alike(), "searching regions", total=len(self), size=len, unit="queries")
        for alike in regions:
            rows = np.setdiff1d(self.rows(alike[0]), database.missing, assume_unique=True)
            if num_found := min(count, len(rows)):
                rows -= np.searchsorted(database.missing, rows)
                nearest = nearest_among(rows, queries[alike].reshape(-1, database.width), num_found, take=database.take)
                shape = (len(alike), -1, num_found)
                found[alike, :, :num_found] = nearest.rows.reshape(shape)
                distances[alike, :, :num_found] = nearest.distances.reshape(shape)
        return Neighbors(found.reshape(-1, count), distances.reshape(-1, count))

    def facts(self) -> dict[str, str]:
        """Return and log facts: what is known, how many images are searched, and queries without any."""
        sizes = np.empty(len(self), np.int64)
        for alike in self._alike():
            sizes[alike] = len(self.rows(alike[0]))
        num_images = len(self.headings)
        share = 100 * sizes.mean() / num_images
        searched = f"{sizes.mean():,.1f} of {num_images:,} per query, {share:.2f} %"
        without = f"{(sizes == 0).sum():,} of {len(self):,}, without predictions"
        LOGGER.info("images searched, %s: %s; queries without any: %s", self.prior, searched, without)
        return {"prior": self.prior, "images searched": searched, "queries without an image in their region": without}

    def _alike(self) -> list[list[int]]:
        """Group the queries with the same region."""
        groups: dict[tuple[Near | None, HeadingRange | None], list[int]] = {}
        for query, key in enumerate(zip(self.circles, self.ranges, strict=True)):
            groups.setdefault(key, []).append(query)
        return list(groups.values())


def build_regions(
    database: Catalogue, queries: Catalogue, near: Near | OwnPosition | None, tolerance_deg: float | None
) -> Regions | None:
    """Build the regions of queries; None if nothing is known of them.

    Args:
        near: where queries were taken.
        tolerance_deg: maximum difference between the heading of an image and that of the query, at most 180; images
            and queries without a heading fit all.

    Raises:
        ValueError: positions or headings are needed that are unknown.
    """
    if near is None and tolerance_deg is None:
        return None
    circles: Sequence[Near | None] = [None] * len(queries)
    ranges: Sequence[HeadingRange | None] = [None] * len(queries)
    degrees, texts = np.full((2, len(database)), np.nan), []
    if near is not None:
        degrees = _known_degrees(database)
        circles = [near] * len(queries) if isinstance(near, Near) else _own_circles(queries, near)
        where = (
            f"within {near.radius_m:.10g} m of {near.latitude}, {near.longitude}" if isinstance(near, Near) else near
        )
        texts.append(str(where))
    if tolerance_deg is not None:
        ranges = _own_ranges(database, queries, tolerance_deg)
        texts.append(f"heading within {tolerance_deg:g} degrees of that of each query")
    order = build_cell_order(*(pa.chunked_array([column]) for column in degrees))
    return Regions(order, database.heading, circles, ranges, "; ".join(texts))


def _known_degrees(database: Catalogue) -> np.ndarray:
    degrees = degrees_of(database)
    check_known(degrees.sum(axis=0), "latitude and longitude", database.folder, name="near")
    return degrees


def _own_circles(queries: Catalogue, near: OwnPosition) -> list[Near]:
    """Displace the position of each query."""
    degrees = degrees_of(queries)
    unknown = np.flatnonzero(np.isnan(degrees).any(axis=0))
    if len(unknown):
        raise ValueError(
            f"`near` {near.radius_m:g} needs the latitude and longitude of each query, and {len(unknown):,} of "
            f"{len(queries):,} have none, such as {queries.name(int(unknown[0]))}: give LAT,LON,RADIUS_M."
        )
    return [near.of(queries.name(row), *position) for row, position in enumerate(degrees.T.tolist())]


def _own_ranges(database: Catalogue, queries: Catalogue, tolerance_deg: float) -> list[HeadingRange | None]:
    """Return the range around the heading of each query; None where it is unknown."""
    for images in (database, queries):
        check_known(images.heading, "heading", images.folder, name="heading")
    known = queries.heading.tolist()
    return [None if math.isnan(heading) else HeadingRange(heading, tolerance_deg) for heading in known]
