//! What the files say: shapes, and every mistake in them at once.

mod document;
mod mistake;

pub use mistake::{Mistake, line_of};
