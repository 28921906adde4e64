import csv
import shutil

import numpy as np
import pytest
import torch
import writing_commands
from file_events import Plan
from PIL import Image
from published_convnets import cosplace
from writing_commands import World, prepare, tree

from progeo.places.catalogue import read_catalogue
from progeo.places.geographic import degrees_of


@pytest.fixture(scope="session")
def world(city, config, run, tmp_path_factory):
    """What commands read, and copies of what they change."""
    folder = tmp_path_factory.mktemp("world").resolve()
    made = World(city, config, run, folder / "given", folder / "work")
    for name in ("notes", "empty", "panoramas", "table", "published"):
        (made.given / name).mkdir(parents=True)
    (made.given / "notes/mine.txt").write_text("mine")
    shutil.copytree(run, made.given / "run")
    shutil.rmtree(made.given / "run/stage2/checkpoints")
    images = read_catalogue(city / "train")
    with (made.given / "table/places.csv").open("w") as stream:
        rows = ((images.name(row), *degrees) for row, degrees in enumerate(degrees_of(images).T))
        csv.writer(stream).writerows((("path", "latitude", "longitude"), *rows))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    for east in (550_000, 550_100):
        Image.fromarray(pixels).save(made.given / f"panoramas/@{east}@4180000@10@S@@@@@90@.jpg")
    torch.save(cosplace("resnet18").state_dict(), made.given / "published/model.pth")
    for name, left, given in (
        ("dataset split", "split", "split"),
        ("index build", "index", "index"),
        ("index add", "index", "added"),
        ("index remove", "added", "removed"),
    ):
        prepare(made, name)
        ended = writing_commands.run(made, name)
        assert ended.code == 0, ended.said
        shutil.copytree(made.work / left, made.given / given, symlinks=True)
    return made


@pytest.fixture(scope="session")
def undisturbed(world):
    """A function that returns what a command that nothing happens to leaves, and its events."""
    known = {}

    def of(name):
        if name not in known:
            folder = prepare(world, name)
            trace = folder.parent / f"{len(known)}.trace"
            ended = writing_commands.run(world, name, Plan(str(folder), trace=str(trace)))
            assert ended.code == 0, ended.said
            known[name] = tree(folder), trace.read_text().splitlines()
        return known[name]

    return of
