import numpy as np
import pytest
from PIL import Image

from progeo.cli import main
from progeo.commands.dataset import scan_dataset
from progeo.commands.dataset_import import import_dataset
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import build_partition


def test_the_plan_counts_every_group(city, capsys):
    cells = {"min_images_per_class": 4, "groups_per_side": 2, "groups_per_heading": 1}
    words = [f"--cells.{name}={value}" for name, value in cells.items()]
    main(["dataset", "groups", str(city / "train"), *words, "--cells.num_groups", "null"])
    assert capsys.readouterr().out.rstrip().endswith("with at least 4, 84 in the first 2")
    main(["dataset", "groups", str(city / "train"), *words, "--cells.num_groups", "1"])
    printed = capsys.readouterr().out
    everything = {**cells, "cell_side_m": 10, "heading_bin_deg": 30, "num_groups": None}
    partition = build_partition(read_catalogue(city / "train"), **everything)
    for number, group in enumerate(partition.groups, 1):
        sizes = np.diff(group.offsets)
        row = f"{number} {len(sizes)} {sizes.sum()} {sizes.min()} {np.median(sizes):g} {sizes.max()}"
        assert row.split() in [line.split() for line in printed.splitlines()]
    assert "84 images;" in printed
    assert printed.rstrip().endswith(f", {len(partition.groups[0].rows)} in the first 1")


def test_a_set_on_a_disk_that_cannot_be_written_to_has_its_index_elsewhere(open_folder, as_nobody):
    folder = open_folder / "disk/set"
    folder.mkdir(parents=True)
    (folder / "@1@2@10@S@.jpg").touch()
    (open_folder / "mine").mkdir()
    (open_folder / "mine").chmod(0o777)
    (open_folder / "disk").chmod(0o555)
    with as_nobody():
        with pytest.raises(OSError, match=rf"^{folder}\.arrow could not be written: .*elsewhere with --out OUT"):
            scan_dataset((str(folder),))
        with pytest.raises(OSError, match=rf"^{open_folder}/disk/new/set\.arrow could not be written: "):
            scan_dataset((str(folder),), out=open_folder / "disk/new/set")
        file = scan_dataset((str(folder),), out=open_folder / "mine/new/set")
    assert file == open_folder / "mine/new/set.arrow"
    catalogue = read_catalogue(open_folder / "mine/new/set")
    assert [catalogue.path(row) for row in range(len(catalogue))] == [folder / "@1@2@10@S@.jpg"]


def test_no_index_is_written_of_positions_that_nobody_can_compare(tmp_path):
    (tmp_path / "set").mkdir()
    for zone in ("10", "11", ""):
        (tmp_path / f"set/@1@2@{zone}@.jpg").touch()
    with pytest.raises(ValueError, match=r"1 of 3 images of .*set have no UTM zone"):
        scan_dataset((str(tmp_path / "set"),), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_catalogue_may_be_given_by_its_file_but_hides_no_other_folder(tmp_path):
    for name in ("set", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"@1@2@{name}@.jpg").touch()
    assert scan_dataset((str(tmp_path / "set"),), out=tmp_path / "out.arrow") == tmp_path / "out.arrow"
    assert scan_dataset((str(tmp_path / "set"),), out=tmp_path / "set") == tmp_path / "set.arrow"
    (tmp_path / "places.csv").write_text("path,lat,lon\n@1@2@set@.jpg,1,2\n")
    table, images = tmp_path / "places.csv", tmp_path / "set"
    import_dataset("table", table, out=tmp_path / "table.arrow", images=images, link=True)
    assert {path.name for path in tmp_path.glob("table*")} == {"table.arrow", "table"}
    assert len(read_catalogue(tmp_path / "table")) == len(list((tmp_path / "table").iterdir())) == 1
    with pytest.raises(FileExistsError, match=rf"There is something in {tmp_path}/other already: name another `out`"):
        scan_dataset((str(tmp_path / "set"),), out=tmp_path / "other")


def test_a_split_set_is_two_folders_for_every_command(city, tmp_path, capsys):
    cells = [f"--cells.{name}={value}" for name, value in {"min_images_per_class": 4, "groups_per_side": 2}.items()]
    main(["dataset", "split", str(city / "train"), "--per_class", "1", "--out", str(tmp_path / "a"), *cells])
    assert "train with --cells.min_images_per_class 3" in capsys.readouterr().err
    main(["dataset", "split", str(city / "train"), "--every", "4", "--out", str(tmp_path / "b"), "--link"])
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"train.arrow", "queries.arrow"}
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"train.arrow", "queries.arrow", "train", "queries"}
    whole = read_catalogue(city / "train")
    names = sorted(whole.path(row).resolve() for row in range(len(whole)))
    for out in (tmp_path / "a", tmp_path / "b"):
        parts = [read_catalogue(out / side) for side in ("train", "queries")]
        assert names == sorted(part.path(row).resolve() for part in parts for row in range(len(part)))
    links = sorted(path.resolve() for path in (tmp_path / "b/queries").iterdir())
    assert links == sorted(parts[1].path(row).resolve() for row in range(len(parts[1])))


@pytest.mark.parametrize("options", [[], ["--every=4", "--per_class=2"]])
def test_a_split_is_by_positions_or_by_classes(city, tmp_path, options):
    with pytest.raises(SystemExit, match="Give one of --every and --per_class, and not both"):
        main(["dataset", "split", str(city / "train"), "--out", str(tmp_path / "out"), *options])
    assert not list(tmp_path.iterdir())


def test_a_split_does_not_hide_the_images_that_it_divides(city, tmp_path):
    (tmp_path / "train").symlink_to(city / "train")
    with pytest.raises(SystemExit, match=rf"{tmp_path} already holds train: name another folder"):
        main(["dataset", "split", str(tmp_path / "train"), "--out", str(tmp_path), "--every=4"])
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_skipped_photos_are_counted_for_each_reason_and_the_first_are_named(tmp_path, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(14):
        exif = Image.Exif()
        if number < 10:
            exif[0x8825] = {1: "N", 2: (45, number, 0), 3: "E", 4: (107 if number == 5 else 7, 42, 0)}
        Image.new("RGB", (8, 8)).save(photos / f"{number:02}.jpg", exif=exif)
    import_dataset("photos", photos, out=tmp_path / "set")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"skipped 4 images, it has no position: {photos}/10.jpg, {photos}/11.jpg, {photos}/12.jpg, ...",
        f"skipped 1 image, it is too far from all others: {photos}/05.jpg",
    ]
