import pytest
import torch

from progeo.engine.accelerator import autocast, start_accelerator


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_half_precision_of_a_gpu_is_refused_without_one():
    with pytest.raises(ValueError, match="`mixed_precision` fp16 needs a GPU, and there is none: give bf16 or no"):
        start_accelerator("fp16")


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_compute_in_the_precision_asked_for(precision, dtype):
    accelerator = start_accelerator(precision)
    layer = torch.nn.Linear(2, 3).to(accelerator.device)
    with autocast(accelerator):
        assert layer(torch.ones(1, 2, device=accelerator.device)).dtype == dtype
