//! The client's end of an MQTT connection, towards a hub: handshake, keep alive, and what each packet of the hub means.
//! What is published, and what becomes of it when the connection is lost, is `delivery`'s to know.

use std::{fmt, time::Duration};

use crate::{
    packet::{
        Acknowledgement, Connack, Connect, Frame, PacketError, PacketType, Password, ProtocolVersion, PublishRef, QoS,
        Suback, Subscribe, SubscriptionRequest, parse_connack, parse_disconnect, parse_empty, parse_puback,
        parse_publish, parse_pubrel, parse_suback, parse_unsuback, write_connect, write_disconnect, write_pingreq,
        write_puback, write_pubcomp, write_pubrec, write_subscribe, write_unsubscribe,
    },
    time::Tick,
    topic::TopicFilter,
};

/// How to introduce oneself to a hub.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Stable over restarts: the hub keeps the session under it.
    pub client_id: String,
    /// Which MQTT the hub is spoken to in.
    pub version: ProtocolVersion,
    /// Seconds; 0: none, and a dead hub is noticed only when a message waits for it.
    pub keep_alive: u16,
    /// Seconds for which the hub keeps the session; 3.1.1 hubs keep it as long as they like. 0: the hub keeps none, and
    /// each connection begins anew.
    pub session_expiry: u32,
    /// User name.
    pub user_name: Option<String>,
    /// Password.
    pub password: Option<Password>,
}

/// One connection after another to the same hub, with one session.
pub struct Client {
    connect: Connect,
    state: State,
    /// Packets to be sent, and how much of them was.
    control: Vec<u8>,
    control_sent: usize,
    agreed: Connack,
    keep_alive: Duration,
    /// When the next PINGREQ is due.
    ping_at: Tick,
    /// Since when an answer to a PINGREQ is waited for.
    unheard_since: Option<Tick>,
    wrote: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Down,
    /// CONNECT is on its way; the answer must be there in time.
    Connecting(Tick),
    Up,
}

/// What a packet of the hub means.
#[derive(Debug)]
pub enum Event<'a> {
    /// The hub accepted the connection; see [`Client::agreed`].
    Connected,
    /// PUBACK.
    Acknowledged(Acknowledgement),
    /// SUBACK.
    Subscribed(Suback),
    /// UNSUBACK.
    Unsubscribed(Suback),
    /// A message, at QoS 1 and 2 to be answered with [`Client::acknowledge`].
    Message(PublishRef<'a>),
    /// PUBREL: to be answered with [`Client::complete`]. The packet id is another message's from here on.
    Released(u16),
    /// Nothing that concerns anybody else.
    Nothing,
}

/// How a hub of 5.0 is asked for a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscriptionOptions {
    /// RETAIN of what is published is left as it is.
    pub as_published: bool,
    /// What it retains is sent.
    pub retained: bool,
}

/// Why a connection to a hub must end. Another may be tried after each of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientError {
    /// CONNACK with this code.
    Refused(u8),
    /// DISCONNECT with this reason (5.0).
    Closed(u8),
    /// The hub broke the protocol, or cannot do what is needed.
    Protocol(&'static str),
    /// No CONNACK in time.
    ConnackLate,
    /// No answer to PINGREQ in time.
    Silent,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code) => write!(f, "the hub refused the connection (code 0x{code:02x})"),
            Self::Closed(reason) => write!(f, "the hub closed the connection (reason 0x{reason:02x})"),
            Self::Protocol(what) => write!(f, "the hub broke the protocol: {what}"),
            Self::ConnackLate => write!(f, "the hub sent no CONNACK within {} s", CONNACK_WITHIN.as_secs()),
            Self::Silent => write!(f, "the hub did not answer a PINGREQ within {} s", PINGRESP_WITHIN.as_secs()),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<PacketError> for ClientError {
    fn from(error: PacketError) -> Self {
        Self::Protocol(error.what())
    }
}

impl Client {
    /// A client that is not connected.
    pub fn new(config: ClientConfig) -> Self {
        let connect = Connect {
            // A hub that keeps the session keeps commands for devices while the link is down.
            clean_start: config.session_expiry == 0,
            keep_alive: config.keep_alive,
            user_name: config.user_name,
            password: config.password,
            session_expiry: config.session_expiry,
            receive_maximum: RECEIVE_MAXIMUM,
            maximum_packet_size: u32::try_from(PACKET_BYTES_MAX).ok(),
            ..Connect::new(config.version, &config.client_id)
        };
        Self {
            connect,
            state: State::Down,
            control: vec![],
            control_sent: 0,
            agreed: Connack::new(0),
            keep_alive: Duration::ZERO,
            ping_at: Tick::default(),
            unheard_since: None,
            wrote: false,
        }
    }

