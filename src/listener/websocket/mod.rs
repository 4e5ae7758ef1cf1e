//! MQTT over WebSocket (MQTT 5.0 §6): a stream of bytes in binary frames. An idle connection holds no buffer: payloads are
//! unmasked where the session reads them, and frames are cut from what it writes.

mod frame;
mod upgrade;

pub use frame::{Control, Decoder, Violation};
pub use upgrade::{Declined, Upgrade, WebSocketRules, read as read_upgrade};

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use zeroize::Zeroizing;

use super::Stream;
use frame::{Opcode, SERVER_HEAD_BYTES_MAX};

/// A device's connection that carries frames.
#[derive(Debug)]
pub struct WebSocket {
    wire: Stream,
    decoder: Decoder,
    /// A frame's payload that is still owed, and its head, as far as it is not written.
    frame: OpenFrame,
    /// Control frames, whole, that have not been written.
    controls: Vec<u8>,
    /// Read behind the request, and not decoded yet.
    early: Vec<u8>,
    frame_bytes_max: usize,
    end: End,
}

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    /// The peer's Close was read: nothing more comes.
    Heard,
    /// Ours was written, or is about to be: nothing more is sent.
    Told,
}

#[derive(Debug, Default)]
struct OpenFrame {
    head: [u8; SERVER_HEAD_BYTES_MAX],
    written: u8,
    head_len: u8,
    left: usize,
}

/// A connection that became a WebSocket.
#[derive(Debug)]
pub struct Upgraded {
    /// It, as a stream of bytes.
    pub stream: Stream,
    /// `Authorization: Bearer` of the request.
    pub bearer: Option<Zeroizing<Vec<u8>>>,
}

/// Why a connection did not become a WebSocket.
#[derive(Debug)]
pub enum UpgradeError {
    /// The request was answered with a status; the connection is still to be closed.
    Declined {
        /// In which words.
        answer: Vec<u8>,
        /// One sentence for the operator.
        why: String,
        /// It.
        stream: Box<Stream>,
    },
    /// The peer went away.
    Gone(io::Error),
}

/// Reads the request and answers it; the caller bounds the time. A frame is at most `frame_bytes_max` bytes.
///
/// # Errors
/// [`UpgradeError`].
pub async fn upgrade(
    mut wire: Stream,
    rules: &WebSocketRules,
    frame_bytes_max: usize,
) -> Result<Upgraded, UpgradeError> {
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    let upgrade = loop {
        match wire.read_buf(&mut bytes).await {
            Ok(0) => return Err(UpgradeError::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(UpgradeError::Gone(error)),
        }
        match upgrade::read(&bytes, rules) {
            Ok(None) => {}
            Ok(Some(upgrade)) => break upgrade,
            Err(declined) => {
                let (answer, why) = (declined.answer(), format!("The WebSocket was refused: {declined}"));
                return Err(UpgradeError::Declined { answer, why, stream: Box::new(wire) });
            }
        }
    };
    wire.write_all(&upgrade.answer).await.map_err(UpgradeError::Gone)?;
    wire.flush().await.map_err(UpgradeError::Gone)?;
    let socket = WebSocket {
        wire,
        decoder: Decoder::default(),
        frame: OpenFrame::default(),
        controls: Vec::new(),
        early: bytes.split_off(upgrade.used),
        frame_bytes_max,
        end: End::Open,
    };
    // It may hold a token.
    drop(Zeroizing::new(bytes));
    Ok(Upgraded { stream: Stream::Web(Box::new(socket)), bearer: upgrade.bearer })
}

impl WebSocket {
    /// What carries it.
    pub(super) fn wire(&mut self) -> &mut Stream {
        &mut self.wire
    }

    /// Decodes what stands in the part of `buf` that was just filled; says whether that gave anything to read.
    fn decode(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> Result<bool, Violation> {
        let (controls, end) = (&mut self.controls, &mut self.end);
        let fresh = buf.filled_mut().get_mut(before..).unwrap_or_default();
        let decoded = self.decoder.read(fresh, self.frame_bytes_max, |control| match control {
            // RFC 6455 §5.5.3: of several pings the last may be answered alone. One answer at a time bounds what is owed.
            Control::Ping(payload) if controls.is_empty() => write_control(controls, Opcode::Pong, &payload),
            Control::Ping(_) => {}
            Control::Close => {
                if *end == End::Open {
                    write_control(controls, Opcode::Close, &NORMAL.to_be_bytes());
                }
                *end = End::Heard;
            }
        });
        match decoded {
            Ok(n) => {
                buf.set_filled(before + n);
                Ok(n > 0)
            }
            Err(violation) => {
                buf.set_filled(before);
                if self.end == End::Open {
                    write_control(&mut self.controls, Opcode::Close, &violation.status().to_be_bytes());
                }
                self.end = End::Told;
                Err(violation)
            }
        }
    }

    /// Writes the control frames that are owed, where no data frame is open.
    fn poll_controls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.frame.left == 0 && !self.controls.is_empty() {
            match ready!(Pin::new(&mut self.wire).poll_write(cx, &self.controls))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => drop(self.controls.drain(..n)),
            }
        }
        if self.controls.is_empty() {
            self.controls = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for WebSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.end != End::Open {
                // What is owed goes out if it can; whether it does changes nothing for the reader.
                let _ = this.poll_controls(cx);
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            if this.early.is_empty() {
                ready!(Pin::new(&mut this.wire).poll_read(cx, buf))?;
                if buf.filled().len() == before {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let n = this.early.len().min(buf.remaining());
                buf.put_slice(this.early.get(..n).unwrap_or_default());
                this.early.drain(..n);
                if this.early.is_empty() {
                    this.early = Vec::new();
                }
            }
            let anything = this.decode(buf, before);
            // A pong that cannot be written wakes this task once it can.
            if let Poll::Ready(Err(error)) = this.poll_controls(cx) {
                return Poll::Ready(Err(error));
            }
            match anything {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(violation) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation))),
            }
        }
    }
}

