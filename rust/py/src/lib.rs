//! `stfast._core`: the door through which Python reaches the kernels.
//!
//! Python coerces its arguments, the core checks them; a function here borrows
//! slices, goes through `door::run` and hands back what it got.

mod arrays;
mod bins;
mod cells;
mod dataset;
mod door;
mod error;
mod h5;
mod hvg;
mod images;
mod loader;
mod text;
mod tiles;

use pyo3::prelude::*;

/// The native half of stfast.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("FormatError", py.get_type::<error::FormatError>())?;
    module.add_class::<h5::Chunked>()?;
    module.add_class::<images::Level>()?;
    module.add_class::<tiles::Cache>()?;
    module.add_class::<loader::TileShards>()?;
    module.add_function(wrap_pyfunction!(bins::assign_bins, module)?)?;
    module.add_function(wrap_pyfunction!(bins::parse_squares, module)?)?;
    module.add_function(wrap_pyfunction!(bins::group_squares, module)?)?;
    module.add_function(wrap_pyfunction!(bins::sum_groups, module)?)?;
    module.add_function(wrap_pyfunction!(bins::sum_stored, module)?)?;
    module.add_function(wrap_pyfunction!(cells::count_cells, module)?)?;
    module.add_function(wrap_pyfunction!(dataset::copy_tiles, module)?)?;
    module.add_function(wrap_pyfunction!(h5::read_chunks, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::add_counts, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::add_deviations, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::add_excess, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::add_residuals, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::add_values, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::loess, module)?)?;
    module.add_function(wrap_pyfunction!(hvg::zero_residuals, module)?)?;
    module.add_function(wrap_pyfunction!(loader::epoch_order, module)?)?;
    module.add_function(wrap_pyfunction!(loader::decode_tiles, module)?)?;
    module.add_function(wrap_pyfunction!(loader::read_tiles, module)?)?;
    module.add_function(wrap_pyfunction!(loader::gather_rows, module)?)?;
    module.add_function(wrap_pyfunction!(loader::gather_dense, module)?)?;
    module.add_function(wrap_pyfunction!(loader::gather_sparse, module)?)?;
    module.add_function(wrap_pyfunction!(loader::look_up_tiles, module)?)?;
    module.add_function(wrap_pyfunction!(tiles::codec_rate, module)?)?;
    module.add_function(wrap_pyfunction!(text::read_mtx, module)?)?;
    module.add_function(wrap_pyfunction!(text::read_table, module)?)?;
    module.add_function(wrap_pyfunction!(text::write_table, module)?)?;
    module.add_function(wrap_pyfunction!(tiles::extract_tiles, module)?)?;
    module.add_function(wrap_pyfunction!(tiles::resize_tiles, module)?)?;
    module.add_function(wrap_pyfunction!(tiles::tile_order, module)?)?;
    module.add_function(wrap_pyfunction!(tiles::write_tiles, module)?)?;
    Ok(())
}
