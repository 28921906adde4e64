import re

import pytest

from progeo.engine.accelerator import start_accelerator
from progeo.training.precision import precision_in_words


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("no", "float32"),
        (
            "bf16",
            r"bf16 mixed with float32, in which this CPU multiplies matrices \d+\.\d times as fast as in float32"
            r"( \(float32 is the faster here: set mixed_precision no\))?; attention to up to 512 tokens by its "
            r"formula, whose backward pass is faster than flash",
        ),
    ],
)
def test_the_log_says_what_a_precision_gives(precision, words):
    assert re.fullmatch(words, precision_in_words(start_accelerator(precision)))
