"""Tuples: what they are mined from, when, and what a training with them does that is stopped or lacks images."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from contracts import assert_same_state, settings_for, stop_after_a_step, trainer_of, training_builder
from PIL import Image
from running import files_in

from progeo.data.options import DataOptions
from progeo.engine.stopping import StopRequest
from progeo.evaluation.rerank import k_reciprocal
from progeo.export.weights import save_encoder
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.options import CellOptions
from progeo.training.options import MiningOptions
from progeo.training.tuples import TupleBatches

TUPLES = {"head.weight": 0, "text.weight": 0, "tuples.weight": 1, **settings_for(("tuples",), None)}
REGIONS = {**TUPLES, **settings_for(("tuples", "regions", "target_regions"), None), "regions.weight": 0.5}
REGIONS |= {"tuples.hardest_regions": "true", "training.epochs": 3, "training.generations": "1 1 1"}


@pytest.fixture
def builder(config, tmp_path):
    """A function that gives a function that builds a training."""

    def of(settings, **changed):
        return training_builder(config, {**settings, **changed, "out": tmp_path / "run"})

    return of


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with queries and database: at 0 m, 8 m, 20 m and then each 100 m an image of a panorama of its own."""
    folder = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    for name, metres in (("database", (0, 8, 20, *range(100, 700, 100))), ("queries", (0, 9, 400, 60))):
        (folder / name).mkdir()
        for metre in metres:
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            fields = f"@{550000 + metre}@4180000@10@S@@@{name[0]}{metre}@@@"
            Image.fromarray(pixels).save(folder / name / f"{fields}.png")
    return folder


def read(folder, **options):
    options = MiningOptions(**{"database": "database", "queries_folder": "queries", "negatives": 3, **options})
    return TupleBatches.read(DataOptions(train_folder=folder), CellOptions(), options)


