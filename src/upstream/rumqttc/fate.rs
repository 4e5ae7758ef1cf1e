//! What the library says: what happened on its connection, and how that came to its end.

use std::{
    error::Error,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use super::CONNECT_WITHIN;
use crate::{packet::Connack, upstream::interpreted::with_sources};

/// Something that happened.
pub(super) enum Happened {
    /// The hub accepted the connection.
    Connected(Box<Connack>),
    /// The library sent the oldest request that it was given and had not sent.
    Sent(Sent),
    /// PUBACK: packet id and reason.
    Acknowledged(u16, u8),
    /// SUBACK.
    Subscribed(u16, Vec<u8>),
    /// UNSUBACK: of 5.0 with its reason.
    Unsubscribed(u16, u8),
    /// A PUBLISH of the hub, as the link reads it.
    Message(Vec<u8>),
}

/// What kind of request it was. The packet id of a PUBLISH of QoS 0 is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    Publish(u16),
    Subscribe(u16),
    Unsubscribe(u16),
    Acknowledgement(u16),
    Disconnect,
}

/// How it ended.
pub(super) struct End {
    pub(super) last_words: Option<LastWords>,
    pub(super) why: io::Error,
}

/// What the hub said last.
#[derive(Clone, Copy)]
pub(super) enum LastWords {
    /// CONNACK with this code.
    Refused(u8),
    /// DISCONNECT with this reason.
    Closed(u8),
}

impl End {
    /// The link is gone, or wants to be.
    pub(super) fn left() -> Self {
        Self { last_words: None, why: io::Error::other("the gateway left") }
    }

    pub(super) fn refused(code: u8) -> Self {
        let why = format!("the hub refused the connection (code 0x{code:02x})");
        Self { last_words: Some(LastWords::Refused(code)), why: io::Error::other(why) }
    }

    pub(super) fn closed(reason: u8) -> Self {
        let why = format!("the hub closed the connection (reason 0x{reason:02x})");
        Self { last_words: Some(LastWords::Closed(reason)), why: io::Error::other(why) }
    }

    /// The hub closed the connection, or the network did.
    pub(super) fn lost(error: Option<&io::Error>) -> Self {
        let why = match error {
            None => "connection lost: the hub closed it".to_owned(),
            Some(error) => format!("connection lost: {error}"),
        };
        Self { last_words: None, why: io::Error::new(io::ErrorKind::ConnectionReset, why) }
    }

    /// No connection was made.
    pub(super) fn unreachable(error: &(dyn Error + 'static)) -> Self {
        let why = format!("cannot connect: {}", shortened(with_sources(error)));
        Self { last_words: None, why: io::Error::new(io::ErrorKind::NotConnected, why) }
    }

    /// The hub closed the connection in the place of CONNACK.
    pub(super) fn not_answered() -> Self {
        Self::unreachable(&io::Error::new(io::ErrorKind::UnexpectedEof, "the hub closed the connection at CONNECT"))
    }

    /// By way of the proxy, whose answer is a status line.
    pub(super) fn no_way_through_proxy(error: &(dyn Error + 'static)) -> Self {
        let text = with_sources(error);
        let why = match text.rsplit_once(PROXY_REFUSED).map(|(_, code)| code.trim_end_matches('.')) {
            Some("407") => "the proxy does not accept this login (it answered 407)".to_owned(),
            Some(code) => format!("the proxy did not connect us to the hub (it answered {code})"),
            None => format!("no connection through the proxy: {}", shortened(text)),
        };
        Self { last_words: None, why: io::Error::new(io::ErrorKind::NotConnected, why) }
    }

    pub(super) fn connect_late() -> Self {
        let why = format!("cannot connect: the hub did not answer within {} s", CONNECT_WITHIN.as_secs());
        Self { last_words: None, why: io::Error::new(io::ErrorKind::TimedOut, why) }
    }

    /// No answer in time.
    pub(super) fn silent(what: &str) -> Self {
        Self { last_words: None, why: io::Error::new(io::ErrorKind::TimedOut, format!("the hub {what}")) }
    }

    /// The library ends it: what the hub sent is nothing that it knows.
    pub(super) fn not_understood(error: &(dyn Error + 'static)) -> Self {
        let why = format!("the hub was not understood: {}", shortened(with_sources(error)));
        Self { last_words: None, why: io::Error::new(io::ErrorKind::InvalidData, why) }
    }

    /// It does something else than it was told.
    pub(super) fn out_of_step(what: &str) -> Self {
        let why = format!("rumqttc is out of step: {what}");
        Self { last_words: None, why: io::Error::new(io::ErrorKind::InvalidData, why) }
    }
}

/// What came of handing the library a request: it takes all that [`REQUESTS_MAX`](super::REQUESTS_MAX) lets through.
pub(super) fn taken<E>(handed: Result<(), E>) -> Result<(), End> {
    handed.map_err(|_| End::out_of_step("it did not take a request"))
}

/// The library's event loop for one connection. A panic in it is the end of that connection alone.
pub(super) struct Guarded(Pin<Box<dyn Future<Output = End> + Send>>);

impl Guarded {
    pub(super) fn new(event_loop: impl Future<Output = End> + Send + 'static) -> Self {
        Self(Box::pin(event_loop))
    }
}

impl Future for Guarded {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        // Whatever state it left behind is dropped with it.
        let polled = catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(End::out_of_step("it panicked")))
    }
}

/// An error may quote what the hub or the proxy sent.
fn shortened(text: String) -> String {
    match text.char_indices().nth(ERROR_CHARS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// How async-http-proxy says it.
const PROXY_REFUSED: &str = "not equal 200: ";

const ERROR_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_the_library_is_an_end() {
        let end = Guarded::new(async { panic!("index out of bounds") }).await;
        assert_eq!(
            (end.why.kind(), end.why.to_string().as_str()),
            (io::ErrorKind::InvalidData, "rumqttc is out of step: it panicked")
        );
    }

    #[test]
    fn what_a_peer_sent_is_quoted_in_part() {
        let text = shortened("ü".repeat(5_000));
        assert_eq!(text.chars().count(), ERROR_CHARS_MAX + 1);
        assert_eq!(shortened("short".into()), "short");
    }
}
