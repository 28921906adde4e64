"""Files of PyTorch are read without running code in them."""

import copyreg
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from progeo.cli import main
from progeo.models.weight_files.torch_files import Stub, read_torch_file, tensors_of


@contextmanager
def little_memory():
    """Limit the memory to a quarter of a gigabyte more than is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Runs:
    """Ask for a call of a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def named(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def pickled(value):
    """Return the operations that push a value on the stack."""
    return pickle.dumps(value, protocol=2)[2:-1]


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
STORED = b"(" + pickled("storage") + named("torch", "FloatStorage") + pickled("0") + pickled("cpu") + b"K\x04tQ"


def archive(path, operations):
    """Write a file of torch.save that holds one storage of four numbers, and a pickle of these operations."""
    content = {"data.pkl": b"\x80\x02" + operations + b".", "data/0": bytes(16), "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as records:
        for name, data in content.items():
            records.writestr(f"a/{name}", data)


def in_torch_zip(value, path):
    torch.save({"model_state_dict": value}, path)


def in_old_torch_file(value, path):
    torch.save([value], path, _use_new_zipfile_serialization=False)


def in_plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


def after_the_beginning_of_an_old_torch_file(value, path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(value, protocol=2))


WRITERS = [in_torch_zip, in_old_torch_file, in_plain_pickle, after_the_beginning_of_an_old_torch_file]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (lambda marker: Runs(os.system, f"touch {marker}"), r"posix\.system"),
        (lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"), r"builtins\.eval"),
        (lambda marker: Runs(exec, f"open({str(marker)!r}, 'w')"), r"builtins\.exec"),
        (lambda marker: Runs(torch.load, str(marker)), r"torch\.serialization\.load"),
        (lambda marker: Runs(os.mkdir, str(marker)), r"posix\.mkdir"),
    ],
)
def test_a_pickle_that_runs_code_is_refused_and_nothing_is_run(write, attack, name, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    write(attack(marker), path)
    with pytest.raises(SystemExit, match=f"is refused, nothing of it was run: it asks for {name}, which"):
        main(["import", str(path), "--out", str(tmp_path / "encoder")])
    assert set(tmp_path.iterdir()) == {path}


NAMES_THAT_RUN = (
    *("os system", "posix execv", "nt system", "subprocess Popen", "subprocess check_output", "pty spawn"),
    *("builtins eval", "builtins exec", "builtins compile", "builtins __import__", "builtins open"),
    *("__builtin__ eval", "__builtin__ execfile", "__builtin__ apply", "commands getoutput", "cPickle loads"),
    *("sys exit", "importlib import_module", "importlib._bootstrap _load", "imp load_source", "runpy _run_code"),
    *("ctypes CDLL", "socket socket", "shutil rmtree", "code interact", "webbrowser open", "pip main"),
    *("pip._internal main", "torch load", "torch.hub load", "torch.serialization load", "pickle loads"),
    *("_pickle loads", "marshal loads", "types FunctionType", "timeit timeit", "pdb run", "torch.jit load"),
    *("torch.storage _load_from_bytes", "multiprocessing.managers Server", "io open", "numpy load"),
)
PYTHON_3 = {"__builtin__": "builtins", "commands": "subprocess", "cPickle": "pickle"}


@pytest.mark.parametrize("name", NAMES_THAT_RUN)
def test_names_that_run_commands_or_code_are_refused_wherever_they_lie(name, tmp_path):
    module, _, attribute = name.partition(" ")
    for operations in (
        named(module, attribute),
        named(module, attribute) + pickled("x") + b"\x85R",
        b"}" + pickled("thing") + named(module, attribute) + b"s",
    ):
        archive(tmp_path / "a.pth", operations)
        with pytest.raises(
            ValueError, match=rf"nothing of it was run: it asks for {PYTHON_3.get(module, module)}\.{attribute}, which"
        ):
            read_torch_file(tmp_path / "a.pth")


CALLED = []


def called(*arguments):
    CALLED.append(arguments)


class Called:
    """Record every call that Python makes while it unpickles."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = called

    def __new__(cls, *_):
        called(cls)


@pytest.mark.parametrize(
    "operations",
    [
        named(__name__, "called") + pickled("x") + b"\x85R",
        named(__name__, "Called") + pickled("x") + b"\x85R" + pickled({"a": 1}) + b"b",
        named(__name__, "Called") + b")\x81" + pickled({"a": 1}) + b"b",
    ],
)
def test_functions_and_classes_of_other_names_are_stubs_that_call_nothing(operations, tmp_path):
    archive(tmp_path / "a.pth", operations)
    found = read_torch_file(tmp_path / "a.pth")
    assert (type(found).kind.rpartition(".")[0], vars(found).get("a")) in ((__name__, None), (__name__, 1))
    assert CALLED == []


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        (named(__name__, "Called") + b")R(K\x01K\x02u" + pickled({"a": 1}) + b"b", OrderedDict({1: 2})),
        (named(__name__, "Called") + b")\x81q\x00K\x01K\x02s0h\x00", OrderedDict({1: 2})),
        (named(__name__, "Called") + b")R(K\x01K\x02e", [1, 2]),
        (named(__name__, "Called") + b")\x81K\x01a", [1]),
    ],
)
def test_dictionaries_and_lists_of_other_classes_are_plain_ones(operations, expected, tmp_path):
    archive(tmp_path / "a.pth", operations.replace(b"0h\x00", b""))
    found = read_torch_file(tmp_path / "a.pth")
    assert (type(found), found, CALLED) == (type(expected), expected, [])


@pytest.mark.parametrize(
    "operations",
    [
        named(__name__, "Called") + b")}\x92",
        b"(" + named(__name__, "Called") + b"o",
        b"(i" + f"{__name__}\nCalled\n".encode(),
        b"\x8c\x01a\x8c\x01b\x93",
    ],
)
def test_operations_that_torch_save_does_not_write_are_refused(operations, tmp_path):
    archive(tmp_path / "a.pth", operations)
    with pytest.raises(ValueError, match=r"a\.pth cannot be read safely: Unsupported operand \d+\. Load it in the"):
        read_torch_file(tmp_path / "a.pth")
    assert CALLED == []


@pytest.mark.parametrize(
    "operations",
    [
        REBUILD + pickled({"__call__": 3}) + b"b",
        REBUILD + pickled((None, {"__defaults__": (3,)})) + b"b",
        named("argparse", "Namespace") + pickled((None, {"kind": "x"})) + b"b",
        REBUILD + b"(" + STORED + b"K\0K\x04\x85K\x01\x85\x89NtR" + pickled({"a": 3}) + b"b",
    ],
)
def test_a_pickle_changes_no_functions_and_classes(operations, tmp_path):
    archive(tmp_path / "a.pth", operations)
    with pytest.raises(ValueError, match=r"a\.pth (cannot be read safely|is not a complete file of PyTorch): [^\n]+$"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("operation", [b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0\0\0"])
def test_names_are_not_looked_up_by_number(operation, tmp_path):
    copyreg.add_extension("os", "system", 1)
    try:
        for write in (archive, lambda path, operations: path.write_bytes(b"\x80\x02" + operations + b".")):
            write(tmp_path / "a.pth", operation)
            with pytest.raises(ValueError, match=r"(PyTorch|safely): [^\n]+$"):
                read_torch_file(tmp_path / "a.pth")
    finally:
        copyreg.remove_extension("os", "system", 1)


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
    others = {
        "size": torch.Size([2, 3]),
        "set": {1, 2},
        "best": np.float64(3),
        "none": None,
        "kind": torch.float16,
        7: 8,
    }
    torch.save({"tensors": values, **others}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_torch_file(tmp_path / "a.pth")
    assert found["tensors"].keys() == values.keys()
    for name, tensor in values.items():
        assert found["tensors"][name].dtype == tensor.dtype
        assert torch.equal(found["tensors"][name], tensor)
    assert (found["size"], found["none"], found["kind"], found[7]) == ((2, 3), None, torch.float16, 8)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_values_of_a_torchscript_archive_are_read_without_its_code(tmp_path):
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
def test_a_truncated_file_is_refused_wherever_it_ends(new, tmp_path):
    torch.save({"a": torch.rand(100), "b": torch.rand(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "a.pth").read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        (tmp_path / "part.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"part\.pth is not a complete file of PyTorch: [^\n]+\.$") as caught:
            read_torch_file(tmp_path / "part.pth")
        assert not new or length < 4 or str(caught.value).endswith(": it is truncated.")


def test_a_corrupt_tensor_is_refused(tmp_path):
    torch.save({"a": torch.arange(100.0)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 10] ^= 255
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth is not a complete file of PyTorch: its data/0 is corrupt\.$"):
        read_torch_file(tmp_path / "a.pth")


def test_other_files_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "weights")
    with pytest.raises(SystemExit, match=r"PyTorch: it is an ordinary zip archive, without the data\.pkl"):
        main(["import", str(path)])
    path.write_bytes(b"")
    with pytest.raises(SystemExit, match="is not a complete file of PyTorch: it is empty"):
        main(["import", str(path)])
    path.write_text("<!DOCTYPE html> not found")
    with pytest.raises(SystemExit, match="is not a complete file of PyTorch: it does not begin as one"):
        main(["import", str(path)])
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(SystemExit, match="is not a complete safetensors file"):
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
    path.write_bytes(beginning + b"\x80\x02" + operation)
    with little_memory(), pytest.raises(ValueError, match=r"is not a complete file of PyTorch: (?!MemoryError)"):
        read_torch_file(path)


@pytest.mark.parametrize("builtins", ["__builtin__", "builtins"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (named("somebody", "Color"), "RED"),  # of an enumeration, as Python 3.11.0 to 3.11.4 store it
        (named("somebody", "Thing") + b")R", "method"),
        (named("somebody", "Thing"), "__new__"),
    ],
)
def test_attributes_of_stubs_are_stubs_that_call_nothing(owner, name, builtins, tmp_path):
    member = named(builtins, "getattr") + owner + pickled(name) + b"\x86R"
    archive(tmp_path / "a.pth", b"}(" + pickled("a") + member + pickled("b") + member + pickled("x") + b"\x85Ru")
    found = read_torch_file(tmp_path / "a.pth")
    assert issubclass(found["a"], Stub) and isinstance(found["b"], Stub) and vars(found["b"]) == {}


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (named("somebody", "Thing"), "__globals__"),
        (named("collections", "OrderedDict"), "fromkeys"),
        (named("torch._utils", "_rebuild_tensor"), "__globals__"),
        (pickled("x"), "format"),
    ],
)
def test_attributes_of_all_else_are_the_same_stub(owner, name, tmp_path):
    archive(tmp_path / "a.pth", named("builtins", "getattr") + owner + pickled(name) + b"\x86R")
    assert read_torch_file(tmp_path / "a.pth") is Stub


def test_ordered_dictionaries_of_python_2_are_read(tmp_path):
    items = b"](](" + pickled("a") + STORED + b"e](" + pickled((0, "b")) + b"K\1ee"
    archive(tmp_path / "a.pth", named("collections", "OrderedDict") + items + b"\x85R")
    found = read_torch_file(tmp_path / "a.pth")
    assert list(found) == ["a", (0, "b")] and len(found["a"]) == 4


def test_a_tensor_that_reaches_beyond_its_values_is_refused(tmp_path):
    class Beyond:
        def __reduce__(self):
            storage = torch.rand(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (100,), (1,), False, OrderedDict())

    for new in (True, False):
        torch.save({"a": Beyond()}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="is not a complete file of PyTorch"):
            read_torch_file(tmp_path / "a.pth")
