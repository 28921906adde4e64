"""The readers of files of other programs, and small complete files for each of them."""

import json
from functools import partial

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import scipy.io
from fuzz.forked import Reader
from PIL import Image

from progeo.config.yaml_files import read_setting_file
from progeo.datasets.readers.arrays import read_arrays
from progeo.datasets.readers.dbstruct import read_dbstruct
from progeo.datasets.readers.msls import read_msls
from progeo.datasets.readers.photos import read_photos
from progeo.datasets.readers.tables import read_table
from progeo.places.catalogue import read_catalogue

IMAGES = ("0.jpg", "1.jpg", "2.jpg")
COLUMNS = {
    "path": IMAGES,
    "latitude": (52.20347, 52.20557, 52.2057),
    "longitude": (0.11409, 0.11421, 0.1143),
    "heading": (90.0, 270.0, 359.5),
    "condition": ("day", "night", "day"),
    "time": ("2024-05-06", "0920", ""),
}
METERS = {
    "path": IMAGES,
    "utm_east": (585001.5, 585002.0, 585003.0),
    "utm_north": (4476001.0, 4476002.0, 4476003.5),
    "zone": ("17T", "17T", "17"),
    "hemisphere": ("north", "", "n"),
    "epsg": ("EPSG:32617", "32617", ""),
}


def make_images(folder, names=IMAGES):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def lines(columns, delimiter=","):
    rows = zip(*columns.values(), strict=True)
    return "\n".join(delimiter.join(map(str, row)) for row in (columns, *rows)) + "\n"


def make_csv(folder, columns, name="places.csv", delimiter=",", encoding="utf-8"):
    make_images(folder)
    (folder / name).write_text(lines(columns, delimiter), encoding=encoding)


def make_parquet(folder, **options):
    make_images(folder)
    pa_parquet.write_table(pa.table(COLUMNS), folder / "places.parquet", **options)


def make_geojson(folder):
    make_images(folder)
    features = [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [east, north]}, "properties": {"path": name}}
        for name, north, east in zip(*(COLUMNS[name] for name in ("path", "latitude", "longitude")), strict=True)
    ]
    features[1]["properties"] |= {"heading": 90, "condition": "day"}
    (folder / "places.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


STRUCT = {
    "dbImageFns": IMAGES,
    "utmDb": np.array([[585001.5, 585002, 585003], [4476001, 4476002, 4476003.5]]),
    "qImageFns": ("q1.jpg", "q2.jpg"),
    "utmQ": np.array([[585001.0, 585009], [4476001, 4476009]]),
    "qTimeStamp": np.array([[735234.25, 20130512]]),
}


def make_mat(folder, *, compressed):
    make_images(folder, (*IMAGES, *STRUCT["qImageFns"]))
    fields = {
        name: np.array(value, object)[:, None] if isinstance(value, tuple) else value for name, value in STRUCT.items()
    }
    scipy.io.savemat(folder / "set.mat", {"dbStruct": fields}, do_compression=compressed)


def make_hdf5_mat(folder):
    """As MATLAB writes: matrices transposed, texts as numbers, cells as references."""
    make_images(folder, (*IMAGES, *STRUCT["qImageFns"]))
    with h5py.File(folder / "set.mat", "w") as content:
        struct = content.create_group("dbStruct")
        for name, value in STRUCT.items():
            if not isinstance(value, tuple):
                struct.create_dataset(name, data=value.T, compression="gzip")
                continue
            references = np.empty((1, len(value)), h5py.ref_dtype)
            for index, text in enumerate(value):
                codes = np.array([[ord(letter)] for letter in text], np.uint16)
                references[0, index] = content.create_dataset(f"#refs#/{name}{index}", data=codes).ref
            struct.create_dataset(name, data=references)


def ragged(*rows):
    values = np.empty(len(rows), object)
    values[:] = rows
    return values


def make_arrays(folder, **arrays):
    make_images(folder, (*IMAGES, "q1.jpg", "q2.jpg"))
    for name, values in {"dbImages": np.array(IMAGES), "qImages": np.array(["q1.jpg", "q2.jpg"]), **arrays}.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=True)


def make_patch_netvlad(folder):
    make_images(folder)
    (folder / "set_imageNames_index.txt").write_text("\n".join(IMAGES) + "\n")
    (folder / "set_imageNames_query.txt").write_text("0.jpg\n2.jpg\n")
    positions = np.array([[585001.5, 4476001], [585002, 4476002], [585003, 4476003.5]])
    np.savez_compressed(folder / "set.npz", utmDb=positions, utmQ=positions[[0, 2]], posDistThr=np.array([[10.0]]))


def make_vpr_bench(folder):
    make_images(folder, [f"{side}/{number:07d}.jpg" for side in ("query", "ref") for number in range(3)])
    truth = np.empty((3, 2), object)
    truth[:, 0] = range(3)
    truth[:, 1] = [[0, 1], [1], [2]]
    np.save(folder / "ground_truth_new.npy", truth, allow_pickle=True)


