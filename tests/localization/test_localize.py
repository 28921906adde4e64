import dataclasses

import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from tiny_clips import shrunk

from progeo.localization.localize import text_descriptor
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
