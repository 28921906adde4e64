"""For any bytes in place of files of other programs, reading gives a value or a sentence that names the file."""

import json
import re
import sys
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict
from functools import partial
from types import ModuleType

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import scipy.io
import torch
from fuzz.damaged import Reader, failures
from fuzz.mutations import mutations
from PIL import Image
from safetensors.torch import save_file

from progeo.config.yaml_files import read_setting_file
from progeo.convert.converted_encoder import Choices
from progeo.convert.prompt_learners import holds_prompt_learners, prompts_in
from progeo.convert.published_classes import read_published_classes
from progeo.convert.recognition import open_source, read_encoder
from progeo.convert.source import Source
from progeo.datasets import matlab_process
from progeo.datasets.query_sets import QuerySet
from progeo.datasets.readers.arrays import read_arrays
from progeo.datasets.readers.baidu import read_baidu
from progeo.datasets.readers.dbstruct import read_dbstruct
from progeo.datasets.readers.ground_truth import build_side
from progeo.datasets.readers.gsv_cities import read_gsv_cities
from progeo.datasets.readers.msls import read_msls
from progeo.datasets.readers.photos import read_photos
from progeo.datasets.readers.tables import read_table
from progeo.evaluation.descriptors import read_descriptors
from progeo.models.weight_files.checkpoints import find_weights, read_content
from progeo.places.catalogue import read_catalogue
from progeo.places.listings import listed_paths

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


def make_parquet_folder(folder):
    make_images(folder)
    (folder / "set/part=0").mkdir(parents=True)
    pa_parquet.write_table(pa.table(COLUMNS), folder / "set/part=0/places.parquet")


def make_inventory(folder):
    make_images(folder)
    lines = [f'"bucket","{name}","v","true","false","7"\n' for name in COLUMNS["path"]]
    (folder / "list.csv").write_text("".join(lines))
    table = pa.table({"bucket": ["bucket"] * len(lines), "key": COLUMNS["path"], "is_latest": [True] * len(lines)})
    table = table.append_column("is_delete_marker", [[False] * len(lines)])
    pa_parquet.write_table(table, folder / "list.parquet")
    (folder / "list.txt").write_text("".join(f"2013-09-02 21:37:53  7 {name}\n" for name in COLUMNS["path"]))


def listing(file):
    return reader(file, make_inventory, lambda folder: list(listed_paths([folder / file], folder)))


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


def make_gsv_cities(folder):
    names = [f"Oslo_000000{place}_2018_05_090_59.9{place}_10.7_p{place}.jpg" for place in (0, 0, 1)]
    make_images(folder / "Images/Oslo", dict.fromkeys(names))
    (folder / "Dataframes").mkdir()
    columns = {
        "place_id": (0, 0, 1),
        "year": [2018] * 3,
        "month": [5] * 3,
        "northdeg": [90] * 3,
        "city_id": ["Oslo"] * 3,
    }
    columns |= {"lat": ("59.90", "59.90", "59.91"), "lon": [10.7] * 3, "panoid": ("p0", "p0", "p1")}
    (folder / "Dataframes/Oslo.csv").write_text(lines(columns))


def make_msls_test(folder):
    for side in ("database", "query"):
        make_images(folder / "test/miami" / side / "images")
        (folder / "test/miami" / side / "subtask_index.csv").write_text(
            lines({"": (0, 1, 2), "key": ("0", "1", "2"), "all": (True, True, False)})
        )


def make_baidu(folder):
    camera = "900 0 500\n0 900 400\n0 0 1\n0 0 0\n0 -1 0\n1 0 0\n0 0 1\n12.5 3 -0.25\n1000 800\n"
    for part in ("training", "query"):
        make_images(folder / f"{part}_images_undistort")
        (folder / f"{part}_gt").mkdir()
        for image in sorted((folder / f"{part}_images_undistort").iterdir()):
            (folder / f"{part}_gt" / f"{image.stem}.camera").write_text(camera)


def make_photos(folder, ending):
    folder = folder / "photos"
    folder.mkdir()
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


WEIGHTS = {"conv1.weight": torch.ones(2, 3), "layer.0.bias": torch.zeros(3), "counts": torch.arange(3)}


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.arange(3))
        self.weight = torch.nn.Parameter(torch.ones(2, 3))

    def forward(self, images):
        return images @ self.weight


