"""Prompts on one tower of each kind against its own `encode_text`, with the context written into its embedding."""

import functools

import pytest
import torch
from tiny_clips import DECODER, assert_exact, build, own_features

from progeo.models.prompts import PromptLearner, prompt_parts
from progeo.models.text_towers.tower import build_text_tower

pytestmark = pytest.mark.usefixtures("hub_cache")
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
SIGLIP |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "vocab_size": 120}
CLIPA = {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}}
CLIPA |= {"pool_type": "last", "no_causal_mask": True, "vocab_size": 160}
MULTILINGUAL = {"pool_type": "eos", "vocab_size": 160}
T5 = {"hf_tokenizer_name": "google/mt5-base", "eos_id": 1, "tokenizer_kwargs": {"clean": "canonicalize"}}


def hugging_face(name, tokenizer, **more):
    return {"hf_model_name": f"tiny/{name}", "hf_model_pretrained": False, "hf_tokenizer_name": tokenizer} | more


KINDS = {
    "CLIP": ({}, {}, (7, 5)),
    "QuickGELU": ({}, {"quick_gelu": True}, (7, 5)),
    "custom text": ({}, {"custom_text": True}, (7, 5)),
    "null options": ({"tokenizer_kwargs": {"clean": None}}, {}, (7, 5)),
    "one block": ({"layers": 1}, {}, (7, 5)),
    "canonical BPE": ({"tokenizer_kwargs": {"clean": "canonicalize"}}, {}, (6, 5)),
    "not causal": ({"no_causal_mask": True}, {"custom_text": True}, (28, 0)),
    "last": ({"pool_type": "last"}, {}, (23, 5)),
    "first": ({"pool_type": "first", "no_causal_mask": True}, {}, (28, 0)),
    "eos": ({"pool_type": "eos", "eos_id": 49407}, {}, (7, 5)),
    "bias": ({"proj_bias": True}, {}, (7, 5)),
    "no projection": ({"proj_type": "none", "width": 48}, {}, (7, 5)),
    "norm": ({"norm_kwargs": {"eps": 1e-3}}, {}, (7, 5)),
    "tanh": ({"act_kwargs": {"approximate": "tanh"}}, {}, (7, 5)),
    "MLP": ({"mlp_ratio": 3.7362}, {}, (7, 5)),
    "layer scale": ({"ls_init_value": 0.1}, {}, (7, 5)),
    "norm of queries": ({"qk_norm": True}, {"custom_text": True}, (28, 0)),
    "scaled heads": ({"scale_heads": True, "scale_attn": True, "scale_fc": True}, {}, (28, 0)),
    "CoCa": ({"embed_cls": True, "output_tokens": True}, {"custom_text": True, "multimodal_cfg": DECODER}, (9, 5)),
    "class token": ({"embed_cls": True}, {"custom_text": True}, (9, 5)),
    "SigLIP": ({**SIGLIP, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, {"custom_text": True}, (28, 0)),
    "SigLIP2": ({**SIGLIP, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2"}, {"custom_text": True}, (28, 0)),
    "CLIPA": (CLIPA, {}, (28, 0)),
    "worldwide": ({**MULTILINGUAL, "hf_tokenizer_name": "facebook/xlm-v-base"}, {}, (7, 5)),
    "worldwide T5": (MULTILINGUAL | T5, {}, (6, 4)),
    "roberta": (hugging_face("roberta", "roberta-base", hf_pooler_type="mean_pooler"), {}, (17, 0)),
    "CoCa roberta": (
        hugging_face("roberta", "roberta-base", hf_proj_type="linear", output_tokens=True),
        {"multimodal_cfg": DECODER},
        (17, 0),
    ),
    "xlm-roberta": (hugging_face("xlm-roberta", "facebook/xlm-v-base", hf_proj_type="mlp"), {}, (12, 0)),
    "mt5": (hugging_face("mt5", "google/mt5-base", hf_pooler_type="mean_pooler"), {}, (11, 0)),
    "nllb": (
        hugging_face("m2m_100", "facebook/nllb-200-distilled-600M", hf_proj_type="linear", hf_pooler_type="cls_pooler"),
        {},
        (12, 0),
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@functools.lru_cache(maxsize=1)  # the tests of a kind follow one another
def built(kind):
    return build(*KINDS[kind][:2])


@pytest.fixture
def clip(kind):
    return built(kind)


def test_features_and_gradients_of_prompts_are_those_of_the_tower_itself(kind, clip):
    tower = build_text_tower(clip)
    for parts in (["A photo of a ", 4, " street."], [2, " in a, street"], ["no ", 1, " x ", 2]):
        assert_exact(tower, tower.tokenizer.sequence(parts))
    encoder = tower.prompts(tower.tokenizer.sequence(["A photo of a ", 4, " street."]))
    assert (encoder.tokens_computed, encoder.shared_tokens) == KINDS[kind][2]
    assert encoder.context_length == 28


def test_words_in_place_of_vectors_give_the_features_of_their_sentence(kind, clip):
    tower = build_text_tower(clip)
    ids = tower.tokenizer.encode(" very old", continues=True)
    learner = PromptLearner(clip, 2, "A photo of a {} street.", len(ids))
    learner.context.data.copy_(tower.embedding(torch.tensor(ids)))
    expected = clip.encode_text(tower.tokenizer.ids(["A photo of a very old street."]), normalize=False)
    torch.testing.assert_close(learner(torch.tensor([1])), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(tower.encode(["A photo of a very old street."]), expected, rtol=0, atol=0)
    assert expected.shape == (1, tower.output_dim)
    assert learner.context.shape == (2, len(ids), tower.width)


COCA = ({"embed_cls": True, "output_tokens": True}, {"custom_text": True, "multimodal_cfg": DECODER})


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(
    "parts",
    [["A photo of a ", 4, " street."], ["wow !& ", 2, " a !& street"], ["a ", 20, " x x x x x"], [3, " x", 1]],
)
def test_padding_is_masked_as_coca_masks_it_even_where_words_have_its_id(parts, correct):
    clip = build(*COCA)
    clip.text.correct_cls_mask = correct
    tower = build_text_tower(clip)
    sequence = tower.tokenizer.sequence(parts)
    assert_exact(tower, sequence)
    if "!&" in str(parts):
        assert 0 in sequence[: sequence.index(49407)]


@pytest.mark.parametrize("causal", [False, True])
def test_padding_that_is_masked_without_a_class_token_is_not_computed(causal):
    clip = build({"no_causal_mask": not causal}, {"custom_text": True})
    clip.text.use_pad_mask = True
    tower = build_text_tower(clip)
    encoder = assert_exact(tower, tower.tokenizer.sequence(["A photo of a ", 4, " street."]))
    assert encoder.tokens_computed == (7 if causal else 12)


def test_a_tower_that_is_computed_otherwise_than_expected_is_computed_in_full(monkeypatch, caplog):
    clip = build({}, {"custom_text": True})
    shift = torch.randn(32, dtype=torch.float64)
    monkeypatch.setattr(clip.text.ln_final, "forward", lambda tokens: tokens + shift * tokens.shape[1])
    with caplog.at_level("INFO", "progeo"):
        tower = build_text_tower(clip)
    assert "all 28 tokens are computed" in caplog.text
    assert assert_exact(tower, tower.tokenizer.sequence(["A ", 4, " street"])).tokens_computed == 28


def test_no_gradient_reaches_the_weights_of_a_frozen_tower_nor_are_they_saved():
    clip = build({})
    learner = PromptLearner(clip, 3)
    learner(torch.tensor([0, 2])).sum().backward()
    assert list(learner.state_dict()) == ["context"]
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    assert all(parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ({"context_length": 1}, {}, "it reads 1 tokens, too few for a prompt"),
        ({"pool_type": "none"}, {}, "it has no feature of a text, but one for each token"),
        ({"embed_cls": True}, {}, "open_clip cannot compute its text features: embed_cls needs custom_text"),
        ({"pool_type": "eos"}, {}, "it pools the token 2, which its tokenizer does not put at the end of texts"),
        ({"vocab_size": 64000}, {}, "names no tokenizer, and its vocabulary of 64000 tokens is not that of CLIP's"),
        ({"tokenizer_kwargs": {"reduction_mask": "random"}}, {}, "options that are not supported .reduction_mask"),
        ({"tokenizer_kwargs": {"clean": "not"}}, {}, "cleans texts in a way that is not known .not"),
        ({**CLIPA, "vocab_size": 60}, {}, "its tokenizer gives the id [0-9]+, and its vocabulary has 60 tokens"),
        ({**CLIPA, "pool_type": "argmax"}, {}, "it pools the token of the largest id, and its tokenizer's end of"),
        ({**CLIPA, "pool_type": "argmax", "qk_norm": True}, {}, "it pools the token of the largest id"),
        ({**CLIPA, "hf_tokenizer_name": "nobody/nothing"}, {}, "the tokenizer nobody/nothing could not be loaded: "),
        ({**CLIPA, "tokenizer_mode": "own"}, {}, "its tokenizer has a mode that is not known .own"),
        (hugging_face("roberta", None), {}, "names no tokenizer for its text tower, tiny/roberta"),
        (
            hugging_face("roberta", "roberta-base", hf_pooler_type="max_pooler"),
            {},
            "open_clip cannot compute its text features: its max_pooler fails",
        ),
    ],
)
def test_a_tower_whose_texts_cannot_be_read_right_is_refused(text, more, words):
    with pytest.raises(ValueError, match=words):
        build_text_tower(build(text, more))


def test_prompts_that_the_feature_does_not_depend_on_are_refused():
    with pytest.raises(ValueError, match="its text feature does not depend on the learned vectors"):
        build_text_tower(build({"pool_type": "first"}))


def test_features_that_are_no_numbers_are_refused():
    clip = build({})
    clip.text_projection.data[0] = torch.nan
    with pytest.raises(ValueError, match="its text features are not finite"):
        build_text_tower(clip)


def test_the_scale_and_bias_of_the_clips_own_loss_are_known():
    tower = build_text_tower(build({}, {"init_logit_bias": -10.0}))
    assert tower.logit_scale == pytest.approx(tower.clip.logit_scale.exp().item())
    assert tower.logit_bias == tower.clip.logit_bias.item() != 0
    assert build_text_tower(build({})).logit_bias is None


def test_prompts_with_words_of_their_classes_are_those_of_the_tower_itself(kind, clip):
    tower, words = build_text_tower(clip), ["street", "", "narrow", "very old", "no"]
    for position, shared in (("end", False), ("middle", True), ("front", False)):
        learner = PromptLearner(tower, 5, "A photo of a {} street.", 3, words=words, position=position, shared=shared)
        assert learner.context.shape == (1 if shared else 5, 3, tower.width)
        labels = [3, 0, 2, 1, 0, 4]
        parts = [prompt_parts("A photo of a {} street.", 3, words[label], position) for label in labels]
        ids = torch.tensor([tower.tokenizer.sequence(each) for each in parts])
        context = learner.context.expand(5, -1, -1)[labels]
        features, expected = learner(torch.tensor(labels)), own_features(tower, ids, context)
        torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-11)
        weights = torch.randn(features.shape, dtype=torch.float64)
        ours, theirs = (
            torch.autograd.grad((each * weights).sum(), learner.context)[0] for each in (features, expected)
        )
        atol = 1e-5 if kind == "mt5" else 1e-11  # which computes its norms in float32
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=atol)


def test_vectors_that_start_from_words_give_the_features_of_their_sentence(kind, clip):
    tower = build_text_tower(clip)
    num_tokens = len(tower.tokenizer.encode(" very old", continues=True))
    sentences = {"end": "very old narrow", "front": "narrow very old"}
    if num_tokens == 2:
        sentences["middle"] = "very narrow old"
    for position, words in sentences.items():
        how = {"words": ["", "narrow"], "position": position, "initial_words": "very old"}
        learner = PromptLearner(tower, 2, "A photo of a {} street.", num_tokens, **how)
        expected = tower.encode([f"A photo of a {words} street."])
        torch.testing.assert_close(learner(torch.tensor([1])), expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(learner.context[0], learner.context[1])
