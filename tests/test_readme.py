"""What the README shows must be there."""

import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from progeo.config.evaluation import EvaluateSettings

from progeo.cli import COMMANDS
from progeo.config.parsing import parse_settings
from progeo.config.training import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"stage1_prompts.py": Settings, "stage2_image.py": Settings, "evaluate.py": EvaluateSettings}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`?((?:progeo|configs|docs)/[\w/.]*\w)", README))))
def test_every_path_it_names_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("line", re.findall(r"^(?:\$ |    )python (\w+\.py .*)$", README, flags=re.M))
def test_every_script_command_it_shows_can_be_parsed(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, *arguments = line.split()
    parse_settings(SCRIPTS[script], arguments, program=script)


def test_every_sub_command_it_names_exists_and_none_is_left_out():
    (listed,) = re.findall(r"`progeo` \((.*?)\)", README, flags=re.S)
    assert re.findall(r"`([\w -]+)`", listed) == list(COMMANDS)


def test_every_config_is_in_the_table_and_no_other():
    listed = set(re.findall(r"^\| `(configs/[\w/.]+)`", README, flags=re.M))
    assert listed == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("progeo/configs/**/*.yaml")}


def test_every_setting_it_mentions_exists():
    folders = ["--data.train_folder", "train", "--validation.folder", "val"]
    settings = parse_settings(Settings, ["--out", "run", *folders], program="test")
    sections = "|".join(name for name, value in vars(settings).items() if is_dataclass(value))
    for section, name in re.findall(rf"\b({sections})\.(?!py|json|csv|md|safetensors|onnx|pt2)(\w+)\b", README):
        assert hasattr(getattr(settings, section), name)
