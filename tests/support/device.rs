//! A device that speaks MQTT byte by byte, so that a test says exactly what is sent and sees exactly what comes back.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use super::secrets::{remember, remember_tokens};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

/// Of the MQTT protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// 3.1.1.
    V4,
    /// 5.0.
    V5,
}

/// What CONNECT says.
#[derive(Clone, Debug)]
pub struct Login {
    /// Protocol version.
    pub version: Version,
    /// Client id: the device.
    pub client_id: String,
    /// User name.
    pub user_name: Option<String>,
    /// The token.
    pub password: Option<String>,
    /// Seconds.
    pub keep_alive: u16,
    /// Topic of a will, at QoS 0 with an empty payload.
    pub will_topic: Option<String>,
    /// A session that goes on, and outlives the connection by so many seconds (3.1.1 has no number for it).
    pub session: Option<u32>,
}

impl Login {
    /// As a device that follows the README does it.
    pub fn new(version: Version, device: &str, token: &str) -> Self {
        let (user_name, password) = (Some(device.to_owned()), Some(token.to_owned()));
        Self {
            version,
            client_id: device.to_owned(),
            user_name,
            password,
            keep_alive: 60,
            will_topic: None,
            session: None,
        }
    }

    /// The CONNECT packet.
    pub fn packet(&self) -> Vec<u8> {
        let will = u8::from(self.will_topic.is_some()) << 2;
        let flags = u8::from(self.session.is_none()) << 1
            | will
            | u8::from(self.user_name.is_some()) << 7
            | u8::from(self.password.is_some()) << 6;
        let mut body = text("MQTT");
        body.extend([if self.version == Version::V5 { 5 } else { 4 }, flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            match self.session {
                None => body.push(0),
                Some(seconds) => {
                    body.extend([5, 0x11]);
                    body.extend(seconds.to_be_bytes());
                }
            }
        }
        body.extend(text(&self.client_id));
        if let Some(topic) = &self.will_topic {
            body.extend((self.version == Version::V5).then_some(0));
            body.extend(text(topic));
            body.extend(text(""));
        }
        body.extend(self.user_name.iter().chain(&self.password).flat_map(|field| text(field)));
        packet(0x10, &body)
    }
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// With its return or reason code.
    Connack(u8),
    /// Packet id, and the reason code (3.1.1: 0).
    Puback(u16, u8),
    /// The same.
    Pubrec(u16, u8),
    /// Packet id.
    Pubrel(u16),
    /// Packet id, and the reason code (3.1.1: 0).
    Pubcomp(u16, u8),
    /// Packet id, and a code for each filter.
    Suback(u16, Vec<u8>),
    /// Packet id.
    Unsuback(u16),
    /// A message to the device.
    Publish {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Vec<u8>,
        /// Its QoS.
        qos: u8,
        /// 0 for QoS 0.
        packet_id: u16,
    },
    /// 5.0: with its reason code.
    Auth(u8),
    /// To PINGREQ.
    Pingresp,
    /// 5.0: with its reason code.
    Disconnect(u8),
    /// The connection was closed.
    Closed,
    /// Nothing, in the time that was given.
    Silence,
}

/// One connection.
pub struct Device {
    stream: Box<dyn Stream>,
    version: Version,
    read: Vec<u8>,
    next_id: u16,
    /// Whether the last CONNACK said that a session goes on.
    pub session_present: bool,
    /// Whether the last PUBLISH had DUP.
    pub is_copy: bool,
}

/// Both ends of a socket, TLS or not.
pub trait Stream: Read + Write + Send {
    /// What it stands on.
    fn socket(&self) -> &TcpStream;
    /// Both layers, where TLS is spoken.
    fn tls(&mut self) -> Option<(&mut ClientConnection, &mut TcpStream)> {
        None
    }
}

/// A client certificate and its key, DER.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The client's own first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key: Vec<u8>,
}

impl Device {
    /// A plain connection on which nothing has been said.
    pub fn open(address: SocketAddr, version: Version) -> Self {
        Self::over(Box::new(dial(address)), version)
    }

