//! The one table from the core's errors to Python's exceptions.

use pyo3::exceptions::{
    PyIndexError, PyKeyboardInterrupt, PyNotImplementedError, PyOSError, PyOverflowError,
    PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;
use stfast_core::Error;

pyo3::create_exception!(
    stfast,
    FormatError,
    PyValueError,
    "A file's bytes are not what its format, or its own header, promises."
);

/// The exception that stands for an error of the core.
pub(crate) fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Io { path, source } => match source.raw_os_error() {
            // With an errno, OSError picks its own subclass: FileNotFoundError, ...
            Some(errno) => PyOSError::new_err((errno, source.to_string(), path)),
            None => PyOSError::new_err(message),
        },
        Error::Format { .. } => FormatError::new_err(message),
        Error::Shape { .. } | Error::Value { .. } => PyValueError::new_err(message),
        Error::Index { .. } => PyIndexError::new_err(message),
        Error::Overflow { .. } => PyOverflowError::new_err(message),
        Error::Unsupported { .. } => PyNotImplementedError::new_err(message),
        Error::Cancelled => PyKeyboardInterrupt::new_err(message),
    }
}

/// For a number of threads that no pool can have.
pub(crate) fn bad_workers(found: usize) -> PyErr {
    PyValueError::new_err(format!("workers: expected at least 1, got {found}"))
}

/// For a system that gives no more threads.
pub(crate) fn no_threads(error: rayon::ThreadPoolBuildError) -> PyErr {
    PyRuntimeError::new_err(format!("workers: the system starts no threads: {error}"))
}

/// For a word that names none of the things it should.
pub(crate) fn bad_word(what: &str, expected: &str, found: &str) -> PyErr {
    PyValueError::new_err(format!("{what}: expected {expected}, got {found}"))
}
