//! The gate: whether a CONNECT is admitted, in which order it is checked, and whether a live session still may be.

mod config;

pub use config::{GateConfig, Profile};
