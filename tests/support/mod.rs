//! What the tests of a running gateway share: the gateway in a process of its own, devices that speak MQTT byte by byte,
//! and a hub that records before it acknowledges.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod commander;
mod device;
mod gateway;
mod https;
mod hub;
mod load;
mod process;
mod proxy;
mod secrets;
mod token;
mod wait;

pub use commander::Commander;
pub use device::{Answer, ClientIdentity, Device, Login, Stream, Version, dial, open_tls, publish_packet, tls_over};
pub use gateway::{Gateway, Hub, HubClient, Plan};
pub use https::{HttpAnswer, Https};
pub use hub::{Recorded, Recorder};
pub use load::{
    Ends, IN_FLIGHT_MAX, Ledger, Progress, events, publish_numbers, publish_numbers_once, random, until_drained,
};
pub use process::Process;
pub use proxy::ConnectProxy;
pub use secrets::{forget, found_in, found_in_text, remember, remember_files, remember_key, remember_tokens};
pub use token::{ISSUER_SECRET, claims_with, device_key, jwt, jwt_of, jwt_with, sas, sas_for, sas_until, unix_now};
pub use wait::{folder, free_port, until, until_some};
