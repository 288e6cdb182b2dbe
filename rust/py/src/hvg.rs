//! Sums per gene; what is chosen from them, a few numbers a gene, is Python's.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use stfast_core::hvg::{self, CountSums, Kinds, Model, Scale};

use crate::arrays::{Matrix, with_csr};
use crate::door;
use crate::error::bad_word;

type Floats<'py> = PyReadonlyArray1<'py, f64>;
type Out<'py, T> = PyReadwriteArray1<'py, T>;
type Flags = (bool, bool, bool, bool, bool);

fn flags(kinds: Kinds) -> Flags {
    let Kinds {
        infinite,
        negative,
        fractional,
        large,
        disordered,
    } = kinds;
    (infinite, negative, fractional, large, disordered)
}

/// Adds counts, their squares and their number, each of all columns in turn, to sums;
/// writes sums of rows.
#[pyfunction]
pub(crate) fn add_counts<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    mut sums: Out<'py, u64>,
    mut totals: Out<'py, f64>,
    workers: usize,
) -> PyResult<Flags> {
    let sums = sums.as_slice_mut()?;
    let (sum, rest) = sums.split_at_mut(sums.len() / 3);
    let (squares, nonzero) = rest.split_at_mut(sum.len());
    let sums = CountSums {
        sum,
        squares,
        nonzero,
    };
    let totals = totals.as_slice_mut()?;
    with_csr!(matrix, |csr| {
        door::run(py, workers, None, |watch| {
            hvg::add_counts(csr, sums, totals, watch)
        })
        .map(flags)
    })
}

/// What a value stands for, by its name: `log_base` goes with expm1, `factors` with log1p.
#[derive(FromPyObject)]
pub(crate) struct Meaning<'py>(String, f64, Option<Floats<'py>>);

impl Meaning<'_> {
    fn scale(&self) -> PyResult<Scale<'_>> {
        let Self(name, log_base, factors) = self;
        match (name.as_str(), factors) {
            ("stored", None) => Ok(Scale::Stored),
            ("share", None) => Ok(Scale::Share),
            ("expm1", None) => Ok(Scale::Expm1(*log_base)),
            ("log1p", Some(factors)) => Ok(Scale::Log1p(factors.as_slice()?)),
            (name, _) => Err(bad_word("scale", "stored, share, expm1 or log1p", name)),
        }
    }
}

/// Adds scaled values and their squares to pairs of columns; writes sums of rows.
#[pyfunction]
pub(crate) fn add_values<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    scale: Meaning<'py>,
    mut sums: Out<'py, f64>,
    mut totals: Out<'py, f64>,
    workers: usize,
) -> PyResult<Flags> {
    let (scale, totals) = (scale.scale()?, totals.as_slice_mut()?);
    let (sums, _) = sums.as_slice_mut()?.as_chunks_mut();
    with_csr!(matrix, |csr| {
        door::run(py, workers, None, |watch| {
            hvg::add_values(csr, scale, sums, totals, watch)
        })
        .map(flags)
    })
}

/// Adds squared deviations of scaled values from means, and their number, to pairs.
#[pyfunction]
pub(crate) fn add_deviations<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    scale: Meaning<'py>,
    mean: Floats<'py>,
    mut sums: Out<'py, f64>,
    workers: usize,
) -> PyResult<()> {
    let (scale, mean) = (scale.scale()?, mean.as_slice()?);
    let (sums, _) = sums.as_slice_mut()?.as_chunks_mut();
    with_csr!(matrix, |csr| {
        door::run(py, workers, None, |watch| {
            hvg::add_deviations(csr, scale, mean, sums, watch)
        })
    })
}

/// Adds what values have above their column's bound, and their squares, to pairs.
#[pyfunction]
pub(crate) fn add_excess<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    bounds: Floats<'py>,
    mut sums: Out<'py, f64>,
    workers: usize,
) -> PyResult<()> {
    let bounds = bounds.as_slice()?;
    let (sums, _) = sums.as_slice_mut()?.as_chunks_mut();
    with_csr!(matrix, |csr| {
        door::run(py, workers, None, |watch| {
            hvg::add_excess(csr, bounds, sums, watch)
        })
    })
}

/// Adds residuals of counts and their squares, less those of zeros, to pairs; `model` is
/// the overdispersion, the bound, and the sum of all counts.
#[pyfunction]
pub(crate) fn add_residuals<'py>(
    py: Python<'py>,
    matrix: Matrix<'py>,
    marginals: (Floats<'py>, Floats<'py>),
    model: (f64, f64, f64),
    mut sums: Out<'py, f64>,
    workers: usize,
) -> PyResult<()> {
    let (row_sums, col_sums) = (marginals.0.as_slice()?, marginals.1.as_slice()?);
    let (sums, _) = sums.as_slice_mut()?.as_chunks_mut();
    with_csr!(matrix, |csr| {
        door::run(py, workers, None, |watch| {
            let model = Model::new(model.0, model.1, model.2)?;
            hvg::add_residuals(csr, row_sums, col_sums, model, sums, watch)
        })
    })
}

/// Sums of residuals and of their squares, column by column, were all counts zero.
#[pyfunction]
pub(crate) fn zero_residuals<'py>(
    py: Python<'py>,
    rows: (Floats<'py>, Floats<'py>),
    col_sums: Floats<'py>,
    model: (f64, f64, f64),
    workers: usize,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (row_sums, numbers) = (rows.0.as_slice()?, rows.1.as_slice()?);
    let col_sums = col_sums.as_slice()?;
    let sums = door::run(py, workers, None, |watch| {
        let model = Model::new(model.0, model.1, model.2)?;
        hvg::zero_residuals(row_sums, numbers, col_sums, model, watch)
    })?;
    Ok(sums.into_flattened().into_pyarray(py))
}

/// A local regression at its points, and whether each was fitted directly.
#[pyfunction]
pub(crate) fn loess<'py>(
    py: Python<'py>,
    x: Floats<'py>,
    y: Floats<'py>,
    span: f64,
    workers: usize,
) -> PyResult<(Bound<'py, PyArray1<f64>>, bool)> {
    let (x, y) = (x.as_slice()?, y.as_slice()?);
    let fit = door::run(py, workers, None, |watch| hvg::loess(x, y, span, watch))?;
    Ok((fit.fitted.into_pyarray(py), fit.direct))
}
