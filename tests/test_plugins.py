"""Rows from outside the package: files named with `--plugin`, and entry points of installed packages."""

import multiprocessing
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from progeo.cli import COMMANDS, main
from progeo.export.encoders import ENCODERS
from progeo.models.fingerprint import module_fingerprint
from progeo.plugins import import_in_worker, import_installed_plugins, import_plugin, imported_plugins

pytestmark = pytest.mark.usefixtures("plugins_forgotten")

WITH_ROW = """
from progeo.export.encoders import ENCODERS
from progeo.models.wrapped_encoder import WrappedEncoder
from torch import nn

class Mean(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))

def small(name):
    return WrappedEncoder(f"mine:{name}", Mean(), (32, 32))

COUNT = len(ENCODERS)
ENCODERS["mine"] = small
"""
WITH_SECTION = """
import dataclasses
from progeo.commands import export

@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    \"\"\"Settings of my method.\"\"\"

    strength: float = 0.5
    \"\"\"Strength of my method.\"\"\"

def replaced(encoder: str, *, own: Own = Own()) -> str:
    \"\"\"Replace the command.

    Args:
        encoder: An encoder.
    \"\"\"
    return f"{encoder} {own.strength}"

export.export = replaced
"""


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="my_method.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    shown = capsys.readouterr().err
    return stop.value.code if isinstance(stop.value.code, str) else shown


def test_a_file_given_twice_is_imported_once_under_its_own_name(plugin, tmp_path):
    file = plugin(WITH_ROW)
    import_plugin(file)
    loaded = ENCODERS["mine"]
    link = tmp_path / "folder"
    link.symlink_to(tmp_path)
    import_plugin(link / "my_method.py")
    assert ENCODERS["mine"] is loaded and sys.modules["my_method"].small is loaded
    assert imported_plugins() == ("my_method",)


def test_no_compiled_copy_is_left_beside_a_plugin(plugin, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = plugin("import beside_it")
    (file.parent / "beside_it.py").write_text("")
    import_plugin(file)
    assert not list(file.parent.rglob("__pycache__")) and not sys.dont_write_bytecode


def test_code_of_a_plugin_can_be_identified(plugin):
    import_plugin(plugin(WITH_ROW))
    assert module_fingerprint(sys.modules["my_method"].Mean()) == module_fingerprint(sys.modules["my_method"].Mean())


def test_a_plugin_finds_the_modules_beside_it(plugin):
    plugin("value = 3", "beside_my_method.py")
    import_plugin(plugin("from beside_my_method import value"))
    assert sys.modules["my_method"].value == 3


@pytest.mark.parametrize("words", [["--plugin", "{}"], ["--plugin={}"]])
def test_settings_are_read_after_the_plugin(words, plugin, capsys, monkeypatch):
    monkeypatch.setattr("progeo.commands.export.export", COMMANDS["export"].load())  # restored after the test
    words = [word.format(plugin(WITH_SECTION)) for word in words]
    main(["export", "e", *words, "--strength", "0.7"])
    assert capsys.readouterr().out == "e 0.7\n"
    main(["export", "--help", *words])
    shown = capsys.readouterr().out
    assert "Settings of my method:\n  --strength NUMBER\n      Strength of my method. (default: 0.5)" in shown
    assert "--plugin FILE" in shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import math\nnothing_here\n", "cannot be imported: line 2: NameError: name 'nothing_here' is not defined"),
        ("import math\n\nimport no_such_module_anywhere\n", "line 3: ModuleNotFoundError: No module named 'no_such"),
        ("x = 1\ny = (\n", "cannot be imported: SyntaxError: '(' was never closed (my_method.py, line 2)"),
        ("\nimport math\nmath.sqrt(-1)", "line 3: ValueError: "),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        ("def a():\n    raise KeyError('k')\n\na()", "line 2: KeyError: 'k'"),
    ],
)
def test_a_plugin_that_fails_is_a_sentence_with_its_file_and_line(text, sentence, plugin, capsys):
    file, paths = plugin(text), list(sys.path)
    said = failure(capsys, "demo", "--plugin", file)
    assert said.startswith(f"progeo demo: error: The plugin {file} cannot be imported: ") and sentence in said
    assert "my_method" not in sys.modules and sys.path == paths
    assert "Traceback" in failure_with_traceback(capsys, file)


