import itertools

import torch

from progeo.engine.randomness import seeded_generator


def test_every_combination_of_numbers_gives_its_own_stream_again_and_again():
    def draw(*numbers):
        return tuple(torch.rand(4, generator=seeded_generator(*numbers)).tolist())

    combinations = list(itertools.product(range(4), repeat=3))
    drawn = {draw(*numbers) for numbers in combinations}
    assert len(drawn) == len(combinations)
    assert {draw(*numbers) for numbers in combinations} == drawn
