import pytest
import torch

from progeo.engine.accelerator import autocast, float32_products, full_precision, start_accelerator


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


def products():
    """How a GPU computes matrix products and convolutions of float32, and whether it measures algorithms."""
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("benchmark", [True, False, None])
def test_products_are_computed_as_asked_for_until_the_end_also_of_an_error(tf32, benchmark):
    before, precision = products(), "tf32" if tf32 else "ieee"
    with pytest.raises(KeyError), float32_products(tf32=tf32, benchmark=benchmark):
        assert products() == (precision, precision, bool(benchmark))
        raise KeyError
    assert products() == before


def test_losses_are_in_float32_among_networks_that_are_not():
    accelerator = start_accelerator("bf16")
    factor = torch.ones(2, 2, device=accelerator.device)
    with float32_products(tf32=True, benchmark=True), autocast(accelerator):
        with full_precision(accelerator):
            assert products() == ("ieee", "ieee", True)
            assert (factor @ factor).dtype == torch.float32
        assert products() == ("tf32", "tf32", True)
        assert (factor @ factor).dtype == torch.bfloat16


@pytest.mark.gpu
def test_tf32_rounds_products_and_full_precision_does_not():
    accelerator = start_accelerator("no")
    factors = torch.rand(2, 512, 512, device=accelerator.device, generator=torch.Generator(accelerator.device))
    exact = factors[0].double() @ factors[1].double()
    with float32_products(tf32=True):
        rounded = factors[0] @ factors[1]
        with full_precision(accelerator):
            precise = factors[0] @ factors[1]
    assert 1e-6 < ((rounded - exact) / exact).abs().max() < 1e-2
    assert ((precise - exact) / exact).abs().max() < 1e-5
