//! numpy arrays of the types that scipy's matrices come in.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

/// Stored values of a sparse matrix.
#[derive(FromPyObject)]
pub(crate) enum Values<'py> {
    I32(PyReadonlyArray1<'py, i32>),
    I64(PyReadonlyArray1<'py, i64>),
    F32(PyReadonlyArray1<'py, f32>),
    F64(PyReadonlyArray1<'py, f64>),
}

/// `indices` or `indptr` of a sparse matrix.
#[derive(FromPyObject)]
pub(crate) enum Indices<'py> {
    I32(PyReadonlyArray1<'py, i32>),
    I64(PyReadonlyArray1<'py, i64>),
}

/// A CSR matrix as Python hands it over: data, indices, indptr, columns.
#[derive(FromPyObject)]
pub(crate) struct Matrix<'py>(
    pub(crate) Values<'py>,
    pub(crate) Indices<'py>,
    pub(crate) Indices<'py>,
    pub(crate) usize,
);

/// Calls `$body` with `$csr` bound to the matrix in its own types.
macro_rules! with_csr {
    ($matrix:expr, |$csr:ident| $body:expr) => {{
        use $crate::arrays::{Indices, Matrix, Values};
        let Matrix(data, indices, indptr, n_cols) = &$matrix;
        let n_cols = *n_cols;
        macro_rules! with_types {
            ($d:expr, $i:expr, $p:expr) => {{
                let $csr = stfast_core::csr::Csr {
                    data: $d.as_slice()?,
                    indices: $i.as_slice()?,
                    indptr: $p.as_slice()?,
                    n_cols,
                };
                $body
            }};
        }
        match (data, indices, indptr) {
            (Values::I32(d), Indices::I32(i), Indices::I32(p)) => with_types!(d, i, p),
            (Values::I32(d), Indices::I64(i), Indices::I64(p)) => with_types!(d, i, p),
            (Values::I64(d), Indices::I32(i), Indices::I32(p)) => with_types!(d, i, p),
            (Values::I64(d), Indices::I64(i), Indices::I64(p)) => with_types!(d, i, p),
            (Values::F32(d), Indices::I32(i), Indices::I32(p)) => with_types!(d, i, p),
            (Values::F32(d), Indices::I64(i), Indices::I64(p)) => with_types!(d, i, p),
            (Values::F64(d), Indices::I32(i), Indices::I32(p)) => with_types!(d, i, p),
            (Values::F64(d), Indices::I64(i), Indices::I64(p)) => with_types!(d, i, p),
            _ => Err($crate::error::bad_word(
                "indptr",
                "the dtype of indices",
                "another",
            )),
        }
    }};
}

/// Calls `$body` with `$t` as the type that a word names.
macro_rules! with_dtype {
    ($word:expr, $t:ident => $body:expr) => {
        match $word {
            "int32" => {
                type $t = i32;
                $body
            }
            "int64" => {
                type $t = i64;
                $body
            }
            "float64" => {
                type $t = f64;
                $body
            }
            word => {
                let expected = "int32, int64 or float64";
                return Err($crate::error::bad_word("dtype", expected, word));
            }
        }
    };
}

pub(crate) use with_csr;
pub(crate) use with_dtype;
