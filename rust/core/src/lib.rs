//! The kernels of stfast: slices in, slices out.
//!
//! Nothing here knows Python, reads the environment, prints, or owns a thread
//! pool: a kernel runs in the rayon pool it is called from, and its answer is
//! the same for any number of threads in it. Headers of files are read
//! elsewhere; a kernel is handed tables of blocks (offset, length, codec) and
//! turns them into arrays.

pub mod bins;
pub mod cells;
pub mod csr;
pub mod dataset;
pub mod error;
pub mod h5;
pub mod hvg;
pub mod images;
pub mod io;
pub mod loader;
mod simd;
pub mod sweep;
pub mod text;
pub mod tiles;
pub mod watch;

pub use error::{Error, Result};
pub use watch::Watch;
