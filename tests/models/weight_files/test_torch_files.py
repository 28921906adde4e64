"""Files of PyTorch are read, and what is hidden in them is not run."""

import builtins
import copy
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
from progeo.models.weight_files.torch_files import read_torch_file, tensors_of
from progeo.models.weight_files.unpickler import Stub


@contextmanager
def little_memory():
    """A quarter of a gigabyte more than is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Runs:
    """Pickled, it asks that a function be called."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def named(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def pickled(value):
    """What leaves a value on the stack."""
    return pickle.dumps(value, protocol=2)[2:-1]


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
DOUBLED = b"K\x01" + 40 * b"2\x86"  # a pair of twice the same, 40 times
STORED = b"(" + pickled("storage") + named("torch", "FloatStorage") + pickled("0") + pickled("cpu") + b"K\x04tQ"


def archive(path, operations, *, byteorder=b"little", compressed=None):
    """A file of torch.save that holds one storage of four numbers, and such a pickle."""
    content = {"data.pkl": b"\x80\x02" + operations + b".", "data/0": bytes(16), "byteorder": byteorder}
    with zipfile.ZipFile(path, "w") as records:
        for name, data in content.items():
            records.writestr(f"a/{name}", data, zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED)


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


NAMES_THAT_RUN = (
    *("os system", "posix execv", "nt system", "subprocess Popen", "subprocess check_output", "pty spawn"),
    *("builtins eval", "builtins exec", "builtins compile", "builtins __import__", "builtins setattr", "builtins open"),
    *("__builtin__ eval", "__builtin__ execfile", "__builtin__ apply", "commands getoutput", "cPickle loads"),
    *("sys exit", "importlib import_module", "importlib._bootstrap _load", "imp load_source", "runpy _run_code"),
    *("ctypes CDLL", "socket socket", "shutil rmtree", "code interact", "webbrowser open", "pip main"),
    *("pip._internal main", "torch load", "torch.hub load", "torch.serialization load", "pickle loads"),
    *("_pickle loads", "marshal loads", "types FunctionType", "timeit timeit", "pdb run", "torch.jit load"),
    *("posixpath os.system", "numpy.ma.core os.system", "torch sys.exit", "_operator attrgetter", "_io open_code"),
    *("pkgutil resolve_name", "_frozen_importlib BuiltinImporter", "x __builtins__.eval", "torch.ops load_library"),
    *("torch.storage _load_from_bytes", "multiprocessing.process Process", "io open", "_io FileIO", "numpy load"),
)


@pytest.mark.parametrize("name", NAMES_THAT_RUN)
def test_names_that_run_commands_or_code_are_refused_wherever_they_lie(name, tmp_path):
    module, _, attribute = name.partition(" ")
    words = [bytes([len(text)]) + text.encode() for text in (module, attribute)]
    for operations in (
        named(module, attribute),
        named(module, attribute) + pickled("x") + b"\x85R",
        b"\x8c" + words[0] + b"\x8c" + words[1] + b"\x93",
        b"}" + pickled("thing") + b"(i" + f"{module}\n{attribute}\n".encode() + b"s",
    ):
        archive(tmp_path / "a.pth", operations)
        with pytest.raises(
            ValueError, match=rf"nothing of it was run: it asks for {module}\.{attribute}, which weights"
        ):
            read_torch_file(tmp_path / "a.pth")


CALLED = []


def called(*arguments):
    CALLED.append(arguments)


