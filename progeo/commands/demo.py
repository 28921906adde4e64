"""Run the whole pipeline on a toy city and print a table of recalls."""

from pathlib import Path

from progeo.commands.evaluate import evaluate
from progeo.commands.export import export
from progeo.commands.toy_city import make_toy_city
from progeo.commands.train_encoder import train_image_encoder
from progeo.commands.train_prompts import train_prompts
from progeo.config.datasets import ToyCitySettings
from progeo.config.encoders import DemoSettings, ExportSettings
from progeo.config.evaluation import EvaluateSettings
from progeo.config.parsing import parse_settings, plain_values
from progeo.config.training import Settings
from progeo.export.weights import save_encoder
from progeo.files import read_json
from progeo.training.trainer import build_untrained_encoder


def run_demo(settings: DemoSettings) -> Path:
    """Render a city, run both stages, evaluate before and after, and export; returns the path of the report.

    Steps that an earlier, interrupted demo finished are skipped.
    """
    out = settings.out
    city, untrained, encoder = out / "city", out / "untrained", out / "encoder"
    if not city.exists():
        make_toy_city(ToyCitySettings(city))
    training = _training_settings(settings.training_config, out / "run", city)
    stage1 = train_prompts(training)
    stage2 = train_image_encoder(training)
    if not encoder.exists():
        export(ExportSettings(stage2, to=encoder))
    provenance = {"settings": plain_values(training)}
    save_encoder(untrained, build_untrained_encoder(training), provenance=provenance, recalls={})
    rows = {
        "raw 16 x 16 pixels": _recalls("thumbnail", city, out / "evaluation" / "thumbnail"),
        "encoder before training": _recalls(str(untrained), city, out / "evaluation" / "untrained"),
        "encoder after stage 2": _recalls(str(encoder), city, out / "evaluation" / "trained"),
    }
    report = out / "evaluation" / "trained" / "report.html"
    print(f"\n{'toy city, test set':26}{''.join(f'{name:>8}' for name in rows['encoder after stage 2'])}")
    for name, recalls in rows.items():
        print(f"{name:26}{''.join(f'{recall:8.1f}' for recall in recalls.values())}")
    print(f"\nimages   {city}\nprompts  {stage1 / 'prompts.safetensors'}\nrun      {stage2}\nencoder  {encoder}")
    print(f"report   {report}")
    return report


def _training_settings(config: Path, run: Path, city: Path) -> Settings:
    folders = ["--run", run, "--data.train_folder", city / "train", "--data.val_folder", city / "val"]
    arguments = ["--config", config, *folders, "--resume", "true"]
    return parse_settings(Settings, [str(argument) for argument in arguments], program="progeo demo")


def _recalls(encoder: str, city: Path, out: Path) -> dict[str, float]:
    cache = out.parent / "descriptors"
    evaluate(EvaluateSettings(encoder=encoder, folder=city / "test", out=out, num_workers=1, descriptor_cache=cache))
    return read_json(out / "recalls.json")["recalls"]
