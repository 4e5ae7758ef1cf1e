//! WebSocket frames as a server reads and writes them (RFC 6455 §5), for a stream of bytes: payloads are unmasked where
//! they were read and handed on at once, so that neither a frame nor a message is ever held whole. No I/O.

use std::fmt;

/// What came between the payloads, and has to be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// RFC 6455 §5.5.2: answered with the same bytes, 125 at most.
    Ping(Box<[u8]>),
    /// RFC 6455 §5.5.1: the peer sends nothing more.
    Close,
}

/// A frame that breaks the protocol, or that this server does not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// RFC 6455 §5: reserved bits or codes, no mask, a fragment out of place, a control frame too long or in pieces.
    Protocol(&'static str),
    /// MQTT 5.0 [MQTT-6.0.0-1]: data is binary.
    Text,
    /// A frame larger than a packet may be.
    TooLarge,
}

impl Violation {
    /// The status of the Close that answers it (RFC 6455 §7.4.1).
    pub fn status(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::Text => 1003,
            Self::TooLarge => 1009,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(what) => write!(f, "WebSocket: {what}"),
            Self::Text => f.write_str("WebSocket: a text frame; MQTT is sent in binary ones"),
            Self::TooLarge => f.write_str("WebSocket: a frame larger than a packet may be"),
        }
    }
}

impl std::error::Error for Violation {}

/// Reads frames of a client.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The head of a frame that has not come whole: 2 to 14 bytes.
    head: [u8; HEAD_BYTES_MAX],
    head_len: u8,
    frame: Option<Open>,
    /// A message has begun and has not ended: its next fragment is a continuation.
    in_message: bool,
}

/// The frame whose payload is being read.
#[derive(Debug)]
struct Open {
    mask: [u8; 4],
    /// Where in the mask the next byte of the payload falls.
    at: u8,
    left: u64,
    /// The payload of a control frame, until it is whole; `None`: data.
    control: Option<(Opcode, Vec<u8>)>,
}

impl Decoder {
    /// Takes what was read. The payload of data frames is unmasked and moved together at the front of `bytes`; says how
    /// many bytes of it there are. Control frames that came whole are given to `heard`. Nothing after a Close is read.
    ///
    /// # Errors
    /// [`Violation`]: the connection is to be closed with its status.
    pub fn read(
        &mut self,
        bytes: &mut [u8],
        frame_bytes_max: usize,
        mut heard: impl FnMut(Control),
    ) -> Result<usize, Violation> {
        let (mut at, mut data) = (0, 0);
        loop {
            let Some(frame) = &mut self.frame else {
                let Some(byte) = bytes.get(at) else { return Ok(data) };
                self.head[usize::from(self.head_len)] = *byte;
                self.head_len += 1;
                at += 1;
                self.frame = self.open(frame_bytes_max)?;
                continue;
            };
            let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            let payload = &mut bytes[at..at + here];
            for byte in payload.iter_mut() {
                *byte ^= frame.mask[usize::from(frame.at)];
                frame.at = (frame.at + 1) % 4;
            }
            match &mut frame.control {
                None => {
                    bytes.copy_within(at..at + here, data);
                    data += here;
                }
                Some((_, whole)) => whole.extend_from_slice(payload),
            }
            at += here;
            frame.left -= here as u64;
            if frame.left > 0 {
                return Ok(data);
            }
            match self.frame.take().and_then(|frame| frame.control) {
                None | Some((Opcode::Pong, _)) => {}
                Some((Opcode::Ping, payload)) => heard(Control::Ping(payload.into())),
                Some(_) => {
                    heard(Control::Close);
                    return Ok(data);
                }
            }
        }
    }

