"""Build, add to and calibrate place indexes, and localize photos with them."""

import csv
import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path

import faiss
import numpy as np
import open_clip
import pytest
import torch
import utm
from indexes import blurred, command, localized
from PIL import Image
from running import files_in

from progeo.cli import main
from progeo.data.decode import read_image
from progeo.evaluation.search import Neighbors
from progeo.export.weights import load_encoder, save_encoder
from progeo.localization.place_index import open_place_index
from progeo.localization.text_search import text_descriptor
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder
from progeo.models.preprocessing import preprocess_image
from progeo.places.catalogue import read_catalogue


def test_a_confidence_that_equals_the_threshold_is_enough(built, city):
    photo = sorted((city / "train").iterdir())[0]
    (result,) = localized(built / "index", photo)
    assert 0 < result.confidence < 1
    for threshold, known in ((result.confidence, True), (float(np.nextafter(result.confidence, 1)), False)):
        assert localized(built / "index", photo, threshold=threshold)[0].known is known


def test_an_index_is_a_folder_with_all_that_it_takes(built, city):
    metadata = json.loads((built / "index/index.json").read_text())
    assert [part["rows"] for part in metadata["parts"]] == [len(list((city / "train").iterdir()))]
    part = {f"part_00000/{name}" for name in ("catalogue.arrow", "descriptors.npy", "paths.npy")}
    expected = {"index.json", "index_1.json", *part}  # it was changed once
    assert files_in(built / "index") - {name for name in files_in(built / "index") if "model/" in name} == expected
    assert (built / "index/index_1.json").read_text() == (built / "index/index.json").read_text()
    assert {"model/model.safetensors", "model/model.json"} <= files_in(built / "index")


def test_a_photo_that_is_in_the_index_is_found_at_its_own_place(built, city):
    photo = sorted((city / "train").iterdir())[3]
    (result,) = localized(built / "index", photo, top=3)
    latitude, longitude = photo.name.split("@")[5:7]
    assert (result.matches[0].path, result.matches[0].distance) == (str(photo), pytest.approx(0, abs=1e-3))
    assert (result.matches[0].latitude, result.matches[0].longitude) == pytest.approx(
        (float(latitude), float(longitude)), abs=1e-5
    )
    assert len(result.matches) == 3
    assert result.known is True


def test_confidence_tells_photos_of_the_index_from_others(built, city):
    (inside, outside) = (
        np.mean([result.confidence for result in localized(built / "index", folder)])
        for folder in (city / "train", city / "val/database")
    )
    assert inside > 0.8 > 0.5 > outside
    strict = localized(built / "index", city / "train", threshold=0.9)
    assert [result.known for result in strict] == [result.confidence >= 0.9 for result in strict]


