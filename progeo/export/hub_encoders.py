"""Load networks of other programs through `torch.hub`, to evaluate them; this runs the code of their repositories."""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from progeo.models.encoder import Encoder
from progeo.models.fingerprint import module_fingerprint
from progeo.models.state_dicts import weights_digest
from progeo.models.wrapped_encoder import WrappedEncoder
from progeo.printable import reason_of_failure

_NAME = re.compile(r"(?P<source>.+?):(?P<entry>[A-Za-z_]\w*)(?:\?(?P<options>.*))?", re.DOTALL)
_GITHUB = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]+(:[^:]+)?")
_SIZE = "image_size"
_DEFAULT_SIZE = "320"
_SIDES = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")
_HUBCONF = "hubconf.py"


class HubName(NamedTuple):
    """Parts of a name `SOURCE:ENTRY?name=value&...`."""

    source: str
    """`OWNER/REPO` or `OWNER/REPO:BRANCH` on GitHub, or a folder."""
    entry: str
    """Function of its `hubconf.py`."""
    options: dict[str, Any]
    """Arguments of the function."""
    image_size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def is_folder(self) -> bool:
        """Whether the source is a folder; a relative one with a slash begins with `./`."""
        return _GITHUB.fullmatch(self.source) is None

    @property
    def folders(self) -> list[Path]:
        """Folders that may hold the repository: where `torch.hub` keeps it, or the folder itself."""
        if self.is_folder:
            return [Path(self.source).resolve()]
        repository, _, branch = self.source.partition(":")
        branches = [branch] if branch else ["main", "master"]
        return [Path(torch.hub.get_dir()) / f"{repository}/{each}".replace("/", "_") for each in branches]


class HubEncoder(WrappedEncoder):
    """Network of a repository, whose modules are hidden from those of other repositories."""

    def __init__(self, name: str, network: nn.Module, image_size: tuple[int, int], repository: "_Repository") -> None:
        self.repository = repository
        super().__init__(f"hub:{name}", network, image_size)

    def forward(self, images: Tensor, **_: object) -> Tensor:  # type: ignore[override]
        """Compute descriptors (B, D) of normalized images (B, 3, H, W); see `WrappedEncoder`."""
        with self.repository.importable():
            return super().forward(images)

    def fingerprint(self) -> str:
        """Compute a digest that changes with the network, its weights and the code that was imported for it.

        If the network holds something that cannot be identified, such as a lambda, the name of the encoder stands for
        all but its weights and code.
        """
        with self.repository.importable():
            try:
                network = module_fingerprint(self.network)
            except ValueError:
                tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
                network = f"{self.name} {weights_digest({name: each.detach() for name, each in tensors.items()})}"
        parts = [self.mean.tolist(), self.std.tolist(), self.repository.code_digest(), network]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_hub_encoder(name: str) -> Encoder:
    """Load an encoder by a name `SOURCE:ENTRY?name=value&...`, for evaluation.

    `ENTRY` is a function of the `hubconf.py` of a repository, which is called with the options and returns a network
    that maps images (B, 3, H, W), normalized with the mean and std of ImageNet, to descriptors (B, D).

    Args:
        name: `SOURCE` is `OWNER/REPO` or `OWNER/REPO:BRANCH` on GitHub, or a folder. The values of options are literals
            of Python where they can be, else text; `%26` stands for `&`. The option `image_size`, `320` or `322x448`
            (height, width) in pixels, is not passed on; without it images have 320 x 320 pixels.

    Raises:
        FileNotFoundError: there is no such folder with a `hubconf.py`.
        ValueError: the name cannot be parsed, or the code of the repository fails or returns something else.
    """
    parsed = parse_hub_name(name)
    source, kind = parsed.source, "github"
    if parsed.is_folder:
        source, kind = str(Path(source).resolve()), "local"
        if not (Path(source) / _HUBCONF).is_file():
            raise FileNotFoundError(f"There is no {Path(source) / _HUBCONF} for hub:{name}.")
    repository = _Repository(parsed.folders)
    try:
        with repository.importable(), redirect_stdout(sys.stderr), _without_input():
            network: Any = torch.hub.load(
                source, parsed.entry, source=kind, trust_repo=True, verbose=False, **parsed.options
            )
    except (Exception, SystemExit) as error:  # code of others can fail in any way
        folder = parsed.source.partition(":")[0]
        hint = f" The folder is called ./{folder}." if not parsed.is_folder and Path(folder).is_dir() else ""
        raise ValueError(f"hub:{name} cannot be loaded: {reason_of_failure(error)}{hint}") from error
    if isinstance(network, Encoder):
        return network
    if not isinstance(network, nn.Module):
        raise ValueError(f"hub:{name} must return a torch.nn.Module, got a {type(network).__name__}.")
    return HubEncoder(name, network, parsed.image_size, repository)


def parse_hub_name(name: str) -> HubName:
    """Parse a name `SOURCE:ENTRY?name=value&...`, see `load_hub_encoder`.

    Raises:
        ValueError: it has another form.
    """
    if (match := _NAME.fullmatch(name)) is None:
        raise ValueError(
            f"hub:{name} has not the form hub:OWNER/REPO:ENTRY?name=value&... or hub:FOLDER:ENTRY?name=value&..."
        )
    options: dict[str, str] = {}
    for pair in filter(None, (match["options"] or "").split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise ValueError(f"hub:{name} has the option {pair!r}: give each once, as name=value.")
        options[key] = unquote(value)
    size = options.pop(_SIZE, _DEFAULT_SIZE)
    if (sides := _SIDES.fullmatch(size)) is None:
        raise ValueError(f"hub:{name} has the {_SIZE} {size!r}: give pixels, as 322, or 240x320 (height, width).")
    image_size = (int(sides[1]), int(sides[2] or sides[1]))
    return HubName(match["source"], match["entry"], {key: _value(text) for key, text in options.items()}, image_size)


@contextmanager
def _without_input() -> Iterator[None]:
    """Let code that asks something fail: it may load another repository, for which `torch.hub` asks."""
    before, sys.stdin = sys.stdin, StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


class _Repository:
    """Where code was imported from, with its modules, whose names other repositories may use for theirs."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Take the folders that may hold the repository; those of others that it loads are below `torch.hub`'s."""
        self.folders = [*folders, Path(torch.hub.get_dir())]
        self.modules: dict[str, ModuleType] = {}

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Give the modules of this repository their names inside this context, and take them away afterwards."""
        before = dict(sys.modules)
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                if before.get(name) is not module and self._holds(name, module):
                    self.modules[name] = module
                    del sys.modules[name]
                    if name in before:
                        sys.modules[name] = before[name]

    def code_digest(self) -> str:
        """Compute a digest of the files that were imported, and of `hubconf.py`."""
        named = {name: getattr(module, "__file__", None) for name, module in self.modules.items()}
        files = {name: Path(file) for name, file in named.items() if file}  # a folder without __init__.py has none
        hubconf = next((file for folder in self.folders if (file := folder / _HUBCONF).is_file()), None)
        found = sorted({**files, **({_HUBCONF: hubconf} if hubconf else {})}.items())
        return hashlib.sha256(b"".join(name.encode() + _file_digest(file) for name, file in found)).hexdigest()

    def _holds(self, name: str, module: ModuleType) -> bool:
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        if file is None or name.partition(".")[0] == "progeo" or "site-packages" in Path(file).parts:
            return False
        return any(Path(file).is_relative_to(folder) for folder in self.folders)


def _file_digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()
