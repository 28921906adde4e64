"""What an optional package is needed for says how to install it, and setup.cfg has every such extra."""

import sys
from configparser import ConfigParser
from io import BytesIO
from pathlib import Path

import pytest
from open_clip import CLIPTextCfg

from progeo.cli import main
from progeo.engine.accelerator import start_accelerator
from progeo.engine.cluster import connected
from progeo.export.onnx import save_onnx
from progeo.image_files import open_image
from progeo.localization.engines.connecting import EngineMetadata, connect
from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.text_towers.tokenizers import check_tokenizer
from progeo.remote_files import RemotePath
from progeo.runs.figure import check_figure
from progeo.verification.matchers import build_matcher

ENGINE = {"name": "qdrant", "collection": "", "owner": ""}
NEEDING = [
    ("onnx", "onnxscript", lambda: save_onnx(Path("x.onnx"), None)),
    ("plot", "matplotlib", lambda: check_figure(Path("x.png"))),
    ("serve", "fastapi", lambda: main(["serve", "--index", "x"])),
    ("qdrant", "qdrant_client", lambda: connect(EngineMetadata(url="http://localhost:1", **ENGINE), Path())),
    ("qdrant", "qdrant_edge", lambda: connect(EngineMetadata(url="", **ENGINE), Path())),
    ("match", "vismatch", lambda: build_matcher("vismatch:loftr")),
    ("ray", "ray", lambda: connected(None).__enter__()),
    ("track", "wandb", lambda: start_accelerator("no", trackers=["wandb"])),
    ("remote", "s3fs", lambda: RemotePath("s3://bucket/x.jpg").read_bytes()),
    ("remote", "fsspec.core", lambda: RemotePath("memory://x.jpg").read_bytes()),
    ("formats", "pillow_heif", lambda: open_image(BytesIO(b"\0\0\0\x18ftypheic\0\0\0\0"))),
    ("formats", "pillow_jxl", lambda: open_image(BytesIO(b"\xff\x0a\x41"))),
    ("tokenizers", "sentencepiece", lambda: check_tokenizer(configuration())),
]


def configuration():
    """Of a CLIP whose text tower is one of Hugging Face."""
    text = CLIPTextCfg(hf_model_name="xlm-roberta-base", hf_tokenizer_name="xlm-roberta-base")
    return ClipConfiguration({"text_cfg": vars(text)})


@pytest.mark.parametrize(("extra", "module", "act"), NEEDING, ids=[f"{extra} {module}" for extra, module, _ in NEEDING])
def test_what_is_not_installed_is_named_with_its_extra(extra, module, act, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((ValueError, OSError, SystemExit)) as error:
        act()
    assert f"pip install 'progeo[{extra}]'" in str(error.value)
    assert str(error.value).count("\n") == 0


def test_every_extra_of_the_package_is_named_by_what_needs_it():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    others = {"test", "docs", "jpeg"}  # for developers, and a decoder that is used only if it is there
    assert set(setup["options.extras_require"]) - others == {extra for extra, _, _ in NEEDING}
