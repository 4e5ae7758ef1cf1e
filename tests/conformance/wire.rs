//! MQTT as bytes: what is sent is said byte by byte, and what comes back is seen as it came. Written without the codec
//! under test.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::support::{Gateway, Version, dial, remember_tokens, sas};

/// One connection to the gateway.
pub struct Peer {
    stream: TcpStream,
    /// Which MQTT it speaks.
    pub version: Version,
    read: Vec<u8>,
}

impl Peer {
    /// On which nothing has been said.
    pub fn open(gateway: &Gateway, version: Version) -> Self {
        Self { stream: dial(gateway.tcp), version, read: Vec::new() }
    }

    /// Admitted as this device.
    #[track_caller]
    pub fn admitted(gateway: &Gateway, version: Version, device: &str) -> Self {
        Self::admitted_as(gateway, &Connect::new(version, device))
    }

    /// Admitted with what this CONNECT says.
    #[track_caller]
    pub fn admitted_as(gateway: &Gateway, connect: &Connect) -> Self {
        let mut peer = Self::open(gateway, connect.version);
        peer.send(&connect.packet());
        let connack = peer.next();
        assert_eq!((connack.first, connack.body.get(1)), (0x20, Some(&0)), "{connack:x?}");
        peer
    }

    /// Sends bytes as they are; the connection may be closed before all is sent.
    pub fn send(&mut self, bytes: &[u8]) {
        remember_tokens(bytes);
        let _ = self.stream.write_all(bytes);
    }

    /// Sends PUBLISH.
    pub fn publish(&mut self, first: u8, topic: &str, id: u16, properties: &[u8], payload: &[u8]) {
        self.send(&publish(self.version, first, topic, id, properties, payload));
    }

    /// Sends SUBSCRIBE with one filter and gives the code of its SUBACK.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.send(&subscribe(self.version, 0x5B5B, &[], &[(filter, options)]));
        let suback = self.next();
        let code = *suback.body.last().expect("a code");
        // The identifier, no properties (5.0), one code: nothing else.
        let whole = if self.version == Version::V5 { &[0x5B, 0x5B, 0, code][..] } else { &[0x5B, 0x5B, code] };
        assert_eq!((suback.first, &suback.body[..]), (0x90, whole));
        code
    }

    /// The next packet.
    #[track_caller]
    pub fn next(&mut self) -> Packet {
        self.take(PATIENCE).expect("a packet, not the end of the connection")
    }

    /// The next packet is this one, byte for byte.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        assert_eq!(self.next().bytes(), bytes);
    }

    /// Nothing else has come: PINGREQ is answered next.
    #[track_caller]
    pub fn quiet(&mut self) {
        self.send(&[0xC0, 0]);
        self.expect(&[0xD0, 0]);
    }

    /// Nothing comes for so long, while both ends show that they are there.
    #[track_caller]
    pub fn quiet_for(&mut self, time: Duration) {
        let since = Instant::now();
        while since.elapsed() < time {
            self.quiet();
        }
    }

    /// It is closed, after at most a DISCONNECT: its reason.
    #[track_caller]
    pub fn closed(&mut self) -> Option<u8> {
        let last = self.take(PATIENCE)?;
        assert_eq!(last.first, 0xE0, "before the end came {last:x?}");
        assert_eq!(self.take(PATIENCE), None, "DISCONNECT is the last");
        Some(last.body.first().copied().unwrap_or(0))
    }

    /// Ends it without a word.
    pub fn abandon(self) {
        drop(self.stream);
    }

    /// The next packet; `None`: the connection was closed. Fails the test when neither comes in time.
    #[track_caller]
    pub fn take(&mut self, within: Duration) -> Option<Packet> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(packet) = self.cut() {
                return Some(packet);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing came in {within:?}");
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.read.extend(chunk.iter().take(count)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => return None,
            }
        }
    }

    fn cut(&mut self) -> Option<Packet> {
        let (packet, used) = cut(&self.read)?;
        self.read.drain(..used);
        Some(packet)
    }
}

/// A packet as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Type and flags.
    pub first: u8,
    /// What follows the fixed header.
    pub body: Vec<u8>,
}

impl Packet {
    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        packet(self.first, &self.body)
    }

    /// The packet identifier, where the body begins with one.
    pub fn id(&self) -> u16 {
        self.body.first_chunk().copied().map_or(0, u16::from_be_bytes)
    }

    /// QoS of a PUBLISH.
    pub fn qos(&self) -> u8 {
        (self.first >> 1) & 3
    }

    /// Of a PUBLISH: topic, packet identifier (0 at QoS 0), properties (5.0), payload.
    #[track_caller]
    pub fn publish(&self, version: Version) -> (String, u16, Vec<u8>, Vec<u8>) {
        assert_eq!(self.first >> 4, 3, "{self:x?}");
        let (length, rest) = self.body.split_first_chunk().expect("a topic");
        let (topic, mut rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        let mut id = 0;
        if self.qos() > 0 {
            let (number, after) = rest.split_first_chunk().expect("an identifier");
            (id, rest) = (u16::from_be_bytes(*number), after);
        }
        let (mut properties, mut payload) = (&rest[..0], rest);
        if version == Version::V5 {
            let (length, used) = varint_of(rest).expect("a length");
            (properties, payload) = rest[used..].split_at(length);
        }
        (String::from_utf8(topic.to_vec()).unwrap(), id, properties.to_vec(), payload.to_vec())
    }
}

