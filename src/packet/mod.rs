//! The MQTT codec, 3.1.1 and 5.0: the only code that sees unparsed bytes of a device. Strict where the standard is,
//! and without an allocation for PUBLISH and its acknowledgements, which are borrowed from the read buffer.
//!
//! [`next_frame`] cuts one packet off a buffer; a `parse_…` function says what it is; a `write_…` function appends
//! one to a buffer. Whether a packet may come *here* and *now* is the session's to say.

mod acknowledge;
mod connack;
mod connect;
mod disconnect;
mod frame;
mod message;
mod property;
mod publish;
mod subscribe;
mod wire;

pub use acknowledge::{
    Acknowledgement, parse_puback, parse_pubcomp, parse_pubrec, parse_pubrel, write_puback, write_puback_with_reason,
    write_pubcomp, write_pubrec, write_pubrec_with_reason, write_pubrel,
};
pub use connack::{Connack, parse_connack, write_connack};
pub use connect::{Connect, Password, ProblemInformation, Will, connect_answer_version, parse_connect, write_connect};
pub use disconnect::{
    Auth, Disconnect, parse_auth, parse_disconnect, parse_empty, write_auth, write_disconnect, write_pingreq,
    write_pingresp,
};
pub use frame::{Frame, PacketType, VARINT_MAX, next_frame, read_varint, varint_len, write_varint};
pub use message::{
    MessageProperty, message_properties, retain_user_properties, write_message_property, write_subscription_id,
};
pub use property::message_expiry_at;
pub use publish::{DeliveryProperties, Publish, PublishRef, parse_publish, write_publish};
pub use subscribe::{
    Suback, Subscribe, SubscriptionRequest, Unsubscribe, parse_suback, parse_subscribe, parse_unsuback,
    parse_unsubscribe, write_suback, write_subscribe, write_unsuback, write_unsubscribe,
};

use std::fmt;

use crate::denial::{CloseReason, Denial};

/// Which MQTT a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProtocolVersion {
    /// MQTT 3.1.1 (protocol level 4).
    V3_1_1,
    /// MQTT 5.0 (protocol level 5).
    V5_0,
}

/// Quality of service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    /// 0.
    AtMostOnce = 0,
    /// 1.
    AtLeastOnce = 1,
    /// 2.
    ExactlyOnce = 2,
}

impl QoS {
    /// From the two bits of the wire; 3 is none.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Why bytes are no packet. The sentence is ours, never the peer's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketError {
    /// It cannot be parsed (5.0: 0x81).
    Malformed(&'static str),
    /// It can be parsed, but says what may not be said (5.0: 0x82).
    Protocol(&'static str),
    /// It is larger than allowed (5.0: 0x95).
    TooLarge(&'static str),
    /// CONNECT of another protocol version (5.0: 0x84).
    UnsupportedVersion,
    /// A topic name that is none (5.0: 0x90).
    TopicInvalid,
}

impl PacketError {
    /// Reason code of MQTT 5.0 §2.4.
    pub const fn reason_code(self) -> u8 {
        match self {
            Self::Malformed(_) => 0x81,
            Self::Protocol(_) => 0x82,
            Self::TooLarge(_) => 0x95,
            Self::UnsupportedVersion => 0x84,
            Self::TopicInvalid => 0x90,
        }
    }

    /// What is wrong, for a log.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Malformed(what) | Self::Protocol(what) | Self::TooLarge(what) => what,
            Self::UnsupportedVersion => "a protocol version that is not served",
            Self::TopicInvalid => "no topic name",
        }
    }

    /// The refusal of a CONNECT that failed so.
    pub const fn denial(self) -> Denial {
        match self {
            Self::Malformed(_) => Denial::Malformed,
            Self::Protocol(_) => Denial::ProtocolViolation,
            Self::TooLarge(_) => Denial::PacketTooLarge,
            Self::UnsupportedVersion => Denial::ProtocolVersion,
            Self::TopicInvalid => Denial::TopicInvalid,
        }
    }
}

impl From<PacketError> for CloseReason {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::Malformed(_) => Self::Malformed,
            PacketError::Protocol(_) | PacketError::UnsupportedVersion => Self::ProtocolError,
            PacketError::TooLarge(_) => Self::PacketTooLarge,
            PacketError::TopicInvalid => Self::Denied(Denial::TopicInvalid),
        }
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl std::error::Error for PacketError {}

#[cfg(test)]
mod tests;
