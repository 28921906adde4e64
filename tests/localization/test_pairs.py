"""Files of pairs, read back as hloc and COLMAP read them."""

import pytest

from progeo.localization.localizations import Localization, Match
from progeo.localization.pairs import write_pairs


def result(query, *paths):
    return Localization(str(query), matches=tuple(Match(str(path), 1, 2, 3, 4, 0.5, row=0) for path in paths))


def read_as_hloc(path):
    """hloc splits every line that is not empty at white space, and needs two names."""
    return [tuple(line.split()) for line in path.read_text().rstrip("\n").split("\n") if line]


def read_as_colmap(path):
    """COLMAP trims lines, skips comments, and takes what stands before the first and the second space."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [tuple(line.split(" ")[:2]) for line in lines if line and line[0] != "#"]


@pytest.fixture
def images(tmp_path):
    for folder in ("query", "db/old"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    return tmp_path / "images"


def test_names_are_relative_to_the_deepest_folder_of_all(images, monkeypatch):
    monkeypatch.chdir(images)
    results = [
        result("query/a.jpg", images / "db/1.jpg", images / "db/old/2.jpg"),
        result("query/../query/é#.jpg", images / "db/1.jpg"),
        Localization("query/broken.jpg", error="broken"),
    ]
    write_pairs(images / "pairs.txt", results)
    expected = [("query/a.jpg", "db/1.jpg"), ("query/a.jpg", "db/old/2.jpg"), ("query/é#.jpg", "db/1.jpg")]
    assert read_as_hloc(images / "pairs.txt") == read_as_colmap(images / "pairs.txt") == expected


def test_names_can_be_relative_to_another_folder(images):
    results = [result(images / "query/a.jpg", images / "db/1.jpg")]
    write_pairs(images / "pairs.txt", results, images.parent)
    assert read_as_hloc(images / "pairs.txt") == [("images/query/a.jpg", "images/db/1.jpg")]
    with pytest.raises(ValueError, match=r"query/a.jpg is not in .*db: `pairs_folder` must hold all photos"):
        write_pairs(images / "pairs.txt", results, images / "db")


def test_a_linked_image_keeps_its_name_and_an_image_is_no_pair_with_itself(images, tmp_path):
    (tmp_path / "elsewhere.jpg").touch()
    (images / "query/a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (tmp_path / "link").symlink_to(images)
    results = [result(tmp_path / "link/query/a.jpg", images / "query/a.jpg", images / "db/1.jpg")]
    write_pairs(images / "pairs.txt", results)
    assert read_as_hloc(images / "pairs.txt") == [("query/a.jpg", "db/1.jpg")]


@pytest.mark.parametrize("name", ["a b.jpg", "a\tb.jpg", "a\u00a0b.jpg", "a\nb.jpg", "#a.jpg", " a.jpg"])
def test_names_that_the_readers_would_split_are_refused(images, name):
    results = [result(images / name, images / "1.jpg")]
    with pytest.raises(ValueError, match="cannot be in a file of pairs"):
        write_pairs(images / "pairs.txt", results)
    assert not (images / "pairs.txt").exists()
