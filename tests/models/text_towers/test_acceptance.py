"""Every architecture of open_clip: accepted and exact, or refused with the reason."""

import json
import re

import open_clip
import pytest
from tiny_clips import assert_exact, build, shrunk

from progeo.models.backbones.clip_configurations import known_architectures, named_configuration
from progeo.models.text_towers.acceptance import tokens_computed
from progeo.models.text_towers.tower import build_text_tower


def distinct():
    """Return the first architecture of each kind of text tower."""
    known_architectures()
    kinds = {json.dumps(shrunk(name), sort_keys=True): name for name in reversed(open_clip.list_models())}
    return sorted(set(kinds.values()) - {"coca_base"})


def test_all_architectures_but_one_are_accepted_with_the_tokens_that_are_computed():
    accepted, refused = {}, {}
    for name in known_architectures():
        try:
            accepted[name] = str(tokens_computed(named_configuration(name)))
        except ValueError as error:
            refused[name] = str(error)
    assert refused == {
        "coca_base": "its configuration names no tokenizer, and its vocabulary of 64000 tokens is not that of CLIP's "
        "byte pair encoding, 49408"
    }
    bpe = "7 of 77, 5 more once"
    assert {name for name, computed in accepted.items() if computed == bpe} >= {"RN50", "ViT-B-16", "EVA02-L-14"}
    for pattern, computed in {
        "(RN|ViTamin|EVA|convnext|MobileCLIP2?-B).*": bpe,
        "PE-Core-[BLST].*": "7 of 32, 5 more once",
        "MobileCLIP.*-S.*": "77 of 77",
        "coca_ViT.*": "9 of 76, 5 more once",
        "(ViT-(B|L|gopt)|ViT-SO400M-16)-.*SigLIP.*": "64 of 64",
        "ViT-SO400M-14-SigLIP": "16 of 16",
        ".*CLIPA.*": "32 of 32",
        ".*(worldwide|roberta|mt5|nllb).*": "up to the end of text of 77",
    }.items():
        assert {accepted[name] for name in accepted if re.fullmatch(pattern, name)} == {computed}, pattern


@pytest.mark.parametrize("name", distinct())
def test_prompts_of_every_architecture_are_exact(name, hub_cache):
    text, more = shrunk(name)
    tower = build_text_tower(build(text, more))
    encoder = assert_exact(tower, tower.tokenizer.sequence(["a ", 4, " street."]))
    computed = tokens_computed(named_configuration(name))
    assert encoder.context_length == computed.context_length == tower.context_length
    if computed.tokens == computed.context_length:
        assert encoder.tokens_computed == computed.tokens
    else:
        assert encoder.tokens_computed < 15
