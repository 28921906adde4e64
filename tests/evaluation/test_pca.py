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
        expected /= stds[:5] / np.sqrt(len(sample))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)  # a component may point either way
    assert reduction.kept == pytest.approx((stds[:5] ** 2).sum() / (stds**2).sum(), abs=1e-4)
    if whiten:
        np.testing.assert_allclose(found.std(axis=0), 1, atol=1e-2)


def test_dimensions_that_cannot_be_are_refused(sample):
    with pytest.raises(ValueError, match="`dim` must be at most 16, with 500 descriptors of 16; got 17"):
        fit_pca(sample, 17, whiten=False)
    with pytest.raises(ValueError, match="`dim` must be at most 10, with 10 descriptors"):
        fit_pca(sample[:10], 12, whiten=False)
    flat = sample * (np.arange(16) < 4)
    with pytest.raises(ValueError, match="Only 4 dimensions"):
        fit_pca(flat, 6, whiten=True)