    /// The frame that the head opens; `None`: more of the head is needed.
    fn open(&mut self, frame_bytes_max: usize) -> Result<Option<Open>, Violation> {
        let head = self.head.get(..usize::from(self.head_len)).unwrap_or_default();
        let &[first, second, ref rest @ ..] = head else { return Ok(None) };
        let fin = first & FIN != 0;
        // RFC 6455 §5.2: no extension was negotiated, so no reserved bit has a meaning.
        if first & RESERVED != 0 {
            return Err(Violation::Protocol("a reserved bit is set, and no extension was agreed on"));
        }
        let opcode = Opcode::of(first).ok_or(Violation::Protocol("a reserved opcode"))?;
        // RFC 6455 §5.1
        if second & MASKED == 0 {
            return Err(Violation::Protocol("a frame without a mask"));
        }
        let short = second & !MASKED;
        let (length, rest) = match short {
            126 => match rest.split_first_chunk::<2>() {
                None => return Ok(None),
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            },
            127 => match rest.split_first_chunk::<8>() {
                None => return Ok(None),
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            },
            short => (u64::from(short), rest),
        };
        // RFC 6455 §5.2: the shortest form.
        if (short == 126 && length < 126) || (short == 127 && length <= u64::from(u16::MAX)) {
            return Err(Violation::Protocol("a length written longer than it need be"));
        }
        self.check(opcode, fin, short)?;
        if length > frame_bytes_max as u64 {
            return Err(Violation::TooLarge);
        }
        let &[a, b, c, d] = rest else { return Ok(None) };
        self.head_len = 0;
        if !opcode.is_control() {
            self.in_message = !fin;
        }
        let control = opcode.is_control().then(|| (opcode, Vec::new()));
        Ok(Some(Open { mask: [a, b, c, d], at: 0, left: length, control }))
    }

    fn check(&self, opcode: Opcode, fin: bool, short: u8) -> Result<(), Violation> {
        match opcode {
            Opcode::Text => Err(Violation::Text),
            // RFC 6455 §5.4
            Opcode::Binary if self.in_message => Err(Violation::Protocol("a message within another")),
            Opcode::Continuation if !self.in_message => Err(Violation::Protocol("a continuation of nothing")),
            Opcode::Binary | Opcode::Continuation => Ok(()),
            // RFC 6455 §5.5
            Opcode::Close | Opcode::Ping | Opcode::Pong if !fin => {
                Err(Violation::Protocol("a control frame in pieces"))
            }
            Opcode::Close | Opcode::Ping | Opcode::Pong if short > 125 => {
                Err(Violation::Protocol("a control frame of more than 125 bytes"))
            }
            Opcode::Close | Opcode::Ping | Opcode::Pong => Ok(()),
        }
    }
}

