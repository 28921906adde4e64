"""What a run that is resumed keeps, and what may change."""

import dataclasses

import pytest
import yaml
from running import parsed

from progeo.commands.stages import _MAY_CHANGE, resized_as_begun
from progeo.config.settings import plain_values
from progeo.engine.run_folder import RunFolder, check_run

FORMER = "former"
"""A run of a version that had no such setting."""


def write_run(folder, settings, resize):
    values = plain_values(settings)
    if resize is FORMER:
        del values["model"]["resize"]
    else:
        values["model"]["resize"] = resize
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "checkpoints/group_0.safetensors").touch()


@pytest.mark.parametrize(
    ("stage1", "stage2", "given", "resume", "resize"),
    [
        (None, FORMER, None, True, "bilinear"),
        (FORMER, None, None, True, "bilinear"),  # stage 2 is as stage 1 of the run
        (FORMER, "bicubic", None, True, "bicubic"),
        ("bicubic", FORMER, None, True, "bilinear"),
        (None, None, None, True, None),
        (None, "bicubic", None, True, "bicubic"),
        (FORMER, FORMER, "bicubic", True, "bicubic"),  # and is refused when the run is opened
        (FORMER, FORMER, None, False, None),
    ],
)
def test_a_run_that_is_resumed_keeps_how_it_resized_images(config, tmp_path, stage1, stage2, given, resume, resize):
    settings = parsed("train encoder", "--config", config, "--out", tmp_path)["settings"]
    for name, has in (("stage1", stage1), ("stage2", stage2)):
        if has is not None:
            write_run(tmp_path / name, settings, has)
    model = dataclasses.replace(settings.model, resize=given)
    settings = dataclasses.replace(settings, model=model, resume=resume)
    assert resized_as_begun(settings, "stage2") == dataclasses.replace(
        settings, model=dataclasses.replace(model, resize=resize)
    )


def test_a_run_without_a_checkpoint_is_begun_anew(config, tmp_path):
    settings = parsed("train encoder", "--config", config, "--out", tmp_path, "--resume", "true")["settings"]
    write_run(tmp_path / "stage2", settings, FORMER)
    (tmp_path / "stage2/checkpoints/group_0.safetensors").unlink()
    assert resized_as_begun(settings, "stage2") == settings


def test_the_license_of_the_images_may_be_told_when_a_run_is_resumed(config, tmp_path):
    settings = parsed("train encoder", "--config", config, "--out", tmp_path)["settings"]
    write_run(tmp_path / "stage2", settings, settings.model.resize)

    def check(**changed):
        values = plain_values(dataclasses.replace(settings, data=dataclasses.replace(settings.data, **changed)))
        check_run(RunFolder(tmp_path / "stage2"), values, resume=True, may_change=_MAY_CHANGE)

    check(license="CC0")
    with pytest.raises(ValueError, match=r"data\.orientation"):
        check(license="CC0", orientation="ignore")
