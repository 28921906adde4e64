"""State dicts are found in checkpoints, nested and beside any other objects."""

import argparse
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import pathlib
import re
import types
import uuid
import zipfile
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from torchvision import transforms

from progeo.models.weight_files.checkpoints import find_weights, in_words, load_weights, read_content, reason_of

MARK = "visual.conv1.weight"
STATE = {MARK: torch.rand(2, 3), "visual.proj": torch.rand(3)}


class Color(enum.Enum):
    RED = 1


class Mode(enum.IntFlag):
    A = 1
    B = 2


class Attributes(dict):
    """A subclass of dictionaries, as Lightning and many others use for hyperparameters."""


class Items(list):
    """A subclass of lists."""


@dataclasses.dataclass
class Options:
    rate: float = 0.1
    folder: Path = Path("x")

    class Kind:
        """A class in a class, which protocols below 4 store as its attribute."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    rate: float = 0.1


class Configuration:
    """A configuration with code of its own for unpickling, as in several programs."""

    def __getstate__(self):
        return {"content": {"rate": 0.1}, "flags": {Color.RED: None}}

    def __setstate__(self, state):
        raise AssertionError("the code of a file was run")


Point = namedtuple("Point", "x y")


def trained_optimizer():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.rand(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


OBJECTS = {
    "array": np.array([81.5, 92.0]),
    "array of objects": np.array([{"a": Path("x")}, None], dtype=object),
    "array of records": np.zeros(2, dtype=[("east", "i4"), ("name", "U4")]),
    "masked array": np.ma.array([1, 2], mask=[0, 1]),
    "number of NumPy": np.float32(0.5),
    "random state": np.random.RandomState(0),
    "random generator": np.random.default_rng(0),
    "state of torch's random generator": torch.get_rng_state(),
    "counter of a schedule": Counter({30: 1, 60: 1}),
    "state of a schedule": MultiStepLR(trained_optimizer(), [3, 5]).state_dict(),
    "optimizer": trained_optimizer(),
    "state of an optimizer": trained_optimizer().state_dict(),
    "dictionary with a default": defaultdict(list, {"a": [1]}),
    "ordered dictionary": OrderedDict(a=1),
    "path": Path("/home/somebody"),
    "pure path": pathlib.PurePosixPath("a/b"),
    "path of Windows": pathlib.PureWindowsPath("c:/x"),
    "datetime": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
    "date": datetime.date(2024, 5, 1),
    "timedelta": datetime.timedelta(3),
    "namespace": argparse.Namespace(data=Path("x"), mode=Color.RED),
    "simple namespace": types.SimpleNamespace(a=1),
    "enumeration": Color.RED,
    "flags": Mode.A | Mode.B,
    "keys that nest or are many": {((1, 2), (3, 4)): 5, tuple(range(20)): 6, frozenset({1}): 7},
    "time zone": zoneinfo.ZoneInfo("UTC"),
    "method": Counter("aab").most_common,
    "class in a class": Options.Kind,
    "keys of an enumeration": {Color.RED: 1, None: 2, (Color.RED, 3): 3, Path("a"): 4, torch.float16: 5, int: 6},
    "partial": functools.partial(nn.Linear, 3),
    "function": trained_optimizer,
    "built-in function": max,
    "class": Options,
    "dataclass": Options(),
    "dataclass with slots": Frozen(),
    "configuration": Configuration(),
    "dictionary of a class": Attributes(rate=0.1, nested=Attributes(a=1)),
    "list of a class": Items([1, Color.RED]),
    "named tuple": Point(1, Path("x")),
    "deque": deque([1, 2], maxlen=3),
    "set": {1, "a"},
    "frozen set": frozenset({1}),
    "range": range(3),
    "slice": slice(1, 2),
    "complex": 1 + 2j,
    "bytes": b"\xff\0",
    "bytearray": bytearray(b"ab"),
    "decimal": decimal.Decimal("1.5"),
    "uuid": uuid.UUID(int=3),
    "expression": re.compile("a+"),
    "exception": ValueError("x"),
    "logger": logging.getLogger("somebody"),
    "module": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    "transforms": transforms.Compose([transforms.ToTensor(), transforms.Resize(3)]),
    "device": torch.device("cpu"),
    "dtype": torch.bfloat16,
    "complex tensor": torch.rand(2, dtype=torch.complex64),
    "sparse tensor": torch.eye(3).to_sparse(),
    "text": "visual.conv1.weight",
    "nothing": None,
}
WITH_MODULES = ("module", "transforms", "partial")
CONTAINERS = {
    "model_state_dict": lambda thing: {"model_state_dict": STATE, "thing": thing},
    "net": lambda thing: {"thing": thing, "net": STATE},
    "nested": lambda thing: {"state": {"model": STATE, "thing": thing}},
    "class": lambda thing: Attributes(thing=thing, weights=Attributes(STATE)),
    "namespace": lambda thing: argparse.Namespace(model=STATE, thing=thing),
    "whole module": lambda thing: {"thing": thing, "network": as_module(STATE)},
}


def as_module(state):
    """Build nested modules with this state dict."""
    outer, inside = nn.Module(), {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if rest:
            inside.setdefault(first, {})[rest] = tensor
        else:
            outer.register_parameter(first, nn.Parameter(tensor))
    for name, part in inside.items():
        outer.add_module(name, as_module(part))
    return outer


def found_in(content, tmp_path, *, part=None, new=True):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    return find_weights(read_content(tmp_path / "a.pth"), tmp_path / "a.pth", [MARK], part)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", OBJECTS)
def test_weights_are_read_and_other_objects_beside_them_are_listed(kind, tmp_path):
    found = found_in({"model": STATE, "thing": OBJECTS[kind]}, tmp_path)
    assert_same(found.state, STATE)
    assert (found.ignored, found.remarks) == (("thing",), ())


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_protocol_of_pickles_is_refused_with_advice(protocol, new, tmp_path):
    torch.save(STATE, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    with pytest.raises(
        ValueError,
        match=rf"a\.pth cannot be read safely: its pickle protocol is {protocol}, that of PyTorch is 2\. Load it in",
    ):
        read_content(tmp_path / "a.pth")


BESIDE = {
    "epoch": 3,
    "num_batches": 4,
    "arch": "resnet18",
    "_metadata": {"": {"version": 1}},
    "best": np.float64(3),
    "optimizer": trained_optimizer().state_dict(),
    "visual._extra_state": None,
    "transformer._extra_state": torch.zeros(3),
    7: "a",
}


@pytest.mark.parametrize("before", ["", "model."])
def test_metadata_between_the_weights_is_listed(before, tmp_path):
    content = {f"{before}{name}" if isinstance(name, str) else name: value for name, value in (STATE | BESIDE).items()}
    found = found_in(content, tmp_path)
    assert_same(found.state, STATE)
    assert found.ignored == tuple(str(name) for name in content if str(name).removeprefix(before) not in STATE)


@pytest.mark.parametrize(
    ("container", "new"), [(container, new) for container in CONTAINERS for new in (True, False)][:-1]
)
def test_weights_are_read_from_every_container(container, new, tmp_path):
    objects = OBJECTS if new else {kind: thing for kind, thing in OBJECTS.items() if kind not in WITH_MODULES}
    found = found_in(CONTAINERS[container](objects), tmp_path, new=new)
    assert_same(found.state, STATE)
    assert (found.ignored, found.remarks) == (("thing",), ())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module_in_the_format_before_pytorch_1_6_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pth cannot be read safely: [^\n]+ save the state dict alone with torch"):
        found_in(as_module(STATE), tmp_path, new=False)


@pytest.mark.parametrize("name", ["net", "network", "encoder", "student", "ema", "model_state", "weights", "teacher_1"])
@pytest.mark.parametrize("levels", [[], ["state"], ["a", "b"]])
def test_weights_that_are_alone_are_found_under_any_name(name, levels, tmp_path):
    content = {name: STATE, "head": {"weight": torch.rand(2)}}
    for level in levels:
        content = {level: content, "epoch": 3}
    found = found_in({**content, "rng_state": torch.get_rng_state()}, tmp_path)
    assert_same(found.state, STATE)
    assert sorted(found.ignored) == sorted(["head", "rng_state", *(["epoch"] * len(levels))])


@pytest.mark.parametrize(
    "before",
    [
        *("module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."),
        *("model.", "net.", "encoder.", "model.module.", "_orig_mod.model.", "lit.model.encoder."),
    ],
)
def test_a_prefix_of_all_names_is_removed(before, tmp_path):
    state = {f"{before}{name}": tensor for name, tensor in STATE.items()}
    for content in (state, {"state_dict": state}, as_module(state)):
        assert_same(found_in(content, tmp_path).state, STATE)
    save_file(state, tmp_path / "a.safetensors")
    assert_same(find_weights(read_content(tmp_path / "a.safetensors"), tmp_path, [MARK]).state, STATE)


def test_a_wrapper_within_names_is_removed_too(tmp_path):
    state = {name.replace("visual.", "visual._orig_mod.module."): tensor for name, tensor in STATE.items()}
    assert_same(found_in(state, tmp_path).state, STATE)


@pytest.mark.parametrize("before", ["module.", "averaged.module."])
def test_the_count_of_an_averaged_model_is_listed_not_read(before, tmp_path):
    state = {f"{before}{name}": tensor for name, tensor in STATE.items()}
    count = f"{before.removesuffix('module.')}n_averaged"
    found = found_in({count: torch.tensor(7), **state}, tmp_path)
    assert_same(found.state, STATE)
    assert found.ignored == (count,)


def test_tensors_outside_of_the_model_are_listed(tmp_path):
    state = {f"model.{name}": tensor for name, tensor in STATE.items()}
    found = found_in({"state_dict": {**state, "loss.W": torch.rand(2), "loss.margin": 0.1}, "epoch": 3}, tmp_path)
    assert_same(found.state, STATE)
    assert found.ignored == ("epoch", "loss.W", "loss.margin")


OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def below(**parts):
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "used", "other"),
    [
        ({"ema": OTHER, "model": STATE}, "model", "ema"),
        ({"state_dict_ema": OTHER, "state_dict": STATE}, "state_dict", "state_dict_ema"),
        ({"model": OTHER, "model_state_dict": STATE}, "model_state_dict", "model"),
        ({"state": {"model_ema": OTHER, "model": STATE}}, "state.model", "state.model_ema"),
        ({"state_dict": below(ema_model=OTHER, model=STATE)}, "state_dict.model", "state_dict.ema_model"),
        ({"model": below(net=STATE), "ema": below(net=OTHER)}, "model.net", "ema.net"),
    ],
)
def test_of_several_networks_the_one_under_a_usual_key_is_used_and_reported(content, used, other, tmp_path):
    found = found_in(content, tmp_path)
    assert_same(found.state, STATE)
    sentence = f"The weights in {used} are used, those in {other} are skipped: `progeo import --weights_in {other}`"
    assert found.remarks == (f"{sentence} uses these.",)
    chosen = found_in(content, tmp_path, part=other)
    assert_same(chosen.state, OTHER)
    assert chosen.remarks == ()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"student": STATE, "teacher": OTHER}, "student, teacher"),
        ({"net": STATE, "ema": OTHER, "epoch": 3}, "net, ema"),
        (below(encoder_q=STATE, encoder_k=OTHER), "encoder_q, encoder_k"),
        ([STATE, OTHER], "0, 1"),
    ],
)
def test_several_networks_without_a_usual_key_are_refused(content, names, tmp_path):
    with pytest.raises(ValueError, match=f"holds the weights of several networks, in {names}: choose one of them"):
        found_in(content, tmp_path)
    with pytest.raises(ValueError, match=f"holds no weights in nowhere; it holds them in {names}"):
        found_in(content, tmp_path, part="nowhere")


@pytest.mark.parametrize(
    "value",
    [
        *(3, None, np.zeros(3), {"a": torch.zeros(1)}, Path("x")),
        *(torch.eye(3).to_sparse(), torch.empty(2, device="meta")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_among_the_weights_are_refused(value, tmp_path):
    for new in (True, False):
        with pytest.raises(ValueError, match=r"holds more than a state dict: 'visual\.proj' is no named tensor"):
            found_in({**STATE, "visual.proj": value}, tmp_path, new=new)


def test_a_number_among_the_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds more than a state dict: 'p' is no named tensor"):
        found_in({**STATE, "p": 3.0}, tmp_path)


def test_a_tensor_with_attributes_of_its_own_is_a_tensor(tmp_path):
    parameter, weight = nn.Parameter(torch.rand(2)), torch.rand(3)
    parameter.no_decay, weight.comes_from = True, Path("x")
    state = {MARK: parameter, "visual.proj": weight}
    assert_same(found_in(state, tmp_path).state, state)


def test_a_pickled_module_gives_its_state_dict(tmp_path):
    module = nn.Module()
    module.visual = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 2, 1), bn1=nn.BatchNorm2d(2)))
    module.register_buffer("mask", torch.zeros(3), persistent=False)
    module.nothing = None
    module.visual.register_forward_hook(print)
    for content in (module, nn.DataParallel(module), {"model": module}, [3, module]):
        assert_same(found_in(content, tmp_path).state, module.state_dict())


def test_names_in_a_file_are_made_printable(tmp_path):
    found = found_in({"model": STATE, "\x1b[31mred\nnew line": 3, 7: 8, Color.RED: 9}, tmp_path)
    assert found.ignored == ("?[31mred?new line", "7", "Stub")
    with pytest.raises(ValueError, match=r"more than a state dict: 'visual\.\?\[31m' is no named tensor"):
        found_in({**STATE, "visual.\x1b[31m": torch.zeros(1)}, tmp_path)
    with pytest.raises(ValueError, match=r"several networks, in a\?, b\?:"):
        found_in({"a\x1b": STATE, "b\x1b": OTHER}, tmp_path)


def test_mappings_that_contain_themselves_are_searched_once(tmp_path):
    content = {"model": STATE}
    content["self"] = content
    deep = content
    for _ in range(200):
        deep = {"deeper": deep}
    assert_same(found_in(content, tmp_path).state, STATE)
    with pytest.raises(ValueError, match="holds no state dict"):
        found_in(deep, tmp_path)


def test_a_small_file_of_a_large_tensor_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds more than a state dict: 'conv1\.weight' is no named tensor"):
        load_weights(tmp_path / "a.pth", ["conv1.weight"])


def test_records_that_are_larger_than_the_file_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(10**6)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match=r"packed\.pth is not a complete file .*its records are larger than the file"):
        load_weights(tmp_path / "packed.pth", ["conv1.weight"])


def test_names_of_which_several_begin_alike_are_counted_and_others_given_in_full():
    names = ["aggregator.dust_bin", "backbone.model.mask_token", "decoder.one.weight", "decoder.two", "epoch"]
    assert in_words(names) == "aggregator.dust_bin, backbone.model.mask_token, decoder.* (2), epoch"


@pytest.mark.parametrize("unreachable", [URLError("no name"), LocalEntryNotFoundError("not in the cache")])
def test_a_server_that_is_not_reached_is_a_reason_with_a_way_out(unreachable):
    passed_on = FileNotFoundError("Failed to download")
    passed_on.__cause__ = unreachable
    for error in (unreachable, passed_on):
        assert reason_of(error, "tag").endswith(". Without a network, `weights` takes a file, or random")


def test_other_errors_of_a_server_or_a_file_are_a_reason_alone():
    assert reason_of(HTTPError("url", 404, "Not Found", {}, None), "tag") == "HTTP Error 404: Not Found"
    assert reason_of(ValueError("a.pth holds no state dict."), "a.pth") == "it holds no state dict"