def make_msls(folder):
    for side in ("database", "query"):
        make_images(folder / "cph" / side / "images")
        keys = {"": (0, 1, 2), "key": ("0", "1", "2")}
        tables = {
            "postprocessed": {
                "easting": METERS["utm_east"],
                "northing": METERS["utm_north"],
                "night": ("False", "True", "0"),
            },
            "raw": {
                "lon": (12.5, 12.51, 12.52),
                "lat": (55.6, 55.61, 55.62),
                "ca": (10.5, 0, 359.0),
                "captured_at": ("2018-05-01", "2018-05-02", "2018-05-03"),
                "pano": (False, False, True),
            },
            "subtask_index": {"all": (True, True, False), "s2w": (False, True, False)},
        }
        for name, columns in tables.items():
            (folder / "cph" / side / f"{name}.csv").write_text(lines({**keys, **columns}))


def make_photos(folder, ending="jpg"):
    folder.mkdir(exist_ok=True)
    for name, latitude in (("a", 33), ("b", 33)):
        exif = Image.Exif()
        exif[0x8825] = {1: "S", 2: (latitude, 27, 30.5), 3: "W", 4: (70, 39, 36.25), 16: "T", 17: 12.5}
        exif[0x8769] = {0x9003: "2024:05:06 07:08:09"}
        Image.new("RGB", (8, 8)).save(folder / f"{name}.{ending}", exif=exif)


def make_list(folder):
    names = [f"@{585001.5 + number}@4476001.0@17@T@@@pano@@90@@@@202405@note@.jpg" for number in range(3)]
    make_images(folder / "images", names)
    (folder / "images_images_paths.txt").write_text("\n".join(names) + "\n")


SETTINGS = """# settings
data:
  train_folder: &folder city/train
  num_workers: 0
validation: {folder: *folder, positive_radius_m: 25}
encoder:
  image_size: [64, 64]
  frozen: ~
loss:
  - text
  - "pairs"
"""


def make_settings(folder):
    folder.mkdir(exist_ok=True)
    (folder / "settings.yaml").write_text(SETTINGS)


SETTING_NAMES = (
    *("data.train_folder", "data.num_workers", "validation.folder", "validation.positive_radius_m"),
    *("encoder.image_size", "encoder.frozen", "loss"),
)


def in_file(name, read):
    return lambda folder: read(folder / name, folder)


def of_arrays(folder):
    return read_arrays(folder, folder)


table_readers = [
    Reader(f"table {name}", file, make, in_file(file, read_table))
    for name, file, make in (
        ("csv degrees", "places.csv", partial(make_csv, columns=COLUMNS)),
        ("csv meters", "places.csv", partial(make_csv, columns=METERS)),
        ("csv utf-16", "places.csv", partial(make_csv, columns=COLUMNS, delimiter=";", encoding="utf-16")),
        ("tsv", "places.tsv", partial(make_csv, columns=METERS, name="places.tsv", delimiter="\t")),
        ("parquet", "places.parquet", make_parquet),
        (
            "parquet zstd",
            "places.parquet",
            partial(make_parquet, compression="zstd", use_dictionary=False, data_page_version="2.0"),
        ),
        ("geojson", "places.geojson", make_geojson),
    )
]
array_readers = [
    Reader(f"arrays {name}", file, make, of_arrays)
    for name, file, make in (
        ("gt.npy", "gt.npy", partial(make_arrays, gt=ragged([0, 1], np.array([2])))),
        ("gt.npy booleans", "gt.npy", partial(make_arrays, gt=np.array([[True, False, True], [False] * 3]))),
        ("dbImages.npy", "dbImages.npy", partial(make_arrays, gt=ragged([0, 1], np.array([2])))),
        (
            "qImages.npy objects",
            "qImages.npy",
            partial(make_arrays, gt=ragged([0, 1], [2]), qImages=ragged("q1.jpg", b"q2.jpg")),
        ),
        ("pIdx.npy", "pIdx.npy", partial(make_arrays, qIdx=np.array([1, 0]), pIdx=ragged([0, 1], range(2)))),
        ("qIdx.npy", "qIdx.npy", partial(make_arrays, qIdx=np.array([1, 0]), pIdx=ragged([0, 1], range(2)))),
        ("patch-netvlad npz", "set.npz", make_patch_netvlad),
        ("patch-netvlad list", "set_imageNames_index.txt", make_patch_netvlad),
        ("vpr-bench", "ground_truth_new.npy", make_vpr_bench),
    )
]
READERS = [
    *table_readers,
    *array_readers,
    *(
        Reader(f"msls {name}", f"cph/database/{name}.csv", make_msls, lambda folder: read_msls(folder / "cph"))
        for name in ("postprocessed", "raw", "subtask_index")
    ),
    *(
        Reader(f"photos {ending}", f"a.{ending}", partial(make_photos, ending=ending), read_photos)
        for ending in ("jpg", "png", "webp")
    ),
    Reader("list of images", "images_images_paths.txt", make_list, lambda folder: read_catalogue(folder / "images")),
    Reader("settings", "settings.yaml", make_settings, lambda f: read_setting_file(f / "settings.yaml", SETTING_NAMES)),
]
MAT = [
    Reader("mat", "set.mat", partial(make_mat, compressed=False), in_file("set.mat", read_dbstruct), may_crash=True),
    Reader(
        "mat packed", "set.mat", partial(make_mat, compressed=True), in_file("set.mat", read_dbstruct), may_crash=True
    ),
    Reader("mat hdf5", "set.mat", make_hdf5_mat, in_file("set.mat", read_dbstruct), may_crash=True),
]
