"""Find the folder of an encoder: of a run, of an export, or downloaded."""

from collections.abc import Callable, Mapping
from pathlib import Path

from progeo.export.fetch import fetch_folder

WEIGHTS = "model.safetensors"
METADATA = "model.json"
CLASSIFIER = "classifier.safetensors"
_KEPT_IN = ("best", "last", "stage2/best", "stage2/last", "model")
"""Folders in which a run, or its stage 2, keeps its encoder, depending on `training.keep`; and a place index."""
_SETTINGS_OF_RUNS = ("config.yaml", "stage2/config.yaml")


def local_folder(path_or_address: str | Path, readers: Mapping[str, Callable[[Path], object]]) -> Path:
    """Find the folder of an encoder by its path or that of its run, or download files of it.

    Args:
        path_or_address: see `encoder_folder`, or `fetch_folder` for `hf-hub:OWNER/NAME` and URLs.
        readers: the files to download, see `fetch_folder`; a folder of this machine is not read.

    Raises:
        FileNotFoundError: there is no encoder, or a file cannot be downloaded.
        ValueError: both `best/` and `last/` hold an encoder.
    """
    if _is_address(path_or_address):
        return fetch_folder(str(path_or_address), readers)
    return encoder_folder(Path(path_or_address))


def encoder_folder(path: Path) -> Path:
    """Find the folder of the encoder: `path` itself, that which a run or its `stage2/` keeps, or `model/` of an index.

    Raises:
        FileNotFoundError: there is no encoder, for example in a run that has not finished its first epoch.
        ValueError: both `best/` and `last/` hold an encoder.
    """
    if _is_complete(path):
        return path
    found = [folder for folder in _kept_in(path) if _is_complete(folder)]
    if len(found) > 1:
        raise ValueError(f"{path} holds the encoders of two trainings: name {' or '.join(map(str, found))}.")
    if found:
        return found[0]
    if any((path / name).is_file() for name in _SETTINGS_OF_RUNS):
        raise FileNotFoundError(
            f"There is no encoder in the run {path} yet: stage 2 writes its best/ or last/ after the first epoch. Wait "
            f"for it, or resume the run."
        )
    if _is_address(path):
        raise FileNotFoundError(
            f"{path} is an address, but a folder is needed here: fetch its {METADATA} and {WEIGHTS} first, from the "
            f"Hugging Face Hub with `hf download OWNER/NAME --local-dir FOLDER`."
        )
    raise FileNotFoundError(
        f"There is no encoder in {path}: neither it nor its best/ or last/ holds {METADATA} and {WEIGHTS}.{_hint(path)}"
    )


def holds_encoder(path: Path) -> bool:
    """Return whether a folder, or that in which a run or a place index keeps its encoder, contains a `model.json`."""
    return any((folder / METADATA).is_file() for folder in (path, *_kept_in(path)))


def _is_address(path_or_address: str | Path) -> bool:
    kind, _, name = str(path_or_address).partition(":")
    return kind in ("hf-hub", "http", "https") and bool(name)


def _hint(path: Path) -> str:
    onnx = path if path.suffix == ".onnx" else path / "model.onnx"
    if onnx.is_file():
        return f" To evaluate and compare {onnx}, name it onnx:{onnx}."
    return " A plugin that has an encoder of this name is given with --plugin." if ":" in str(path) else ""


def _kept_in(path: Path) -> list[Path]:
    return [path / name for name in _KEPT_IN]


def _is_complete(folder: Path) -> bool:
    return (folder / METADATA).is_file() and (folder / WEIGHTS).is_file()
