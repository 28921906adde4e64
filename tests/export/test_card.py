from dataclasses import replace

import pytest
import yaml
from classifiers import classifier_of
from torch import nn

import progeo
from progeo.export.card import card_facts, license_of_weights, save_card, starting_weights
from progeo.models.backbones import find_family
from progeo.models.encoder import build_encoder, spec_to_json
from progeo.models.wrapped_encoder import WrappedEncoder
from progeo.places.geographic import Frame


def metadata_of(settings):
    encoder = spec_to_json(build_encoder("tiny-vit", "random", (64, 96)).spec)
    return {"encoder": encoder, "recalls": {"val R@1": 51.26}, "provenance": {"epoch": 3, "settings": settings}}


def reduced(*, whiten):
    return {"dim": 128, "whiten": whiten, "folder": "/home/me/train", "images": 20_000}


def test_a_card_has_a_header_for_the_hub_and_says_what_the_encoder_is(tmp_path):
    settings = {
        "run": "/home/me/runs/a",
        "data": {"train_folder": "/home/me"},
        "model": {"architecture": "tiny-vit", "weights": "/home/me/clip.pt"},
        "head": {"kind": "cosface"},
        "text": {"weight": 1.0, "prompts": "/home/me/runs/prompts"},
    }
    save_card(tmp_path / "README.md", metadata_of(settings), "import progeo")
    text = (tmp_path / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "progeo"
    for row in (
        "| backbone | tiny-vit of open_clip |",
        "| started from | clip.pt |",
        "| license of these starting weights | unknown |",
        "| images | 64 x 96 pixels, resized by antialiased bilinear interpolation, RGB in 0..1, normalized with mean "
        "(0.4815, 0.4578, 0.4082) and std (0.2686, 0.2613, 0.2758) |",
        "| descriptors | 128 dimensions, L2-normalized |",
        "| trained on | me |",
        "| epoch | 3 |",
        "| val R@1 | 51.3 |",
    ):
        assert row in body
    assert "```python\nimport progeo\n```" in body
    assert "not meant for\nfinding or following people" in body.split("## Intended use")[1].split("\n## ")[0]
    shown = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert (shown["head"], shown["text"]) == ({"kind": "cosface"}, {"weight": 1.0, "prompts": "prompts"})
    assert "/home" not in text  # a card is published


def test_the_facts_count_parameters_and_operations_and_name_three_licenses(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = WrappedEncoder("small", network, (500, 1000))
    encoder.spec = replace(build_encoder("tiny-resnet", "random", 64).spec, architecture="RN50")
    metadata = metadata_of({"model": {"weights": "openai"}})
    metadata["provenance"]["data_license"] = "CC BY 4.0/ours"
    facts = card_facts(metadata, encoder)
    # 3 x 9 multiplications with an addition for each of 4 channels and 500 x 1000 pixels
    assert facts["computation"].startswith("0.11 billion floating-point operations for an image of 500 x 1000")
    assert facts["parameters"] == "0.0 million"
    licenses = {name: fact for name, fact in facts.items() if name.startswith("license")}
    assert list(licenses) == [
        "license of the code",
        "license of these starting weights",
        "license of the training images",
    ]
    assert [text.partition(",")[0] for text in licenses.values()] == ["MIT", "MIT", "CC BY 4.0/ours"]
    save_card(tmp_path / "README.md", metadata, "import progeo", facts={**facts, "8-bit integers": "static"})
    text = (tmp_path / "README.md").read_text()
    for row in ("| license of the training images | CC BY 4.0/ours |", "| 8-bit integers | static |"):
        assert text.count(row) == 1
    assert "| intended use |" not in text


class Attention(nn.Module):
    """Attention of pixels to all pixels."""

    def forward(self, images):
        pixels = images.flatten(2).transpose(1, 2)[:, None].contiguous()  # as fused attention takes it
        return nn.functional.scaled_dot_product_attention(pixels, pixels, pixels).mean((1, 2))


def test_the_products_of_attention_count():
    encoder = WrappedEncoder("small", Attention(), (50, 60))
    encoder.spec = build_encoder("tiny-resnet", "random", 64).spec
    # 2 products of 3 multiplications with an addition, for each pair of 50 x 60 pixels
    assert card_facts(metadata_of({}), encoder)["computation"].startswith("0.11 billion floating-point operations")


def test_the_license_of_the_code_is_that_of_a_version():
    facts = card_facts(metadata_of({}), build_encoder("tiny-vit", "random", (64, 96)))
    assert facts["license of the code"] == f"MIT, of progeo {progeo.__version__}"


@pytest.mark.parametrize(
    ("told", "license"), [({}, "CC BY / training"), ({"data_license": "CC0 / export"}, "CC0 / export")]
)
def test_the_license_of_the_images_is_that_of_the_training_unless_an_export_was_told_another(told, license, tmp_path):
    metadata = metadata_of({"data": {"license": "CC BY / training"}})
    metadata["provenance"] |= told
    save_card(tmp_path / "README.md", metadata, "import progeo")
    assert f"| license of the training images | {license} |" in (tmp_path / "README.md").read_text()


def test_a_card_of_an_encoder_of_unknown_origin_has_unknown(tmp_path):
    metadata = metadata_of({})
    metadata["provenance"] = {}
    save_card(tmp_path / "README.md", metadata, "import progeo")
    assert "| started from | unknown |" in (tmp_path / "README.md").read_text()
    assert "| license of the training images | unknown |" in (tmp_path / "README.md").read_text()
    assert starting_weights(metadata) is None


@pytest.mark.parametrize(
    ("folder", "cell"),
    [
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),  # Markdown takes one of two backslashes
        ("a\nb\r\nc", "a b c"),
        ("<b>&", "&lt;b&gt;&amp;"),
    ],
)
def test_no_value_ends_its_cell_of_the_card(folder, cell, tmp_path):
    save_card(tmp_path / "README.md", metadata_of({"data": {"train_folder": folder}}), "import progeo")
    assert f"\n| trained on | {cell} |\n| epoch | 3 |\n" in (tmp_path / "README.md").read_bytes().decode()


@pytest.mark.parametrize(
    ("options", "row"),
    [
        (
            {"kind": "arcface"},
            "vectors of the arcface head, 2 classes: cells of 20 m, UTM zone 10, north",
        ),
        (
            {"kind": "means", "heading_bin_deg": 90, "frame": Frame(0, None)},
            "class means, 2 classes: cells of 20 m and heading bins of 90 degrees, UTM zone unknown",
        ),
        (
            {"kind": "linear", "frame": Frame(0, "south", several_zones=True)},
            "vectors of the linear head, 2 classes: cells of 20 m, UTM of several zones, south",
        ),
    ],
)
def test_a_card_says_what_the_classes_are(tmp_path, options, row):
    classifier = classifier_of([(0, 0, 0), (20, 0, 0)], **options)
    save_card(tmp_path / "README.md", metadata_of({}), "import progeo", classifier)
    assert f"| classifier | {row} |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("provenance", "rows"),
    [
        (
            {"imported_from": "/home/me/cosplace.pth", "kind": "CosPlace or EigenPlaces"},
            [
                "| started from | cosplace.pth, of CosPlace or EigenPlaces |",
                "| projection | from 512 dimensions, as imported |",
            ],
        ),
        (
            {"encoder": "open_clip:ViT-B/16:openai", "reduced": reduced(whiten=False)},
            [
                "| backbone | ViT-B-16-quickgelu of open_clip |",
                "| started from | openai |",
                "| license of these starting weights | MIT, of OpenAI's CLIP; trained on 400 million images and texts "
                + "of the web, which are not published |",
                "| PCA | from 512 dimensions, fitted to 20,000 images of train |",
            ],
        ),
        (
            {"encoder": "hf-hub:owner/name", "reduced": reduced(whiten=True)},
            [
                "| started from | hf-hub:owner/name |",
                "| PCA | from 512 dimensions, whitened, fitted to 20,000 images of train |",
            ],
        ),
        (
            {
                "settings": {"data": {"train_folder": "/me/sf_xl"}},
                "encoder": "/me/run",
                "reduced": reduced(whiten=False),
            },
            ["| started from | run |", "| trained on | sf_xl |"],
        ),
    ],
)
def test_a_card_tells_imports_and_pca(provenance, rows, tmp_path):
    metadata = metadata_of({})
    metadata["provenance"] = provenance
    metadata["encoder"] |= {"architecture": "ViT-B-16-quickgelu", "pooled_dim": 512}
    save_card(tmp_path / "README.md", metadata, "import progeo")
    text = (tmp_path / "README.md").read_text()
    assert [row for row in rows if row not in text] == []
    assert "/me" not in text


@pytest.mark.parametrize(
    ("architecture", "weights", "license"),
    [
        (
            "ViT-B-16-quickgelu",
            "openai",
            "MIT, of OpenAI's CLIP; trained on 400 million images and texts of the web, which are not published",
        ),
        ("ViT-B-32", "laion2b_s34b_b79k", "MIT, of open_clip's weights trained on LAION"),
        ("RN50", "random", "none, training started from random weights"),
        ("RN50", "clip.pt", "unknown"),
        ("ViT-B-32", "laion_private_finetune.pt", "unknown"),
        ("tiny-vit", "openai", "unknown"),  # no tag of open_clip
        ("RN50", None, "unknown"),
        ("resnet18", "openai", "unknown"),  # no tag of torchvision
    ],
)
def test_a_license_is_given_only_where_it_is_certain(architecture, weights, license):
    assert license_of_weights(find_family(architecture)[0], architecture, weights) == license


def test_weights_of_torchvision_come_with_the_terms_of_imagenet():
    assert "ImageNet, which has terms of its own" in license_of_weights("torchvision", "resnet18", "IMAGENET1K_V1")
