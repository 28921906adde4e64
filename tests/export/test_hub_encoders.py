"""Networks of other programs, through `torch.hub`, and encoders of plugins."""

import json
import sys
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, files_in
from torch import nn

from progeo.cli import main
from progeo.export.encoders import ENCODERS
from progeo.export.hub_encoders import load_hub_encoder, parse_hub_name
from progeo.export.weights import load_encoder
from progeo.features.descriptors import descriptor_metadata
from progeo.models.encoder import Encoder
from progeo.models.wrapped_encoder import WrappedEncoder

NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, dim, scale):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, dim)
        self.scale = scale

    def forward(self, images):
        return self.scale * self.linear(images.mean((2, 3)))
"""
HUBCONF = """
from small_network import Network
import torch
from torch import nn

print("loading")

def network(dim=4, scale=1.0):
    return Network(dim, scale)

class InHubconf(Network):
    pass

def of_hubconf(dim=4, scale=1.0):
    return InHubconf(dim, scale)

class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)

def lazy():
    def later(images):
        from small_network import Network
        return Network(2, 1.0)(images)
    return Function(later)

def pair():
    return Function(lambda images: (images, images))

def feature_map():
    return Function(lambda images: images)

def one_for_all():
    return Function(lambda images: images.mean((2, 3))[:1])

def whole_numbers():
    return Function(lambda images: torch.zeros(len(images), 2, dtype=torch.long))

def fourteens():
    def encode(images):
        assert images.shape[2] % 14 == 0, "sides must be multiples of 14\\nor so"
        return images.mean((2, 3))
    return Function(encode)

def nothing():
    return "nothing"

def asks():
    return input()

def fails(**options):
    raise KeyError(str(options))
"""
GRAY = [20, 90, 160, 230]


def write_repository(folder, network=NETWORK):
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    (folder / "small_network.py").write_text(f"import package.inner\n{network}")
    (folder / "package").mkdir()  # without __init__.py
    (folder / "package/inner.py").touch()
    return folder


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """The folder of `torch.hub`, with a repository that was downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    write_repository(tmp_path / "torch/hub/owner_repository_v1_x", NETWORK.replace("manual_seed(0)", "manual_seed(1)"))
    return tmp_path / "torch/hub"


@pytest.fixture
def repository(tmp_path):
    return write_repository(tmp_path / "repository")


@pytest.fixture
def places(tmp_path):
    """Gray images of four levels 100 m apart, and a query like each."""
    for index, gray in enumerate(GRAY):
        for side, level in (("database", gray), ("queries", gray + 4)):
            path = tmp_path / f"places/{side}/@{550000 + 100 * index}@4180000@{side}@.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (level, level, level)).save(path)
    return tmp_path / "places"


def evaluate(command, *words, places, tmp_path):
    main([
        *map(str, (command, *words, "--folder", places, "--out", tmp_path / "out", "--num_workers", 0)),
        "--descriptor_cache",
        str(tmp_path / "cache"),
    ])  # fmt: skip
    return json.loads((tmp_path / "out" / ("recalls.json" if command == "evaluate" else "compare.json")).read_text())


def failure(*words):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    return str(stop.value.code)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "gmberton/CosPlace:get_trained_model?backbone=ResNet50&fc_output_dim=2048",
            ("gmberton/CosPlace", False, "get_trained_model", {"backbone": "ResNet50", "fc_output_dim": 2048}),
        ),
        ("o/r:v1.0:entry", ("o/r:v1.0", False, "entry", {})),
        ("o/r:feature/x:entry?a=b:c", ("o/r:feature/x", False, "entry", {"a": "b:c"})),
        ("./o/r:entry?", ("./o/r", True, "entry", {})),
        ("folder:entry", ("folder", True, "entry", {})),
        ("/a:b/c:entry?a=1e-3&b=True&c=None&d=true&e=007&f='x'", ("/a:b/c", True, "entry", {
            "a": 0.001, "b": True, "c": None, "d": "true", "e": "007", "f": "x"})),
        ("/a:e?w=x%26y=%3f&s=&t=[1, 2]", ("/a", True, "e", {"w": "x&y=?", "s": "", "t": [1, 2]})),
    ],
)  # fmt: skip
def test_names_have_one_meaning(name, parts):
    parsed = parse_hub_name(name)
    assert (parsed.source, parsed.is_folder, parsed.entry, parsed.options) == parts


