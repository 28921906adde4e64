"""Run the whole pipeline on a toy city."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Demo:
    """Recalls on the toy city, and the files of the demo."""

    recalls: dict[str, dict[str, float]]
    """Recall in percent by name of the encoder and of the measure."""
    files: dict[str, Path]

    def __str__(self) -> str:
        measures = next(iter(self.recalls.values()), {})
        lines = [f"{'toy city, test set':26}{''.join(f'{name:>8}' for name in measures)}"] if measures else []
        for name, recalls in self.recalls.items():
            lines.append(f"{name:26}{''.join(f'{recall:8.1f}' for recall in recalls.values())}")
        return "\n".join([*lines, *(f"{name:8} {path}" for name, path in self.files.items())])


def demo(
    out: Path = Path("demo"),
    *,
    only_city: bool = False,
    seed: NonNegativeInt = 0,
    num_images: PositiveInt = 2000,
    image_size: PositiveInt = 128,
) -> Demo:
    """Render a city, run both stages, evaluate before and after, and export.

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
        LOGGER.info("toy city of %d images in %s", num_images, city)
    elif only_city:
        raise ValueError(f"{city} exists already: name another folder with `out`.")
    return Demo({}, {"images": city}) if only_city else _run_all(out, city)


def _run_all(out: Path, city: Path) -> Demo:
    from progeo.commands.export import export
    from progeo.commands.train import train
    from progeo.config.parsing import parse_arguments
    from progeo.config.settings import plain_values
    from progeo.export.weights import save_encoder
    from progeo.training.starting_encoder import build_starting_encoder

    run, encoder, untrained = out / "run", out / "encoder", out / "untrained"
    folders = [f"--out={run}", f"--data.train_folder={city / 'train'}", f"--validation.folder={city / 'val'}"]
    stages = parse_arguments(train, ["--config", "toy/tiny_resnet", *folders, "--resume"])
    stage2 = train(**stages)
    if not encoder.exists():
        export(stage2, out=encoder)
    settings = stages["stage2"]
    start = build_starting_encoder(settings.model, settings.encoder, seed=settings.seed)
    save_encoder(untrained, start, provenance={"settings": plain_values(settings)}, recalls={})
    recalls = {
        "raw 16 x 16 pixels": _recalls("thumbnail", city, out / "evaluation" / "thumbnail"),
        "encoder before training": _recalls(str(untrained), city, out / "evaluation" / "untrained"),
        "encoder after stage 2": _recalls(str(encoder), city, out / "evaluation" / "trained"),
    }
    files = {
        "images": city,
        "prompts": run / "stage1" / "prompts.safetensors",
        "run": run,
        "encoder": encoder,
        "report": out / "evaluation" / "trained" / "report.html",
    }
    return Demo(recalls, files)


def _recalls(encoder: str, city: Path, out: Path) -> dict[str, float]:
    from progeo.commands.evaluate import evaluate
    from progeo.features.options import CacheOptions, WorkOptions
    from progeo.files import read_json

    cache = CacheOptions(descriptor_cache=out.parent / "descriptors")
    evaluate(encoder, folder=city / "test", out=out, work=WorkOptions(num_workers=1), cache=cache)
    recalls: dict[str, Any] = read_json(out / "recalls.json")["recalls"]
    return recalls