def failure_with_traceback(capsys, file):
    with pytest.raises(SystemExit):
        main(["demo", "--plugin", str(file), "--verbose"])
    return capsys.readouterr().err


def test_files_that_are_no_plugins_are_refused(plugin, tmp_path, capsys):
    nowhere = tmp_path / "nowhere.py"
    assert f"There is no plugin {nowhere}." in failure(capsys, "demo", "--plugin", nowhere)
    for name in ("my_method.txt", "my.method.py"):
        assert "A plugin is a Python file such as my_method.py" in failure(capsys, "demo", "--plugin", plugin("", name))
    for name in ("torch.py", "sys.py", "tabnanny.py"):  # imported, built in, not imported yet
        said = failure(capsys, "demo", "--plugin", plugin("", name))
        assert f"would hide the module {name.removesuffix('.py')} (" in said and "give the file another name" in said
    for words in (["--plugin"], ["--plugin="], ["--plugin", "--json"]):
        assert "error: --plugin needs a value: a Python file." in failure(capsys, "demo", *words)


def test_two_plugins_of_one_name_are_refused(plugin, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    import_plugin(plugin(WITH_ROW))
    said = failure(capsys, "demo", "--plugin", plugin("", "other/my_method.py"))
    assert f"would hide the module my_method ({tmp_path / 'my_method.py'})" in said


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Packages with entry points on `sys.path`: one that adds a row, one that is broken."""
    (tmp_path / "working_plugin.py").write_text(WITH_ROW)
    (tmp_path / "broken_plugin.py").write_text("import no_such_module_anywhere")
    for name in ("working", "broken"):
        folder = tmp_path / f"{name}_package-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[progeo.plugins]\n{name} = {name}_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_installed_plugins_are_imported_and_a_broken_one_is_a_warning(installed, capsys):
    main(["demo", "--help"])
    assert capsys.readouterr().err == (
        "The plugin broken of broken-package (broken_plugin) is skipped: "
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'\n"
    )
    assert "mine" in ENCODERS and imported_plugins() == ("working_plugin",)
    import_installed_plugins()
    assert len(ENCODERS) - 1 == sys.modules["working_plugin"].COUNT  # once


class Rows(Dataset):
    """Whether the row of the plugin is there."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.tensor("mine" in ENCODERS)


@pytest.mark.slow
def test_worker_processes_that_are_not_forked_have_the_rows(plugin):
    import_plugin(plugin(WITH_ROW))
    spawn = multiprocessing.get_context("spawn")
    init = partial(import_in_worker, imported_plugins())
    assert next(iter(DataLoader(Rows(), num_workers=1, multiprocessing_context=spawn, worker_init_fn=init)))


def test_objects_of_a_plugin_are_found_by_a_process_that_is_not_forked(plugin, tmp_path):
    import_plugin(plugin("class Sampler:\n    kind = 'mine'\n"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(getattr, (sys.modules["my_method"].Sampler(), "kind")) == "mine"


def test_loaders_give_their_workers_the_plugins(plugin):
    from progeo.data.loaders import build_loader

    import_plugin(plugin(WITH_ROW))
    init = build_loader(Rows(), [[0]], num_workers=0).worker_init_fn
    del ENCODERS["mine"], sys.modules["my_method"]
    init(0)
    assert "mine" in ENCODERS


def test_help_with_a_plugin_that_needs_no_torch_imports_none(plugin):
    words = ["evaluate", "--help", "--plugin", str(plugin("value = 1"))]
    code = f"import sys\nfrom progeo.cli import main\nmain({words})\nassert 'my_method' in sys.modules\n"
    code += "assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
