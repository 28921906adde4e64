"""Run the whole pipeline on a toy city."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from progeo.terminal import rich_table, rich_text

if TYPE_CHECKING:
    from rich.console import Group

Recalls = dict[str, dict[str, float]]
"""Recall in percent by name of the method and of the measure."""


@dataclass(frozen=True)
class Demo:
    """Recalls on the toy city, and the files of the demo."""

    recalls: dict[str, Recalls]
    """Recalls by name of the photos."""
    files: dict[str, Path]
    photo: str = ""
    """A photo, and where it was found to be taken."""

    def __str__(self) -> str:
        rows = [row for table in self._tables for row in table]
        lines = [f"{name:26}{''.join(f'{cell:>8}' for cell in cells)}" for name, *cells in rows]
        return "\n".join([*lines, *self._lines])

    def __rich__(self) -> "Group":
        from rich.console import Group

        return Group(*(rich_table(table, num_texts=1) for table in self._tables), *map(rich_text, self._lines))

    @property
    def _tables(self) -> list[list[list[str]]]:
        """For each kind of photos, the rows of their table, the column names first."""
        return [
            [
                [photos, *next(iter(table.values()))],
                *([name, *(f"{recall:.1f}" for recall in recalls.values())] for name, recalls in table.items()),
            ]
            for photos, table in self.recalls.items()
        ]

    @property
    def _lines(self) -> list[str]:
        return [*filter(None, [self.photo]), *(f"{name:8} {path}" for name, path in self.files.items())]


def demo(
    out: Path = Path("demo"),
    *,
    only_city: bool = False,
    seed: NonNegativeInt = 0,
    num_images: PositiveInt = 2000,
    image_size: PositiveInt = 128,
) -> Demo:
    """Render a city, run both stages, evaluate before and after, classify, and export.

    Steps that an earlier, interrupted demo finished are skipped.

    Args:
        out: Output folder for the city, the run, the encoder and the evaluations.
        only_city: Only render the city, as a data set to try commands on.
        seed: Random seed of the streets, houses and weather.
        num_images: Total number of images in train, val and test. known/queries, of places in train, has 5 % more.
        image_size: Side of each square image in pixels.
    """
    from progeo.engine.log import LOGGER
    from progeo.toy_city import render_toy_city

    city = out / "city"
    if not city.exists():
        render_toy_city(city, seed=seed, num_images=num_images, image_size=image_size)
        LOGGER.info("toy city of %d images in %s", sum(1 for _ in city.rglob("*.jpg")), city)
    elif only_city:
        raise ValueError(f"{city} exists already: name another folder with `out`.")
    return Demo({}, {"images": city}) if only_city else _run_all(out, city)


def _run_all(out: Path, city: Path) -> Demo:
    from progeo.commands.classes import classes
    from progeo.commands.export import export
    from progeo.commands.index import build_index
    from progeo.commands.localize import localize
    from progeo.commands.train import train
    from progeo.config.parsing import parse_arguments
    from progeo.config.settings import plain_values
    from progeo.export.weights import save_encoder
    from progeo.localization.options import IndexOptions
    from progeo.training.starting_encoder import build_starting_encoder

    run, encoder, untrained = out / "run", out / "encoder", out / "untrained"
    folders = [f"--out={run}", f"--data.train_folder={city / 'train'}", f"--validation.folder={city / 'val'}"]
    stages = parse_arguments(train, ["--config", "toy/tiny_resnet", *folders, "--resume"])
    train(**stages)
    if not encoder.exists():
        export(run / "stage2", out=encoder)
    settings = stages["stage2"]
    start = build_starting_encoder(settings.model, settings.encoder, seed=settings.seed)
    save_encoder(untrained, start, provenance={"settings": plain_values(settings)}, recalls={})
    test = {
        "raw 16 x 16 pixels": _recalls("thumbnail", city / "test", out / "evaluation/thumbnail"),
        "encoder before training": _recalls(str(untrained), city / "test", out / "evaluation/untrained"),
        "encoder after stage 2": _recalls(str(encoder), city / "test", out / "evaluation/trained"),
    }
    places, index = out / "places", out / "index"
    if not places.exists():
        classes(str(encoder), folder=city / "train", out=places, **_how(out))
    if not index.exists():
        build_index(str(places), out=index, options=IndexOptions(of="classes"), **_how(out))
    known = {
        "vectors of the head": _recalls(str(encoder), city / "known", out / "evaluation/head", by="classes"),
        "means of the places": _recalls(str(places), city / "known", out / "evaluation/places", by="classes"),
    }
    photo = min((city / "known/queries").iterdir())
    (localization,) = localize((photo,), index=index, work=_how(out)["work"], top=1)
    files = {
        "images": city,
        "prompts": run / "stage1" / "prompts.safetensors",
        "run": run,
        "encoder": encoder,
        "index": index,
        "report": out / "evaluation" / "trained" / "report.html",
    }
    return Demo({"toy city, test set": test, "photos of trained places": known}, files, str(localization))


def _how(out: Path) -> dict[str, Any]:
    """Return the options of extraction and of the cache."""
    from progeo.features.options import CacheOptions, WorkOptions

    return {
        "work": WorkOptions(num_workers=1),
        "cache": CacheOptions(descriptor_cache=out / "evaluation" / "descriptors"),
    }


def _recalls(encoder: str, folder: Path, out: Path, *, by: Literal["images", "classes"] = "images") -> dict[str, float]:
    from progeo.commands.evaluate import evaluate
    from progeo.evaluation.options import RankingOptions
    from progeo.files import read_json

    evaluate(encoder, folder=folder, out=out, ranking=RankingOptions(by=by), **_how(out.parents[1]))
    recalls: dict[str, Any] = read_json(out / "recalls.json")["recalls"]
    return recalls
