"""Baidu Mall, whose positives are counted in space, with or without angles."""

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from progeo.cli import main
from progeo.datasets.readers.baidu import read_baidu
from progeo.places.catalogue import read_catalogue


def write(folder, part, cameras):
    """Cameras are x, y, z and the Euler angles z-y-x in degrees, by name."""
    images, files = folder / f"{part}_images_undistort", folder / f"{part}_gt"
    images.mkdir(parents=True)
    files.mkdir()
    for name, (*position, z, y, x) in cameras.items():
        Image.new("RGB", (40, 40)).save(images / f"{name}.jpg")
        rows = Rotation.from_euler("zyx", [z, y, x], degrees=True).as_matrix()
        lines = [[900, 0, 500], [0, 900, 400], [0, 0, 1], [0, 0, 0], *rows, position, [1000, 800]]
        (files / f"{name}.camera").write_text("\n".join(" ".join(map(str, line)) for line in lines) + "\n")


@pytest.fixture
def mall(tmp_path):
    folder = tmp_path / "mall"
    database = {"a": (0, 0, 0, 0, 0, 0), "b": (6, 0, 8, 59, 0, 0), "c": (0, 0, 2, 61, 0, 0), "d": (6, 0, 9, 0, 0, 0)}
    write(folder, "training", database)
    write(folder, "query", {"q": (0, 0, 0, 0, 0, 0), "far": (0, 99, 0, 0, 0, 0)})
    return folder


def test_positives_are_within_10_m_in_space_and_20_degrees_in_the_mean(mall):
    sides = read_baidu(mall)
    assert sides["database"].table["path"].to_pylist() == [f"training_images_undistort/{name}.jpg" for name in "abcd"]
    assert sides["queries"].table["path"].to_pylist()[1] == "query_images_undistort/q.jpg"
    assert [rows.tolist() for rows in sides["queries"].positives] == [[], [0, 1, 2]]  # b is 10 m away, d 10.8
    assert [rows.tolist() for rows in sides["queries_angle"].positives] == [[], [0, 1]]  # 59 / 3 and 61 / 3 degrees
    assert np.isnan(sides["database"].east).all()


def test_both_criteria_are_query_folders_of_an_import(mall, tmp_path):
    main(["dataset", "import", "baidu", str(mall), "--out", str(tmp_path / "out")])
    found = {side: read_catalogue(tmp_path / "out" / side) for side in ("database", "queries", "queries_angle")}
    assert [len(catalogue) for catalogue in found.values()] == [4, 2, 2]
    assert found["queries_angle"].positives[1].tolist() == [0, 1]


def test_a_camera_that_is_missing_or_no_camera_is_named(mall):
    file = mall / "query_gt/q.camera"
    good = file.read_text()
    position = good.replace("0 0 0\n1000", "0 0\n1000"), good.replace("0 0 0\n1000", "0 nan 0\n1000")
    rotation = [good.replace("1.0", number, 1) for number in ("inf", "nan", "3")]  # NumPy never ends with inf
    cut = "".join(good.splitlines(keepends=True)[:7])  # whose last line but one has three numbers, too
    for content in ("1 2 3\n", "x\n" * 9, cut, *position, *rotation):
        assert content != good
        file.write_text(content)
        with pytest.raises(ValueError, match=r"q\.camera must be a camera of Baidu Mall"):
            read_baidu(mall)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no camera .*q\.camera"):
        read_baidu(mall)
