import pytest
import torch

from progeo.evaluation.matching import matching_accuracy


def test_hand_made_features_give_the_accuracies_counted_by_hand():
    texts = torch.eye(3)
    first = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.9, 0.0]]), torch.tensor([0, 0])  # right, wrong
    second = torch.tensor([[0.0, 0.8, 0.0]]), torch.tensor([1])  # right
    matching = matching_accuracy([first, second], texts)
    assert matching.image_to_text == pytest.approx(100 * 2 / 3)
    # Text 0 finds the first image (1.0), text 1 an image of class 0 (0.9 before 0.8); class 2 has no image.
    assert matching.text_to_image == pytest.approx(100 * 1 / 2)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_of_any_size_agree_with_one_large_table(batch_size):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(50, 4, generator=generator), torch.randn(6, 4, generator=generator)
    labels = torch.randint(0, 6, (50,), generator=generator)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    matching = matching_accuracy(batches, texts)
    table = images @ texts.T
    right = sum(max(range(6), key=lambda c: table[i, c]) == labels[i] for i in range(50))
    found = sum(labels[max(range(50), key=lambda i: table[i, c])] == c for c in range(6))
    assert matching.image_to_text == pytest.approx(100 * right / 50)
    assert matching.text_to_image == pytest.approx(100 * found / 6)
