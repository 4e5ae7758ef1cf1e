//! MQTT 3.1.1 and 5.0, statement by statement, against a gateway in a process of its own with a hub that sees every
//! byte. `docs/conformance.md` says which test holds which statement; `statements` holds it to the sources.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "conformance/connect.rs"]
mod connect;
#[path = "conformance/connection.rs"]
mod connection;
#[path = "conformance/exactly_once.rs"]
mod exactly_once;
#[path = "conformance/hub.rs"]
mod hub;
#[path = "conformance/messages.rs"]
mod messages;
#[path = "conformance/publish.rs"]
mod publish;
#[path = "conformance/statements.rs"]
mod statements;
#[path = "conformance/subscribe.rs"]
mod subscribe;
#[path = "conformance/wills.rs"]
mod wills;
#[path = "conformance/wire.rs"]
mod wire;

mod support;

use support::{Gateway, Plan, Version};

/// A gateway and its hub, which speaks 5.0.
fn both() -> (Gateway, hub::Hub) {
    with(|plan| plan)
}

/// The same with a plan of its own.
fn with(change: impl FnOnce(Plan) -> Plan) -> (Gateway, hub::Hub) {
    let hub = hub::Hub::start(Version::V5);
    let gateway = change(Plan::new(support::Hub::At(hub.port(), Version::V5))).start();
    (gateway, hub)
}

/// Where `d0` publishes.
const EVENTS: &str = "devices/d0/messages/events/";
/// What `d0` subscribes to.
const COMMANDS: &str = "devices/d0/messages/devicebound/#";
const BOTH: [Version; 2] = [Version::V4, Version::V5];
