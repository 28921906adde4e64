import re

import open_clip
import pytest
import torch
from open_clip import SimpleTokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from progeo.models.backbones.clips import load_clip
from progeo.models.prompts import PromptLearner, load_prompt_tower

SENTENCE = "A photo of a X X X X street."


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny-vit", "random").double().requires_grad_(False)


def plain_text_features(clip, learner, labels, sentence=SENTENCE):
    """All 77 tokens, one text per label, the context written over the X tokens."""
    ids = SimpleTokenizer()(sentence)[0]
    (places,) = torch.nonzero(ids == SimpleTokenizer().encode("X")[0], as_tuple=True)
    tokens = clip.token_embedding(ids).repeat(len(labels), 1, 1)
    tokens[:, places] = learner.context[labels]
    hidden = clip.transformer(tokens + clip.positional_embedding, attn_mask=clip.attn_mask)
    return clip.ln_final(hidden)[:, ids.argmax()] @ clip.text_projection


def test_learned_vectors_stand_at_5_to_8_and_the_end_of_text_at_11(clip):
    ids = SimpleTokenizer()(SENTENCE)[0]
    assert (ids == SimpleTokenizer().encode("X")[0]).nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert ids.argmax() == 11
    learner = PromptLearner(clip, 3)
    (encoder,) = learner.encoders
    assert (encoder.shared_tokens, encoder.tokens_computed, encoder.context_length) == (5, 7, 77)
    assert torch.equal(encoder.fixed[0, 4:], clip.token_embedding(ids[9:12]))


@pytest.mark.parametrize(
    ("template", "context_length", "sentence"),
    [
        ("A photo of a {} street.", 4, SENTENCE),
        ("A photo of a {} street.", 1, "A photo of a X street."),
        ("{}", 6, "X X X X X X"),
        ("a view, at night, of {}", 2, "a view, at night, of X X"),
    ],
)
def test_features_and_gradients_equal_the_plain_computation(clip, template, context_length, sentence):
    learner = PromptLearner(clip, 5, template, context_length, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 0, 4, 2])
    features, expected = learner(labels), plain_text_features(clip, learner, labels, sentence)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(features.shape, dtype=torch.float64)
    gradient = torch.autograd.grad((features * weights).sum(), learner.context)
    expected_gradient = torch.autograd.grad((expected * weights).sum(), learner.context)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)


def test_words_in_place_of_vectors_give_clips_own_text_features(clip):
    learner = PromptLearner(clip, 2)
    words = SimpleTokenizer().encode("very old brick narrow")
    assert len(words) == 4
    learner.context.data.copy_(clip.token_embedding(torch.tensor(words)))
    expected = clip.encode_text(SimpleTokenizer()("A photo of a very old brick narrow street."))
    torch.testing.assert_close(learner(torch.tensor([1])), expected, rtol=1e-9, atol=1e-9)


def test_the_context_is_the_only_parameter_and_all_that_is_saved(clip):
    learner = PromptLearner(clip, 3)
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    assert list(learner.state_dict()) == ["context"]
    assert learner.context.shape == (3, 4, 64)


def test_a_shared_context_is_one_for_all_classes_and_gets_the_gradients_of_all(clip):
    words = ["Main Street", "Alley", "", "Alley"]
    shared = PromptLearner(clip, 4, words=words, shared=True, generator=torch.Generator().manual_seed(0))
    alone = PromptLearner(clip, 4, words=words)
    alone.context.data.copy_(shared.context.data.expand(4, -1, -1))
    features, expected = shared(torch.arange(4)), alone(torch.arange(4))
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(features[1], features[3])
    assert not torch.allclose(features[0], features[1])
    weights = torch.randn(features.shape, dtype=torch.float64)
    (ours,) = torch.autograd.grad((features * weights).sum(), shared.context)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), alone.context)
    torch.testing.assert_close(ours, theirs.sum(dim=0, keepdim=True), rtol=1e-9, atol=1e-9)


def test_names_of_as_many_tokens_are_encoded_together(clip):
    words = ["Rue de l'Église", "Main Street", "Alley", "Elm Street", "Rua", ""]
    learner = PromptLearner(clip, 6, words=words)
    lengths = [len(SimpleTokenizer().encode(text)) for text in words]
    assert sorted(len(encoder.ids) for encoder in learner.encoders) == sorted(
        lengths.count(length) for length in {*lengths}
    )


