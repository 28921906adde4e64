"""Localize photos without progeo: `python minimal_localize.py city.index city_onnx/model.onnx photo.jpg ...`.

The model is exported with `--format onnx --input photos`. Prints latitude, longitude, confidence and the nearest image.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
from PIL import Image, ImageOps

folder, session = Path(sys.argv[1]), onnxruntime.InferenceSession(sys.argv[2])
index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
if (index["of"], index["query_preprocessing"], index["orientation"]) != ("images", "hard_resize", "exif"):
    sys.exit(f"{folder} must be an index of images, whose photos are resized and turned upright.")
parts = [folder / part["name"] for part in index["parts"]]
rows = np.concatenate([np.load(part / "descriptors.npy") for part in parts]).astype(np.float32)
images = pa.concat_tables(pa.ipc.open_file(part / "catalogue.arrow").read_all() for part in parts)
removed = np.load(folder / index["removed_file"]) if index["removed_file"] else []
kept = np.setdiff1d(np.arange(len(rows)), removed)
rows, images = rows[kept], images.take(kept)
position = {name: images[name].to_numpy() for name in ("east", "north", "latitude", "longitude")}

for photo in sys.argv[3:]:
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"))
    (descriptor,) = session.run(None, {"images": pixels[None]})[0]
    distances = np.linalg.norm(rows - descriptor, axis=1)
    nearest = np.argsort(distances)[:20]
    best, confidence = nearest[0], "unknown"
    if model := index["calibration"]:
        offsets = [position[name][nearest] - position[name][best] for name in ("east", "north")]
        elsewhere = nearest[~(np.hypot(*offsets) <= model["radius_m"])]
        gap = distances[elsewhere[0] if len(elsewhere) else nearest[-1]] - distances[best]
        features = (np.array([distances[best], gap]) - model["means"]) / model["stds"]
        confidence = f"{1 / (1 + np.exp(-(features @ model['weights'][:2] + model['weights'][2]))):.3f}"
    latitude, longitude = (f"{position[name][best]:.6f}" for name in ("latitude", "longitude"))
    print(photo, latitude, longitude, confidence, images["path"][int(best)], sep="\t")
