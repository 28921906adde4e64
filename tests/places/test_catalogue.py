import numpy as np
import pytest

from progeo.places.catalogue import build_catalogue, open_catalogue, read_catalogue


def name(east, heading="", extension=".jpg"):
    return f"@{east}@4000000@10@S@@@@@{heading}@@@@@@{extension}"


def touch(folder, *names):
    for each in names:
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).touch()


def test_images_are_found_below_the_folder_in_any_case_and_sorted(tmp_path):
    touch(tmp_path, name(3), f"deep/er/{name(1, extension='.PNG')}", f"b/{name(2, extension='.JPeG')}", "notes.txt")
    catalogue = read_catalogue(tmp_path)
    assert catalogue.table["path"].to_pylist() == sorted(catalogue.table["path"].to_pylist())
    assert sorted(catalogue.east) == [1, 2, 3]
    assert all(catalogue.path(row).is_file() for row in range(3))


def test_a_list_beside_the_folder_is_read_instead_of_the_disk(tmp_path):
    folder = tmp_path / "train"
    touch(folder, name(1), name(2))
    (tmp_path / "train_images_paths.txt").write_text(f"{name(2)}\n\n", encoding="utf-8")
    assert read_catalogue(folder).east.tolist() == [2]


def test_a_list_that_names_nothing_or_something_absent_is_refused(tmp_path):
    folder = tmp_path / "train"
    touch(folder, name(1))
    listing = tmp_path / "train_images_paths.txt"
    listing.write_text(f"{name(7)}\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"names @7@.* which does not lie in"):
        read_catalogue(folder)
    listing.write_text("\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="names no image"):
        read_catalogue(folder)


def test_a_missing_folder_and_one_without_images_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_catalogue(tmp_path / "nowhere")
    touch(tmp_path, "readme.txt")
    with pytest.raises(FileNotFoundError, match="There is no image"):
        read_catalogue(tmp_path)


def test_a_saved_catalogue_is_mapped_back_equal(tmp_path):
    catalogue = build_catalogue(tmp_path, [name(2, 30), name(1)])
    catalogue.save(tmp_path / "catalogue.arrow")
    again = open_catalogue(tmp_path / "catalogue.arrow", tmp_path)
    assert again.table["path"].equals(catalogue.table["path"])
    assert again.table["zone"].to_pylist() == [10, 10]
    np.testing.assert_array_equal(again.positions_m, [[1, 4000000], [2, 4000000]])
    np.testing.assert_array_equal(again.heading, [np.nan, 30])


def test_take_gives_the_rows_in_the_order_asked_for(tmp_path):
    catalogue = build_catalogue(tmp_path, [name(1), name(2), name(3)])
    assert catalogue.take(np.array([2, 0])).east.tolist() == [3, 1]


def test_the_fingerprint_is_that_of_the_paths_and_their_order_alone(tmp_path):
    names = [f"@{index}@0@.jpg" for index in range(5)]
    catalogue = build_catalogue(tmp_path, names)
    assert build_catalogue(tmp_path / "elsewhere", names).fingerprint == catalogue.fingerprint
    rows = np.arange(5)
    assert catalogue.take(rows).fingerprint == catalogue.fingerprint
    for other in (rows[:4], rows[1:], rows[::-1]):
        assert catalogue.take(other).fingerprint != catalogue.fingerprint
