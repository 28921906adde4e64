"""Export: the best encoder of a run leaves alone."""

from pathlib import Path

from progeo.config.encoders import ExportSettings
from progeo.engine.log import LOGGER, start_log
from progeo.export.weights import encoder_folder, load_encoder, read_description, save_encoder


def export(settings: ExportSettings) -> Path:
    """Write the best encoder of a run to a folder of its own and return the folder.

    Raises:
        ValueError: the folder holds an encoder already.
    """
    start_log(None)
    source = encoder_folder(settings.run)
    target = settings.to or settings.run / "export"
    if (target / "model.json").exists():
        raise ValueError(f"{target} already holds an encoder: name another folder with --to.")
    description = read_description(source)
    save_encoder(target, load_encoder(source), provenance=description["provenance"], recalls=description["recalls"])
    LOGGER.info("encoder written to %s: progeo.load_encoder(%r) gives it back", target, str(target))
    return target
