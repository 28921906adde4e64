"""The prefix computation against open_clip's own text encoder, for other widths, depths and prefix lengths."""

import open_clip
import pytest
import torch
from open_clip import SimpleTokenizer

from progeo.models.text_tower import encode_beginning, encode_continuations

SENTENCE = "a narrow street with palm trees and a red house"


def tower(width, layers, heads, quick_gelu):
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    return open_clip.CLIP(48, vision, text, quick_gelu=quick_gelu).double().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "quick_gelu"),
    [(64, 1, 2, False), (96, 3, 4, True), (128, 5, 8, False)],
)
@pytest.mark.parametrize("length", [1, 5, 10])
def test_features_equal_open_clips_for_any_tower_and_any_common_beginning(width, layers, heads, quick_gelu, length):
    torch.manual_seed(0)
    clip = tower(width, layers, heads, quick_gelu)
    ids = SimpleTokenizer()(SENTENCE)
    tokens = clip.token_embedding(ids[0, : ids[0].argmax() + 1])
    beginning = encode_beginning(clip, tokens[:length])
    features = encode_continuations(clip, beginning, tokens[None, length:].expand(3, -1, -1))
    torch.testing.assert_close(features, clip.encode_text(ids).expand(3, -1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sentence", ["", "a street", "a street with palm trees, at night", "very " * 100 + "long"])
def test_sentences_of_any_length_are_encoded_as_by_open_clip(sentence):
    clip, ids = tower(64, 2, 2, False), SimpleTokenizer()(sentence)
    tokens = clip.token_embedding(ids[0, : ids[0].argmax() + 1])
    features = encode_continuations(clip, encode_beginning(clip, tokens[:1]), tokens[None, 1:])
    torch.testing.assert_close(features, clip.encode_text(ids), rtol=1e-9, atol=1e-10)


def test_no_gradient_reaches_the_common_beginning():
    clip = tower(64, 2, 2, False)
    prefix = torch.randn(4, 64, dtype=torch.float64, requires_grad=True)
    continuations = torch.randn(2, 3, 64, dtype=torch.float64, requires_grad=True)
    encode_continuations(clip, encode_beginning(clip, prefix), continuations).sum().backward()
    assert continuations.grad.abs().min() > 0
    assert prefix.grad is None
