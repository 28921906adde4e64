"""What is as few, as alike or as large as can be: the result is correct, or one sentence says why there is none."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from progeo.cli import main
from progeo.commands.localize import localize
from progeo.export.weights import save_encoder
from progeo.features.options import WorkOptions
from progeo.models.encoder import build_encoder

PLACES = 12


def name(place, beside=0):
    return f"@{550000 + 40 * place + beside}@4180000@10@S@.jpg"


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 48)).save(path)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folders of database images and queries: one of each, one of a side, and many of the same pixels."""
    folder = tmp_path_factory.mktemp("sets")
    for kind, images, queries in (("one", 1, 1), ("query", PLACES, 1), ("image", 1, PLACES), ("same", PLACES, PLACES)):
        for place in range(images):
            draw(folder / kind / "database" / name(place), 0 if kind == "same" else place)
        for place in range(queries):
            draw(folder / kind / "queries" / name(place, beside=3), 0 if kind == "same" else place)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Encoders with weights as they are, all zero, and not finite."""
    folder = tmp_path_factory.mktemp("encoders")
    for kind, value in (("random", None), ("zero", 0.0), ("nan", np.nan), ("huge", 1e30)):
        encoder = build_encoder("tiny-resnet", "random", 32, descriptor_dim=8).eval()
        if value is not None:
            for parameter in encoder.parameters():
                torch.nn.init.constant_(parameter, value)
        save_encoder(folder / kind, encoder, provenance={}, recalls={})
    return folder


def run(*words, cache):
    main([*map(str, words), "--num_workers", "0", "--descriptor_cache", str(cache)])


@pytest.mark.parametrize("kind", ["one", "query", "image", "same"])
@pytest.mark.parametrize(
    ("encoder", "more"),
    [
        ("random", []),
        pytest.param("zero", [], marks=pytest.mark.slow),
        pytest.param("random", ["--faiss", "IVF1,Flat"], marks=pytest.mark.slow),
        ("zero", ["--faiss", "IVF1,Flat"]),
        pytest.param("random", ["--query_preprocessing", "maj_voting"], marks=pytest.mark.slow),
        pytest.param("zero", ["--query_preprocessing", "maj_voting"], marks=pytest.mark.slow),
    ],
)
def test_few_or_identical_images_have_their_recall(kind, encoder, more, sets, encoders, tmp_path):
    where = ["--folder", sets / kind, "--out", tmp_path / "out", "--recall_ns", "1", str(PLACES), "1000"]
    run("evaluate", encoders / encoder, *where, *more, cache=tmp_path)
    with (tmp_path / "out/recalls.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if (row["criterion"], row["queries"]) == ("within 25 m", "all")]
    found = {int(row["n"]): float(row["percent"]) for row in rows}
    at_1 = 100 if kind in ("one", "query") else 100 / PLACES  # of identical ones the first image is the first
    assert found[1] == pytest.approx(at_1, abs=0.1)
    assert found[PLACES] == found[1000] == pytest.approx(at_1 if kind == "image" else 100, abs=0.1)


@pytest.mark.parametrize("encoder", ["random", "zero"])
@pytest.mark.parametrize("faiss", ["Flat", "IVF2,Flat"])
def test_more_matches_than_images_are_all_of_them(encoder, faiss, sets, encoders, tmp_path):
    kind = "one" if faiss == "Flat" else "query"
    folder = sets / kind / "database"
    run(
        "index",
        "build",
        encoders / encoder,
        "--folder",
        folder,
        "--out",
        tmp_path / "i",
        "--faiss",
        faiss,
        cache=tmp_path,
    )
    photos = (sets / "query/queries" / name(0, beside=3),)
    (found,) = localize(photos, index=tmp_path / "i", work=WorkOptions(num_workers=0), top=1000)
    assert {match.path.rpartition("/")[2] for match in found.matches} == {path.name for path in folder.iterdir()}
    assert all(np.isfinite(match.distance) for match in found.matches)


@pytest.mark.parametrize("encoder", ["nan", "huge"])
@pytest.mark.parametrize("command", ["evaluate", "index build", "pca", "classes"])
def test_weights_that_are_not_finite_end_in_a_sentence(encoder, command, sets, encoders, tmp_path):
    folder = sets / "query" if command == "evaluate" else sets / "query/database"
    more = ["--dim", "2"] if command == "pca" else []
    with pytest.raises(SystemExit, match=r"descriptors of .*jpg are not finite, or too large for float32: are the"):
        run(*command.split(), encoders / encoder, "--folder", folder, "--out", tmp_path / "out", *more, cache=tmp_path)
    assert not (tmp_path / "out").exists()


def test_descriptors_too_large_to_compare_are_refused(sets, tmp_path):
    np.save(tmp_path / "database_descriptors.npy", np.eye(PLACES, 4, dtype=np.float32))
    np.save(tmp_path / "queries_descriptors.npy", np.full((1, 4), 1e19, np.float32))
    with pytest.raises(SystemExit, match=r"queries_descriptors.npy holds numbers that are not finite, or too large to"):
        run("evaluate", tmp_path, "--folder", sets / "query", "--out", tmp_path / "out", cache=tmp_path)