    /// Who it says it is from the next CONNECT on.
    pub fn set_credentials(&mut self, user_name: Option<&str>, password: Option<&[u8]>) {
        self.connect.user_name = user_name.map(Into::into);
        self.connect.password = password.map(Password::new);
    }

    /// From the next CONNECT on the hub keeps no session, and forgets the one that it has.
    pub fn begin_anew(&mut self) {
        (self.connect.clean_start, self.connect.session_expiry) = (true, 0);
    }

    /// Which MQTT is spoken.
    pub fn version(&self) -> ProtocolVersion {
        self.connect.version
    }

    /// A new transport is there: CONNECT is the first that it carries.
    pub fn start(&mut self, now: Tick) {
        self.down();
        write_connect(&mut self.control, &self.connect);
        self.state = State::Connecting(now.plus(CONNACK_WITHIN));
    }

    /// The transport is gone.
    pub fn down(&mut self) {
        self.state = State::Down;
        self.control = Vec::new();
        self.control_sent = 0;
        self.unheard_since = None;
    }

    /// Whether the hub accepted the connection.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// What the last CONNACK said.
    pub fn agreed(&self) -> &Connack {
        &self.agreed
    }

    /// Control packets to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.control[self.control_sent..]
    }

    /// `n` bytes of [`unsent`](Self::unsent) were handed to the transport.
    pub fn wrote(&mut self, n: usize) {
        self.control_sent += n;
        if self.control_sent == self.control.len() {
            self.control.clear();
            self.control_sent = 0;
        }
        self.progress();
    }

    /// The transport took bytes: whoever answers slowly is not yet silent.
    pub fn progress(&mut self) {
        self.wrote = true;
    }

    /// The hub sent something.
    pub fn heard(&mut self) {
        self.unheard_since = None;
    }

    /// Takes one packet of the hub.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub fn handle<'a>(&mut self, frame: Frame<'a>, now: Tick) -> Result<Event<'a>, ClientError> {
        let version = self.connect.version;
        match (frame.packet_type(), self.state) {
            (PacketType::Connack, State::Connecting(_)) => self.connected(parse_connack(frame, version)?, now),
            // MQTT 5.0 [MQTT-3.2.0-1]: the first packet of a server is CONNACK.
            (_, State::Down | State::Connecting(_)) => Err(ClientError::Protocol("a packet before CONNACK")),
            (PacketType::Puback, _) => Ok(Event::Acknowledged(parse_puback(frame, version)?)),
            (PacketType::Publish, _) => self.message(parse_publish(frame, version)?),
            (PacketType::Pubrel, _) => Ok(Event::Released(parse_pubrel(frame, version)?.packet_id)),
            (PacketType::Suback, _) => Ok(Event::Subscribed(parse_suback(frame, version)?)),
            (PacketType::Unsuback, _) => Ok(Event::Unsubscribed(parse_unsuback(frame, version)?)),
            (PacketType::Pingresp, _) => Ok(parse_empty(frame).map(|()| Event::Nothing)?),
            (PacketType::Disconnect, _) if version == ProtocolVersion::V5_0 => {
                Err(ClientError::Closed(parse_disconnect(frame, version)?.reason))
            }
            _ => Err(ClientError::Protocol("a packet that no server sends to this client")),
        }
    }

    /// Answers a message: PUBACK at QoS 1, PUBREC at QoS 2.
    ///
    /// # Errors
    /// The hub sends messages and does not take the answers.
    pub fn acknowledge(&mut self, packet_id: u16, qos: QoS) -> Result<(), ClientError> {
        let (version, out) = (self.connect.version, self.answers()?);
        match qos {
            QoS::ExactlyOnce => write_pubrec(out, version, packet_id, 0),
            _ => write_puback(out, version, packet_id, 0),
        }
        Ok(())
    }

    /// Answers PUBREL. `reason` is for 5.0: 0, or that nothing is known of the packet id.
    ///
    /// # Errors
    /// As [`acknowledge`](Self::acknowledge).
    pub fn complete(&mut self, packet_id: u16, reason: u8) -> Result<(), ClientError> {
        let (version, out) = (self.connect.version, self.answers()?);
        write_pubcomp(out, version, packet_id, reason);
        Ok(())
    }

    fn answers(&mut self) -> Result<&mut Vec<u8>, ClientError> {
        match self.control.len() > CONTROL_BYTES_MAX {
            true => Err(ClientError::Protocol("it does not read acknowledgements")),
            false => Ok(&mut self.control),
        }
    }

    /// Asks for filters. A 5.0 hub names the identifier in every message for them.
    pub fn subscribe(
        &mut self,
        packet_id: u16,
        named: Option<(u32, SubscriptionOptions)>,
        filters: Vec<(TopicFilter, QoS)>,
    ) {
        let options = named.map_or(SubscriptionOptions { as_published: false, retained: true }, |(_, options)| options);
        let request = |(filter, qos)| SubscriptionRequest {
            retain_as_published: options.as_published,
            retain_handling: if options.retained { RETAINED_AT_ONCE } else { RETAINED_NEVER },
            ..SubscriptionRequest::new(filter, qos)
        };
        let requests = filters.into_iter().map(request).collect();
        let subscription_id = named.map(|(id, _)| id);
        let subscribe = Subscribe { packet_id, subscription_id, requests };
        write_subscribe(&mut self.control, self.connect.version, &subscribe);
    }

    /// Gives filters back.
    pub fn unsubscribe(&mut self, packet_id: u16, filters: &[TopicFilter]) {
        write_unsubscribe(&mut self.control, self.connect.version, packet_id, filters);
    }

    /// Says good-bye. The session stays on the hub.
    pub fn disconnect(&mut self) {
        if self.is_up() {
            write_disconnect(&mut self.control, self.connect.version, 0, None, None);
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        match self.state {
            State::Down => None,
            State::Connecting(until) => Some(until),
            State::Up if self.keep_alive.is_zero() => None,
            State::Up => {
                Some(self.unheard_since.map_or(self.ping_at, |since| since.plus(PINGRESP_WITHIN).min(self.ping_at)))
            }
        }
    }

    /// Sends a PINGREQ when it is due.
    ///
    /// # Errors
    /// The hub did not answer CONNECT or PINGREQ in time.
    pub fn tick(&mut self, now: Tick) -> Result<(), ClientError> {
        match self.state {
            State::Connecting(until) if now >= until => return Err(ClientError::ConnackLate),
            State::Up if !self.keep_alive.is_zero() => {}
            _ => return Ok(()),
        }
        if self.unheard_since.is_some_and(|since| now >= since.plus(PINGRESP_WITHIN)) {
            if !std::mem::take(&mut self.wrote) {
                return Err(ClientError::Silent);
            }
            // The PINGREQ stands behind bytes that are still being sent.
            self.unheard_since = Some(now);
        }
        if now >= self.ping_at {
            // MQTT 5.0 [MQTT-3.1.2-20]
            write_pingreq(&mut self.control);
            self.ping_at = now.plus(self.keep_alive / 2);
            if self.unheard_since.is_none() {
                self.unheard_since = Some(now);
                self.wrote = false;
            }
        }
        Ok(())
    }

    fn connected<'a>(&mut self, connack: Connack, now: Tick) -> Result<Event<'a>, ClientError> {
        if connack.code != 0 {
            return Err(ClientError::Refused(connack.code));
        }
        if connack.qos_max == 0 {
            return Err(ClientError::Protocol("it takes QoS 0 only, which cannot be acknowledged"));
        }
        if connack.receive_maximum == 0 {
            return Err(ClientError::Protocol("Receive Maximum 0"));
        }
        // MQTT 5.0 [MQTT-3.1.2-21]
        self.keep_alive = Duration::from_secs(connack.server_keep_alive.unwrap_or(self.connect.keep_alive).into());
        self.ping_at = now.plus(self.keep_alive / 2);
        self.agreed = connack;
        self.state = State::Up;
        Ok(Event::Connected)
    }

    fn message<'a>(&self, publish: PublishRef<'a>) -> Result<Event<'a>, ClientError> {
        // MQTT 5.0 [MQTT-3.3.2-8], [MQTT-3.3.2-9]: Topic Alias Maximum is 0.
        if publish.topic_alias.is_some() {
            return Err(ClientError::Protocol("a topic alias that was not offered"));
        }
        Ok(Event::Message(publish))
    }
}

