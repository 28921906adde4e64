from progeo.engine.accelerator import start_accelerator
from progeo.engine.precision import half_precision_gain


def test_half_precision_is_measured_where_it_is_used():
    assert half_precision_gain(start_accelerator("no")) is None
    assert 0 < half_precision_gain(start_accelerator("bf16")) < 100