def test_screen_csv_geojson_and_json_hold_the_same_results(built, city, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    photos = [*sorted((city / "test/queries").iterdir())[:2], broken]
    for suffix in ("csv", "geojson", "json"):
        main(["localize", *map(str, photos), "--index", str(built / "index"), "--out", str(tmp_path / f"a.{suffix}")])
    shown = capsys.readouterr().out.splitlines()
    whole = json.loads((tmp_path / "a.json").read_text())
    with (tmp_path / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [row["photo"] for row in rows] == [result["query"] for result in whole] == [str(photo) for photo in photos]
    for result, row, feature in zip(whole[:2], rows, features, strict=False):
        first = result["matches"][0]
        assert [float(row["latitude"]), float(row["longitude"])] == [first["latitude"], first["longitude"]]
        assert feature["geometry"]["coordinates"] == [first["longitude"], first["latitude"]]
        assert float(row["confidence"]) == feature["properties"]["confidence"] == result["confidence"]
        assert any(
            line.startswith(result["query"])
            and f"{first['latitude']:.5f}, {first['longitude']:.5f}, within 25 m with probability" in line
            and line.endswith(f"{result['confidence']:.2f}")
            for line in shown
        )
    assert "broken.jpg cannot be decoded" in rows[2]["error"]
    assert (rows[2]["latitude"], features[2]["geometry"], whole[2]["matches"]) == ("", None, [])


def test_a_page_shows_the_photos_their_matches_and_the_images_of_the_index(built, city, tmp_path, capsys):
    photo = sorted((city / "test/queries").iterdir())[0]
    main(["localize", str(photo), "--index", str(built / "index"), "--out", str(tmp_path / "a.html"), "--top", "3"])
    assert files_in(tmp_path) == {"a.html"}
    page = (tmp_path / "a.html").read_text()
    gallery, drawn = (
        json.loads(re.search(rf'id="{name}-data">(.*?)</script>', page)[1]) for name in ("gallery", "map")
    )
    assert [len(photo[1]) > 100 for photo in gallery["photos"]] == [True] * 4
    assert drawn["database"]["count"] == len(list((city / "train").iterdir()))
    assert [each["kind"] for each in drawn["points"]] == ["match", "photo"]
    assert str(photo.parent) not in page
    (link,) = (line.strip() for line in capsys.readouterr().out.splitlines() if "openstreetmap" in line)
    assert link == gallery["rows"][0][6]
    words = ["--index", str(built / "index"), "--out", str(tmp_path / "a.html"), "--show_paths"]
    main(["localize", str(photo), *words])
    assert str(photo) in (tmp_path / "a.html").read_text()


def test_added_images_are_found_as_in_an_index_built_of_all_images(city, encoder, cache, tmp_path, capsys):
    both = tmp_path / "images"
    for side in ("database", "queries"):
        shutil.copytree(city / "test" / side, both / side)
    command("index build", cache, folder=both / "database", encoder=encoder, out=tmp_path / "grown")
    command("index add", cache, folder=both / "queries", index=tmp_path / "grown")
    command("index build", cache, folder=both, encoder=encoder, out=tmp_path / "whole")
    grown, whole = (localized(tmp_path / name, city / "val/database", top=18) for name in ("grown", "whole"))
    for mine, theirs in zip(grown, whole, strict=True):
        assert {match.path for match in mine.matches} == {match.path for match in theirs.matches}
        distances = [[match.distance for match in result.matches] for result in (mine, theirs)]
        assert distances[0] == pytest.approx(distances[1], abs=1e-3)
    assert {path.name for path in (tmp_path / "grown").iterdir()} == {
        *("index.json", "index_1.json", "model", "part_00000", "part_00001"),
    }
    before = files_in(tmp_path / "grown")
    command("index add", cache, folder=both / "queries", index=tmp_path / "grown")
    assert "6 of 6 images are in the index already" in capsys.readouterr().err
    assert files_in(tmp_path / "grown") == before


def test_an_index_is_unchanged_when_adding_to_it_fails(built, city, cache, tmp_path, full_disk):
    shutil.copytree(built / "index", tmp_path / "index")
    photo = sorted((city / "train").iterdir())[3]
    before = localized(tmp_path / "index", photo)
    images = tmp_path / "many"
    images.mkdir()
    for place in range(300):
        Image.new("RGB", (40, 40), (place % 250, 0, 0)).save(images / f"@{place}@0@10@S@.jpg")
    command("index build", cache, folder=images, encoder=built / "index/model", out=tmp_path / "other")  # descriptors
    with full_disk(), pytest.raises(SystemExit, match="could not be written"):
        command("index add", cache, folder=images, index=tmp_path / "index")
    assert localized(tmp_path / "index", photo) == before
    assert files_in(tmp_path / "index") == files_in(built / "index")


def test_an_index_refuses_an_encoder_that_it_was_not_built_with(built, city, tmp_path):
    shutil.copytree(built / "index", tmp_path / "index")
    other = build_encoder("tiny-resnet", "random", 48, seed=1).eval()
    save_encoder(tmp_path / "index/model", other, provenance={}, recalls={})
    with pytest.raises(ValueError, match="was not built with the encoder in"):
        open_place_index(tmp_path / "index")


def test_a_sentence_finds_the_images_that_clip_finds_nearest(city, cache, tmp_path, capsys):
    weights = str(tmp_path / "clip.pt")
    torch.save(load_clip("tiny-vit", "random", seed=3).state_dict(), weights)
    name = f"open_clip:tiny-vit:{weights}"
    command("index build", cache, folder=city / "test/database", encoder=name, out=tmp_path / "index")
    encoder, clip = load_encoder(name), load_clip("tiny-vit", weights)
    Path(weights).unlink()
    capsys.readouterr()
    main(["localize", "--text", "a street with palm trees", "--index", str(tmp_path / "index"), "--top", "12"])
    shown = capsys.readouterr().out.splitlines()
    images = read_catalogue(city / "test/database")
    with torch.no_grad():
        pixels = torch.stack([encoder.preprocess(Image.open(images.path(row))) for row in range(len(images))])
        text = clip.encode_text(open_clip.get_tokenizer("tiny-vit")(["a street with palm trees"]), normalize=True)
        nearest = (clip.encode_image(pixels, normalize=True) @ text.T)[:, 0].argsort(descending=True)
    assert shown[0].startswith("a street with palm trees: ")
    assert shown[1].startswith("       https://www.openstreetmap.org/?mlat=37.")
    assert [line.split("  ")[-1] for line in shown[2:]] == [str(images.path(int(row)).resolve()) for row in nearest]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("localize --index {built}/index", "Give photos to localize, or --text"),
        ("localize a.jpg --text x --index {built}/index", "Give photos to localize, or --text"),
        (
            "localize a.jpg --index {built}/index --out a.xml",
            "--out must end in .csv, .geojson, .json, .gpx, .kml, .html, got a.xml",
        ),
        ("localize a.jpg --index {built}/index", "There is no image a.jpg"),
        ("localize a.jpg --index {built}", "There is no place index in .*built.*`progeo index build`"),
        ("index add {built}/no --folder {city}/train", "There is no place index in .*/no: make one"),
        ("index compact {built}/no", "There is no place index in .*/no: make one"),
        ("localize --text tree --index {built}/index", "tiny-resnet, aggregation gem.* cannot be compared with texts"),
        ("index build --folder {city}/train --encoder thumbnail --out x", "saved, thumbnail cannot"),
        ("index build --folder {city}/train --encoder {encoder} --out {built}/index", "holds a place index already"),
        (
            "index build --folder {city}/train --encoder {encoder} --out {encoder}/model.json/index",
            "model.json/index/index.json could not be written: .*model.json is a file",
        ),
        ("index calibrate --folder {city}/test/queries --index {built}/index", "needs at least 20 photos.*got 6: "),
    ],
)
def test_mistakes_end_in_a_sentence(words, sentence, built, city, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        main(words.format(built=built, city=city, encoder=encoder).split())


@pytest.fixture(scope="module")
def sparse(city, encoder, cache, tmp_path_factory):
    """An index of many lists, of which a search looks through few, for photos of five crops."""
    folder = tmp_path_factory.mktemp("sparse") / "index"
    more = {"faiss": "IVF20,Flat", "probes": 2, "query_preprocessing": "five_crops"}
    command("index build", cache, folder=city / "train", encoder=encoder, out=folder, **more)
    return folder


def test_photos_are_preprocessed_and_searched_with_the_settings_of_the_index(sparse, city):
    opened = open_place_index(sparse)
    assert faiss.try_extract_index_ivf(opened.parts[0].index).nprobe == 2
    photos = sorted((city / "test/queries").iterdir())
    found = localized(sparse, *photos, top=3)
    encoder = load_encoder(sparse / "model")
    with torch.no_grad():
        crops = [preprocess_image(read_image(photo), "five_crops", encoder.image_size) for photo in photos]
        descriptors = torch.stack([encoder(encoder.normalize(each)).mean(dim=0) for each in crops]).numpy()
    wanted = opened.search(descriptors, min_count=3)
    paths = opened.catalogue.table["path"].to_pylist()
    for result, rows in zip(found, wanted.rows, strict=True):
        assert [match.path for match in result.matches] == [paths[row] for row in rows[:3] if row >= 0]


def test_missing_matches_do_not_change_the_confidence_features(sparse, built, cache, tmp_path):
    shutil.copytree(sparse, tmp_path / "index")
    opened = open_place_index(tmp_path / "index")
    rows, distances = (
        np.array([[3, 5, -1], [3, 5, 5], [-1, -1, -1]]),
        np.array([[0.1, 0.4, 9], [0.1, 0.4, 0.4], [9, 9, 9]]),
    )
    values = opened.confidence_features(Neighbors(rows, distances), 25.0)
    assert values[0].tolist() == values[1].tolist()
    assert np.isnan(values[2]).all()
    command("index calibrate", cache, folder=built / "photos", index=tmp_path / "index")
    metadata = json.loads((tmp_path / "index/index.json").read_text())["calibration"]
    assert np.isfinite([*metadata["means"], *metadata["stds"], *metadata["weights"], metadata["error"]]).all()


def test_an_index_without_calibration_gives_no_confidence(sparse, city):
    (result,) = localized(sparse, next((city / "train").iterdir()), threshold=1.0)
    assert (result.confidence, result.known) == (None, None)


def test_an_index_may_hold_two_cities(city, encoder, cache, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for place, path in enumerate(sorted((city / "train").iterdir())[:40]):
        fields = path.name.split("@")
        if place % 2:  # the other side of the country
            fields[1:7] = ["0583960.00", "4507523.00", "18", "T", "040.71300", "-074.00600"]
        shutil.copy(path, images / "@".join(fields))
    command("index build", cache, folder=images, encoder=encoder, out=tmp_path / "index")
    photos = blurred(images.iterdir(), tmp_path / "photos")
    command("index calibrate", cache, folder=photos, index=tmp_path / "index")
    num_correct = json.loads((tmp_path / "index/index.json").read_text())["calibration"]["num_correct"]
    assert num_correct > 30
    found = localized(tmp_path / "index", images, top=1)
    assert {round(result.matches[0].longitude) for result in found} == {-122, -74}


@pytest.fixture(scope="module")
def uncalibrated(city, encoder, cache, tmp_path_factory):
    """An index of copies of the training images, which lie beside it."""
    folder = tmp_path_factory.mktemp("uncalibrated")
    shutil.copytree(city / "train", folder / "images")
    command("index build", cache, folder=folder / "images", encoder=encoder, out=folder / "index")
    return folder


def renamed(paths, folder):
    """The same files under names that say the same and are not the same."""
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder / path.name.replace("@.jpg", "x@.jpg"))
    return folder


@pytest.mark.parametrize("photos", ["the images", "a link to them", "copies", "some copies and 19 others"])
def test_an_index_is_not_calibrated_with_its_own_images(photos, uncalibrated, cache, tmp_path):
    images, folder = sorted((uncalibrated / "images").iterdir()), tmp_path / "photos"
    if photos == "a link to them":
        folder.symlink_to(uncalibrated / "images")
    elif photos == "the images":
        folder = uncalibrated / "images"
    elif photos == "copies":
        renamed(images, folder)
    else:
        blurred(images[:19], folder)
        for path in renamed(images[19:60], tmp_path / "more").iterdir():
            path.rename(folder / path.name)
    count = 19 if "others" in photos else 0
    with pytest.raises(SystemExit, match=f"at least 20 photos .* not images of .*index themselves, got {count}: "):
        command("index calibrate", cache, folder=folder, index=uncalibrated / "index")
    assert json.loads((uncalibrated / "index/index.json").read_text())["calibration"] is None


def test_images_of_the_index_and_unreadable_ones_among_the_photos_change_no_calibration(
    uncalibrated, cache, tmp_path, capsys
):
    images = sorted((uncalibrated / "images").iterdir())
    blurred(images[:30], tmp_path / "photos")
    found = []
    for index in ("a", "b"):
        shutil.copytree(uncalibrated / "index", tmp_path / index)
        words = {"folder": tmp_path / "photos", "index": tmp_path / index, "max_unreadable_fraction": 0.1}
        command("index calibrate", cache, **words)
        found.append(json.loads((tmp_path / index / "index.json").read_text())["calibration"])
        for path in renamed(images[30:60], tmp_path / f"more_{index}").iterdir():
            path.rename(tmp_path / "photos" / path.name)
        (tmp_path / "photos/@0@0@10@S@.jpg").write_bytes(b"broken")  # before all others
    assert "30 photos are images of the index themselves, and skipped" in capsys.readouterr().err
    assert found[1] == found[0]
    assert found[0]["num_photos"] == 30


def test_an_index_whose_images_moved_is_not_calibrated_with_them(city, encoder, cache, tmp_path):
    shutil.copytree(city / "train", tmp_path / "images")
    command("index build", cache, folder=tmp_path / "images", encoder=encoder, out=tmp_path / "index")
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match=r"not images of .*index themselves, got 0: "):
        command("index calibrate", cache, folder=tmp_path / "moved", index=tmp_path / "index")