/// The head of a frame from a server: whole, without a mask. Says how many bytes of the answer it takes.
pub(super) fn head(opcode: Opcode, length: usize) -> ([u8; SERVER_HEAD_BYTES_MAX], usize) {
    let mut head = [0; SERVER_HEAD_BYTES_MAX];
    head[0] = FIN | opcode as u8;
    match (u16::try_from(length), length) {
        (_, 0..=125) => {
            head[1] = length as u8;
            (head, 2)
        }
        (Ok(length), _) => {
            head[1] = 126;
            head[2..4].copy_from_slice(&length.to_be_bytes());
            (head, 4)
        }
        (Err(_), _) => {
            head[1] = 127;
            head[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            (head, 10)
        }
    }
}

/// RFC 6455 §5.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    fn of(first: u8) -> Option<Self> {
        Some(match first & 0x0F {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Two bytes, eight of length, four of mask.
const HEAD_BYTES_MAX: usize = 14;
/// Two bytes and eight of length.
pub(super) const SERVER_HEAD_BYTES_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tungstenite::protocol::frame::{
        Frame, FrameHeader, FrameSocket,
        coding::{Control as TheirControl, Data, OpCode},
    };

    const MAX: usize = 1 << 20;

    /// A frame as a client of another implementation writes it.
    fn theirs(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let mask = Some([0x12, 0x80, 0xFF, payload.len() as u8]);
        let header = FrameHeader { is_final, opcode, mask, ..FrameHeader::default() };
        let frame = Frame::from_payload(header, payload.to_vec().into());
        let mut bytes = Vec::new();
        frame.format(&mut bytes).expect("a vector takes it");
        bytes
    }

    fn binary(payload: &[u8]) -> Vec<u8> {
        theirs(OpCode::Data(Data::Binary), true, payload)
    }

    /// Reads in pieces of these sizes, in turn.
    fn read(bytes: &[u8], pieces: &[usize]) -> Result<(Vec<u8>, Vec<Control>), Violation> {
        let (mut decoder, mut data, mut controls) = (Decoder::default(), Vec::new(), Vec::new());
        let (mut rest, mut sizes) = (bytes, pieces.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*sizes.next().unwrap_or(&rest.len())).min(rest.len()));
            let mut piece = piece.to_vec();
            let n = decoder.read(&mut piece, MAX, |control| controls.push(control))?;
            data.extend_from_slice(&piece[..n]);
            rest = after;
        }
        Ok((data, controls))
    }

    #[test]
    fn a_packet_over_many_frames_and_many_packets_in_one_are_one_stream() {
        let mut bytes = binary(b"one");
        bytes.extend(theirs(OpCode::Data(Data::Binary), false, b" and"));
        bytes.extend(theirs(OpCode::Control(TheirControl::Ping), true, b"are you there"));
        bytes.extend(theirs(OpCode::Data(Data::Continue), false, b""));
        bytes.extend(theirs(OpCode::Control(TheirControl::Pong), true, b"unasked"));
        bytes.extend(theirs(OpCode::Data(Data::Continue), true, b" two"));
        bytes.extend(binary(&[7; 70_000]));
        bytes.extend(theirs(OpCode::Control(TheirControl::Close), true, &1000u16.to_be_bytes()));
        for pieces in [&[1][..], &[2, 3, 5], &[usize::MAX]] {
            let (data, controls) = read(&bytes, pieces).expect("good frames");
            assert_eq!(data.strip_prefix(b"one and two"), Some(&[7; 70_000][..]));
            assert_eq!(controls, [Control::Ping(b"are you there"[..].into()), Control::Close]);
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_refused_by_its_status() {
        let masked = |first: u8, length: &[u8]| [&[first], length, &[0; 4]].concat();
        let unfinished = theirs(OpCode::Data(Data::Binary), false, b"x");
        for (what, bytes, status) in [
            ("no mask", vec![0x82, 0x01, b'x'], 1002),
            ("compressed", masked(0xC2, &[0x80]), 1002),
            ("opcode 3", masked(0x83, &[0x80]), 1002),
            ("opcode 11", masked(0x8B, &[0x80]), 1002),
            ("text", masked(0x81, &[0x80]), 1003),
            ("a continuation of nothing", masked(0x80, &[0x80]), 1002),
            ("a message in a message", [unfinished.clone(), binary(b"y")].concat(), 1002),
            ("a ping in pieces", masked(0x09, &[0x80]), 1002),
            ("a long ping", masked(0x89, &[0xFE, 0, 126]), 1002),
            ("a long close", masked(0x88, &[0xFF, 0, 0, 0, 0, 0, 1, 0, 0]), 1002),
            ("125 in two bytes", masked(0x82, &[0xFE, 0, 125]), 1002),
            ("65535 in eight bytes", masked(0x82, &[0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), 1002),
            ("one byte too many", masked(0x82, &[0xFF, 0, 0, 0, 0, 0, 0x10, 0, 1]), 1009),
            ("2^63 bytes", masked(0x82, &[0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0]), 1009),
        ] {
            for pieces in [&[1][..], &[usize::MAX]] {
                let refused = read(&bytes, pieces).expect_err(what);
                assert_eq!(refused.status(), status, "{what}: {refused}");
            }
        }
        assert!(read(&masked(0x82, &[0xFF, 0, 0, 0, 0, 0, 0x10, 0, 0]), &[3]).is_ok(), "exactly the limit");
    }

    #[test]
    fn nothing_is_read_behind_a_close() {
        let bytes = [theirs(OpCode::Control(TheirControl::Close), true, b""), binary(b"late")].concat();
        assert_eq!(read(&bytes, &[usize::MAX]).expect("read"), (vec![], vec![Control::Close]));
    }

    proptest! {
        #[test]
        fn another_implementation_is_understood(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..8),
            pieces in prop::collection::vec(1usize..50, 1..8),
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| binary(payload)).collect();
            prop_assert_eq!(read(&bytes, &pieces).expect("good frames").0, payloads.concat());
        }

        #[test]
        fn another_implementation_understands(length in prop_oneof![0usize..130, 65_530usize..65_540]) {
            let (head, n) = head(Opcode::Binary, length);
            let bytes = [&head[..n], &vec![9; length]].concat();
            let frame = FrameSocket::new(std::io::Cursor::new(bytes)).read(None).expect("good").expect("whole");
            prop_assert!(frame.header().is_final && frame.header().mask.is_none());
            prop_assert_eq!(frame.into_payload(), vec![9; length]);
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1usize..40) {
            let whole = read(&bytes, &[usize::MAX]);
            let pieces = read(&bytes, &[size]);
            // A close ends the reading, which in pieces begins again with the next piece: the peer is gone by then.
            let closed = |r: &Result<(Vec<u8>, Vec<Control>), Violation>| matches!(r, Ok((_, c)) if c.contains(&Control::Close));
            if !closed(&whole) {
                prop_assert_eq!(whole, pieces);
            }
        }
    }
}
