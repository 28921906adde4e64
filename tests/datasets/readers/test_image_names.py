import numpy as np
import pytest
from running import build_catalogue

from progeo.datasets.readers.image_names import read_image_names

IMAGES = [f"{folder}/@{500_000 + n}@4180000@@@@@@@@@@@@@{n}.jpg" for n, folder in enumerate("aabbcc")]


@pytest.fixture
def read(tmp_path):
    """The names of six images of a catalogue from a table of paths and names, given as lines of text."""

    def read_lines(*lines, header="image,name", column="name"):
        file = tmp_path / "names.csv"
        file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return read_image_names(file, build_catalogue(tmp_path, IMAGES), column)

    return read_lines


def words(names, *classes):
    rows = np.concatenate([np.array(each, int) for each in classes])
    return names.of_classes(rows, np.repeat(np.arange(len(classes)), list(map(len, classes))), len(classes))


def test_a_class_has_the_most_frequent_name_of_its_images_and_of_equally_frequent_ones_the_first(read):
    names = read(*(f"{IMAGES[n]},{name}" for n, name in [(5, "Zoo"), (1, "Zoo"), (0, "Alley"), (3, "B"), (4, "Alley")]))
    assert words(names, [0, 1], [5, 1, 0], [2], [3, 2], []) == ["Alley", "Zoo", "", "B", ""]
    assert words(names, [4], [0]) == ["Alley", "Alley"]


def test_names_are_read_as_they_are_written(read):
    written = ['"Rue de l\'Église, Zürich"', '"the ""Old"" Town"', " Main Street ", "", "n/a"]
    names = read(*(f"{path},{text}" for path, text in zip(IMAGES, written, strict=False)))
    expected = ["Rue de l'Église, Zürich", 'the "Old" Town', "Main Street", "", "", ""]
    assert words(names, *([row] for row in range(6))) == expected


def test_the_columns_may_have_other_names_and_paths_those_of_windows(read):
    names = read(IMAGES[2].replace("/", "\\") + ";3,5", header="path;Street no", column="Street no")
    assert words(names, [2], [3]) == ["3,5", ""]


@pytest.mark.parametrize(
    ("header", "line", "sentence"),
    [
        ("image,street", "{},a", "has no column name; it has image, street"),
        ("photograph,name", "{},a", "needs a column path or image; it has photograph, name"),
        ("image,name,name", "{},a,b", "has 2 columns name"),
        ("image,name", "nowhere.jpg,a", "names no image of .*: its first path is nowhere.jpg, with the name 'a', and"),
        ("image,name", "{},", "names no image of"),
    ],
)
def test_a_table_without_names_is_refused(read, header, line, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(line.format(IMAGES[0]), header=header)