impl AsyncWrite for WebSocket {
    /// A frame is opened for all that is offered. What is not taken of it has to be offered again, as it is: the frame's
    /// length has been told.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.frame.left == 0 {
            ready!(this.poll_controls(cx))?;
            if this.end != End::Open {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let (head, head_len) = frame::head(Opcode::Binary, bytes.len());
            this.frame = OpenFrame { head, written: 0, head_len: head_len as u8, left: bytes.len() };
        }
        let frame = &mut this.frame;
        let payload = bytes.get(..frame.left.min(bytes.len())).unwrap_or_default();
        let owed = frame.head.get(usize::from(frame.written)..usize::from(frame.head_len)).unwrap_or_default();
        if owed.is_empty() {
            let n = ready!(Pin::new(&mut this.wire).poll_write(cx, payload))?;
            frame.left -= n;
            return Poll::Ready(Ok(n));
        }
        // Head and payload in one write: one packet of the network, one record of TLS.
        let mut together = [0; TOGETHER_BYTES];
        let with = payload.len().min(TOGETHER_BYTES - owed.len());
        let whole = owed.len() + with;
        together[..owed.len()].copy_from_slice(owed);
        together[owed.len()..whole].copy_from_slice(&payload[..with]);
        let (owed, n) = (owed.len(), ready!(Pin::new(&mut this.wire).poll_write(cx, &together[..whole]))?);
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        frame.written += n.min(owed) as u8;
        let taken = n.saturating_sub(owed);
        frame.left -= taken;
        if taken == 0 {
            // Part of the head: the caller is to come again at once.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_controls(cx))?;
        Pin::new(&mut this.wire).poll_flush(cx)
    }

    /// RFC 6455 §7.1.1: a Close, then the end of what we send.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end == End::Open && this.frame.left == 0 {
            write_control(&mut this.controls, Opcode::Close, &NORMAL.to_be_bytes());
            this.end = End::Told;
        }
        ready!(this.poll_controls(cx))?;
        ready!(Pin::new(&mut this.wire).poll_flush(cx))?;
        Pin::new(&mut this.wire).poll_shutdown(cx)
    }
}

