"""Check a data set before training or evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING

from progeo.config.datasets import CheckSettings
from progeo.config.settings import plain_values

if TYPE_CHECKING:
    from progeo.evaluation.dataset_check import CheckReport


def check_dataset(
    folder: Path, *, out: Path | None = None, show_paths: bool = False, settings: CheckSettings
) -> "CheckReport":
    """Check a folder of images, or one with database and queries; returns the content of `check.json`.

    Args:
        folder: Folder of training images, or a folder that holds the database and the queries.
        out: Output folder for check.json and check.html, a page with the images that something is wrong with, a map
            and charts. null writes neither.
        show_paths: Show absolute paths on the page, which others may read.
        settings: What is checked.
    """
    from progeo.engine.log import LOGGER
    from progeo.evaluation.dataset_check import check_dataset
    from progeo.files import write_json

    report = check_dataset(
        folder,
        **vars(settings),
        page=None if out is None else out / "check.html",
        show_paths=show_paths,
        settings={"folder": str(folder), **plain_values(settings)},
    )
    if out is not None:
        write_json(out / "check.json", report)
        LOGGER.info("page: %s", out / "check.html")
    return report