class Called:
    """All that Python calls while it unpickles."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = called

    def __new__(cls, *_):
        called(cls)


@pytest.mark.parametrize(
    "operations",
    [
        named(__name__, "called") + pickled("x") + b"\x85R",
        named(__name__, "Called") + pickled("x") + b"\x85R" + pickled({"a": 1}) + b"b",
        named(__name__, "Called") + b")\x81" + pickled({"a": 1}) + b"b",
        named(__name__, "Called") + b")}\x92" + pickled(("a", 1)) + b"b",
        b"(" + named(__name__, "Called") + b"o",
        b"(i" + f"{__name__}\nCalled\n".encode(),
        named(__name__, "Called") + b")R" + b"K\x01aK\x01K\x02s(K\x01K\x02u(K\x01e",
    ],
)
def test_functions_and_classes_of_other_names_are_stubs_that_call_nothing(operations, tmp_path):
    archive(tmp_path / "a.pth", operations)
    found = read_torch_file(tmp_path / "a.pth")
    assert (type(found).kind.rpartition(".")[0], vars(found).get("a")) in ((__name__, None), (__name__, 1))
    assert CALLED == []


def test_a_file_of_more_names_than_any_program_has_is_refused(tmp_path):
    archive(tmp_path / "a.pth", b"".join(named("a", f"b{number}") + b"0" for number in range(10_001)) + b"N")
    with pytest.raises(ValueError, match="is not a complete file of PyTorch: it asks for more than 10,000 names"):
        read_torch_file(tmp_path / "a.pth")


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


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (REBUILD + pickled({"__call__": 3}) + b"b", "it changes a function"),
        (REBUILD + pickled((None, {"_call": 3})) + b"b", "it changes a function"),
        (REBUILD + pickled((None, {"__defaults__": (3,)})) + b"b", "it changes a function"),
        (named("argparse", "Namespace") + pickled((None, {"kind": "x"})) + b"b", "it changes a type"),
        (REBUILD + b"(" + STORED + b"K\0K\x04\x85K\x01\x85\x89NtR" + pickled({"a": 3}) + b"b", "it changes a Tensor"),
        (REBUILD + b"(" + STORED + b"K\0K\x04\x85K\x01\x85\x89NtRK\0K\x01s", "it puts items into a Tensor"),
        (b"]K\x01aK\0K\x02s", "it puts items into a list"),
    ],
)
def test_a_pickle_changes_nothing_but_dictionaries_and_stubs(operations, reason, tmp_path):
    archive(tmp_path / "a.pth", operations)
    with pytest.raises(ValueError, match=f"is not a complete file of PyTorch: {reason}"):
        read_torch_file(tmp_path / "a.pth")


def test_what_a_pickle_stores_on_a_dictionary_does_not_change_how_it_is_read(tmp_path):
    operations = named("collections", "OrderedDict") + b")R" + pickled("a") + b"K\x01s" + pickled({"items": 3}) + b"b"
    archive(tmp_path / "a.pth", operations)
    found = read_torch_file(tmp_path / "a.pth")
    assert (list(found.items()), vars(found)) == ([("a", 1)], {})


@pytest.mark.parametrize("operation", [b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0\0\0"])
def test_names_are_not_looked_up_by_number(operation, tmp_path):
    copyreg.add_extension("os", "system", 1)
    try:
        for write in (archive, lambda path, operations: path.write_bytes(b"\x80\x02" + operations + b".")):
            write(tmp_path / "a.pth", operation)
            with pytest.raises(ValueError, match=f"is not a complete file of PyTorch: {operation[0]}"):
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
        with pytest.raises(ValueError, match=r"part\.pth is not a complete file of PyTorch: [^\n]+\.$") as caught:
            read_torch_file(tmp_path / "part.pth")
        assert not new or length < 4 or str(caught.value).endswith(": it breaks off.")


def test_what_is_no_file_of_pytorch_is_refused_in_one_sentence(tmp_path):
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
    with little_memory(), pytest.raises(ValueError, match=r"is not a complete file of PyTorch: (?!MemoryError)"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (b"(" + DOUBLED + b"NNNNtQ", "something other than tensors lies beside it"),
        (
            b"(" + pickled("storage") + named("torch", "FloatStorage") + DOUBLED + b"N" + b"K\x04tQ",
            "something other than",
        ),
        (b"(" + DOUBLED + b"K\x01d", "100"),
        (
            REBUILD + b"(" + STORED + b"K\0J\0\0\0\x10\x85K\0\x85\x89NtR",
            "a tensor has more values than are stored of it",
        ),
    ],
)
def test_what_unfolds_is_refused_before_it_does(operations, reason, tmp_path):
    archive(tmp_path / "a.pth", operations)
    with little_memory(), pytest.raises(ValueError, match=f"is not a complete file of PyTorch: {reason}"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "operations",
    [
        b"}" + DOUBLED + b"K\x01s",
        b"}(" + DOUBLED + b"K\x01u",
        b"}" + pickled(tuple(range(9))) + b"K\x01s",
        named("collections", "OrderedDict") + b"]" + DOUBLED + b"K\x01\x86a\x85R",
        b"\x8f(" + DOUBLED + b"\x90",
        b"(" + DOUBLED + b"\x91",
    ],
)
def test_keys_and_members_of_sets_that_unfold_are_not_hashed(operations, tmp_path):
    archive(tmp_path / "a.pth", operations)
    with little_memory():
        found = read_torch_file(tmp_path / "a.pth")
    assert not any(isinstance(key, tuple) for key in found) or isinstance(found, list)


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
        (named("torch._utils", "_rebuild_tensor"), "real"),
        (named("torch", "float16"), "real"),
        (pickled("x"), "format"),
    ],
)
def test_attributes_of_all_else_are_refused(owner, name, tmp_path):
    archive(tmp_path / "a.pth", named("builtins", "getattr") + owner + pickled(name) + b"\x86R")
    with pytest.raises(ValueError, match=r"nothing of it was run: it asks for builtins\.getattr, which weights"):
        read_torch_file(tmp_path / "a.pth")


def test_ordered_dictionaries_of_python_2_are_read(tmp_path):
    items = b"](](" + pickled("a") + STORED + b"e](" + pickled((0, "b")) + b"K\1ee"
    archive(tmp_path / "a.pth", named("collections", "OrderedDict") + items + b"\x85R")
    found = read_torch_file(tmp_path / "a.pth")
    assert list(found) == ["a"] and len(found["a"]) == 4


def test_an_old_file_whose_names_of_tensors_unfold_is_refused(tmp_path):
    values = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})
    beginning = b"".join(pickle.dumps(value, protocol=2) for value in values)
    (tmp_path / "a.pth").write_bytes(beginning + b"\x80\x02](" + DOUBLED + b"e.")
    with pytest.raises(ValueError, match="is not a complete file of PyTorch: it does not name its tensors"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("record", ["data.pkl", "data/0", "byteorder"])
def test_a_compressed_record_is_refused(record, tmp_path):
    archive(tmp_path / "a.pth", STORED, compressed=record)
    with pytest.raises(ValueError, match=f"its {record} is compressed, which PyTorch never does"):
        read_torch_file(tmp_path / "a.pth")


def test_big_endian_numbers_are_refused(tmp_path):
    archive(tmp_path / "new.pth", STORED, byteorder=b"big")
    values = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False})
    (tmp_path / "old.pth").write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in values))
    for name in ("new.pth", "old.pth"):
        with pytest.raises(ValueError, match="its numbers are big-endian"):
            read_torch_file(tmp_path / name)


def test_records_that_share_their_bytes_are_refused(tmp_path):
    storages = b"".join(STORED.replace(pickled("0"), pickled(str(key))) for key in range(9))
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as records:
        records.writestr("a/data.pkl", b"\x80\x02(" + storages + b"t.")
        records.writestr("a/data/0", bytes(4096))
        for key in range(1, 9):
            shared = copy.copy(records.getinfo("a/data/0"))
            shared.filename = f"a/data/{key}"
            records.filelist.append(shared)
    # Newer Pythons see it themselves.
    with pytest.raises(ValueError, match=r"it is shorter than its records|[Oo]verlap"):
        read_torch_file(tmp_path / "a.pth")


def test_an_old_file_with_more_tensors_than_bytes_is_refused(tmp_path):
    storages = b"".join(
        STORED.replace(pickled("0"), pickled(str(key))).replace(b"K\x04t", b"M\x30\0t") for key in range(9)
    )
    values = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    beginning = b"".join(pickle.dumps(value, protocol=2) for value in values)
    (tmp_path / "a.pth").write_bytes(beginning + b"\x80\x02(" + storages + b"t.")
    with pytest.raises(ValueError, match="it is shorter than its tensors"):
        read_torch_file(tmp_path / "a.pth")


def test_a_tensor_that_reaches_beyond_its_values_is_refused(tmp_path):
    class Beyond:
        def __reduce__(self):
            storage = torch.rand(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (100,), (1,), False, OrderedDict())

    for new in (True, False):
        torch.save({"a": Beyond()}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="is not a complete file of PyTorch"):
            read_torch_file(tmp_path / "a.pth")