class PromptLearner(torch.nn.Module):
    """As in published ProGEO, whose modules are pickled by the name of their class."""

    __module__ = "cosplace_model.cosplace_network_stage1"

    def __init__(self):
        super().__init__()
        self.cls_ctx = torch.nn.Parameter(torch.ones(4, 2, 8))
        self.register_buffer("token_prefix", torch.zeros(1, 3, 8))
        self.register_buffer("token_suffix", torch.zeros(1, 5, 8))


def make_checkpoint(folder, **options):
    folder.mkdir(exist_ok=True)
    content = {"epoch": 3, "state": {"model": OrderedDict(WEIGHTS), "ema": WEIGHTS}, "args": Namespace(lr=0.1)}
    torch.save(content, folder / "weights.pth", **options)


def make_pickle(folder):
    """Write the pickle of a checkpoint, whose archive has no checksum of it."""
    make_checkpoint(folder)
    make_data(folder)


def make_data(folder):
    with zipfile.ZipFile(folder / "weights.pth") as archive:
        (folder / "data.pkl").write_bytes(archive.read("weights/data.pkl"))


def of_pickle(folder):
    damaged = repack(folder)
    find_weights(read_content(damaged), damaged, ["conv1.weight"])


def of_encoder(folder):
    read_encoder(open_source(repack(folder), Choices()), Choices())


def repack(folder):
    with zipfile.ZipFile(folder / "weights.pth") as archive, zipfile.ZipFile(folder / "damaged.pth", "w") as damaged:
        for name in archive.namelist():
            content = (folder / "data.pkl").read_bytes() if name == "weights/data.pkl" else archive.read(name)
            damaged.writestr(name, content)
    return folder / "damaged.pth"