def test_classes_whose_words_differ_in_length_give_one_sparse_gradient_instead_of_a_sum(clip):
    learner = PromptLearner(clip, 4, words=["North Street", "", "Old Mill Lane", ""], sparse=True)
    made = []

    class SparseTensors(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.extend([function] if isinstance(result, torch.Tensor) and result.is_sparse else [])
            return result

    assert len(learner.encoders) > 1
    with SparseTensors():
        learner(torch.tensor([3, 0, 2, 0])).pow(2).sum().backward()
    names = [function.overloadpacket.__name__ for function in made]
    assert names.count("_sparse_coo_tensor_with_dims_and_tensors") == 1 and not {"add", "add_"} & set(names)
    assert learner.context.grad._indices().tolist() == [[0, 2, 3]]


def test_words_that_hold_a_special_token_leave_the_prompts_of_other_classes_alone(clip):
    words = ["old <end_of_text> town", "old , town"]
    together, labels = PromptLearner(clip, 2, words=words, shared=True), torch.arange(2)
    for index, text in enumerate(words):
        alone = PromptLearner(clip, 1, words=[text], shared=True)
        alone.load_state_dict(together.state_dict())
        torch.testing.assert_close(together(labels)[index : index + 1], alone(labels[:1]), rtol=1e-9, atol=1e-9)


def test_initial_words_of_another_number_of_tokens_are_refused_with_it(clip):
    with pytest.raises(
        ValueError, match="'a photo of a street' are 5 tokens, and `context_length` is 4: set `context_l"
    ):
        PromptLearner(clip, 2, initial_words="a photo of a street")


def test_initial_vectors_follow_the_generator_and_have_the_published_std(clip):
    draw = [PromptLearner(clip, 500, generator=torch.Generator().manual_seed(s)).context for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert draw[0].std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    ("template", "context_length", "words"),
    [
        ("A photo of a street.", 4, "must contain {} once"),
        ("{} and {}", 4, "must contain {} once"),
        ("A photo of {}", 0, "`context_length` must be at least 1"),
        ("A photo of {}", 90, "takes 95 tokens, but the text tower reads 77"),
    ],
)
def test_templates_that_cannot_work_are_refused(clip, template, context_length, words):
    with pytest.raises(ValueError, match=words):
        PromptLearner(clip, 3, template, context_length)


def test_the_gradient_is_the_same_every_time_though_images_share_classes():
    clip = load_clip("tiny-vit", "random").requires_grad_(False)
    learner = PromptLearner(clip, 60, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 60, (512,), generator=generator)
    weights = torch.randn(512, clip.text_projection.shape[1], generator=generator)  # large enough for several threads
    first, *others = (
        torch.autograd.grad((learner(labels) * weights).sum(), learner.context)[0].clone() for _ in range(6)
    )
    assert all(torch.equal(first, other) for other in others)


def test_texts_in_several_pieces_are_the_same_as_one_by_one(clip):
    learner = PromptLearner(clip, 300, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300)
    one_by_one = torch.cat([learner(label) for label in labels[[0, 255, 256, 299], None]])
    torch.testing.assert_close(learner(labels)[[0, 255, 256, 299]], one_by_one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("eos", {"text_cfg.pool_type": "eos"}, "it pools the token 2, which"),
        ("all-tokens", {"text_cfg.pool_type": "none"}, "it has no feature of a text"),
        ("class-token", {"text_cfg.embed_cls": True}, "open_clip cannot compute its text features"),
        ("few-words", {"text_cfg.vocab_size": 32000}, "its vocabulary of 32000 tokens is not that of"),
        ("more-words", {"text_cfg.vocab_size": 50000}, "its vocabulary of 50000 tokens is not that of"),
    ],
)
def test_a_clip_whose_texts_cannot_be_read_right_is_refused_with_the_reason(name, settings, reason, architecture):
    sentence = f"Prompts cannot be learned for {name}: .*{re.escape(reason)}.*Use one such as RN50"
    with pytest.raises(ValueError, match=sentence):
        load_prompt_tower(architecture(name, settings), "random")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("end-of-text", {"text_cfg.pool_type": "eos", "text_cfg.eos_id": 49407}),
        ("not-causal", {"text_cfg.no_causal_mask": True}),
        ("with-capitals", {"text_cfg.tokenizer_kwargs": {"clean": "whitespace"}}),
    ],
)
def test_a_clip_whose_texts_prompts_reproduce_is_accepted_however_it_is_built(name, settings, architecture):
    tower = load_prompt_tower(architecture(name, settings), "random", 64, seed=3)
    ids = open_clip.get_tokenizer(name)(["A narrow street."])
    words = SimpleTokenizer().encode("narrow")
    learner = PromptLearner(tower, 1, "A {} street.", len(words))
    learner.context.data.copy_(tower.embedding(torch.tensor(words)))
    torch.testing.assert_close(learner(torch.tensor([0])), tower.clip.encode_text(ids))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    clip = load_clip("tiny-vit", "random")
    clip.text_projection.data[0] = torch.nan
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="Prompts cannot be learned for tiny-vit: its text features are not finite"):
        load_prompt_tower("tiny-vit", str(tmp_path / "clip.pt"))
