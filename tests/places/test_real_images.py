"""Names and places of real images, where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import utm

from progeo.datasets.readers.tables import read_table
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import class_ids

CAMBRIDGE = Path(__file__).parents[3] / "shared/data/cambridge_sample/train"


@pytest.mark.skipif(not CAMBRIDGE.is_dir(), reason=f"there are no images in {CAMBRIDGE}")
def test_a_table_of_degrees_gives_the_cells_that_the_names_give(tmp_path):
    named = read_catalogue(CAMBRIDGE)
    latitude, longitude = utm.to_latlon(named.east, named.north, 31, "U")
    rows = zip(named.table["path"].to_pylist(), latitude, longitude, named.heading, strict=True)
    (tmp_path / "places.csv").write_text(
        "path,lat,lon,heading\n"
        + "".join(f"{path},{lat:.9f},{lon:.9f},{heading}\n" for path, lat, lon, heading in rows)
    )
    listed = read_table(tmp_path / "places.csv", CAMBRIDGE)
    ids = [
        class_ids(catalogue.east, catalogue.north, catalogue.heading, cell_side_m=20, heading_bin_deg=90)
        for catalogue in (named, listed)
    ]
    np.testing.assert_array_equal(*ids)
    np.testing.assert_allclose(listed.east, named.east, atol=1e-3)