fn write_control(controls: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let (head, n) = frame::head(opcode, payload.len());
    controls.extend_from_slice(head.get(..n).unwrap_or_default());
    controls.extend_from_slice(payload);
}

/// RFC 6455 §7.4.1.
const NORMAL: u16 = 1000;
/// A head and a packet as devices are sent them; more of a large one follows by itself.
const TOGETHER_BYTES: usize = 1024;
/// A request without a token.
const REQUEST_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use tungstenite::{
        Error, Message, WebSocket as Client, client,
        handshake::client::generate_key,
        http::Request,
        protocol::frame::{CloseFrame, coding::CloseCode},
    };

    /// Serves one connection that echoes what it reads, and gives the client's side to `talk`.
    fn with_echo<T: Send + 'static>(talk: impl FnOnce(Client<TcpStream>) -> T + Send + 'static) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let client = tokio::task::spawn_blocking(move || {
                let request = Request::get(format!("ws://{address}/mqtt"))
                    .header("Host", "localhost")
                    .header("Connection", "Upgrade")
                    .header("Upgrade", "websocket")
                    .header("Sec-WebSocket-Version", "13")
                    .header("Sec-WebSocket-Key", generate_key())
                    .header("Sec-WebSocket-Protocol", "mqtt")
                    .body(())
                    .expect("a request");
                let (client, answer) = client(request, TcpStream::connect(address).expect("connects")).expect("agreed");
                assert_eq!(answer.headers()["sec-websocket-protocol"], "mqtt");
                talk(client)
            });
            let (socket, _) = listener.accept().await.expect("accepted");
            let rules = WebSocketRules { paths: vec!["/mqtt".into()], origins: vec![], hosts: vec![] };
            let upgraded = upgrade(Stream::tcp(socket), &rules, FRAME_MAX).await.expect("upgraded");
            echo(upgraded.stream).await;
            client.await.expect("the client is content")
        })
    }

    async fn echo(mut stream: Stream) {
        let mut buffer = [0; 1500];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..n]).await.expect("written");
            stream.flush().await.expect("flushed");
        }
        // The peer may be gone.
        let _ = stream.shutdown().await;
    }

    const FRAME_MAX: usize = 1 << 20;

    /// Reads until so many bytes came, in whatever frames.
    fn collect(client: &mut Client<TcpStream>, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            match client.read().expect("a message") {
                Message::Binary(part) => all.extend_from_slice(&part),
                Message::Pong(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
        all
    }

    #[test]
    fn another_implementation_is_echoed_byte_for_byte_and_its_pings_are_answered() {
        with_echo(|mut client| {
            client.send(Message::Ping(b"first"[..].into())).expect("sent");
            assert_eq!(client.read().expect("a message"), Message::Pong(b"first"[..].into()));
            for length in [0, 1, 125, 126, 1013, 1014, 1015, 65_535, 65_536, 300_000] {
                let payload: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
                client.send(Message::Binary(payload.clone().into())).expect("sent");
                assert!(collect(&mut client, length) == payload, "{length} bytes");
            }
            client.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })).expect("closes");
            assert!(
                matches!(client.read().expect("the answer"), Message::Close(Some(frame)) if frame.code == CloseCode::Normal)
            );
            assert!(matches!(client.read(), Err(Error::ConnectionClosed)));
        });
    }

    #[test]
    fn text_and_frames_that_are_too_large_end_the_connection_with_their_status() {
        for (message, code) in [
            (Message::Text("CONNECT".into()), CloseCode::Unsupported),
            (Message::Binary(vec![0; FRAME_MAX + 1].into()), CloseCode::Size),
        ] {
            let closed = with_echo(move |mut client| {
                // The end may come while a large frame is still being sent.
                let _ = client.send(message);
                loop {
                    match client.read() {
                        Ok(Message::Close(frame)) => return frame.map(|frame| frame.code),
                        Ok(_) => {}
                        // With what it still sends unread, the client may be reset before it reads the Close.
                        Err(Error::Io(_)) if code == CloseCode::Size => return Some(code),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            assert_eq!(closed, Some(code));
        }
    }
}
