"""`progeo dataset views` on panoramas whose color says the direction."""

import shutil

import numpy as np
import pytest
from PIL import Image

from progeo.cli import main
from progeo.data.options import ViewOptions
from progeo.data.views import cut_panoramas
from progeo.places.catalogue import read_catalogue


@pytest.fixture
def panoramas(tmp_path):
    """Of four colors: ahead red, right green, behind blue, left black; heading 90, and none."""
    folder = tmp_path / "panoramas"
    folder.mkdir()
    pixels = np.zeros((64, 128, 3), np.uint8)
    for channel, columns in enumerate((range(48, 80), range(80, 112), [*range(112, 128), *range(16)])):
        pixels[:, columns, channel] = 255
    for name in ("@500@600@10@S@@@known@@90@.jpg", "@700@800@10@S@@@unknown@.jpg"):
        Image.fromarray(pixels).save(folder / name, quality=95, subsampling=0)
    return folder


def cut(panoramas, out, **changes):
    cut_panoramas(panoramas, out, ViewOptions(**{"headings": 4, "fov": 60.0, "size": 16, **changes}))
    return out


def colors_of(folder, pano_id):
    """Of the center of each view, by its tile."""
    paths = sorted(folder.glob(f"*@{pano_id}@*"), key=lambda path: path.name.split("@")[8])
    centers = [np.asarray(Image.open(path))[8, 8] for path in paths]
    return ["black" if center.max() < 60 else ("red", "green", "blue")[center.argmax()] for center in centers]


def test_views_look_where_their_names_say(panoramas, tmp_path):
    words = ["--headings", "4", "--fov", "60", "--size", "16"]
    main(["dataset", "views", str(panoramas), "--out", str(tmp_path / "views"), *words])
    assert colors_of(tmp_path / "views", "known") == ["black", "red", "green", "blue"]  # north is left of heading 90
    assert colors_of(tmp_path / "views", "unknown") == ["red", "green", "blue", "black"]
    catalogue = read_catalogue(tmp_path / "views")
    assert len(catalogue) == 8
    assert sorted(catalogue.heading.tolist())[:4] == [0, 90, 180, 270]
    assert np.isnan(catalogue.heading).sum() == 4
    assert {Image.open(catalogue.path(row)).size for row in range(8)} == {(16, 16)}


def test_only_missing_and_truncated_views_are_cut_again(panoramas, tmp_path):
    folder = cut(panoramas, tmp_path / "views")
    first, second, third = sorted(folder.glob("*.jpg"))[:3]
    content = {path: path.read_bytes() for path in folder.glob("*.jpg")}
    first.unlink()
    second.write_bytes(content[second][:-20])
    kept = content[third][:2] + b"kept" + content[third][2:]
    third.write_bytes(kept)
    cut(panoramas, tmp_path / "views")
    assert {path: path.read_bytes() for path in folder.glob("*.jpg")} == {**content, third: kept}
    assert {path.name for path in folder.iterdir()} == {"views.json", *(path.name for path in content)}


def test_views_of_other_settings_are_not_mixed(panoramas, tmp_path):
    cut(panoramas, tmp_path / "views")
    with pytest.raises(ValueError, match=r"views holds views of other options: .*'fov': 60.0.*now .*'fov': 90.0"):
        cut(panoramas, tmp_path / "views", fov=90.0)


def test_a_panorama_that_cannot_be_read_is_named_and_the_others_are_cut(panoramas, tmp_path):
    (panoramas / "@1@2@10@S@@@broken@@0@.jpg").write_bytes(b"broken")
    folder = cut(panoramas, tmp_path / "views")
    assert len(list(folder.glob("*.jpg"))) == 8
    shutil.rmtree(folder)
    for path in panoramas.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"None of the 3 panoramas of .* can be read"):
        cut(panoramas, tmp_path / "views")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fov": 180.0}, "`fov` must be below 180 degrees, got 180"),
        ({"out": "panoramas/views"}, "lies in .*, where views would be taken for panoramas"),
    ],
)
def test_options_that_cannot_be_are_refused(panoramas, tmp_path, changes, words):
    out = tmp_path / changes.pop("out", "views")
    with pytest.raises(ValueError, match=words):
        cut(panoramas, out, **changes)
    assert not out.exists()


def test_a_part_of_a_panorama_is_refused_before_anything_is_cut(panoramas, tmp_path):
    Image.new("RGB", (128, 32)).save(panoramas / "@1@2@10@S@@@part@@0@.jpg")
    with pytest.raises(ValueError, match=r"1 of 3 panoramas are not twice .*part@@0@\.jpg with 128 x 32 pixels"):
        cut(panoramas, tmp_path / "views")
    assert not (tmp_path / "views").exists()