def make_encoder(folder, model):
    """Write a checkpoint of training in the size of its names and shapes, since each tensor is one number."""
    folder.mkdir(exist_ok=True)
    state = {
        name: torch.ones((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in model().state_dict().items()
    }
    torch.save({"state_dict": state, "hyper_parameters": {"agg_config": {"s1": 1}}}, folder / "weights.pth")
    make_data(folder)


def make_torchscript(folder):
    folder.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.trace(Scripted(), torch.rand(1, 2)), folder / "weights.pth")


def make_safetensors(folder):
    folder.mkdir(exist_ok=True)
    save_file(WEIGHTS, folder / "weights.safetensors", {"format": "pt"})


def make_prompts(folder):
    folder.mkdir(exist_ok=True)
    module = ModuleType(PromptLearner.__module__)
    module.PromptLearner = PromptLearner
    names = [module.__name__.partition(".")[0], module.__name__]
    sys.modules |= dict.fromkeys(names, module)
    torch.save([PromptLearner(), PromptLearner()], folder / "prompts.pth")
    for name in names:
        del sys.modules[name]


def make_classes(folder):
    folder.mkdir(exist_ok=True)
    classes = [[(550000, 4180000, 0), (550000, 4180020, 0)], [(550010, 4180010, 30)]]
    images = {each: [f"@{each[0]}.5@{each[1]}.5@10@S@.jpg"] * 2 for group in classes for each in group}
    torch.save((classes, images), folder / "x_M10_N2_alpha30_L2_mipc2.torch")


def make_shards(folder):
    make_json(folder, SHARDS, SHARDS_FILE)
    save_file(WEIGHTS, folder / "part.safetensors")


HUGGING_FACE = {
    "model_type": "clip",
    "vision_config": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "hidden_size": 128, "num_attention_heads": 4},
    "text_config": {"hidden_act": "quick_gelu", "num_attention_heads": 8},
}
OPEN_CLIP = {
    "model_cfg": {"embed_dim": 128, "quick_gelu": True, "vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 8}},
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
SHARDS_FILE = "model.safetensors.index.json"
SHARDS = {"weight_map": {"vision_model.embeddings.class_embedding": "part.safetensors", "other": "part.safetensors"}}


def of_weights(name):
    return lambda folder: find_weights(read_content(folder / name), folder / name, ["conv1.weight"])


def of_shards(folder):
    Source(folder, ["conv1.weight"]).weights(("model.safetensors",))


def convert(folder):
    try:
        read_encoder(open_source(folder, Choices()), Choices())
    except FileNotFoundError:  # the folders are without their weights, which are read last
        return


def make_descriptors(folder):
    folder.mkdir(exist_ok=True)
    for name in ("database", "queries"):
        np.save(folder / f"{name}_descriptors.npy", np.ones((3, 4), np.float32))


def of_descriptors(folder):
    images = build_side(folder, [f"{row}.jpg" for row in range(3)])
    read_descriptors(folder, QuerySet(images, images, None))


def of_prompts(folder):
    content = read_content(folder / "prompts.pth")
    if not holds_prompt_learners(content):
        raise ValueError(f"{folder} is something else, which has readers of its own.")
    prompts_in(content, folder / "prompts.pth")


def make_json(folder, values, name):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def reader(file, make, read, named=lambda path: path.name):
    """Return the reader of a file below a folder, made and read by the folder."""

    def build(folder):
        make(folder)
        return folder / file

    return Reader(build, lambda path: read(path.parents[file.count("/")]), named)


def folder_of(path):
    return str(path.parent)


def table(file, make):
    return reader(file, make, lambda folder: read_table(folder / file, folder))


def arrays(file, make):
    return reader(file, make, lambda folder: read_arrays(folder, folder), folder_of)


def msls(name):
    return reader(f"cph/database/{name}.csv", make_msls, lambda folder: read_msls(folder / "cph"), lambda path: "/cph")


def photos(ending):
    return reader(
        f"photos/a.{ending}", partial(make_photos, ending=ending), lambda f: read_photos(f / "photos"), folder_of
    )


def weights(file, make):
    return reader(file, make, lambda folder: find_weights(read_content(folder / file), folder / file, ["conv1.weight"]))


def mat(make):
    return reader("set.mat", make, lambda folder: read_dbstruct(folder / "set.mat", folder))


def mixvpr():
    import published_gsv  # which takes seconds, and only slow tests need

    backbone, channels = published_gsv.resnet("resnet18", crop=True, naming="model")
    return published_gsv.Published(backbone, published_gsv.MixVPR(channels, 25, 12))


def salad():
    from test_salad import Published

    return Published("small", clusters=8, cluster_dim=16)


CLASSES = "x_M10_N2_alpha30_L2_mipc2.torch"
READERS = {
    "csv of degrees": table("places.csv", partial(make_csv, columns=COLUMNS)),
    "csv of meters": table("places.csv", partial(make_csv, columns=METERS)),
    "csv in utf-16": table("places.csv", partial(make_csv, columns=COLUMNS, delimiter=";", encoding="utf-16")),
    "tsv": table("places.tsv", partial(make_csv, columns=METERS, name="places.tsv", delimiter="\t")),
    "parquet": table("places.parquet", make_parquet),
    "parquet, zstd": table(
        "places.parquet", partial(make_parquet, compression="zstd", use_dictionary=False, data_page_version="2.0")
    ),
    "parquet folder": reader(
        "set/part=0/places.parquet",
        make_parquet_folder,
        lambda folder: read_table(folder / "set", folder),
        lambda _: "/set",
    ),
    "listing": listing("list.txt"),
    "inventory, csv": listing("list.csv"),
    "inventory, parquet": listing("list.parquet"),
    "geojson": table("places.geojson", make_geojson),
    "gt.npy": arrays("gt.npy", partial(make_arrays, gt=ragged([0, 1], np.array([2])))),
    "gt.npy, booleans": arrays("gt.npy", partial(make_arrays, gt=np.array([[True, False, True], [False] * 3]))),
    "dbImages.npy": arrays("dbImages.npy", partial(make_arrays, gt=ragged([0, 1], np.array([2])))),
    "qImages.npy": arrays(
        "qImages.npy", partial(make_arrays, gt=ragged([0, 1], [2]), qImages=ragged("q1.jpg", b"q2.jpg"))
    ),
    "pIdx.npy": arrays("pIdx.npy", partial(make_arrays, qIdx=np.array([1, 0]), pIdx=ragged([0, 1], range(2)))),
    "qIdx.npy": arrays("qIdx.npy", partial(make_arrays, qIdx=np.array([1, 0]), pIdx=ragged([0, 1], range(2)))),
    "patch-netvlad, npz": arrays("set.npz", make_patch_netvlad),
    "patch-netvlad, names": arrays("set_imageNames_index.txt", make_patch_netvlad),
    "vpr-bench": arrays("ground_truth_new.npy", make_vpr_bench),
    "msls, postprocessed.csv": msls("postprocessed"),
    "msls, raw.csv": msls("raw"),
    "msls, subtask_index.csv": msls("subtask_index"),
    "gsv-cities": reader(
        "Dataframes/Oslo.csv",
        make_gsv_cities,
        lambda folder: read_gsv_cities(folder, min_images=1),
        lambda path: str(path.parent.parent),
    ),
    "msls, without positions": reader(
        "test/miami/database/subtask_index.csv",
        make_msls_test,
        lambda folder: read_msls(folder / "test/miami"),
        lambda path: "/miami",
    ),
    "baidu": reader("query_gt/0.camera", make_baidu, read_baidu),
    "photo, jpg": photos("jpg"),
    "photo, png": photos("png"),
    "photo, webp": photos("webp"),
    "list of images": reader(
        "images_images_paths.txt", make_list, lambda folder: read_catalogue(folder / "images"), lambda path: "/images"
    ),
    "settings": reader(
        "settings.yaml", make_settings, lambda folder: read_setting_file(folder / "settings.yaml", SETTING_NAMES)
    ),
    "torch": weights("weights.pth", make_checkpoint),
    "torch, pickle": reader("data.pkl", make_pickle, of_pickle, folder_of),
    "torch, MixVPR": reader("data.pkl", partial(make_encoder, model=mixvpr), of_encoder, folder_of),
    "torch, SALAD": reader("data.pkl", partial(make_encoder, model=salad), of_encoder, folder_of),
    "torch, legacy": weights("weights.pth", partial(make_checkpoint, _use_new_zipfile_serialization=False)),
    "torchscript": weights("weights.pth", make_torchscript),
    "safetensors": weights("weights.safetensors", make_safetensors),
    "published prompts": reader("prompts.pth", make_prompts, of_prompts),
    "published classes": reader(CLASSES, make_classes, lambda folder: read_published_classes(folder / CLASSES)),
    "shards": reader(SHARDS_FILE, make_shards, of_shards, folder_of),
    "config.json": reader(
        "config.json", partial(make_json, values=HUGGING_FACE, name="config.json"), convert, folder_of
    ),
    "open_clip_config.json": reader(
        "open_clip_config.json", partial(make_json, values=OPEN_CLIP, name="open_clip_config.json"), convert, folder_of
    ),
    "descriptors": reader("database_descriptors.npy", make_descriptors, of_descriptors),
}
VARIANTS = {"csv in utf-16", "parquet, zstd", "gt.npy, booleans", "qIdx.npy", "photo, png", "photo, webp"}
"""Readers of which another file is damaged by default; these files only under `slow`."""
IMPORTERS = {"torch, MixVPR", "torch, SALAD"}
"""Readers of encoders, each of which takes a tenth of a second."""
MATS = {
    "mat": mat(partial(make_mat, compressed=False)),
    "mat, compressed": mat(partial(make_mat, compressed=True)),
    "mat of hdf5": mat(make_hdf5_mat),
}


def check(kind, reader, folder, count):
    path = reader.build(folder)
    content = path.read_bytes()
    reader.read(path)
    return failures(reader, path, [content, None, *mutations(content, zlib.crc32(kind.encode()), count)])


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *((kind, 8) for kind in READERS if kind not in VARIANTS | IMPORTERS),
        *(pytest.param(kind, 600 if kind in IMPORTERS else 5000, marks=pytest.mark.slow) for kind in READERS),
    ],
)
def test_any_bytes_give_a_value_or_a_sentence_that_names_the_file(kind, count, tmp_path):
    found = check(kind, READERS[kind], tmp_path, count)
    assert not found, f"{len(found)} of {count}:\n\n" + "\n\n".join(found[:5])


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MATS)
def test_a_damaged_mat_ends_at_most_the_process_that_reads_it(kind, count, tmp_path, monkeypatch):
    monkeypatch.setattr(matlab_process, "_result_of", lambda file, name: matlab_process.read_here(str(file), name))
    found = check(kind, MATS[kind], tmp_path, count)
    found = [each for each in found if not re.search(r"SIG[A-Z]+$|MemoryError", each.strip().splitlines()[-1])]
    assert not found, f"{len(found)} of {count}:\n\n" + "\n\n".join(found[:5])
