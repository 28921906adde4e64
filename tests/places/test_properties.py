"""What holds of all names, cells and groups."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progeo.places.catalogue import Catalogue
from progeo.places.cells import build_partition, class_ids
from progeo.places.filename import FIELDS, ParsedNames, format_names, parse_columns, parse_names

# No example has a deadline: how long it takes says nothing on a machine that has other things to do.
settings.register_profile("patient", deadline=None, max_examples=50)
settings.load_profile("patient")
METERS = st.integers(0, 999_999_999).map(lambda cm: cm / 100)
DEGREES = st.integers(-17_999_999, 17_999_999).map(lambda units: units / 1e5)
MAYBE = {"heading", "pitch", "roll", "height"}
TEXT = st.text(st.characters(blacklist_characters="@/\x1f", blacklist_categories=("Cs", "Cc")), max_size=8)
FIELD = {
    "east": METERS,
    "north": METERS,
    "zone": st.integers(0, 60),
    "latitude": DEGREES,
    "longitude": DEGREES,
    **{name: st.integers(-360, 360).map(float) | st.just(np.nan) for name in MAYBE},
    **dict.fromkeys(("letter", "pano_id", "tile", "timestamp", "note"), TEXT),
}
IMAGES = st.lists(
    st.tuples(st.integers(-300, 300), st.integers(-300, 300), st.integers(0, 719).map(lambda half: half / 2)),
    min_size=1,
    max_size=60,
)


@given(st.lists(st.fixed_dictionaries(FIELD), min_size=1, max_size=5))
def test_parsing_is_the_inverse_of_formatting(rows):
    columns = {name: np.array([row[name] for row in rows]) for name in FIELDS}
    fields = ParsedNames(**{**columns, "zone": columns["zone"].astype(np.int8)})
    parsed = parse_names(format_names(fields))
    for name, values in dataclasses.asdict(fields).items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(getattr(parsed, name), values, atol=6e-3 if name in ("east", "north") else 6e-6)
        else:
            assert getattr(parsed, name).tolist() == values.tolist()


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a/", "b@7@8/c/"]), st.lists(st.just("") | METERS.map(str), max_size=18)),
        max_size=8,
    )
)
def test_names_with_fields_of_any_number_are_read_together_as_one_by_one(rows):
    names = [f"{folder}@1@2@{''.join(f'{value}@' for value in values)}.jpg" for folder, values in rows]
    columns = parse_columns(names, ("latitude", "heading", "note"))
    for index, (_, values) in enumerate(rows):
        fields = dict(zip(FIELDS[2:], values, strict=False))
        for field in ("latitude", "heading"):
            np.testing.assert_equal(columns[field][index], float(fields.get(field) or "nan"))
        assert columns["note"][index] == fields.get("note", "")


@settings(max_examples=40)
@given(st.lists(st.lists(TEXT | METERS.map(str) | st.integers(0, 99).map(str), max_size=18), max_size=8))
def test_names_with_free_text_are_read_together_as_one_by_one(rows):
    names = [f"@1@2@{''.join(f'{value}@' for value in values)}.jpg" for values in rows]
    columns = parse_columns(names, FIELDS)
    for index, values in enumerate(rows):
        fields = dict(zip(FIELDS[2:], values, strict=False))
        for field in ("letter", "pano_id", "tile", "timestamp", "note"):
            assert columns[field][index] == fields.get(field, "")
        for field in ("latitude", "longitude", "heading", "pitch", "roll", "height"):
            np.testing.assert_equal(columns[field][index], number_in(fields.get(field, "")))
        zone = number_in(fields.get("zone", ""))
        is_zone = zone in range(1, 61) and len(fields["zone"].strip(" \t").partition(".")[0]) <= 2
        assert columns["zone"][index] == (zone if is_zone else 0)


def number_in(text):
    """As Python reads it, but for digits of other scripts and for what is not finite."""
    try:
        number = float(text) if text.isascii() and "_" not in text else np.nan
    except ValueError:
        return np.nan
    return number if abs(number) <= 10**8 else np.nan


@given(
    images=IMAGES,
    cell_side_m=st.integers(1, 50),
    heading_bin_deg=st.sampled_from([30, 45, 60, 90, 180, 360]),
    groups_per_side=st.integers(1, 4),
    min_images_per_class=st.integers(1, 3),
    data=st.data(),
)
def test_every_image_of_a_large_enough_class_is_in_one_group_once_and_no_two_classes_of_a_group_touch(
    images, cell_side_m, heading_bin_deg, groups_per_side, min_images_per_class, data
):
    bins = 360 // heading_bin_deg
    groups_per_heading = data.draw(st.sampled_from([n for n in range(1, bins + 1) if bins % n == 0]))
    east, north, heading = np.array(images, float).T
    table = {"path": [str(row) for row in range(len(images))], "east": east, "north": north, "heading": heading}
    catalogue = Catalogue(Path("images"), pa.table({**table, "zone": np.zeros(len(images), np.int8)}))
    cells = {"cell_side_m": cell_side_m, "heading_bin_deg": heading_bin_deg}
    ids = [tuple(row) for row in class_ids(east, north, heading, **cells).tolist()]
    kept = [row for row, class_id in enumerate(ids) if ids.count(class_id) >= min_images_per_class]
    cut = {**cells, "groups_per_side": groups_per_side, "groups_per_heading": groups_per_heading}
    if not kept:
        with pytest.raises(ValueError, match="No class has"):
            build_partition(catalogue, **cut, min_images_per_class=min_images_per_class, num_groups=None)
        return
    partition = build_partition(catalogue, **cut, min_images_per_class=min_images_per_class, num_groups=None)
    assert sorted(np.concatenate([group.rows for group in partition.groups]).tolist()) == kept
    for group in partition.groups:
        assert [tuple(group.class_ids[label]) for label in group.labels] == [ids[row] for row in group.rows]
        for i, one in enumerate(group.class_ids):
            for other in group.class_ids[:i]:
                apart = np.abs(one - other) // [cell_side_m, cell_side_m, heading_bin_deg]
                around = min(apart[2], bins - apart[2])
                assert apart[0] >= groups_per_side or apart[1] >= groups_per_side or around >= groups_per_heading
