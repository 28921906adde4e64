"""Plugins: Python files and installed packages that add rows to tables, such as a loss term, when they are imported."""

import atexit
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from progeo.printable import reason_of_failure

_GROUP = "progeo.plugins"
"""Group of the entry points by which installed packages name their plugin."""
_IMPORTED: dict[str, Path | None] = {}
"""Names of the imported modules, in order, with their file if they are of no installed package."""


def import_plugin(file: Path) -> None:
    """Import a Python file as the module of its name, once.

    Its folder is appended to `sys.path`, so that it finds modules beside it, and processes that read pickled objects
    find it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be imported, or has the name of another module.
    """
    path, name = file.resolve(), file.resolve().stem
    if not path.is_file():
        raise FileNotFoundError(f"There is no plugin {file}.")
    spec = None if "." in name or path.suffix != ".py" else spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"A plugin is a Python file such as my_method.py, got {file}.")
    if (other := _origin(name)) is not None and other != str(path):
        raise ValueError(f"The plugin {file} would hide the module {name} ({other}): give the file another name.")
    if name in _IMPORTED:
        return
    module = sys.modules[name] = module_from_spec(spec)
    sys.path.append(str(path.parent))
    try:
        with _without_bytecode():  # beside the file, where a dry run must not write, and a folder may be read-only
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # code of others can fail in any way
        del sys.modules[name]
        sys.path.remove(str(path.parent))
        reason = f"{_line(error, path)}{reason_of_failure(error)}"
        raise ValueError(f"The plugin {file} cannot be imported: {reason}") from error
    _IMPORTED[name] = path


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Have Python keep no compiled copy of the modules that are imported in the block."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def import_installed_plugins() -> list[str]:
    """Import the plugins of installed packages; return a sentence for each that cannot be imported."""
    failures = []
    for entry in entry_points(group=_GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # code of others can fail in any way
            package = f" of {entry.dist.name}" if entry.dist is not None else ""
            failures.append(f"The plugin {entry.name}{package} ({entry.value}) is skipped: {reason_of_failure(error)}")
        else:
            _IMPORTED[entry.module] = None
    return failures


def imported_plugins() -> tuple[str, ...]:
    """Return the names of the plugins that this process imported, for `import_in_worker`."""
    return tuple(_IMPORTED)


def import_in_worker(names: Iterable[str], worker: int = 0) -> None:
    """Import plugins in a process that was not forked from one that had imported them."""
    with _without_bytecode():
        for name in names:
            import_module(name)


def plugin_sources() -> dict[str, str]:
    """Return the code of all plugins that were imported from files, by name, for `import_sources`."""
    return {name: file.read_text(encoding="utf-8") for name, file in _IMPORTED.items() if file is not None}


def import_sources(sources: Mapping[str, str]) -> None:
    """Import the plugins of installed packages, and those whose code another machine sent, in order."""
    import_installed_plugins()
    for name, text in sources.items():
        file = Path(_origin(name) or "")
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            folder = Path(tempfile.mkdtemp(prefix="progeo_plugin_"))  # which processes that this one starts read, too
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            file = folder / f"{name}.py"
            file.write_text(text, encoding="utf-8")
        import_plugin(file)


def _origin(name: str) -> str | None:
    """Return the file that a module of this name is or would be imported from; None if there is no such module."""
    module: ModuleType | None = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(module, "__spec__", None) if module is not None else find_spec(name)
    origin = getattr(module, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is None:  # a folder without __init__.py gives way to a file
        return None if module is None else "built-in"
    return str(Path(origin).resolve()) if Path(origin).is_file() else origin


def _line(error: BaseException, path: Path) -> str:
    """Return the line of the plugin in which an error arose; empty if its file is no Python: the error says where."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"line {lines[-1]}: " if lines else ""