@pytest.mark.parametrize(
    ("text", "size"), [("", (320, 320)), ("?image_size=322", (322, 322)), ("?image_size=240x320&a=1", (240, 320))]
)
def test_the_image_size_is_an_option_that_is_not_passed_on(text, size):
    parsed = parse_hub_name(f"a:e{text}")
    assert parsed.image_size == size and "image_size" not in parsed.options


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "hub: has not the form hub:OWNER/REPO:ENTRY"),
        ("owner/repository", "has not the form"),
        ("a:not-a-name", "has not the form"),
        ("a:e?x", "has the option 'x': give each once, as name=value."),
        ("a:e?x=1&x=2", "has the option 'x=2': give each once"),
        ("a:e?image_size=big", "has the image_size 'big': give pixels"),
        ("a:e?image_size=0", "has the image_size '0'"),
        ("a:e?image_size=1x2x3", "has the image_size '1x2x3'"),
    ],
)
def test_other_names_are_refused(name, sentence):
    with pytest.raises(ValueError, match="hub:") as error:
        parse_hub_name(name)
    assert sentence in str(error.value)


def test_no_code_runs_without_trust(repository, tmp_path):
    (repository / "hubconf.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    name = f"hub:{repository}:network"
    for words in (
        ["evaluate", name, "--folder", "f", "--out", "o"],
        ["compare", "thumbnail", name, "--folder", "f", "--out", "o"],
        ["pca", name, "--folder", "f", "--out", tmp_path / "o", "--dim", 2],
    ):
        flag = "trust" if words[0] == "pca" else "--trust"
        assert f"{name} runs the code of that repository" in (said := failure(*words))
        assert f"look at it, then add {flag}. Only progeo evaluate and progeo compare take it." in said
    with pytest.raises(ValueError, match="runs the code"):
        load_encoder(name)
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_evaluated_with_normalized_images_and_its_options(repository, places, tmp_path, capsys):
    name = f"hub:{repository}:network?dim=5&scale=2.0&image_size=32x48"
    evaluate("evaluate", name, "--trust", "--json", places=places, tmp_path=tmp_path)
    assert json.loads(capsys.readouterr().out)["recalls"]["R@1"] == 100  # what hubconf.py prints is not in it
    encoder = load_encoder(name, trust=True)
    assert (encoder.descriptor_dim, encoder.image_size, encoder.training) == (5, (32, 48), False)
    image = encoder.preprocess(Image.new("RGB", (40, 40), (20, 20, 20)))
    expected = (torch.full((3,), 20 / 255) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image, expected[:, None, None].expand(3, 32, 48))
    torch.manual_seed(0)
    torch.testing.assert_close(encoder(image[None])[0], 2 * nn.Linear(3, 5)(expected))


def test_networks_are_compared_that_have_modules_of_the_same_names(repository, places, tmp_path):
    of_folder, of_github = f"hub:{repository}:network", "hub:owner/repository:v1/x:network"
    table = evaluate("compare", of_folder, of_github, "--trust", places=places, tmp_path=tmp_path)
    assert [row["encoder"] for row in table] == [of_folder, of_github]
    assert [row["recalls"]["1"] for row in table] == [100, 100]
    assert "small_network" not in sys.modules
    one, other = (load_encoder(name, trust=True) for name in (of_folder, of_github))
    assert not one.network.linear.weight.equal(other.network.linear.weight)


def test_descriptors_are_kept_for_the_network_that_made_them(repository):
    def metadata(entry):
        return descriptor_metadata(load_hub_encoder(f"{repository}:{entry}"))

    for entry in ("network", "of_hubconf"):  # a class of hubconf.py has no module
        names = [f"{entry}{options}" for options in ("", "?scale=2.0", "?dim=3")]
        found = [json.dumps(metadata(name)) for name in names]
        assert len(set(found)) == 3 and found == [json.dumps(metadata(name)) for name in names]
        (repository / "small_network.py").write_text(f"{NETWORK}# changed for {entry}")
        assert metadata(entry) != json.loads(found[0])
    before = metadata("of_hubconf")
    with torch.no_grad():
        changed = load_hub_encoder(f"{repository}:of_hubconf")
        changed.network.linear.weight[0] += 1
    assert descriptor_metadata(changed) != before
    (repository / "hubconf.py").write_text(f"{HUBCONF}# changed")
    assert metadata("of_hubconf") != before


def test_a_second_evaluation_finds_the_descriptors(repository, places, tmp_path, capsys):
    for _ in range(2):
        evaluate("evaluate", f"hub:{repository}:of_hubconf", "--trust", places=places, tmp_path=tmp_path)
        found = files_in(tmp_path / "cache")
    assert "found in" in capsys.readouterr().err and len({name.partition("/")[0] for name in found}) == 2


def test_modules_may_be_imported_as_late_as_in_the_network(repository):
    assert load_hub_encoder(f"{repository}:lazy").descriptor_dim == 2


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("pair", "must return a tensor of descriptors (B, D), got a tuple."),
        ("feature_map", "must return float descriptors (B, D) of B images, got float32 (2, 3, 320, 320) of 2."),
        ("one_for_all", "must return float descriptors (B, D) of B images, got float32 (1, 3) of 2."),
        ("whole_numbers", "must return float descriptors (B, D) of B images, got int64 (2, 2) of 2."),
        ("fourteens", "fails on 2 images of 320 x 320 pixels: AssertionError: sides must be multiples of 14"),
        ("nothing", "must return a torch.nn.Module, got a str."),
        ("fails?a=1", "cannot be loaded: KeyError: \"{'a': 1}\""),
        ("network?width=1", "cannot be loaded: TypeError: "),
        ("no_entry", "cannot be loaded: RuntimeError: Cannot find callable no_entry in hubconf"),
    ],
)
def test_what_is_no_encoder_is_one_sentence(entry, sentence, repository, places, tmp_path):
    name = f"hub:{repository}:{entry}"
    said = failure("evaluate", name, "--trust", "--folder", places, "--out", tmp_path / "out")
    assert said.startswith(f"progeo evaluate: error: {name} {sentence}") and "\n" not in said


