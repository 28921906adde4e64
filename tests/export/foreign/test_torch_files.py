"""Files of PyTorch are read, and what is hidden in them is not run."""

import builtins
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from progeo.cli import main
from progeo.export.foreign.torch_files import read_torch_file, tensors_of


class Runs:
    """Pickled, it asks that a function be called."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Changes:
    """Pickled, it asks that a name be looked up and changed."""

    def __init__(self, function, state):
        self.function, self.state = function, state

    def __reduce__(self):
        return self.function, (), self.state


def in_torch_zip(value, path):
    torch.save({"model_state_dict": value}, path)


def in_old_torch_file(value, path):
    torch.save([value], path, _use_new_zipfile_serialization=False)


def in_plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=4))


def after_the_beginning_of_an_old_torch_file(value, path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(value, protocol=2))


WRITERS = [in_torch_zip, in_old_torch_file, in_plain_pickle, after_the_beginning_of_an_old_torch_file]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (lambda marker: Runs(os.system, f"touch {marker}"), r"posix\.system"),
        (lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"), r"(builtins|__builtin__)\.eval"),
        (lambda marker: Runs(exec, f"open({str(marker)!r}, 'w')"), r"(builtins|__builtin__)\.exec"),
        (lambda marker: Runs(builtins.getattr, OrderedDict, "fromkeys"), r"(builtins|__builtin__)\.getattr"),
        (lambda marker: Runs(torch.load, str(marker)), r"torch\.serialization\.load"),
        (lambda marker: Runs(os.mkdir, str(marker)), r"posix\.mkdir"),
    ],
)
def test_a_pickle_that_would_run_something_is_refused_by_its_name_and_runs_nothing(write, attack, name, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    write(attack(marker), path)
    with pytest.raises(SystemExit, match=f"is refused, nothing of it was run: it asks for {name}, which"):
        main(["import", str(path), "--to", str(tmp_path / "encoder")])
    assert set(tmp_path.iterdir()) == {path}


def test_names_below_admitted_ones_are_not_admitted(tmp_path):
    path = tmp_path / "model.pth"
    for module, name in (
        ("collections", "OrderedDict.fromkeys"),
        ("cosplace_model.cosplace_network_stage1", "PromptLearner.__init__.__globals__"),
        ("torch", "float32.__class__"),
        ("torch", "hub.load"),
        ("torch", "load"),
    ):
        words = (text.encode() for text in (module, name))
        module_bytes, name_bytes = (b"\x8c" + bytes([len(word)]) + word for word in words)
        path.write_bytes(b"\x80\x04" + module_bytes + name_bytes + b"\x93.")
        with pytest.raises(ValueError, match=f"it asks for {module}.{name}, which"):
            read_torch_file(path)


def test_what_a_pickle_does_to_an_admitted_function_does_not_last(tmp_path):
    path = tmp_path / "model.pth"
    values = {"a": torch.rand(3)}
    torch.save(values, path)
    attacked = tmp_path / "attacked.pth"
    for state in ({"__call__": 3}, (None, {"__defaults__": (3,)}), (None, {"__code__": 3})):
        torch.save(Changes(torch._utils._rebuild_tensor_v2, state), attacked)
        with pytest.raises(ValueError, match="is not a whole file of PyTorch"):
            read_torch_file(attacked)
    assert torch.equal(read_torch_file(path)["a"], values["a"])
    assert torch.equal(torch.load(path, weights_only=True)["a"], values["a"])


@pytest.mark.parametrize("new", [True, False])
def test_tensors_come_back_as_they_were_saved(new, tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    values = OrderedDict({str(kind): (torch.rand(3, 4) * 9).to(kind) for kind in (*kinds, torch.int8, torch.uint8)})
    values |= {
        "bool": torch.rand(5) > 0.5,
        "empty": torch.rand(0, 3),
        "number": torch.tensor(3),
        "transposed": torch.rand(3, 4).T,
        "part": torch.rand(10)[3:7],
        "parameter": nn.Parameter(torch.rand(2)),
    }
    others = {"size": torch.Size([2, 3]), "set": {1, 2}, "best": np.float64(3), "none": None, "kind": torch.float16}
    torch.save({"tensors": values, **others}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_torch_file(tmp_path / "a.pth")
    assert found["tensors"].keys() == values.keys()
    for name, tensor in values.items():
        assert found["tensors"][name].dtype == tensor.dtype
        assert torch.equal(found["tensors"][name], tensor)
    assert (found["size"], found["set"], found["none"], found["kind"]) == ((2, 3), {1, 2}, None, torch.float16)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_values_of_a_scripted_archive_are_read_without_its_code(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).half().eval()
    torch.jit.save(torch.jit.trace(module, torch.rand(1, 3, 2, 2).half()), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "less.pt", "w") as less:
        for name in whole.namelist():
            if "/code/" not in name:
                less.writestr(name, whole.read(name))
    for path in (tmp_path / "whole.pt", tmp_path / "less.pt"):
        found = tensors_of(read_torch_file(path))
        assert found.keys() == module.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_breaks_off_is_refused_wherever_it_does(new, tmp_path):
    torch.save({"a": torch.rand(100), "b": torch.rand(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "a.pth").read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        (tmp_path / "part.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"part\.pth is not a whole file of PyTorch: [^\n]+\.$"):
            read_torch_file(tmp_path / "part.pth")


def test_what_is_no_file_of_pytorch_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "weights")
    with pytest.raises(SystemExit, match=r"PyTorch: it is an ordinary zip archive, without the data\.pkl"):
        main(["import", str(path)])
    path.write_bytes(b"")
    with pytest.raises(SystemExit, match="is not a whole file of PyTorch: it is empty"):
        main(["import", str(path)])
    path.write_text("<!DOCTYPE html> not found")
    with pytest.raises(SystemExit, match="is not a whole file of PyTorch"):
        main(["import", str(path)])
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(SystemExit, match="is not a whole safetensors file"):
        main(["import", str(tmp_path / "model.safetensors")])
    assert {found.name for found in tmp_path.iterdir()} == {"model.pth", "model.safetensors"}


@pytest.mark.parametrize(
    "operation",
    [
        b"\x96" + (2**40).to_bytes(8, "little"),  # that many bytes
        b"\x8e" + (2**40).to_bytes(8, "little"),
        b"N" + b"r" + (2**32 - 1).to_bytes(4, "little"),  # a value of that number
    ],
)
@pytest.mark.parametrize("beginning", [b"", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)])
def test_a_length_or_a_number_beyond_the_file_takes_no_memory(operation, beginning, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(beginning + b"\x80\x05" + operation)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, hard))
    try:
        with pytest.raises(ValueError, match=r"is not a whole file of PyTorch: (?!MemoryError)"):
            read_torch_file(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_tensor_that_reaches_beyond_its_values_is_refused(tmp_path):
    class Beyond:
        def __reduce__(self):
            storage = torch.rand(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (100,), (1,), False, OrderedDict())

    for new in (True, False):
        torch.save({"a": Beyond()}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="is not a whole file of PyTorch"):
            read_torch_file(tmp_path / "a.pth")
