"""Training images that tuples are mined from: database, queries and the positives of each query."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.data.options import DataOptions
from progeo.engine.log import LOGGER
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.cells import check_positions
from progeo.places.geographic import check_zones, positions_m
from progeo.training.mining import Candidates, find_candidates
from progeo.training.options import MiningOptions
from progeo.training.places import TrainingImages


@dataclass(frozen=True)
class TrainingTuples(TrainingImages):
    """Training images that tuples are mined from; `catalogue` is the database."""

    queries: Catalogue | None
    """None if the images of the database are the queries."""
    candidates: Candidates
    """Queries that have a positive, with the database rows of their positives and of the images near them."""

    @property
    def catalogues(self) -> tuple[Catalogue, ...]:
        """The database and, if they are others, the queries."""
        return (self.catalogue,) if self.queries is None else (self.catalogue, self.queries)

    @property
    def query_rows(self) -> np.ndarray:
        """Row of each usable query among all training images, int64 (q,)."""
        return self.candidates.queries + (0 if self.queries is None else len(self.catalogue))


def read_training_tuples(data: DataOptions, options: MiningOptions) -> TrainingTuples:
    """Read database and queries, and find the positives of each query.

    Raises:
        ValueError: no query has a positive, or one has too few images far from it.
    """
    database = read_catalogue(data.train_folder / options.database)
    queries = None if options.queries_folder is None else read_catalogue(data.train_folder / options.queries_folder)
    found = _candidates(database, queries, options)
    query_images = database if queries is None else queries
    if skipped := len(query_images) - len(found.queries):
        LOGGER.warning(
            "%d of %d queries have no positive within %g m and are skipped",
            skipped,
            len(query_images),
            options.positive_radius_m,
        )
    far = len(database) - np.array([len(rows) for rows in found.excluded], np.int64)
    if len(far) == 0:
        raise ValueError(
            f"No query of {query_images.folder} has an image of another panorama within `mining.positive_radius_m` "
            f"{options.positive_radius_m:g} in {database.folder}."
        )
    if far.min() < options.negatives:
        name = query_images.name(int(found.queries[far.argmin()]))
        raise ValueError(
            f"`mining.negatives` {options.negatives} are more than the {far.min()} database images that are beyond "
            f"{options.exclusion_radius_m:g} m from the query {name}: lower it."
        )
    return TrainingTuples(database, queries, found)


def _candidates(database: Catalogue, queries: Catalogue | None, options: MiningOptions) -> Candidates:
    if queries is not None:
        check_zones(database, queries)
    catalogues = (database,) if queries is None else (database, queries)
    positions = positions_m(*catalogues)
    for catalogue, of_catalogue in zip(catalogues, positions, strict=True):
        check_positions(catalogue, of_catalogue)
    panoramas = [_panoramas(each) for each in (catalogues[-1], database)]
    return find_candidates(
        positions[-1],
        positions[0],
        positive_radius_m=options.positive_radius_m,
        exclusion_radius_m=options.exclusion_radius_m,
        query_panoramas=panoramas[0] if all(each is not None for each in panoramas) else None,
        database_panoramas=panoramas[1],
        query_rows=np.arange(len(database)) if queries is None else _rows_in(database, queries),
    )


def _rows_in(database: Catalogue, queries: Catalogue) -> np.ndarray:
    """Return the database row of each query, int64 (Q,), -1 for a file that is no database image."""
    text = pa.large_string()
    files, of_queries = (
        pc.binary_join_element_wise(
            pa.scalar(str(each.folder.resolve()), text), each.table["path"].cast(text), pa.scalar("/", text)
        )
        for each in (database, queries)
    )
    return pc.fill_null(pc.index_in(of_queries, files), -1).to_numpy().astype(np.int64)


def _panoramas(catalogue: Catalogue) -> np.ndarray | None:
    """Return the panorama of each image; None if the names do not say it."""
    try:
        return catalogue.panoramas
    except ValueError:
        return None