def test_nothing_is_asked(repository, monkeypatch):
    monkeypatch.setattr(sys, "stdin", given := StringIO("y\n"))
    with pytest.raises(ValueError, match="cannot be loaded: EOFError"):
        load_hub_encoder(f"{repository}:asks")
    assert sys.stdin is given


def test_another_image_size_serves_a_network_that_needs_it(repository):
    assert load_hub_encoder(f"{repository}:fourteens?image_size=322").descriptor_dim == 3


def test_sources_that_do_not_exist_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"There is no .*/nowhere/hubconf.py for hub:nowhere:e"):
        load_hub_encoder("nowhere:e")
    write_repository(tmp_path / "owner/other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_validate_not_a_forked_repo", lambda *_: 1 / 0)  # no network
    with pytest.raises(ValueError, match=r"cannot be loaded: ZeroDivision.* The folder is called \./owner/other\."):
        load_hub_encoder("owner/other:main:network")


@pytest.mark.usefixtures("plugins_forgotten")
def test_the_encoder_of_a_plugin_is_evaluated(places, tmp_path, capsys):
    plugin = tmp_path / "encoders_plugin.py"
    plugin.write_text(
        "from torch import nn\n"
        "from progeo.export.encoders import ENCODERS\n"
        "from progeo.models.wrapped_encoder import WrappedEncoder\n"
        "class Mean(nn.Module):\n"
        "    def forward(self, images):\n"
        "        return images.mean((2, 3))\n"
        "ENCODERS['mine'] = lambda name: WrappedEncoder(f'mine:{name}', Mean(), (32, 32))\n"
        "ENCODERS['wrong'] = lambda name: Mean()\n"
        "ENCODERS['broken'] = lambda name: {}[name]\n"
    )
    said = failure("evaluate", "mine:x", "--folder", places, "--out", tmp_path / "o")
    assert "There is no encoder in mine:x" in said and said.endswith("of this name is given with --plugin.")
    evaluate("evaluate", "mine:x", "--plugin", plugin, places=places, tmp_path=tmp_path)
    assert "R@1 100.0" in capsys.readouterr().out
    for kind, sentence in (
        ("wrong", "wrong:x must be an Encoder, such as a WrappedEncoder, got a Mean."),
        ("broken", "broken:x cannot be loaded: KeyError: 'x'"),
    ):
        words = (f"{kind}:x", "--plugin", plugin, "--folder", places, "--out", tmp_path / "o")
        assert failure("evaluate", *words) == f"progeo evaluate: error: {sentence}"
    words = ("mine:x", "--plugin", plugin, "--folder", places / "database", "--out", tmp_path / "i")
    assert "A place index needs an encoder that can be saved, mine:x cannot: give" in failure("index", "build", *words)


def test_an_encoder_of_progeo_stays_what_it_is():
    encoder = load_hub_encoder(f"{ROOT}:progeo_untrained?backbone='tiny-resnet'&descriptor_dim=8")
    assert type(encoder) is Encoder and encoder.descriptor_dim == 8
    assert "progeo.export.hub" in sys.modules


def test_a_wrapped_network_takes_its_own_pixel_statistics_or_both_of_none():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = WrappedEncoder("w", network, (8, 8), mean=(0, 0, 0), std=(1, 1, 0.5))
    np.testing.assert_array_equal(encoder.normalize(torch.full((3, 2, 2), 255, dtype=torch.uint8))[:, 0, 0], [1, 1, 2])
    with pytest.raises(ValueError, match="`mean` and `std` go together"):
        WrappedEncoder("w", network, (8, 8), mean=(0, 0, 0))


def test_encoders_are_in_eval_mode_before_they_see_an_image(monkeypatch):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3)).train()
    encoder = WrappedEncoder("w", network, (8, 8))
    assert not network[2].training and not network[2].running_mean.any()
    monkeypatch.setitem(ENCODERS, "mine", lambda name: encoder.train())
    assert not load_encoder("mine").training and not network[2].training