/// The largest packet a hub may send. Devices are sent 260 KiB at most by default, and are told so themselves.
pub const PACKET_BYTES_MAX: usize = 1 << 20;

/// From CONNECT to CONNACK. A hub that takes longer is better asked anew.
const CONNACK_WITHIN: Duration = Duration::from_secs(10);

/// From PINGREQ to any sign of life.
const PINGRESP_WITHIN: Duration = Duration::from_secs(20);

/// Retain Handling (MQTT 5.0 §3.8.3.1).
const RETAINED_AT_ONCE: u8 = 0;
const RETAINED_NEVER: u8 = 2;

/// Messages that the hub may have on their way to us.
const RECEIVE_MAXIMUM: u16 = 1_000;

/// Control packets that wait for the hub to read; more is a hub that only sends.
const CONTROL_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{next_frame, write_connack};

    fn client(version: ProtocolVersion) -> Client {
        Client::new(config(version))
    }

    fn config(version: ProtocolVersion) -> ClientConfig {
        ClientConfig {
            client_id: "edge-1-0".into(),
            version,
            keep_alive: 60,
            session_expiry: 86_400,
            user_name: Some("pool".into()),
            password: Some(Password::new(b"secret")),
        }
    }

    fn answer(client: &mut Client, connack: &Connack, now: Tick) -> Result<(), ClientError> {
        let mut bytes = vec![];
        write_connack(&mut bytes, client.version(), connack);
        let frame = next_frame(&bytes, PACKET_BYTES_MAX).expect("well-formed").expect("whole");
        client.handle(frame, now).map(|event| assert!(matches!(event, Event::Connected)))
    }

    fn given<'a>(client: &mut Client, bytes: &'a [u8]) -> Result<Event<'a>, ClientError> {
        let frame = next_frame(bytes, PACKET_BYTES_MAX).expect("well-formed").expect("whole");
        client.handle(frame, Tick(0))
    }

    fn up(version: ProtocolVersion) -> Client {
        let mut client = client(version);
        client.start(Tick(0));
        client.wrote(client.unsent().len());
        answer(&mut client, &Connack::new(0), Tick(0)).expect("accepted");
        client
    }

    const BOTH: [ProtocolVersion; 2] = [ProtocolVersion::V3_1_1, ProtocolVersion::V5_0];

    #[test]
    fn connect_asks_for_a_session_that_stays() {
        let mut client = client(ProtocolVersion::V3_1_1);
        client.start(Tick(0));
        // User name and password, no clean session; keep alive 60.
        assert_eq!(client.unsent(), b"\x10\x22\x00\x04MQTT\x04\xc0\x00\x3c\x00\x08edge-1-0\x00\x04pool\x00\x06secret");
        client.wrote(2);
        client.start(Tick(5));
        assert_eq!(client.unsent().first(), Some(&0x10), "a new transport begins with CONNECT");
    }

    #[test]
    fn without_a_session_to_keep_each_connection_begins_anew() {
        let mut client = Client::new(ClientConfig { session_expiry: 0, ..config(ProtocolVersion::V3_1_1) });
        client.start(Tick(0));
        assert_eq!(client.unsent().get(9), Some(&0xc2), "Clean Session");
    }

    #[test]
    fn a_connack_in_time_brings_the_connection_up() {
        for version in BOTH {
            let mut client = client(version);
            client.start(Tick(100));
            assert_eq!(client.deadline(), Some(Tick(10_100)));
            assert_eq!(client.tick(Tick(10_099)), Ok(()));
            answer(&mut client, &Connack::new(0), Tick(10_099)).expect("accepted");
            assert!(client.is_up());
            client.start(Tick(20_000));
            assert_eq!(client.tick(Tick(30_000)), Err(ClientError::ConnackLate));
        }
    }

    #[test]
    fn a_hub_that_refuses_or_cannot_serve_is_told_apart() {
        let hub = |change: fn(&mut Connack)| {
            let mut client = client(ProtocolVersion::V5_0);
            client.start(Tick(0));
            let mut connack = Connack::new(0);
            change(&mut connack);
            answer(&mut client, &connack, Tick(0))
        };
        assert_eq!(hub(|_| {}), Ok(()));
        assert_eq!(hub(|c| c.code = 0x87), Err(ClientError::Refused(0x87)));
        assert!(matches!(hub(|c| c.qos_max = 0), Err(ClientError::Protocol(_))));
        assert_eq!(hub(|c| c.qos_max = 1), Ok(()));
    }

    #[test]
    fn a_ping_is_sent_at_half_the_keep_alive_and_must_be_answered() {
        for version in BOTH {
            let mut client = up(version);
            assert_eq!((client.tick(Tick(29_999)), client.unsent()), (Ok(()), &[][..]));
            assert_eq!((client.tick(Tick(30_000)), client.unsent()), (Ok(()), &[0xC0, 0][..]));
            assert_eq!(client.deadline(), Some(Tick(50_000)));
            assert_eq!(client.tick(Tick(49_999)), Ok(()));
            assert_eq!(client.tick(Tick(50_000)), Err(ClientError::Silent));
        }
    }

    #[test]
    fn a_sign_of_life_or_bytes_still_on_their_way_keep_the_connection() {
        let mut client = up(ProtocolVersion::V5_0);
        client.tick(Tick(30_000)).expect("in time");
        client.wrote(2);
        client.tick(Tick(50_000)).expect("the PINGREQ was only just sent");
        assert_eq!(client.deadline(), Some(Tick(60_000)));
        client.heard();
        client.tick(Tick(79_999)).expect("heard of");
        client.wrote(2);
        client.tick(Tick(99_999)).expect("written");
        assert_eq!(client.tick(Tick(119_999)), Err(ClientError::Silent));
    }

    #[test]
    fn the_servers_keep_alive_counts() {
        let mut client = client(ProtocolVersion::V5_0);
        client.start(Tick(0));
        answer(&mut client, &Connack { server_keep_alive: Some(10), ..Connack::new(0) }, Tick(0)).expect("accepted");
        assert_eq!(client.deadline(), Some(Tick(5_000)));
        client.start(Tick(0));
        answer(&mut client, &Connack { server_keep_alive: Some(0), ..Connack::new(0) }, Tick(0)).expect("accepted");
        assert_eq!((client.deadline(), client.tick(Tick(u64::MAX))), (None, Ok(())));
    }

    #[test]
    fn packets_that_no_server_sends_end_the_connection() {
        for bytes in
            [&b"\xc0\x00"[..], b"\x20\x03\x00\x00\x00", b"\x30\x06\x00\x00\x03\x23\x00\x01", b"\x50\x02\x00\x01"]
        {
            let result = given(&mut up(ProtocolVersion::V5_0), bytes).map(|_| ());
            assert!(matches!(result, Err(ClientError::Protocol(_))), "{bytes:02x?}: {result:?}");
        }
        let mut early = client(ProtocolVersion::V5_0);
        early.start(Tick(0));
        assert_eq!(given(&mut early, b"\xd0\x00").map(|_| ()), Err(ClientError::Protocol("a packet before CONNACK")));
        assert_eq!(given(&mut up(ProtocolVersion::V5_0), b"\xe0\x01\x8b").map(|_| ()), Err(ClientError::Closed(0x8b)));
        let old = given(&mut up(ProtocolVersion::V3_1_1), b"\xe0\x00").map(|_| ());
        assert!(matches!(old, Err(ClientError::Protocol(_))), "no DISCONNECT of a 3.1.1 server");
    }

    #[test]
    fn a_message_of_qos_2_is_received_and_complete() {
        for version in BOTH {
            let mut client = up(version);
            let publish: &[u8] = if version == ProtocolVersion::V5_0 {
                b"\x34\x07\x00\x01a\x00\x07\x00x"
            } else {
                b"\x34\x06\x00\x01a\x00\x07x"
            };
            let Ok(Event::Message(message)) = given(&mut client, publish) else { panic!("a message") };
            assert_eq!((message.qos, message.packet_id), (QoS::ExactlyOnce, 7));
            client.acknowledge(7, QoS::ExactlyOnce).expect("room");
            assert!(matches!(given(&mut client, b"\x62\x02\x00\x07"), Ok(Event::Released(7))));
            client.complete(7, 0).expect("room");
            client.complete(8, 0x92).expect("room");
            let unknown: &[u8] =
                if version == ProtocolVersion::V5_0 { b"\x70\x03\x00\x08\x92" } else { b"\x70\x02\x00\x08" };
            assert_eq!(client.unsent(), [b"\x50\x02\x00\x07\x70\x02\x00\x07", unknown].concat());
        }
    }

    #[test]
    fn a_hub_that_only_sends_is_cut() {
        let mut client = up(ProtocolVersion::V5_0);
        let taken = (0..u32::MAX).take_while(|_| client.acknowledge(1, QoS::AtLeastOnce).is_ok()).count();
        assert_eq!(taken, CONTROL_BYTES_MAX / 4 + 1);
    }
}
