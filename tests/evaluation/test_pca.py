import numpy as np
import pytest

from progeo.evaluation.pca import fit_pca


@pytest.fixture
def sample():
    """500 descriptors, whose stds in 16 dimensions fall steeply, rotated and shifted."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    return (rng.normal(size=(500, 16)) * 0.7 ** np.arange(16) @ turn + rng.normal(size=16)).astype(np.float32)


@pytest.mark.parametrize("whiten", [False, True])
def test_components_are_those_of_a_plain_singular_value_decomposition(sample, whiten):
    reduction = fit_pca(sample, 5, whiten=whiten)
    found = sample @ reduction.weight.T + reduction.bias
    _, stds, components = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)
    expected = (sample - sample.mean(axis=0)) @ components[:5].T
    if whiten:
        expected /= stds[:5] / np.sqrt(len(sample) - 1)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)  # a component may point either way
    assert reduction.kept == pytest.approx((stds[:5] ** 2).sum() / (stds**2).sum(), abs=1e-4)
    if whiten:
        np.testing.assert_allclose(found.std(axis=0, ddof=1), 1, atol=1e-5)


@pytest.mark.parametrize(("num", "width"), [(300, 40), (300, 400)])
def test_whitening_is_that_of_a_plain_eigenvalue_decomposition(num, width):
    """As published for OpenIBL: of n descriptors of more than n dimensions, of their products."""
    rng = np.random.default_rng(1)
    sample = rng.normal(size=(num, width)) * 0.99 ** np.arange(width) + rng.normal(size=width)
    mean = sample.mean(axis=0)
    centered = sample - mean
    if width <= num:
        variances, components = np.linalg.eigh(centered.T @ centered / (num - 1))
    else:
        variances, components = np.linalg.eigh(centered @ centered.T / (num - 1))
        components = centered.T @ (components / np.sqrt(np.maximum(variances, 1e-9) * (num - 1)))
    weight = (components / np.sqrt(np.maximum(variances, 1e-9)))[:, ::-1][:, :30].T
    found = fit_pca(sample.astype(np.float32), 30, whiten=True)
    signs = np.sign((found.weight * weight).sum(axis=1))
    np.testing.assert_allclose(found.weight * signs[:, None], weight, atol=1e-4 * np.abs(weight).max())
    np.testing.assert_allclose(found.bias * signs, -weight @ mean, atol=1e-4 * np.abs(weight @ mean).max())
    assert (found.weight.dtype, found.bias.dtype) == (np.float32, np.float32)


def test_dimensions_that_cannot_be_are_refused(sample):
    with pytest.raises(ValueError, match="`dim` must be at most 16, with 500 descriptors of 16; got 17"):
        fit_pca(sample, 17, whiten=False)
    with pytest.raises(ValueError, match="`dim` must be at most 10, with 10 descriptors"):
        fit_pca(sample[:10], 12, whiten=False)
    flat = sample * (np.arange(16) < 4)
    with pytest.raises(ValueError, match="Only 4 dimensions vary and can be whitened"):
        fit_pca(flat, 6, whiten=True)
    assert fit_pca(flat, 6, whiten=False).kept == pytest.approx(1)
    with pytest.raises(ValueError, match="Only 0 dimensions vary and can be whitened"):  # but for rounding
        fit_pca(1 + 1e-8 * sample.astype(np.float64), 2, whiten=True)


@pytest.mark.parametrize("whiten", [False, True])
def test_dimensions_beyond_those_that_few_images_vary_in_are_refused(whiten):
    """40 descriptors of 200 dimensions, ten of them twice, vary in 29 dimensions."""
    few = np.random.default_rng(0).normal(size=(40, 200)).astype(np.float32)
    few[:10] = few[10:20]
    assert fit_pca(few, 29, whiten=whiten).kept == pytest.approx(1)
    with pytest.raises(ValueError, match="Only 29 dimensions vary"):
        fit_pca(few, 35, whiten=whiten)