    /// The same, where the gateway may be away.
    pub fn try_open(address: SocketAddr, version: Version) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(Self::over(Box::new(stream), version))
    }

    /// A TLS connection on which nothing has been said.
    pub fn open_tls(address: SocketAddr, ca_pem: &[u8], version: Version) -> Self {
        Self::over(Box::new(open_tls(address, ca_pem)), version)
    }

    /// What a TLS client believes and shows. Connections that share it resume each other's sessions.
    pub fn tls_client(ca_pem: &[u8], identity: Option<&ClientIdentity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity {
            None => config.with_no_client_auth(),
            Some(ClientIdentity { chain, key }) => {
                let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                let key = PrivateKeyDer::try_from(key.clone()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }

    /// A TLS connection of such a client, on which nothing has been said.
    pub fn open_tls_with(address: SocketAddr, config: &Arc<ClientConfig>, version: Version) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(config.clone(), name).unwrap();
        Self::over(Box::new(StreamOwned::new(tls, dial(address))), version)
    }

    /// Brings the TLS handshake to its end.
    #[track_caller]
    pub fn handshake(mut self) -> Self {
        let (tls, socket) = self.stream.tls().expect("a TLS connection");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(socket).unwrap();
        }
        self
    }

    /// What the server has shown.
    #[track_caller]
    pub fn server_certificate(&mut self) -> Vec<u8> {
        let (tls, _) = self.stream.tls().expect("a TLS connection");
        tls.peer_certificates().and_then(|chain| chain.first()).expect("after the handshake").to_vec()
    }

    /// Whether the TLS session is one from before.
    #[track_caller]
    pub fn was_resumed(&mut self) -> bool {
        let (tls, _) = self.stream.tls().expect("a TLS connection");
        tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// A connection over whatever this is.
    pub fn over(stream: Box<dyn Stream>, version: Version) -> Self {
        Self { stream, version, read: Vec::new(), next_id: 0, session_present: false, is_copy: false }
    }

    /// Sends CONNECT and gives what it was answered with.
    #[track_caller]
    pub fn log_in(&mut self, login: &Login) -> Answer {
        self.send(&login.packet());
        self.next(PATIENCE)
    }

    /// Sends CONNECT, which must be accepted.
    #[track_caller]
    pub fn admitted(mut self, login: &Login) -> Self {
        assert_eq!(self.log_in(login), Answer::Connack(0), "{}", login.client_id);
        self
    }

    /// Sends bytes as they are; fails the test when the connection is closed.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// Sends bytes as they are.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        remember_tokens(bytes);
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Writes until all is written, or until the other side has taken nothing for so long; gives how much it took.
    pub fn write_until_blocked(&mut self, bytes: &[u8], patience: Duration) -> usize {
        self.stream.socket().set_write_timeout(Some(patience)).unwrap();
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) => panic!("{e}"),
            }
        }
        self.stream.socket().set_write_timeout(Some(PATIENCE)).unwrap();
        bytes.len() - rest.len()
    }

    /// Sends a PUBLISH; gives its packet id (0 for QoS 0).
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) -> u16 {
        remember(payload);
        let id = if qos == 0 { 0 } else { self.new_id() };
        self.send(&publish_packet(self.version, topic, payload, qos, id));
        id
    }

    /// Sends a PUBLISH with QoS 1 and waits for its PUBACK, which must be good.
    #[track_caller]
    pub fn publish_acknowledged(&mut self, topic: &str, payload: &[u8]) {
        let id = self.publish(topic, payload, 1);
        assert_eq!(self.next(PATIENCE), Answer::Puback(id, 0), "{topic}");
    }

    /// Sends a SUBSCRIBE with one filter; gives the code of its SUBACK.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        let id = self.new_id();
        let mut body = id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(text(filter));
        body.push(qos);
        self.send(&packet(0x82, &body));
        match self.next(PATIENCE) {
            Answer::Suback(answered, codes) if answered == id && codes.len() == 1 => codes.into_iter().sum(),
            other => panic!("SUBSCRIBE {filter} was answered with {other:?}"),
        }
    }

    /// Sends PINGREQ.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(&[0xC0, 0]);
    }

    /// Sends PUBACK.
    #[track_caller]
    pub fn acknowledge(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(&[0x40, 2, high, low]);
    }

    /// Sends PUBREC.
    #[track_caller]
    pub fn received(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(&[0x50, 2, high, low]);
    }

    /// Sends PUBREL.
    #[track_caller]
    pub fn release(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(&[0x62, 2, high, low]);
    }

    /// Sends PUBCOMP.
    #[track_caller]
    pub fn complete(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(&[0x70, 2, high, low]);
    }

    /// Sends DISCONNECT.
    #[track_caller]
    pub fn disconnect(mut self) {
        self.send(&[0xE0, 0]);
        assert_eq!(self.next(PATIENCE), Answer::Closed);
    }

    /// Reads until the connection is closed; gives the reason code of a DISCONNECT before it.
    #[track_caller]
    pub fn closed(&mut self, within: Duration) -> Option<u8> {
        let deadline = Instant::now() + within;
        let mut reason = None;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now())) {
                Answer::Closed => return reason,
                Answer::Disconnect(code) => reason = Some(code),
                Answer::Silence => panic!("the connection is open after {within:?}"),
                _ => {}
            }
        }
    }

    /// Reads and forgets whatever comes until the connection is closed; fails the test when it is open at the deadline.
    #[track_caller]
    pub fn ends_before(&mut self, deadline: Instant, what: &str) {
        let mut chunk = [0; 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.socket().set_read_timeout(Some(left)).unwrap();
            match self.stream.read(&mut chunk) {
                Ok(count) if count > 0 => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    assert!(Instant::now() < deadline, "{what}: the connection is open");
                }
                _ => return,
            }
        }
    }

    /// The next packet, or that there was none.
    pub fn next(&mut self, within: Duration) -> Answer {
        let deadline = Instant::now() + within;
        loop {
            if let Some(answer) = self.take_packet() {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Answer::Silence;
            }
            self.stream.socket().set_read_timeout(Some(left)).unwrap();
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Answer::Closed,
                Ok(count) => self.read.extend(chunk.iter().take(count)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Answer::Closed,
            }
        }
    }

    /// The next packet as it came, which is short: its length is one byte.
    #[track_caller]
    pub fn next_bytes(&mut self, within: Duration) -> Vec<u8> {
        self.stream.socket().set_read_timeout(Some(within)).unwrap();
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; usize::from(head[1])];
        self.stream.read_exact(&mut body).unwrap();
        [&head[..], &body].concat()
    }

    fn new_id(&mut self) -> u16 {
        self.next_id = self.next_id % u16::MAX + 1;
        self.next_id
    }

    fn take_packet(&mut self) -> Option<Answer> {
        let (first, rest) = self.read.split_first()?;
        let end = rest.iter().take(4).position(|byte| byte & 0x80 == 0)?;
        let (digits, rest) = rest.split_at(end + 1);
        let length = digits.iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7F));
        let (body, after) = rest.split_at_checked(length)?;
        match first >> 4 {
            2 => self.session_present = body.first() == Some(&1),
            3 => self.is_copy = first & 8 != 0,
            _ => {}
        }
        let answer = answer(*first, body, self.version);
        self.read = after.to_vec();
        Some(answer)
    }
}