def test_queries_without_a_positive_are_skipped_and_counted(places, caplog):
    found = read(places)
    east = found.queries.east[found.candidates.queries].tolist()
    assert sorted(each - 550000 for each in east) == [0, 9, 400]
    of_query = dict(zip(east, found.candidates.positives, strict=True))
    near = [sorted(found.catalogue.east[rows] - 550000) for _, rows in sorted(of_query.items())]
    assert near == [[0, 8], [0, 8], [400]]
    assert "1 of 4 queries have no positive within 10 m and are skipped" in caplog.text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"negatives": 7}, r"`mining.negatives` 7 are more than the 6 database images that are beyond 25 m from the q"),
        ({"positive_radius_m": 0.5, "queries_folder": None}, r"No query of .* has an image of another panorama within"),
    ],
)
def test_a_set_that_gives_no_tuples_is_refused(places, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        if "queries_folder" in options:
            alone = MiningOptions(database="database", **options)
            TupleBatches.read(DataOptions(train_folder=places), CellOptions(), alone)
        else:
            read(places, **options)


def test_a_negative_radius_inside_the_positive_one_and_a_pool_below_the_negatives_are_refused():
    with pytest.raises(ValueError, match=r"^`mining.exclusion_radius_m` 5 must not be below `positive_radius_m` 10"):
        MiningOptions(exclusion_radius_m=5.0)
    with pytest.raises(
        ValueError, match=r"^`mining.pool` 9 must not be below `negatives` 10, which are chosen from it"
    ):
        MiningOptions(pool=9)


def test_images_without_coordinates_are_refused(places, tmp_path):
    for name in ("database", "queries"):
        catalogue = read_catalogue(places / name)
        east = catalogue.east.copy()
        east[0] = np.nan if name == "queries" else east[0]
        table = catalogue.table.set_column(catalogue.table.column_names.index("east"), "east", pa.array(east))
        Catalogue(catalogue.folder, table).save(tmp_path / f"{name}.arrow")
    with pytest.raises(ValueError, match=r"1 of 4 images of .*queries have no coordinates: they can be evaluated with"):
        read(tmp_path)


@pytest.mark.parametrize("names", [(".", "queries"), ("queries", "."), ("database", "database")])
def test_a_query_that_is_a_database_image_is_no_positive_of_itself(places, tmp_path, names):
    for path in places.glob("*/*"):  # names that do not tell the panorama
        copy = tmp_path / path.parent.name / f"{path.name[:26]}.png"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    found = read(tmp_path, database=names[0], queries_folder=names[1], negatives=1)
    pairs = [
        (found.queries.path(query), found.catalogue.path(row))
        for query, rows in zip(found.candidates.queries, found.candidates.positives, strict=True)
        for row in rows
    ]
    assert pairs and all(not query.samefile(positive) for query, positive in pairs)


def of_places(builder, places, **changed):
    names = {"data.train_folder": places, "mining.database": "database", "mining.queries_folder": "queries"}
    return builder(TUPLES, **{**names, "training.batch_size": 2, **changed})


def test_a_tuple_is_a_query_its_nearest_positive_and_the_hardest_negatives(builder, places):
    training = of_places(builder, places, **{"mining.pool": 100})()
    source = training.drawn.source
    training.encoder.eval()
    every = [catalogue.path(row) for catalogue in source.catalogues for row in range(len(catalogue))]
    pixels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in every]
    with torch.no_grad():
        descriptors = training.encoder(training.encoder.normalize(torch.stack(pixels))).double()
    distances = torch.cdist(descriptors, descriptors)
    training.encoder.train()
    east = np.concatenate([catalogue.east for catalogue in source.catalogues])
    seen = []
    for (piece,) in training.batches(0, first_step=0):
        for images in piece.targets["rows"][piece.targets["tuples"]].tolist():
            query, positive, *negatives = images
            near = [row for row in range(len(source.catalogue)) if abs(east[row] - east[query]) <= 10]
            far = [row for row in range(len(source.catalogue)) if abs(east[row] - east[query]) > 25]
            assert positive == min(near, key=lambda row: distances[query, row])
            assert negatives == sorted(far, key=lambda row: distances[query, row])[:3]
            seen.append(query - len(source.catalogue))
    assert training.steps_per_epoch == 2  # of two queries each, where three have a positive
    assert set(seen) == set(source.candidates.queries.tolist())
    assert training.encoder.training
    assert not (training.drawn.work / "mining").exists()


def test_images_that_cannot_be_read_are_in_no_tuple(builder, places, tmp_path):
    folder = shutil.copytree(places, tmp_path / "places")
    names = {each.name.split("@")[1]: each for each in folder.glob("*/*") if each.parent.name == "database"}
    names["550300"].write_bytes(b"no image")
    broken = next(each for each in (folder / "queries").iterdir() if each.name.startswith("@550009@"))
    broken.write_bytes(b"no image")
    changed = {"data.train_folder": folder, "data.max_unreadable_fraction": 0.5, "mining.pool": 100}
    training = of_places(builder, places, **changed)()
    rows = torch.cat([piece.targets["rows"] for (piece,) in training.batches(0, first_step=0)]).unique().tolist()
    catalogues = training.drawn.source.catalogues
    used = {
        catalogue.east[row - start]
        for catalogue, start in zip(catalogues, (0, 9), strict=True)
        for row in rows
        if 0 <= row - start < len(catalogue)
    }
    assert 550300 not in used and 550009 not in used and 550400 in used
    one = of_places(builder, places, **{**changed, "data.max_unreadable_fraction": 0})()
    with pytest.raises(ValueError, match="max_unreadable_fraction"):
        next(one.batches(0, first_step=0))
    next(of_places(builder, places, **{**changed, "mining.negatives": 5})().batches(0, first_step=0))
    few = of_places(builder, places, **{**changed, "mining.negatives": 6})()
    readable_before = few.drawn.source.catalogue.east.tolist().index(550300)
    few.drawn.miner.kept[:] = readable_before
    with pytest.raises(ValueError, match=r"has fewer than 6 database images that can be read beyond 25 m: lower `min"):
        next(few.batches(0, first_step=0))
    drawn, usable = training.drawn, np.array([0, 2])
    descriptors = drawn.miner._descriptors()
    database, queries = (each.take(np.arange(len(each))) for each in descriptors.parts)
    is_read, asked = database.any(axis=1), drawn.source.candidates.queries
    expected = k_reciprocal(queries[asked][queries[asked].any(axis=1)], database[is_read], k1=20, k2=1, weight=0.1)
    found = drawn.miner._reranked(descriptors, usable)(np.arange(2))
    np.testing.assert_allclose(found[:, is_read], expected, atol=1e-6)
    assert np.isinf(found[:, ~is_read]).all() and (~is_read).sum() == 1


