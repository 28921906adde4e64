"""Classifiers of published programs, whose classes are in another file, imported beside the encoder."""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from published_convnets import cosplace, divide_and_classify
from running import build_catalogue

from progeo.cli import main
from progeo.convert.published_classes import read_published_classes
from progeo.export.classifier import load_classifier, load_encoder_and_classifier
from progeo.models.state_dicts import weights_digest
from progeo.places.cells import build_partition
from progeo.places.geographic import Frame, positions_m


def photos(zone="10@S", north=4_180_000, headings=(0,)):
    """Names of two or three photos in each of 30 cells of 20 m."""
    return [
        f"db/@{550_003 + 20 * east}@{north + 7 + 20 * up}@{zone}@@@{photo}@@{heading}@@@@@@.jpg"
        for east in range(6)
        for up in range(5)
        for heading in headings
        for photo in range(2 + (east + up) % 2)
    ]


def published_cache(names, side, spacing, *, bin_deg=None, bins_apart=1):
    """Classes per group and images as the published programs write them, which differ where classes have headings."""
    images, groups = defaultdict(list), defaultdict(set)
    for name in names:
        _, east, north, *fields = name.split("@")
        cell = [int(float(value) // side * side) for value in (east, north)]
        class_id, group_id = tuple(cell), tuple(value % (side * spacing) // side for value in cell)
        if bin_deg is not None:
            bin_ = int(float(fields[6]) // bin_deg * bin_deg)
            class_id, group_id = (*class_id, bin_), (*group_id, bin_ % (bin_deg * bins_apart) // bin_deg)
        images[class_id].append(name)
        groups[group_id].add(class_id)
    classes = [list(group) for group in groups.values()]
    return classes, dict(images) if bin_deg else [{each: images[each] for each in group} for group in classes]


def classifiers_of(groups, dim, *, is_linear=False):
    names = ("linear.weight", "linear.bias") if is_linear else ("weight",)
    shapes = [[(len(group), dim), (len(group),)] for group in groups]
    return [{name: torch.randn(shape) for name, shape in zip(names, each, strict=False)} for each in shapes]


def import_checkpoint(folder, state, classifiers, cache, name, *options, **others):
    """Write the two files of a published program, import them and return the folder of the encoder."""
    torch.save({"model_state_dict": state, "classifiers_state_dict": classifiers, **others}, folder / "last.pth")
    torch.save(cache, folder / name)
    words = [folder / "last.pth", "--class_order", folder / name, "--out", folder / "encoder", *options]
    main(["import", *map(str, words)])
    return folder / "encoder"


def check_rows(classifier, groups, classifiers, name="weight"):
    """Every class of ours has the published values of the class with the same id."""
    ours = {tuple(ids): index for index, ids in enumerate(classifier.class_ids.tolist())}
    assert len(ours) == sum(map(len, groups)) == len(classifier)
    for group, state in zip(groups, classifiers, strict=True):
        for row, ids in enumerate(group):
            found = getattr(classifier, name.rpartition(".")[2])[ours[(*ids, 0)[:3]]]
            np.testing.assert_array_equal(found, state[name][row].numpy())


def check_partition(classifier, names, **settings):
    """The classes, their groups and numbers of images are those of a training here with the same images."""
    partition = build_partition(build_catalogue(Path("train"), names), **settings)
    assert classifier.fingerprint == partition.fingerprint
    assert dict(classifier.cells) == dict(partition.settings)
    assert classifier.classes_per_group == tuple(group.num_classes for group in partition.groups)
    expected = np.concatenate([group.class_ids for group in partition.groups])
    np.testing.assert_array_equal(classifier.class_ids, expected)
    counts = np.concatenate([np.diff(group.offsets) for group in partition.groups])
    np.testing.assert_array_equal(classifier.num_images, counts)


CELLS = {"cell_side_m": 20, "groups_per_side": 2, "heading_bin_deg": 360, "groups_per_heading": 1}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return divide_and_classify("efficientnet_b0").state_dict()


@pytest.mark.parametrize(
    ("options", "arguments", "kind", "scale"),
    [
        ([], {}, "arcface", 100.0),
        pytest.param(["--head", "cosface"], {}, "cosface", 100.0, marks=pytest.mark.slow),
        ([], {"args": argparse.Namespace(classifier_type="LMCC", lmcc_s=64.0)}, "cosface", 64.0),
        pytest.param(
            ["--head", "arcface"],
            {"args": argparse.Namespace(classifier_type="LMCC")},
            "arcface",
            100.0,
            marks=pytest.mark.slow,
        ),
        ([], {"args": argparse.Namespace(classifier_type="FC_CE")}, "linear", 1.0),
    ],
)
def test_classifiers_of_divide_and_classify_come_in_our_order(
    network, options, arguments, kind, scale, tmp_path, capsys
):
    groups, images = published_cache(photos(), 20, 2)
    classifiers = classifiers_of(groups, 1280, is_linear=kind == "linear")
    folder = import_checkpoint(
        tmp_path, network, classifiers, (groups, images), "sf_xl_M20_N2_mipc2.torch", *options, **arguments
    )
    encoder, classifier = load_encoder_and_classifier(folder)
    assert (classifier.kind, classifier.scale, classifier.frame) == (kind, scale, Frame(10, "north"))
    assert classifier.encoder == weights_digest(encoder.state_dict())
    prefix = "linear." if kind == "linear" else ""
    check_rows(classifier, groups, classifiers, f"{prefix}weight")
    if kind == "linear":
        check_rows(classifier, groups, classifiers, "linear.bias")
    else:
        assert classifier.bias is None
    check_partition(classifier, photos(), **CELLS, min_images_per_class=2, num_groups=None)
    log = capsys.readouterr().err
    assert f"classifier of 30 classes in 4 groups, {kind}" in log
    assert "classifiers_state_dict" not in log


def test_classifiers_of_cosplace_are_those_of_the_groups_that_it_trained(tmp_path):
    names = photos("51@K", north=7_600_000, headings=(10, 70, 130))
    groups, images = published_cache(names, 10, 4, bin_deg=60, bins_apart=3)
    classifiers = classifiers_of(groups[:5], 24)
    file = "small_M10_N4_alpha60_L3_mipc2.torch"
    folder = import_checkpoint(tmp_path, cosplace("resnet18", 24).state_dict(), classifiers, (groups, images), file)
    classifier = load_classifier(folder)
    assert (classifier.kind, classifier.scale, classifier.bias) == ("cosface", 30.0, None)
    assert classifier.frame == Frame(51, "south")
    assert classifier.cells["num_groups"] == len(classifier.classes_per_group) == 5
    check_rows(classifier, groups[:5], classifiers)


def test_cells_on_both_sides_of_the_equator_keep_the_coordinates_of_their_names(network, tmp_path):
    names = [*photos("31@M", north=9_999_000), *photos("31@N", north=1_000)]
    groups, images = published_cache(names, 20, 2)
    states = classifiers_of(groups, 1280)
    classes = load_classifier(import_checkpoint(tmp_path, network, states, (groups, images), "x_M20_N2_mipc2.torch"))
    own, queries = positions_m(classes.catalogue, build_catalogue(Path("queries"), names))
    inside = np.abs(own[:, None] - queries).max(axis=2) <= 10
    assert inside.sum(axis=1).tolist() == classes.num_images.tolist()
    assert np.isnan(classes.catalogue.table["latitude"].to_numpy()).all()  # of the cells


def test_names_that_do_not_say_a_zone_leave_it_unknown(network, tmp_path):
    groups, images = published_cache([name.replace("@10@S@", "@@@") for name in photos()], 20, 2)
    renamed = [
        {ids: [f"x{path.rpartition('/')[2]}" for path in paths] for ids, paths in group.items()} for group in images
    ]
    for name, paths in {"a": images, "b": renamed}.items():
        (tmp_path / name).mkdir()
        states = classifiers_of(groups, 1280)
        folder = import_checkpoint(tmp_path / name, network, states, (groups, paths), "x_M20_N2_mipc2.torch")
        assert load_classifier(folder).frame == Frame(0, None)


def changed(states, index, **tensors):
    return [{**state, **tensors} if each == index else state for each, state in enumerate(states)]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("x_M20_N2_mipc2.torch", lambda states: states[:3] + [states[0]] * 2, "5 groups, .*torch has 4"),
        (
            "x_M20_N2_mipc2.torch",
            lambda states: changed(states, 1, weight=torch.zeros(5, 1280)),
            r"holds a classifier of 5 classes in group 1, .*torch has \d+: they are of different trainings",
        ),
        (
            "x_M20_N2_mipc2.torch",
            lambda states: changed(states, 1, weight=torch.zeros(len(states[1]["weight"]), 7)),
            "do not have weight of the same sizes",
        ),
        (
            "x_M20_N2_mipc2.torch",
            lambda states: [{"weight": s["weight"][:, :9]} for s in states],
            "of 9 dimensions, the",
        ),
        (
            "x_M20_N2_mipc2.torch",
            lambda states: changed(states, 1, weight=torch.zeros(3)),
            "weight should be a 2-d tensor",
        ),
        ("x_M20_N2_mipc2.torch", lambda states: [*states[:3], {"bias": torch.zeros(1)}], "weight is missing"),
        ("x_M20_N2_mipc2.torch", lambda states: [], "holds no classifiers_state_dict, which --class_order is for"),
        ("x_M30_N2_mipc2.torch", lambda states: states, "cannot be used: some of their classes are no cells"),
        ("x_M20_N1_mipc2.torch", lambda states: states[:0:-1], "holds a classifier of .* classes in group 0"),
        ("x_M20_N3_mipc2.torch", lambda states: states, "a published group holds classes of several groups"),
        ("classes.torch", lambda states: states, "The cell settings are missing from the name classes.torch"),
    ],
)
def test_classifiers_that_do_not_fit_their_classes_are_refused(network, name, change, sentence, tmp_path):
    groups, images = published_cache(photos(), 20, 2)
    with pytest.raises(SystemExit, match=sentence):
        import_checkpoint(tmp_path, network, change(classifiers_of(groups, 1280)), (groups, images), name)
    assert not (tmp_path / "encoder").exists()


def test_scales_groups_and_zones_that_cannot_be_used_are_refused_as_are_margins_of_linear_layers(network, tmp_path):
    groups, images = published_cache(photos(), 20, 2)
    states, name = classifiers_of(groups, 1280, is_linear=True), "x_M20_N2_mipc2.torch"
    with pytest.raises(SystemExit, match=r"--head: the classifiers of .* are linear layers, omit it"):
        import_checkpoint(tmp_path, network, states, (groups, images), name, "--head", "cosface")
    states[2]["linear.bias"] = states[2]["linear.bias"][1:]
    with pytest.raises(SystemExit, match=r"do not have linear\.weight and linear\.bias of the same sizes"):
        import_checkpoint(tmp_path, network, states, (groups, images), name)
    states = classifiers_of(groups, 1280)
    for scale in ("100", float("nan")):
        arguments = argparse.Namespace(classifier_type="AAMC", lmcc_s=scale)
        with pytest.raises(SystemExit, match="should have a positive number as lmcc_s, the scale, got"):
            import_checkpoint(tmp_path, network, states, (groups, images), name, args=arguments)
    with pytest.raises(SystemExit, match=r"torch cannot be used: a published group has no class\.$"):
        import_checkpoint(tmp_path, network, states, ([*groups, []], [*images, {}]), name)
    ids = groups[0][0]
    images[0][ids] = [images[0][ids][0].replace("@10@", "@11@")]
    with pytest.raises(SystemExit, match="holds images of several UTM zones"):
        import_checkpoint(tmp_path, network, classifiers_of(groups, 1280), (groups, images), name)


def test_a_class_that_is_repeated_without_end_is_refused(tmp_path):
    group = [(550000, 4180000)] * 1000
    torch.save(([group] * 1000, {}), tmp_path / "x_M20_N2_mipc2.torch")
    with pytest.raises(ValueError, match=r"x_M20_N2_mipc2\.torch is no order of classes"):
        read_published_classes(tmp_path / "x_M20_N2_mipc2.torch")
