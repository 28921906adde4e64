"""Installed packages: those that progeo requires, and those of its extras."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

PURPOSES = {
    "docs": "the documentation as a site: make docs",
    "formats": "HEIC, HEIF, AVIF and JPEG XL photos",
    "jpeg": "faster decoding of JPEG files",
    "match": "learned matchers for verification: --matcher vismatch:NAME",
    "onnx": "export --format onnx",
    "plot": "runs show --out curves.png",
    "qdrant": "descriptors in a Qdrant server, or its embedded form: index build --engine",
    "ray": "extraction on all machines of a Ray cluster: extract --engine ray",
    "remote": "images behind URLs: S3, Google Cloud Storage, HTTP",
    "serve": "serve: photos localized over HTTP",
    "test": "make test and make lint",
    "tokenizers": "CLIPs with texts tokenized by Hugging Face, such as SigLIP",
    "track": "training --trackers tensorboard wandb",
}
"""What each extra is for."""
_IMPORTED = (
    *("torch", "torchvision", "faiss", "scipy", "pyarrow", "cv2", "h5py", "PIL"),
    *("accelerate", "timm", "open_clip"),
)
"""Modules with libraries that may not fit the system, or that may not fit those."""


@dataclass(frozen=True)
class Package:
    """A package that progeo requires."""

    name: str
    version: str | None
    """The installed version; None if it is missing."""
    required: str
    """Which versions are needed, such as `>=2.11`; empty for any."""
    is_met: bool
    """Whether it is installed in such a version."""


@dataclass(frozen=True)
class Extra:
    """An extra of progeo, which `pip install 'progeo[NAME]'` installs."""

    name: str
    purpose: str
    missing: tuple[str, ...]
    """Packages that are not installed in the version that it needs; empty if it can be used."""


def required_packages() -> list[Package]:
    """List the packages that everything needs; none if progeo itself is not installed."""
    return [_package(each) for each in _requirements("")]


def list_extras() -> list[Extra]:
    """List the extras by name; none if progeo itself is not installed."""
    try:
        names = metadata("progeo").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        names = []
    return [Extra(name, PURPOSES.get(name, ""), tuple(_missing(name))) for name in sorted(names)]


def import_failures(modules: Sequence[str] = _IMPORTED) -> dict[str, str]:
    """Import modules, and return why some cannot be imported, by name."""
    failures = {}
    for name in modules:
        try:
            import_module(name)
        except Exception as error:  # code of others can fail in any way
            failures[name] = (str(error) or type(error).__name__).splitlines()[0]
    return failures


def problems_of(packages: Sequence[Package], failures: Mapping[str, str]) -> list[str]:
    """Say what must be mended: packages that are not met, and modules that cannot be imported."""
    unmet = [each for each in packages if not each.is_met]
    return [
        *(
            f"{each.name} {each.version or 'is missing'}{f' is not {each.required}' if each.version else ''}: "
            f"pip install '{each.name}{each.required}'."
            for each in unmet
        ),
        *(f"{name} cannot be imported: {reason.rstrip('.')}." for name, reason in failures.items()),
    ]


def _missing(extra: str) -> Iterator[str]:
    for requirement in _requirements(extra):
        if requirement.name == "progeo":  # an extra of all packages of others
            for other in sorted(requirement.extras):
                yield from _missing(other)
        elif not (package := _package(requirement)).is_met:
            yield f"{package.name}{package.required}"


def _package(requirement: Requirement) -> Package:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        found = None
    is_met = found is not None and requirement.specifier.contains(found, prereleases=True)
    return Package(requirement.name, found, str(requirement.specifier), is_met)


def _requirements(extra: str) -> list[Requirement]:
    """List the requirements of an extra on this machine, or with an empty name those that are always needed."""
    try:
        found = [Requirement(text) for text in requires("progeo") or ()]
    except PackageNotFoundError:
        return []
    return [each for each in found if _is_for(each, extra) and not (extra and _is_for(each, ""))]


def _is_for(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})