/// A PUBLISH packet.
pub fn publish_packet(version: Version, topic: &str, payload: &[u8], qos: u8, packet_id: u16) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        body.push(0);
    }
    body.extend(payload);
    packet(0x30 | qos << 1, &body)
}

/// TLS to `localhost`, by this CA.
pub fn open_tls(address: SocketAddr, ca_pem: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
    tls_over(dial(address), ca_pem)
}

/// The same on a connection that stands.
pub fn tls_over(socket: TcpStream, ca_pem: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Device::tls_client(ca_pem, None), name).unwrap(), socket)
}

/// A connection that gives up where nothing is accepted.
pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn answer(first: u8, body: &[u8], version: Version) -> Answer {
    let byte = |at: usize| body.get(at).copied().unwrap_or_default();
    let number = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    // Properties of these packets are short: their length is one byte.
    let properties = |at: usize| if version == Version::V5 { 1 + usize::from(byte(at)) } else { 0 };
    match first >> 4 {
        2 => Answer::Connack(byte(1)),
        3 => {
            let qos = (first >> 1) & 3;
            let topic_end = 2 + usize::from(number(0));
            let after_id = if qos > 0 { topic_end + 2 } else { topic_end };
            let payload = body.get(after_id + properties(after_id)..).unwrap_or_default().to_vec();
            let topic = String::from_utf8(body.get(2..topic_end).unwrap_or_default().to_vec()).unwrap();
            let packet_id = if qos > 0 { number(topic_end) } else { 0 };
            Answer::Publish { topic, payload, qos, packet_id }
        }
        4 => Answer::Puback(number(0), byte(2)),
        5 => Answer::Pubrec(number(0), byte(2)),
        6 => Answer::Pubrel(number(0)),
        7 => Answer::Pubcomp(number(0), byte(2)),
        9 => Answer::Suback(number(0), body.get(2 + properties(2)..).unwrap_or_default().to_vec()),
        11 => Answer::Unsuback(number(0)),
        13 => Answer::Pingresp,
        14 => Answer::Disconnect(byte(0)),
        15 => Answer::Auth(byte(0)),
        _ => panic!("a gateway does not send a packet that begins with {first:#04x}"),
    }
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let digit = u8::try_from(length & 0x7F).expect("seven bits");
        length >>= 7;
        packet.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("MQTT texts are at most 65535 bytes");
    length.to_be_bytes().into_iter().chain(text.bytes()).collect()
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }

    fn tls(&mut self) -> Option<(&mut ClientConnection, &mut TcpStream)> {
        Some((&mut self.conn, &mut self.sock))
    }
}

/// How long an answer may take that is sure to come.
const PATIENCE: Duration = Duration::from_secs(20);
