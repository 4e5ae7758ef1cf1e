//! From a device's PUBLISH to the hub's acknowledgement, without a socket and a clock: one [`Link`] is one pool member
//! of one shard. It retains every message until the hub has it, sends what a lost connection leaves behind again, in
//! order, and says who may go on when the window was full. Behind the same [`Link::offer`] stands the [`spool`]: what a hub
//! does not take in time goes to the disk and waits there.

mod aging;
mod backlog;
mod doubt;
mod doubting;
mod holds;
mod link;
mod log;
mod places;
mod queue;
mod refusal;
mod settling;
mod slots;
pub mod spool;
mod spooling;
mod stamp;
mod subscriptions;
mod turns;

pub use backlog::BacklogConfig;
pub use holds::{Incoming, Taken, Ticket};
pub use link::Link;
pub use refusal::Refusal;
pub use stamp::{STAMPED_DEVICE, session_stamp};

use std::fmt;

use crate::{
    packet::QoS,
    route::Ack,
    session::client::{ClientConfig, ClientError},
    topic::TopicFilter,
};

/// A session of the shard, as a value: its slot, and which of the sessions that have been in the slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionRef {
    /// Where the shard keeps it.
    pub slot: u32,
    /// Differs for each session that has been there.
    pub generation: u32,
}

/// What a [`Link`] is told.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// How it introduces itself.
    pub client: ClientConfig,
    /// Messages of QoS 1 in flight, 1 to 60,000. More covers a longer round trip, and takes memory.
    pub window: usize,
    /// Bytes of messages that are retained. A single message that is larger still finds room in an empty log.
    pub log_bytes_max: usize,
    /// What `tollgate-id` begins with; unique over gateways, links and restarts.
    pub id_prefix: String,
    /// The hub is asked for no more than this QoS for messages to devices.
    pub subscribe_qos_max: QoS,
    /// The spool's side. Without it the hub is the only witness.
    pub spool: Option<BacklogConfig>,
}

/// A message for the hub.
#[derive(Clone, Copy)]
pub struct Outbound<'a> {
    /// In the hub's terms.
    pub topic: &'a str,
    /// 2 is forwarded as 1.
    pub qos: QoS,
    /// RETAIN; cleared for a hub that has no retained messages.
    pub retain: bool,
    /// The device's own properties that may be forwarded, encoded; for a 5.0 hub.
    pub properties: &'a [u8],
    /// See [`session_stamp`]; for a 5.0 hub.
    pub stamp: &'a [u8],
    /// The application message.
    pub payload: &'a [u8],
    /// When it was received: milliseconds of the wall clock since 1970.
    pub received_ms: u64,
    /// Hash of the device's id.
    pub device: u64,
    /// Who must have it before the device is told.
    pub ack: Ack,
}

/// What became of an offered message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Offer {
    /// The link has it. QoS 1: it will be [`Settled`] once.
    Taken,
    /// No room. The session stands in the queue, reads no more, and offers it again when it is woken.
    Wait,
    /// QoS 0 that is given up, and the tag of the reason.
    Dropped(&'static str),
    /// Larger than this hub takes, or than MQTT can say.
    TooLarge,
}

/// What became of whoever was to be woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// It comes, and gives back what it does not need.
    Here,
    /// There is nobody: what was meant for it is others'.
    Gone,
}

/// What a session wishes of a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// At most.
    pub qos: QoS,
    /// Whether it is to get what the hub retains for it.
    pub retained: Retained,
    /// Whether RETAIN of what is published is wanted as it came.
    pub as_published: bool,
    /// Comes back in [`Placed`].
    pub token: u64,
}

/// Whether messages are wanted that a hub retained before it was asked for their filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retained {
    /// The hub is asked, also where it holds the filter already for another session; and again where it begins anew.
    Wanted,
    /// The hub is asked, this time only.
    Once,
    /// A subscription that goes on: the hub is asked where it begins anew.
    Missed,
    /// A subscriber that does without.
    Unwanted,
}

/// What became of a wish to subscribe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Placement {
    /// A [`Placed`] will say.
    Pending,
    /// The hub holds the filter, or will be asked for it as soon as the link is up.
    Granted(QoS),
}

