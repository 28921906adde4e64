import math

import pytest
import torch
import torch.nn.functional as F

from progeo.models.text_space import TextSpace, chosen_temperature


def test_as_published_nothing_is_changed_where_the_dimensions_agree():
    space, descriptors, texts = TextSpace(4, 4), torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(space(descriptors), descriptors)
    assert torch.equal(space.texts(texts), texts)
    assert not any(parameter.requires_grad for parameter in space.parameters())


def test_normalized_the_logits_are_cosines_over_the_temperature():
    space, descriptors, texts = TextSpace(4, 4, normalized=True, temperature=0.07), torch.randn(3, 4), torch.randn(5, 4)
    logits = space(descriptors) @ space.texts(texts).T
    expected = F.cosine_similarity(descriptors[:, None], texts[None], dim=2) / 0.07
    torch.testing.assert_close(logits, expected)


def test_other_dimensions_are_mapped_linearly():
    space, descriptors = TextSpace(4, 6), torch.randn(3, 4)
    torch.testing.assert_close(space(descriptors), descriptors @ space.linear.weight.T + space.linear.bias)


def test_a_learned_temperature_has_the_gradient_of_its_logarithm_and_comes_back_from_its_lowest():
    space, descriptors = TextSpace(4, 4, temperature=0.5, learn_temperature=True), torch.randn(3, 4)
    space(descriptors).sum().backward()
    assert space.log_temperature.grad.item() == pytest.approx(-descriptors.sum().item() / 0.5, rel=1e-5)
    space.log_temperature.data.fill_(math.log(1e-6))
    space.log_temperature.grad = None
    scaled = space(descriptors)
    torch.testing.assert_close(scaled, descriptors / 0.01)
    scaled.sum().backward()
    assert space.log_temperature.grad.item() == pytest.approx(-descriptors.sum().item() / 0.01, rel=1e-4)


def test_a_temperature_below_the_lowest_can_be_kept_but_not_learned():
    descriptors = torch.randn(3, 4)
    torch.testing.assert_close(TextSpace(4, 4, temperature=0.005)(descriptors), descriptors / 0.005)
    with pytest.raises(ValueError, match=r"`temperature` must be at least 0\.01 .* got 0\.005"):
        TextSpace(4, 4, temperature=0.005, learn_temperature=True)


def test_the_temperature_of_a_clip_is_one_over_its_scale_and_that_of_openai_in_half_precision_can_be_learned():
    scale = torch.tensor(math.log(100)).half().float().exp().item()
    assert chosen_temperature("clip", scale) == pytest.approx(0.01, rel=1e-3)
    assert chosen_temperature("clip", scale) < 0.01
    assert chosen_temperature(0.07, None) == 0.07
    space = TextSpace(4, 4, normalized=True, temperature=chosen_temperature("clip", scale), learn_temperature=True)
    torch.testing.assert_close(space(torch.eye(4)), torch.eye(4) / 0.01)


@pytest.mark.parametrize("scale", [math.inf, math.nan, 0.0])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match=f"`temperature` clip is not possible: .* multiplies cosines by {scale}. Give"):
        chosen_temperature("clip", scale)
    assert chosen_temperature(1.0, scale) == 1.0
