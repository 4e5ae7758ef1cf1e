//! Tollgate: an authenticating MQTT gateway. The `mod` lines stand in floor order: a module imports lower floors
//! and its own children only (`tests/layering.rs` holds it).

// Floor 0: names, times, sizes, refusals. Pure.
pub mod denial;
pub mod id;
pub mod size;
pub mod time;
pub mod topic;
// Floor 1: what arrives, and what proves who sent it. Pure.
pub mod credential;
pub mod packet;
// Floor 2: what a device may do, and how MQTT is spoken. Pure.
pub mod policy;
pub mod session;
// Floor 3: decisions. Pure.
pub mod gate;
pub mod route;
// Floor 4: files that are replaced whole, and locks.
pub mod file;
// Floor 5: sockets, disks, tables of what is live.
pub mod audit;
pub mod clock;
pub mod delivery;
pub mod journal;
pub mod listener;
pub mod meter;
pub mod pools;
pub mod registry;
pub mod roster;
pub mod takeovers;
pub mod upstream;
pub mod usage;
// Floor 6: what moves.
pub mod feed;
pub mod shard;
// Floor 7: what an operator asks a running gateway, and devices that want tokens.
pub mod admin;
pub mod token_service;
// Floor 8: configuration.
pub mod config;
// Floor 9: the program.
pub mod app;
pub mod cli;
