"""Build and search place indexes in tests."""

from pathlib import Path

from PIL import Image

from progeo.cli import main
from progeo.commands.localize import localize
from progeo.features.options import WorkOptions


def command(words, cache, **settings):
    """Run a command with its settings as flags."""
    options = {"num_workers": 0, "descriptor_cache": cache, **settings}
    main([*words.split(), *(str(part) for name, value in options.items() for part in (f"--{name}", value))])


def blurred(paths, folder):
    """Other photos of the same places."""
    Path(folder).mkdir()
    for path in paths:
        size = Image.open(path).size
        Image.open(path).resize((20, 20)).resize(size).save(folder / path.name)
    return folder


def localized(index, *photos, **settings):
    return localize(photos, index=index, work=WorkOptions(num_workers=0), **settings)
