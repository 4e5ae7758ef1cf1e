//! The desk: what an operator asks a running gateway over HTTP, and what it is told to do.

mod backend;

pub use backend::{Backend, Control, Readiness, Reloaded, UpstreamState, UpstreamStatus};