@pytest.mark.parametrize(("queries", "count"), [("database", 12), ("copies", 3), ("queries", 0)])
def test_an_evaluation_says_that_queries_are_images_of_the_database(queries, count, city, cache, tmp_path, capsys):
    for side in ("database", "queries"):
        shutil.copytree(city / "test" / side, tmp_path / side)
    renamed(sorted((tmp_path / "database").iterdir())[:3], tmp_path / "copies")
    shutil.copy(sorted((tmp_path / "queries").iterdir())[0], tmp_path / "copies")
    command("evaluate", cache, folder=tmp_path, encoder="thumbnail", queries=queries, out=tmp_path / "out")
    summary = json.loads((tmp_path / "out/recalls.json").read_text())
    said = f"{count} of {len(list((tmp_path / queries).iterdir()))} queries are images of the database"
    assert (said in capsys.readouterr().err) == (said in summary.get("queries in the database", "")) == (count > 0)
    assert ("queries in the database" in summary) == (count > 0)


def test_results_are_written_when_the_output_pipe_is_closed(uncalibrated, city, tmp_path, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        words = ["--index", uncalibrated / "index", "--out", tmp_path / "a.csv", "--top", "100", "--num_workers", "0"]
        main(["localize", *map(str, [city / "test/database", *words])])  # prints more than a pipe's buffer holds
    with (tmp_path / "a.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 12
    assert "is not calibrated: nothing says how certain a position is" in capsys.readouterr().err


def test_calibration_measures_across_a_border_of_zones(encoder, cache, tmp_path):
    rng, rows, images = np.random.default_rng(0), [], tmp_path / "photos"
    images.mkdir()
    for place in range(30):
        latitude, longitude = 38.0, -120.003 + 0.0002 * place
        east, north, zone, letter = utm.from_latlon(latitude, longitude)
        name = f"@{east:.2f}@{north:.2f}@{zone}@{letter}@{latitude:.5f}@{longitude:.5f}@.jpg"
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((48, 48)).save(images / name)
        rows.append(f"{name},{latitude},{longitude}")
    (tmp_path / "table.csv").write_text("\n".join(["path,latitude,longitude", *rows]))
    table = ["table", str(tmp_path / "table.csv"), "--images", str(images)]
    main(["dataset", "import", *table, "--out", str(tmp_path / "known")])
    command("index build", cache, folder=tmp_path / "known", encoder=encoder, out=tmp_path / "index")
    command("index calibrate", cache, folder=blurred(images.iterdir(), tmp_path / "seen"), index=tmp_path / "index")
    assert json.loads((tmp_path / "index/index.json").read_text())["calibration"]["num_correct"] == 30


def test_images_of_a_table_with_whole_paths_keep_them(city, encoder, cache, tmp_path):
    paths = sorted((city / "train").iterdir())[:20]
    lines = [f"{path},{37 + place / 1000},-122" for place, path in enumerate(paths)]
    (tmp_path / "table.csv").write_text("\n".join(["path,latitude,longitude", *lines]))
    main(["dataset", "import", "table", str(tmp_path / "table.csv"), "--out", str(tmp_path / "known")])
    command("index build", cache, folder=tmp_path / "known", encoder=encoder, out=tmp_path / "index")
    assert open_place_index(tmp_path / "index").catalogue.table["path"].to_pylist() == [str(path) for path in paths]


def test_an_index_refuses_its_own_weights_with_other_pixels(built, tmp_path):
    shutil.copytree(built / "index", tmp_path / "index")
    description = json.loads((tmp_path / "index/model/model.json").read_text())
    description["encoder"]["mean"] = [0, 0, 0]
    (tmp_path / "index/model/model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="was not built with the encoder in"):
        open_place_index(tmp_path / "index")


def test_a_photo_too_small_for_a_native_index_is_named_and_the_others_are_localized(city, encoder, cache, tmp_path):
    more = {"query_preprocessing": "native", "database_preprocessing": "native"}
    command("index build", cache, folder=city / "test/database", encoder=encoder, out=tmp_path / "index", **more)
    Image.new("RGB", (20, 20)).save(tmp_path / "small.jpg")
    photo = next((city / "test/database").iterdir())
    small, fine = localized(tmp_path / "index", tmp_path / "small.jpg", photo)
    assert "small.jpg cannot be preprocessed: 20 x 20 pixels are fewer than 32 a side" in small.error
    assert fine.matches[0].path == str(photo)


def test_a_clip_whose_tokenizer_is_not_there_is_refused_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = build_encoder("tiny-vit", "random").spec
    spec.configuration["text_cfg"]["hf_tokenizer_name"] = "nobody/nothing"
    words = "^`text` cannot be encoded as texts of tiny-vit are: the tokenizer nobody/nothing could not be loaded: "
    with pytest.raises(ValueError, match=words):
        text_descriptor(dataclasses.replace(spec, text_weights="/no/file"), "a tree")


def test_an_image_in_another_zone_is_added_without_reading_those_of_the_index(built, cache, tmp_path, monkeypatch):
    shutil.copytree(built / "index", tmp_path / "index")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (48, 48)).save(tmp_path / "images/@550000@4180000@11@S@.jpg")  # the index has images of zone 10
    checked = []
    monkeypatch.setattr("progeo.localization.adding.check_zones", lambda *given: checked.append([*map(len, given)]))
    command("index add", cache, folder=tmp_path / "images", index=tmp_path / "index")
    assert checked == [[1]]


@pytest.mark.parametrize("verb", ["build", "add", "calibrate"])
def test_images_without_a_zone_are_refused_where_others_lie_in_several(built, encoder, cache, tmp_path, verb):
    images, before = tmp_path / "images", files_in(built / "index")
    images.mkdir()
    for zone in ("10@S", "11@S", "@") if verb == "build" else ("11@S", "@"):  # the index has images of zone 10
        for east in range(20):
            (images / f"@{550_000 + east}@4180000@{zone}@.jpg").touch()
    options = {"encoder": encoder, "out": tmp_path / "index"} if verb == "build" else {"index": built / "index"}
    with pytest.raises(SystemExit, match=r"20 of [46]0 images of .* have no UTM zone.* lie in zones 10, 11: nobody"):
        command(f"index {verb}", cache, folder=images, **options)
    assert files_in(built / "index") == before
    assert not (tmp_path / "index").exists()
