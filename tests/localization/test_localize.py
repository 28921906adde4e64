import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from tiny_clips import WORDS, bert, shrunk

from progeo.cli import main
from progeo.export.weights import load_encoder, save_encoder
from progeo.localization.text_search import text_descriptor
from progeo.models.backbones.clip_configurations import ClipConfiguration, named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder


def test_a_sentence_is_encoded_with_the_tower_and_the_tokenizer_of_the_configuration(hub_cache, tmp_path, caplog):
    text, _ = shrunk("ViT-H-14-CLIPA")
    configuration = ClipConfiguration({**named_configuration("tiny-vit").values, "text_cfg": text})
    clip = load_clip("tiny-vit", "random", configuration=configuration, seed=5)
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    spec = build_encoder("tiny-vit", "random").spec
    spec = dataclasses.replace(
        spec, text_weights=str(tmp_path / "clip.safetensors"), configuration=configuration.to_json()
    )
    tokenizer = HFTokenizer("bert-base-uncased", 32, strip_sep_token=True)
    for sentence, warnings in (("A narrow street.", 0), ("a narrow street " * 20, 1)):
        with torch.no_grad():
            expected = clip.encode_text(tokenizer([sentence]), normalize=True)
        torch.testing.assert_close(torch.from_numpy(text_descriptor(spec, sentence)), expected, rtol=0, atol=0)
        assert caplog.text.count("the text has 62 tokens; only the first 32 are read") == warnings


def test_a_tokenizer_beside_a_clip_goes_wherever_its_encoder_goes(hub_cache, tmp_path, monkeypatch):
    text, _ = shrunk("ViT-H-14-CLIPA")
    values = {**named_configuration("tiny-vit").values, "text_cfg": text}
    clip = load_clip("tiny-vit", "random", configuration=ClipConfiguration(values), seed=5)
    (folder := tmp_path / "clip").mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values}))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    monkeypatch.setattr("tiny_clips.WORDS", tuple(reversed(WORDS)))  # other ids than the hub's tokenizer has
    bert().save_pretrained(folder)
    encoder = build_encoder(f"local-dir:{folder}", f"local-dir:{folder}")
    expected = text_descriptor(encoder.spec, "a narrow street")
    save_encoder(tmp_path / "saved", encoder, provenance={}, recalls={})
    main(["import", str(folder), "--out", str(tmp_path / "imported")])
    for source in ("saved", "imported"):
        main(["export", str(tmp_path / source), "--out", str(tmp_path / "exported" / source)])
    shutil.rmtree(folder)
    for path in (*tmp_path.glob("*ed"), *tmp_path.glob("exported/*")):
        if path.name != "exported":
            np.testing.assert_allclose(text_descriptor(load_encoder(path).spec, "a narrow street"), expected, atol=1e-6)
    assert not np.allclose(text_descriptor(encoder_without_tokenizer(tmp_path / "saved"), "a narrow street"), expected)


def encoder_without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return load_encoder(folder).spec


@pytest.mark.parametrize("weights", ["random", "local-dir:.", "texts.pt"])
def test_an_encoder_names_no_weights_for_texts_but_a_tag_or_its_own_file(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(load_clip("tiny-vit", "random").state_dict(), "texts.pt")
    spec = dataclasses.replace(build_encoder("tiny-vit", "random").spec, text_weights=weights)
    with pytest.raises(ValueError, match=f"the encoder names the weights {weights}, which are no tag of tiny-vit"):
        text_descriptor(spec, "a street")