/// The first packet of a buffer, and how many bytes it has.
pub fn cut(buffer: &[u8]) -> Option<(Packet, usize)> {
    let (length, used) = varint_of(buffer.get(1..)?)?;
    let end = 1 + used + length;
    let body = buffer.get(1 + used..end)?.to_vec();
    Some((Packet { first: buffer[0], body }, end))
}

/// What CONNECT says.
#[derive(Clone)]
pub struct Connect {
    pub version: Version,
    /// Clean Start or Clean Session alone; will, user name and password add theirs.
    pub flags: u8,
    pub keep_alive: u16,
    /// 5.0, without their length.
    pub properties: Vec<u8>,
    pub client_id: Vec<u8>,
    pub will: Option<Will>,
    pub user_name: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
}

/// What CONNECT says of a will.
#[derive(Clone)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    /// 5.0, without their length.
    pub properties: Vec<u8>,
}

impl Connect {
    /// A device with a good token and a clean session.
    pub fn new(version: Version, device: &str) -> Self {
        Self {
            version,
            flags: 2,
            keep_alive: 60,
            properties: Vec::new(),
            client_id: device.into(),
            will: None,
            user_name: Some(device.into()),
            password: Some(sas(device).into()),
        }
    }

    /// With these properties.
    pub fn with(mut self, properties: &[u8]) -> Self {
        self.properties = properties.to_vec();
        self
    }

    /// With this keep alive.
    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive = seconds;
        self
    }

    /// With this will.
    pub fn will(mut self, topic: &str, payload: &[u8], qos: u8, retain: bool, properties: &[u8]) -> Self {
        let (topic, payload, properties) = (topic.to_owned(), payload.to_vec(), properties.to_vec());
        self.will = Some(Will { topic, payload, qos, retain, properties });
        self
    }

    /// The packet.
    pub fn packet(&self) -> Vec<u8> {
        self.packet_of(&text("MQTT"), if self.version == Version::V5 { 5 } else { 4 }, 0)
    }

    /// The packet with another protocol name or level, and with these flags turned over.
    pub fn packet_of(&self, name: &[u8], level: u8, turned: u8) -> Vec<u8> {
        let mut flags = self.flags;
        flags |= self.will.as_ref().map_or(0, |will| 4 | will.qos << 3 | u8::from(will.retain) << 5);
        flags |= u8::from(self.user_name.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        let mut body = name.to_vec();
        body.extend([level, flags ^ turned]);
        body.extend(self.keep_alive.to_be_bytes());
        body.extend(self.sized(&self.properties));
        body.extend(binary(&self.client_id));
        if let Some(will) = &self.will {
            body.extend(self.sized(&will.properties));
            body.extend(text(&will.topic));
            body.extend(binary(&will.payload));
        }
        body.extend(self.user_name.iter().chain(&self.password).flat_map(|field| binary(field)));
        packet(0x10, &body)
    }

    fn sized(&self, properties: &[u8]) -> Vec<u8> {
        if self.version == Version::V5 { sized(properties) } else { Vec::new() }
    }
}

/// PUBLISH; an identifier only where `first` asks for one.
pub fn publish(version: Version, first: u8, topic: &str, id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    publish_to(version, first, topic.as_bytes(), id, properties, payload)
}

/// PUBLISH to what may be no topic.
pub fn publish_to(version: Version, first: u8, topic: &[u8], id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = binary(topic);
    if first & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    if version == Version::V5 {
        body.extend(sized(properties));
    }
    body.extend(payload);
    packet(first, &body)
}

/// SUBSCRIBE.
pub fn subscribe(version: Version, id: u16, properties: &[u8], filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.extend(sized(properties));
    }
    for (filter, options) in filters {
        body.extend(text(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}

/// UNSUBSCRIBE.
pub fn unsubscribe(version: Version, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend((version == Version::V5).then_some(0));
    body.extend(filters.iter().flat_map(|filter| text(filter)));
    packet(0xA2, &body)
}

/// A user property.
pub fn user(name: &str, value: &str) -> Vec<u8> {
    [vec![0x26], text(name), text(value)].concat()
}

/// First byte, length, body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first][..], &sized(body)].concat()
}

/// A length in as few bytes as it needs, and what it is of.
pub fn sized(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut length) = (Vec::new(), bytes.len());
    loop {
        let digit = u8::try_from(length & 0x7F).expect("seven bits");
        length >>= 7;
        out.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            out.extend(bytes);
            return out;
        }
    }
}

/// A string with its length.
pub fn text(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

/// Bytes with their length.
pub fn binary(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("at most 65,535 bytes");
    [&length.to_be_bytes()[..], bytes].concat()
}

fn varint_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let last = bytes.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let value = bytes[..=last].iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7F));
    Some((value, last + 1))
}

/// How long an answer may take that is sure to come.
pub const PATIENCE: Duration = Duration::from_secs(20);