/// What the hub's bytes brought. It is the caller's to empty, and counts also when an error ends the connection.
#[derive(Debug, Default)]
pub struct LinkOutput {
    /// Messages whose devices are to be told.
    pub settled: Vec<Settled>,
    /// Messages that the hub acknowledged.
    pub forwarded: u64,
    /// Subscriptions that were waited for.
    pub placed: Vec<Placed>,
    /// Subscriptions that the hub refused after they had been granted.
    pub withdrawn: Vec<Withdrawn>,
    /// Messages of the hub that no session has a filter for.
    pub unclaimed: u64,
    /// Messages that the hub retained, and that no session waits for.
    pub unasked: u64,
    /// Messages of QoS 0 that a hub closed in the middle of.
    pub cut: u64,
}

/// A message whose device is to be told; its session may be gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Whose message.
    pub session: SessionRef,
    /// The device's packet id.
    pub packet_id: u16,
    /// A witness has it, or the hub, its only witness, will not have it.
    pub outcome: Result<(), Refusal>,
    /// Milliseconds since it was offered.
    pub took_ms: u64,
}

/// The hub's answer to a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Whose subscription.
    pub session: SessionRef,
    /// As the [`Wish`] had it.
    pub token: u64,
    /// What was granted, or the hub's reason code.
    pub granted: Result<QoS, u8>,
}

/// A subscription that the hub took back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Withdrawn {
    /// Whose subscription.
    pub session: SessionRef,
    /// Which.
    pub filter: TopicFilter,
    /// The hub's reason code.
    pub reason: u8,
}

/// Why the connection of a link must end. What is unacknowledged stays and is sent again on the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkError {
    /// CONNACK with this code.
    Refused(u8),
    /// The MQTT session broke.
    Session(ClientError),
    /// Messages or subscriptions wait, and the hub has acknowledged none for 20 s.
    Stalled,
    /// The hub answered a message with "quota exceeded": it is sent again after a pause.
    TooMuch,
}

/// How a connection came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// By the other side, or the network between: what was on the wire may have been the cause.
    ByHub,
    /// By this gateway, or for a reason that the hub named and that no message is the cause of.
    Otherwise,
}

impl LinkError {
    /// Whether a message may have been what the hub ended the connection for.
    pub fn lost(self) -> Lost {
        match self {
            Self::Session(ClientError::Closed(reason)) if !NO_MESSAGE_IS_THE_CAUSE.contains(&reason) => Lost::ByHub,
            _ => Lost::Otherwise,
        }
    }

    /// Whether the hub asks for less: the next connection is not to follow at once.
    pub fn asks_for_less(self) -> bool {
        match self {
            Self::TooMuch => true,
            Self::Session(ClientError::Closed(reason)) => ASKS_FOR_LESS.contains(&reason),
            _ => false,
        }
    }
}

impl From<ClientError> for LinkError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(code) => Self::Refused(code),
            error => Self::Session(error),
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code) => ClientError::Refused(*code).fmt(f),
            Self::Session(error) => error.fmt(f),
            Self::Stalled => write!(f, "the hub acknowledged nothing for {} s", link::PROGRESS_WITHIN.as_secs()),
            Self::TooMuch => f.write_str("the hub answered a message with 0x97, quota exceeded"),
        }
    }
}

impl std::error::Error for LinkError {}

/// DISCONNECT of MQTT 5.0 §3.14.2.1: normal, server busy, shutting down, keep alive, taken over, message rate, quota,
/// administrative action, use another server, server moved, connection rate, maximum connect time.
const NO_MESSAGE_IS_THE_CAUSE: [u8; 12] = [0x00, 0x89, 0x8b, 0x8d, 0x8e, 0x96, 0x97, 0x98, 0x9c, 0x9d, 0x9f, 0xa0];
/// Of these, server busy, message rate, quota and connection rate.
const ASKS_FOR_LESS: [u8; 4] = [0x89, 0x96, 0x97, 0x9f];

#[cfg(test)]
mod backlog_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
mod poison_tests;
#[cfg(test)]
mod spool_model;
#[cfg(test)]
mod tests;
