"""Further command lines that the help of a command shows, each below what it is for."""

from collections.abc import Mapping
from types import MappingProxyType

EXAMPLES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "train": {
            "Continue a run that was stopped": "progeo train --config progeo_rn50 --out runs/city "
            "--data.train_folder city/train --validation.folder city/val --resume",
            "A CLIP of your choice instead of that of the configuration": "progeo train --config progeo_vit_b16 "
            "--model.architecture ViT-L-14 --model.weights openai --out runs/large --data.train_folder city/train "
            "--validation.folder city/val",
        },
        "train prompts": {
            "Prompts with the names of streets": "progeo train prompts --config progeo_rn50 --out runs/city "
            "--data.train_folder city/train --prompts.class_names streets.csv",
        },
        "train encoder": {
            "Without texts, as CosPlace": "progeo train encoder --config cosplace_resnet50 --out runs/cosplace "
            "--data.train_folder city/train --validation.folder city/val",
            "In less memory": "progeo train encoder --config progeo_rn50 --out runs/city "
            "--data.train_folder city/train --validation.folder city/val --training.micro_batches 4 "
            "--mixed_precision bf16",
        },
        "evaluate": {
            "As a benchmark defines it": "progeo evaluate runs/city --folder pitts30k/test --protocol pitts30k_test "
            "--out results/pitts30k",
            "What a compressed index of a large city would lose": "progeo evaluate runs/city --folder city/test "
            "--faiss IVF1024,RaBitQ --out results/compressed",
            "Re-rank the first images by matching points": "progeo evaluate runs/city --folder city/test "
            "--rerank matching --out results/matched",
            "Weights of others, without training": "progeo evaluate open_clip:RN50:openai --folder city/test "
            "--out results/openai",
        },
        "compare": {
            "Several data sets": "progeo compare runs/city runs/other --folder pitts30k/test tokyo247 "
            "--out results/compared",
        },
        "extract": {
            "The first of four shares, one for each machine": "progeo extract runs/city --folder city/database "
            "--descriptor_cache shared/descriptors --share 1/4",
        },
        "classes": {
            "Larger cells": "progeo classes runs/city --folder city/train --cell_side_m 100 --out encoders/city_100",
        },
        "index build": {
            "Millions of images, compressed": "progeo index build runs/city --folder city/database "
            "--faiss IVF4096,PQ64 --out city.index",
            "With local features, to verify matches": "progeo index build runs/city --folder city/database --verify "
            "--out city.index",
        },
        "index remove": {
            "Images near a position": "progeo index remove city.index --near 37.78,-122.41,100",
        },
        "index calibrate": {
            "Also find out for which photos verification helps": "progeo index calibrate city.index "
            "--folder city/queries --verify true",
        },
        "localize": {
            "Near a rough position": "progeo localize photo.jpg --index city.index --near 37.78,-122.41,500",
            "The frames of a drive as one track": "progeo localize drive.mp4 --index city.index --sequence "
            "--out track.gpx",
            "Search with words": "progeo localize --text 'a red bridge' --index city.index",
            "For programs": "progeo localize holiday/ --index city.index --json",
        },
        "serve": {
            "For other machines, with a token from PROGEO_TOKEN": "progeo serve --index city.index --host 0.0.0.0",
        },
        "export": {
            "Half the size": "progeo export runs/city --format onnx --fp16 --out city_onnx",
        },
        "import": {
            "A checkpoint of your own training": "progeo import last.ckpt --weights_in state_dict --out mine",
        },
        "runs show": {
            "A picture for a paper": "progeo runs show runs/city runs/other --out curves.svg",
            "While they are trained": "progeo runs show runs/city --out runs.html --follow",
        },
        "dataset import": {
            "Photos with GPS positions in their EXIF": "progeo dataset import photos holiday --out holiday_set",
            "The database and queries of Pitts30k": "progeo dataset import dbstruct pitts30k_test.mat "
            "--images pittsburgh --query_images pittsburgh/queries_real --out pitts30k/test",
        },
        "dataset scan": {
            "Two folders as one": "progeo dataset scan city_a city_b --out both",
        },
        "demo": {
            "Only the city, to try other commands on": "progeo demo --only_city --out toy",
        },
    }
)
"""By command: what each command line is for, and the line."""
