"""The local regression of seurat_v3 against skmisc's, which is R's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import at_any_workers
from oracles_hvg import heavy_tailed
from stfast import _core, highly_variable_genes


def fit(x, y, span=0.3):
    return at_any_workers(lambda n: _core.loess(x, y, span, n))


def skmisc_fit(x, y, span=0.3):
    loess = pytest.importorskip("skmisc.loess").loess
    model = loess(x, y, span=span, degree=2)
    model.fit()
    return np.asarray(model.outputs.fitted_values)


def moments(n, genes, seed):
    """Log10 mean and variance of counts: many genes share a mean where spots are few."""
    x = heavy_tailed(n, genes, seed, umi=genes * 2.0)
    mean, variance = x.mean(axis=0), x.var(axis=0, ddof=1)
    varies = variance > 0
    return np.log10(mean[varies]), np.log10(variance[varies])


@pytest.mark.parametrize("span", [0.1, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(("n", "genes"), [(3000, 2000), (300, 3000), (800, 15_000)])
def test_the_trend_equals_skmiscs(n, genes, span):
    x, y = moments(n, genes, seed=2)
    fitted, direct = fit(x, y, span)
    assert not direct
    np.testing.assert_allclose(fitted, skmisc_fit(x, y, span), atol=1e-7)


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(30, 300),
    span=st.floats(0.3, 1.0),
    digits=st.integers(1, 9),
)
def test_points_at_random_equal_skmiscs(*, seed, n, span, digits):
    """Rounded, so that points share places; where skmisc gives up, ours is finite."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n).round(digits)
    y = np.sin(2 * x) + rng.normal(0, 0.1, n)
    fitted, direct = fit(x, y, span)
    assert np.isfinite(fitted).all()
    try:
        expected = skmisc_fit(x, y, span)
    except ValueError:
        return
    if not direct:
        np.testing.assert_allclose(fitted, expected, atol=1e-5)


def test_a_quadratic_is_met_exactly():
    x = np.linspace(-3, 2, 200)
    y = 2 - x + 0.5 * x**2
    np.testing.assert_allclose(fit(x, y)[0], y, atol=1e-4)
    # Blending cubics lose a little of it; direct fits would not.


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1.0], [5.0]),
        ([1.0, 1.0, 1.0], [2.0, 4.0, 6.0]),
        ([1.0, 2.0], [2.0, 4.0]),
        ([0.0] * 50 + [1.0] * 50, [1.0] * 50 + [3.0] * 50),
    ],
)
def test_points_at_too_few_places_are_fitted_directly(x, y):
    fitted, direct = fit(np.array(x), np.array(y))
    assert direct == bool(x)
    means = {place: np.mean([b for a, b in zip(x, y, strict=True) if a == place]) for place in x}
    np.testing.assert_allclose(fitted, [means[place] for place in x], atol=1e-12)


def test_a_trend_that_cannot_be_fitted_is_said_and_the_same_again():
    """Few spots: most genes share the mean of one count. scanpy raises here."""
    x = np.random.default_rng(0).poisson(0.05, (25, 300))
    expected = None
    for _ in range(2):
        with pytest.warns(UserWarning, match="each gene was fitted by itself"):
            table = highly_variable_genes(x, "seurat_v3", 20)
        assert np.isfinite(table["variances_norm"]).all()
        assert table["highly_variable"].sum() == 20
        assert expected is None or table.equals(expected)
        expected = table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": 0.0}, "span: expected a number above 0 and at most 1, got 0"),
        ({"span": 1.5}, "span: expected"),
        ({"span": float("nan")}, "span: expected"),
    ],
)
def test_bad_spans_raise(options, message):
    with pytest.raises(ValueError, match=message):
        highly_variable_genes(heavy_tailed(50, 60), "seurat_v3", 5, **options)


def test_points_that_are_not_finite_raise():
    with pytest.raises(ValueError, match="points of a local regression: expected finite"):
        _core.loess(np.array([1.0, np.nan]), np.array([1.0, 2.0]), 0.5, 1)
    with pytest.raises(ValueError, match="y of a local regression: expected 2, got 1"):
        _core.loess(np.array([1.0, 2.0]), np.array([1.0]), 0.5, 1)
