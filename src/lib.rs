//! Tollgate: an authenticating MQTT gateway. The `mod` lines stand in floor order: a module imports lower floors
//! only (`tests/layering.rs`).

// Floor 0: names, times, sizes, refusals. Pure.
pub mod denial;
pub mod id;
pub mod size;
pub mod time;
pub mod topic;
