//! How a connection to a hub came to its end.

use std::{fmt, io};

use crate::{
    delivery::{LinkError, Lost},
    upstream::HubStream,
};

/// Why a connection ended.
pub(super) enum Ended {
    Dial(io::Error),
    Socket(io::Error),
    Link(LinkError),
    /// Another connection, with newer credentials, takes its place.
    Renewed(Option<HubStream>),
    /// The hub inside is elsewhere.
    LeftBehind,
    Left,
}

impl Ended {
    /// Whose doing it was.
    pub(super) fn lost(&self) -> Lost {
        match self {
            Self::Socket(_) => Lost::ByHub,
            Self::Link(error) => error.lost(),
            Self::Dial(_) | Self::Renewed(_) | Self::LeftBehind | Self::Left => Lost::Otherwise,
        }
    }

    /// One word for a metric.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Dial(_) => "dial",
            Self::Socket(_) | Self::Renewed(_) | Self::LeftBehind | Self::Left => "lost",
            Self::Link(LinkError::Refused(_)) => "refused",
            Self::Link(LinkError::Session(_)) => "session",
            Self::Link(LinkError::Stalled) => "stalled",
            Self::Link(LinkError::TooMuch) => "too_much",
        }
    }

    /// Whether the hub asks for less: the pause before the next connection grows on.
    pub(super) fn asks_for_less(&self) -> bool {
        matches!(self, Self::Link(error) if error.asks_for_less())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => write!(f, "cannot connect: {error}"),
            Self::Socket(error) => write!(f, "connection lost: {error}"),
            Self::Link(error) => error.fmt(f),
            Self::Renewed(_) => f.write_str("renewed"),
            Self::LeftBehind => f.write_str("the hub was started anew"),
            Self::Left => f.write_str("the gateway left"),
        }
    }
}
