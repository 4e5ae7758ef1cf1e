//! What a route is told by `config/gateway.toml`.

/// One `[[route]]`: which topics go to which hub, and what they are called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Topics in the device's terms: literal text, `{device}` for its id, and at most one `#`, as the last level.
    pub from: String,
    /// The same in the hub's terms; absent: unchanged.
    pub to: Option<String>,
    /// Name of the `[[upstream]]`.
    pub upstream: String,
    /// Who must have a message before the device's PUBLISH is acknowledged.
    pub ack: Ack,
}

impl RouteConfig {
    /// A route that leaves topics as they are.
    pub fn new(from: impl Into<String>, upstream: impl Into<String>) -> Self {
        Self { from: from.into(), to: None, upstream: upstream.into(), ack: Ack::default() }
    }
}

/// The witness that a PUBACK waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ack {
    /// Whichever has it first of those that there are.
    #[default]
    Durable,
    /// The hub.
    Hub,
    /// The disk of the gateway.
    Disk,
}