def test_micro_batches_hold_whole_tuples_and_give_the_same_gradient(builder):
    vit = {"model.architecture": "tiny-vit", "encoder.descriptor_dim": "null"}  # no batch norm
    gradients = []
    for micro_batches in (1, 2):
        training = builder(TUPLES, **vit, **{"training.micro_batches": micro_batches})()
        training.begin_epoch(0)
        pieces = next(training.batches(0, first_step=0))
        assert [len(piece.targets["tuples"]) for piece in pieces] == [4 // micro_batches] * micro_batches
        for piece in pieces:
            (value,) = training.losses(piece).values()
            (value / micro_batches).backward()
        gradients.append(torch.cat([each.grad.flatten() for each in training.encoder.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_a_part_that_was_begun_is_resumed_without_mining_again(builder, tmp_path, caplog):
    build = builder(TUPLES, **{"training.iterations_per_epoch": 4, "mining.queries": 8, "training.batch_size": 4})
    whole = trainer_of(build(), tmp_path / "whole")
    whole.resume()
    terms = whole.train_epoch(StopRequest())
    stop_after_a_step(trainer_of(build(), tmp_path / "stopped"))
    resumed = trainer_of(build(), tmp_path / "stopped")
    resumed.resume()
    caplog.set_level("INFO", "progeo")
    caplog.clear()
    assert resumed.train_epoch(StopRequest()) == terms
    assert caplog.text.count("mined the tuples of 8 queries") == 1  # those of the second part
    assert_same_state(resumed.state_dict(), whole.state_dict())
    assert (whole.task.drawn.miner.kept >= 0).all(axis=1).sum() == 16


def encoder_of(training):
    return {name: tensor.clone() for name, tensor in training.encoder.state_dict().items()}


@pytest.mark.parametrize("fixed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_generations_begin_with_the_first_weights_and_learn_from_the_generation_before(builder, tmp_path, fixed):
    build = builder(
        REGIONS,
        **{
            "training.fixed_target": str(fixed).lower(),
            "training.schedule": "step",
            "training.decay_epochs": 1,
            "training.ema_decay": 0.5,
        },
    )
    trainer = trainer_of(build(), tmp_path / "one")
    trainer.resume()
    first = encoder_of(trainer.task)
    names, before = [], first
    for generation in range(3):
        begun, begin = {}, trainer.task.begin_epoch

        def begin_epoch(epoch, begun=begun, begin=begin):
            begun.update(encoder_of(trainer.task))
            begin(epoch)

        trainer.task.begin_epoch = begin_epoch
        names.append(set(trainer.train_epoch(StopRequest())))
        del trainer.task.begin_epoch
        assert_same_state(begun, first)
        if generation:
            assert_same_state(trainer.task._target.state_dict(), first if fixed else before)
            assert not trainer.task._target.training
        before = encoder_of(trainer.task)
        assert any(not torch.equal(before[name], first[name]) for name in first)
        assert trainer.task.optimizer.param_groups[0]["lr"] == trainer.task.optimizer.param_groups[0]["base_lr"]
        steps = {int(state["step"]) for state in trainer.task.optimizer.state.values()}
        assert steps == {2}
        assert int(trainer.averaged.n_averaged) == 2
    assert names == [{"loss", "sare"}, *[{"loss", "sare", "soft_regions"}] * 2]


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_that_is_stopped_between_generations_ends_with_the_same_bits(builder, tmp_path, count):
    settings = {**REGIONS, "training.epochs": count, "training.generations": " ".join(count * "1")}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = trainer_of(builder(settings)(), tmp_path / "whole")
    whole.resume()
    losses = list(whole.epochs())
    stopped = trainer_of(builder(settings)(), tmp_path / "stopped")
    stopped.resume()
    assert next(stopped.epochs()) == losses[0]  # the checkpoint of the end of the first generation is written
    resumed = trainer_of(builder(settings)(), tmp_path / "stopped")
    assert resumed.resume() is not None and resumed.epoch == 1
    assert list(resumed.epochs()) == losses[1:]
    assert_same_state(resumed.state_dict(), whole.state_dict())


def test_generations_that_do_not_add_up_or_would_be_cut_short_are_refused(builder):
    with pytest.raises(ValueError, match=r"`training.generations` 1 1 1 have 3 epochs together, and `.*epochs` is 4"):
        builder(REGIONS, **{"training.epochs": 4})
    with pytest.raises(ValueError, match=r"`training.patience` would end a training before its `generations`"):
        builder(REGIONS, **{"training.patience": 1})
    with pytest.raises(ValueError, match=r"`training.schedule` plateau compares an epoch with those of all `generat"):
        builder(REGIONS, **{"training.schedule": "plateau"})
    one = {"training.epochs": 1, "training.generations": "[]"}
    with pytest.raises(ValueError, match=r"`regions.weight` above 0 needs .*: set `training.generations`"):
        builder(REGIONS, **one)
    with pytest.raises(ValueError, match=r"`tuples.hardest_regions` is for later generations: set `training.generati"):
        builder(REGIONS, **one, **{"regions.weight": 0})
    with pytest.raises(ValueError, match=r"`training.fixed_target` is for later generations: set `training.generati"):
        builder(TUPLES, **{"training.fixed_target": "true"})


def test_a_map_that_has_no_such_regions_is_refused_with_sizes_that_fit(builder):
    with pytest.raises(
        ValueError, match=r"quarters need .* got 3 x 2: use sides in multiples of 64 pixels, such as 128 x 64"
    ):
        builder(REGIONS, **{"encoder.image_size": "96 64"})()
    with pytest.raises(ValueError, match=r"`tuples.hardest_regions` needs .*: `aggregation` gem has none, use netvlad"):
        builder(REGIONS, **{"encoder.aggregation": "gem", "encoder.aggregation_options": "{}"})


def test_the_clusters_of_a_start_are_kept_and_can_be_given(builder, tmp_path):
    netvlad = {name: value for name, value in REGIONS.items() if name.startswith("encoder")}
    training = builder({**TUPLES, **netvlad})()
    training.begin()
    assert files_in(tmp_path / "run") == {"stage2/centroids.hdf5"}
    file = tmp_path / "run/stage2/centroids.hdf5"
    again = builder({**TUPLES, **netvlad}, **{"encoder.centroids": file, "seed": 5})()
    again.begin()  # does not cluster
    assert_same_state(again.encoder.aggregation.state_dict(), training.encoder.aggregation.state_dict())
    with pytest.raises(FileNotFoundError, match=r"`encoder.centroids`: there is no file"):
        builder({**TUPLES, **netvlad}, **{"encoder.centroids": tmp_path / "none.hdf5"})
    with pytest.raises(ValueError, match=r"`encoder.centroids` is for the aggregation netvlad, not for gem"):
        builder(TUPLES, **{"encoder.centroids": file})
    trained = save_encoder(tmp_path / "trained", training.encoder.eval(), provenance={}, recalls={})
    with pytest.raises(ValueError, match=r"`encoder.centroids` is for a netvlad that was never trained, and that of"):
        builder({**TUPLES, **netvlad}, **{"encoder.centroids": file, "model.weights": trained})
    with pytest.raises(ValueError, match=r"centroids\.hdf5: NetVLAD of 4 clusters and 512 channels cannot start from"):
        builder({**TUPLES, **netvlad, "encoder.aggregation_options": "num_clusters=4"},
                **{"encoder.centroids": file})()  # fmt: skip
