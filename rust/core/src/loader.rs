//! What a training batch is made of: an order, encoded tiles and gene rows.
//!
//! Tiles that are cut from slides as they are needed come from `tiles`; here are
//! those that lie encoded in the shards of a built dataset.

mod coded;
mod genes;
mod order;
mod pixels;

pub use coded::{Coded, Shards, decode, read};
pub use genes::{Stored, gather, gather_dense, gather_sparse};
pub use order::{Permutation, order};
pub use pixels::{Table, look_up};
