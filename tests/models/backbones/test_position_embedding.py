"""Position embeddings resized to the grid of another image size."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from progeo.models.backbones.family import Traits
from progeo.models.backbones.position_embedding import as_height_width, check_sides, resized_embedding


@pytest.mark.parametrize(
    ("old", "new"), [((37, 37), (23, 23)), ((16, 16), (37, 20)), ((5, 7), (5, 9)), ((4, 4), (3, 1))]
)
def test_dinov2_is_interpolate_by_its_scale(old, new):
    embedding = torch.randn(5 + old[0] * old[1], 12, dtype=torch.float64)
    grid = embedding[5:].T.reshape(1, 12, *old)
    scale = tuple((after + 0.1) / before for before, after in zip(old, new, strict=True))
    expected = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2)[0].T
    found = resized_embedding(embedding, old, new, "dinov2")
    assert torch.equal(found[:5], embedding[:5])
    torch.testing.assert_close(found[5:], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolation", ["edges", "corners", "dinov2"])
def test_resizing_to_the_same_grid_changes_nothing(interpolation):
    embedding = torch.randn(1, 1 + 5 * 7, 12)
    assert torch.equal(resized_embedding(embedding, (5, 7), (5, 7), interpolation), embedding)


@pytest.mark.parametrize("interpolation", ["edges", "corners", "dinov2"])
@pytest.mark.parametrize("kept", [0, 1, 5])
def test_first_rows_are_kept_and_a_batch_dimension_stays(interpolation, kept):
    embedding = torch.randn(kept + 16, 8, dtype=torch.float64)
    found = resized_embedding(embedding, (4, 4), (6, 3), interpolation)
    assert found.shape == (kept + 18, 8)
    assert torch.equal(found[:kept], embedding[:kept])
    assert torch.equal(resized_embedding(embedding[None], (4, 4), (6, 3), interpolation)[0], found)
    constant = torch.cat([embedding[:kept], torch.ones(16, 8, dtype=torch.float64)])
    torch.testing.assert_close(resized_embedding(constant, (4, 4), (6, 3), interpolation)[kept:].min().item(), 1.0)


def test_the_gradient_reaches_the_embedding():
    embedding = torch.randn(1 + 16, 8, requires_grad=True)
    resized_embedding(embedding, (4, 4), (6, 6), "dinov2").square().sum().backward()
    assert (embedding.grad != 0).all()


def test_sides_that_a_backbone_does_not_take_are_refused():
    assert as_height_width(64) == (64, 64)
    patches = Traits(None, 8, 8, stride=14, side_multiple=14)
    check_sides("`image_size`", 224, 322, patches)
    with pytest.raises(ValueError, match=r"^`image_size` must be at least 32 pixels a side, got 31 x 64\.$"):
        as_height_width((31, 64))
    with pytest.raises(
        ValueError, match=r"^Images must be at least 32 pixels a side, in multiples of 14, got 224 x 320\.$"
    ):
        check_sides("Images", 224, 320, patches)
    with pytest.raises(ValueError, match=r"^Images must be 64 x 96 pixels, the only size of .*, got 224 x 224\.$"):
        check_sides("Images", 224, 224, replace(patches, only_size=(64, 96)))
