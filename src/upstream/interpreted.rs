//! A hub that is spoken to by a library, seen from its link as a hub that speaks MQTT 5.0. This is the seam for every pool
//! member that is not our own session on a socket.
//!
//! The link writes CONNECT, PUBLISH and SUBSCRIBE into a pipe. At its far end an *interpreter* says the same in its hub's
//! terms, and answers with CONNACK, PUBACK and SUBACK when the hub has. So window, order, resends and spool are the link's
//! for every kind of hub, and a hub that is lost is the end of a stream. Where no message is the cause of that, the
//! interpreter says DISCONNECT with the reason code.

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

/// The near end of the pipe, and the interpreter: it has no task of its own, moves when the stream is read, and ends with
/// it.
pub struct Interpreted {
    near: DuplexStream,
    interpreter: Option<Interpreter>,
    explanation: Option<io::Error>,
    tally: Arc<Tally>,
}

/// What happened that MQTT has no word for.
#[derive(Debug, Default)]
pub struct Tally {
    duplicates: AtomicU64,
    dropped: [AtomicU64; 4],
}

/// Why a message that nobody answers for was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// On its way up, at QoS 0: the hub does not take it.
    HubRefused,
    /// On its way down: no topic is called so.
    NoSubscriber,
    /// On its way down: no packet of MQTT holds it.
    TooLarge,
    /// On its way down: more came than was read.
    NotReading,
}

impl Dropped {
    const ALL: [Self; 4] = [Self::HubRefused, Self::NoSubscriber, Self::TooLarge, Self::NotReading];

    /// As metrics call it.
    pub fn tag(self) -> &'static str {
        match self {
            Self::HubRefused => "hub_refused",
            Self::NoSubscriber => "no_subscriber",
            Self::TooLarge => "too_large",
            Self::NotReading => "not_reading",
        }
    }
}

impl Tally {
    /// The hub had a message when it was sent again.
    pub fn duplicate(&self) {
        self.duplicates.fetch_add(1, Relaxed);
    }

    /// A message was dropped.
    pub fn dropped(&self, why: Dropped) {
        self.dropped[why as usize].fetch_add(1, Relaxed);
    }

    /// The duplicates since it was last asked.
    pub fn take_duplicates(&self) -> u64 {
        self.duplicates.swap(0, Relaxed)
    }

    /// What was dropped since it was last asked, by reason.
    pub fn take_dropped(&self) -> impl Iterator<Item = (Dropped, u64)> {
        let taken = |why: Dropped| (why, self.dropped[why as usize].swap(0, Relaxed));
        Dropped::ALL.into_iter().map(taken).filter(|(_, count)| *count > 0)
    }
}

type Interpreter = Pin<Box<dyn Future<Output = io::Error> + Send>>;

impl Interpreted {
    /// `interpreter` is given the far end, and where it counts. It says why it came to its end.
    pub fn new<F>(interpreter: impl FnOnce(DuplexStream, Arc<Tally>) -> F) -> Self
    where
        F: Future<Output = io::Error> + Send + 'static,
    {
        let (near, far) = duplex(PIPE_BYTES);
        let tally = Arc::<Tally>::default();
        let interpreter: Interpreter = Box::pin(interpreter(far, Arc::clone(&tally)));
        Self { near, interpreter: Some(interpreter), explanation: None, tally }
    }

    /// What it counts.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Why the interpreter came to its end, in its hub's words.
    pub fn explanation(&self) -> Option<&io::Error> {
        self.explanation.as_ref()
    }
}

/// An error with all that it says of its causes.
pub(super) fn with_sources(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

impl fmt::Debug for Interpreted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interpreted").field("explanation", &self.explanation).finish_non_exhaustive()
    }
}

impl AsyncRead for Interpreted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(interpreter) = &mut this.interpreter
            && let Poll::Ready(why) = interpreter.as_mut().poll(cx)
        {
            (this.interpreter, this.explanation) = (None, Some(why));
        }
        Pin::new(&mut this.near).poll_read(cx, buf)
    }
}

impl AsyncWrite for Interpreted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().near).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().near).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().near).poll_shutdown(cx)
    }
}

/// In each direction: what is in here is neither the link's to hold back nor the hub's to lose.
const PIPE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_the_interpreter_said_last_is_read_before_its_end_and_its_reason() {
        let mut stream = Interpreted::new(|mut far, tally| async move {
            tally.duplicate();
            tally.dropped(Dropped::TooLarge);
            let mut heard = [0; 3];
            far.read_exact(&mut heard).await.expect("three bytes");
            far.write_all(&heard).await.expect("written");
            io::Error::other("the hub is tired")
        });
        stream.write_all(b"abc").await.expect("written");
        let mut answer = Vec::new();
        assert!(stream.explanation().is_none());
        stream.read_to_end(&mut answer).await.expect("read to the end");
        assert_eq!(answer, b"abc");
        assert_eq!(stream.explanation().expect("an explanation").to_string(), "the hub is tired");
        stream.write_all(b"x").await.expect_err("nobody reads");
        assert_eq!([stream.tally().take_duplicates(), stream.tally().take_duplicates()], [1, 0]);
        assert_eq!(stream.tally().take_dropped().collect::<Vec<_>>(), [(Dropped::TooLarge, 1)]);
        assert_eq!(stream.tally().take_dropped().count(), 0);
    }
}
