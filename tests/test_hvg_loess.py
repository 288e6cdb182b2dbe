"""The local regression of seurat_v3 against R's own, and against skmisc's, which is R's.

R's is run where `Rscript` is; what it once answered is written below for where it is not.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import at_any_workers
from oracles_hvg import heavy_tailed, r_loess
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


# Of 31 genes in 40 spots, sums of counts and of their squares. Fourteen share a total with
# another: one mean, written as one number, has one place in a trend.
SPOTS = 40
TOTALS = [1] * 6 + [2, 3, 3] + [4] * 5 + [5, 6, 6, 6, 11, 14, 15, 15, 22, 32, 32, 62, 70, 82]
TOTALS += [442, 635, 2904]
SQUARES = [1] * 6 + [2, 3, 5, 6, 4, 4, 4, 4, 7, 8, 8, 12, 17, 18, 29, 21, 38, 86, 70]
SQUARES += [366, 288, 326, 11360, 24041, 271286]
# What R 4.2.2 answers: fitted(loess(y ~ x, span, degree = 2)), of each distinct total.
# fmt: off
OF_R = {
    0.5: [
        -1.6027285156452074, -1.2946179796883854, -1.108540024088048, -0.9483094138701649,
        -0.8233634201746788, -0.6975896076790118, -0.46854985743569433, -0.38131010237355706,
        -0.35041426922363084, -0.13202912693264787, 0.1160389496066809, 0.5820997518322507,
        0.6710139369609396, 0.7896970941274609, 2.134787456967282, 2.377609594298931,
        3.2596792692313823,
    ],
    0.75: [
        -1.6034657578550575, -1.2798446927376574, -1.0829144801281503, -0.9393807756037509,
        -0.8206300447601422, -0.7359965689989124, -0.4759310401894018, -0.34902482239068466,
        -0.31159683319658116, -0.09465375881791346, 0.13123796346877026, 0.5691936512365877,
        0.6565350574884362, 0.7725074013263299, 2.0283603703489597, 2.292558012844256,
        3.3099491999516006,
    ],
    1.0: [
        -1.5781165012842273, -1.295508043111789, -1.115396305086885, -0.9814918035267086,
        -0.8735334996153166, -0.7826445240637305, -0.46398761770214886, -0.33032510692854805,
        -0.29165985839288067, -0.06871100117884568, 0.1576234502178916, 0.5800820055762658,
        0.6653154160046184, 0.7787338813843646, 1.9999932046168187, 2.265744559832951,
        3.391545192127056,
    ],
}
# fmt: on


def few_genes():
    total, squares = np.array(TOTALS), np.array(SQUARES)
    variance = (SPOTS * squares - total**2) / (SPOTS * (SPOTS - 1))
    return np.log10(total / SPOTS), np.log10(variance)


@pytest.mark.parametrize("span", sorted(OF_R))
def test_the_trend_is_what_r_once_answered(span):
    fitted, direct = fit(*few_genes(), span)
    place = np.unique(TOTALS, return_inverse=True)[1]
    assert not direct
    # R and we do the same sums in another order: some units in the last of 16 digits.
    np.testing.assert_allclose(fitted, np.array(OF_R[span])[place], atol=1e-13)


@pytest.mark.parametrize("span", sorted(OF_R))
def test_r_answers_still_what_it_did(span, tmp_path):
    place = np.unique(TOTALS, return_inverse=True)[1]
    fitted = r_loess(*few_genes(), span, tmp_path)
    np.testing.assert_allclose(fitted, np.array(OF_R[span])[place], atol=1e-13)


@pytest.mark.parametrize("span", [0.3, 0.75])
@pytest.mark.parametrize(
    ("n", "genes"),
    [(260, 90), (97, 200), (300, 3000), (1000, 15_000), (3000, 2000)],
    ids=["few genes", "a batch", "few spots", "a slide", "a panel"],
)
def test_the_trend_equals_rs(n, genes, span, tmp_path):
    """Of means that many genes share, of the shape that slides have."""
    x, y = moments(n, genes, seed=4)
    assert len(np.unique(x)) < len(x)
    fitted, direct = fit(x, y, span)
    assert not direct
    np.testing.assert_allclose(fitted, r_loess(x, y, span, tmp_path), atol=1e-7)


def test_means_that_differ_by_rounding_have_another_trend(tmp_path):
    """In R as in ours: cells are cut between distinct means. So equal means must be equal."""
    x, y = moments(97, 200, seed=0)
    split = np.where(np.arange(len(x)) % 2, np.nextafter(x, 9), x)
    fitted, other = (fit(means, y, 0.5)[0] for means in (x, split))
    assert np.abs(fitted - other).max() > 1e-5
    for means, ours in ((x, fitted), (split, other)):
        np.testing.assert_allclose(ours, r_loess(means, y, 0.5, tmp_path), atol=1e-7)


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
