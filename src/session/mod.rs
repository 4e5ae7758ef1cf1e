//! How MQTT is spoken, without a socket, a clock or a rule of ours: state machines that are handed whole packets and
//! append their answers to a buffer.
//!
//! [`server`] faces a device, [`client`] a hub; [`image`] is how a session is written down.

pub mod client;
pub mod image;
pub mod server;
