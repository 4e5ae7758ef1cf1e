//! One connection by way of rumqttc, from the link's CONNECT to the end of either.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::pin,
    sync::Arc,
};

use ::rumqttc::{AsyncClient, v5::AsyncClient as AsyncClientV5};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split},
    sync::mpsc,
};

use super::{
    EVENTS_MAX, Place, REQUESTS_MAX,
    fate::{End, Guarded, Happened, LastWords, Sent, taken},
    packet_ids::{PacketIds, Use},
    v4, v5,
};
use crate::packet::{
    Connack, Connect, Frame, PacketError, PacketType, ProtocolVersion, PublishRef, QoS, Subscribe, VARINT_MAX,
    next_frame, parse_connect, parse_puback, parse_publish, parse_subscribe, parse_unsubscribe, write_connack,
    write_disconnect, write_pingresp, write_puback, write_suback, write_unsuback,
};

/// Speaks for the hub until the connection is over, and says why it is.
pub(super) async fn interpret(place: Arc<Place>, far: DuplexStream) -> io::Error {
    let (mut from_link, mut to_link) = split(far);
    let (connect, unread) = match read_connect(&mut from_link).await {
        Ok(read) => read,
        Err(end) => return end.why,
    };
    let (happened, events) = mpsc::channel(EVENTS_MAX);
    let (client, library) = match connect.version {
        ProtocolVersion::V3_1_1 => {
            let (client, event_loop) = v4::open(&place, &connect);
            (Client::V4(client), Guarded::new(v4::drive(event_loop, happened)))
        }
        ProtocolVersion::V5_0 => {
            let (client, event_loop) = v5::open(&place, &connect);
            (Client::V5(client), Guarded::new(v5::drive(event_loop, happened)))
        }
    };
    let mut interpreter = Interpreter::new(connect.version, client, place.packet_ids(), unread);
    drop(connect);
    let End { last_words, why } = interpreter.run(events, library, from_link, &mut to_link).await;
    // What is known counts: acknowledgements first, then the reason.
    match last_words {
        Some(LastWords::Refused(code)) => {
            write_connack(&mut interpreter.answers, interpreter.version, &Connack::new(code));
        }
        Some(LastWords::Closed(reason)) => {
            write_disconnect(&mut interpreter.answers, interpreter.version, reason, None, None);
        }
        None => {}
    }
    _ = to_link.write_all(&interpreter.answers).await;
    _ = to_link.shutdown().await;
    why
}

/// User name and password as the library takes them: an empty one is none.
pub(super) fn login(connect: &Connect) -> Option<(String, String)> {
    let name = connect.user_name.clone().unwrap_or_default();
    let password = connect.password.as_ref().map_or(&[][..], |password| password.as_bytes());
    // It comes from a text file, or from `mint_sas`.
    let password = String::from_utf8_lossy(password).into_owned();
    (connect.user_name.is_some() || connect.password.is_some()).then_some((name, password))
}

struct Interpreter {
    version: ProtocolVersion,
    client: Client,
    packet_ids_max: u16,
    /// None until the hub accepted the connection.
    ids: Option<PacketIds>,
    /// What the library was given and has not sent, and what waits for that to be done.
    handed: VecDeque<Handed>,
    handed_bytes: usize,
    /// Of the link, and not yet handed on.
    unread: Vec<u8>,
    /// The first packet there waits for a packet id, or for room.
    held: bool,
    /// The link has said all it had to say.
    finished: bool,
    /// Filters of the UNSUBSCRIBE there that were handed on.
    filters_handed: usize,
    unsubscribing: HashMap<u16, Unsubscribing>,
    /// What the link is owed.
    answers: Vec<u8>,
}

struct Handed {
    what: Hand,
    bytes: usize,
}

#[derive(PartialEq, Eq)]
enum Hand {
    Sent(Sent),
    /// A PINGREQ of the link is answered when all that stood before it is sent: whether the hub lives, the library watches.
    Ping,
}

/// The answers to one UNSUBSCRIBE.
struct Unsubscribing {
    codes: Vec<u8>,
    unanswered: usize,
}

enum Client {
    V4(AsyncClient),
    V5(AsyncClientV5),
}

impl From<PacketError> for End {
    fn from(error: PacketError) -> Self {
        Self::out_of_step(error.what())
    }
}

impl Interpreter {
    fn new(version: ProtocolVersion, client: Client, packet_ids_max: u16, unread: Vec<u8>) -> Self {
        Self {
            version,
            client,
            packet_ids_max,
            ids: None,
            handed: VecDeque::new(),
            handed_bytes: 0,
            unread,
            held: false,
            finished: false,
            filters_handed: 0,
            unsubscribing: HashMap::new(),
            answers: Vec::new(),
        }
    }

    async fn run(
        &mut self,
        mut events: mpsc::Receiver<Happened>,
        library: Guarded,
        mut from_link: ReadHalf<DuplexStream>,
        to_link: &mut WriteHalf<DuplexStream>,
    ) -> End {
        // One future for the whole connection: the library cannot be polled anew in the middle of a write.
        let mut library = pin!(library);
        loop {
            let moved = tokio::select! {
                biased;
                Some(event) = events.recv() => self.on_events(event, &mut events),
                end = &mut library => {
                    while let Ok(event) = events.try_recv() {
                        if let Err(end) = self.on_event(event) {
                            return end;
                        }
                    }
                    return end;
                }
                read = from_link.read_buf(&mut self.unread), if !self.held && !self.finished => {
                    self.finished = !matches!(read, Ok(1..));
                    Ok(())
                }
            };
            if let Err(end) = moved.and_then(|()| self.hand_on()) {
                return end;
            }
            if self.finished && !self.held && self.handed.is_empty() {
                return End::left();
            }
            if !self.answers.is_empty() {
                if to_link.write_all(&self.answers).await.is_err() {
                    return End::left();
                }
                self.answers.clear();
            }
        }
    }

    fn on_events(&mut self, first: Happened, events: &mut mpsc::Receiver<Happened>) -> Result<(), End> {
        self.on_event(first)?;
        while self.answers.len() < ANSWER_BYTES_A_TURN
            && let Ok(event) = events.try_recv()
        {
            self.on_event(event)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: Happened) -> Result<(), End> {
        match event {
            Happened::Connected(connack) => {
                self.ids = Some(PacketIds::new(self.packet_ids_max, connack.receive_maximum));
                write_connack(&mut self.answers, self.version, &connack);
            }
            Happened::Sent(sent) => self.on_sent(sent)?,
            Happened::Acknowledged(id, reason) => match self.release(id) {
                Some(Use::Publish(packet_id)) => write_puback(&mut self.answers, self.version, packet_id, reason),
                _ => return Err(End::out_of_step("a PUBACK for what was not sent")),
            },
            Happened::Subscribed(id, codes) => match self.release(id) {
                Some(Use::Subscribe(packet_id)) => write_suback(&mut self.answers, self.version, packet_id, &codes),
                _ => return Err(End::out_of_step("a SUBACK that was not asked for")),
            },
            Happened::Unsubscribed(id, reason) => match self.release(id) {
                Some(Use::Unsubscribe(packet_id, place)) => self.unsubscribed(packet_id, place, reason),
                _ => return Err(End::out_of_step("an UNSUBACK that was not asked for")),
            },
            Happened::Message(bytes) => self.answers.extend_from_slice(&bytes),
        }
        Ok(())
    }

    fn release(&mut self, id: u16) -> Option<Use> {
        self.ids.as_mut()?.release(id)
    }

    fn unsubscribed(&mut self, packet_id: u16, place: usize, reason: u8) {
        let Some(asked) = self.unsubscribing.get_mut(&packet_id) else { return };
        if let Some(code) = asked.codes.get_mut(place) {
            *code = reason;
        }
        asked.unanswered -= 1;
        if asked.unanswered == 0 {
            write_unsuback(&mut self.answers, self.version, packet_id, &asked.codes);
            self.unsubscribing.remove(&packet_id);
        }
    }

    /// The oldest request that was handed on has left.
    fn on_sent(&mut self, sent: Sent) -> Result<(), End> {
        let oldest = self.handed.pop_front();
        let Some(Handed { bytes, .. }) = oldest.filter(|oldest| oldest.what == Hand::Sent(sent)) else {
            return Err(End::out_of_step("it sent something else than was next"));
        };
        self.handed_bytes -= bytes;
        self.answer_pings();
        if sent == Sent::Disconnect { Err(End::left()) } else { Ok(()) }
    }

    fn answer_pings(&mut self) {
        while self.handed.pop_front_if(|oldest| oldest.what == Hand::Ping).is_some() {
            write_pingresp(&mut self.answers);
        }
    }

    /// Gives the library whole packets of the link, as many as may go.
    fn hand_on(&mut self) -> Result<(), End> {
        let unread = std::mem::take(&mut self.unread);
        let mut used = 0;
        self.held = false;
        while let Some(frame) = next_frame(unread.get(used..).unwrap_or_default(), LINK_PACKET_BYTES_MAX)? {
            if self.ids.is_none() || !self.has_room() || !self.hand(frame)? {
                self.held = true;
                break;
            }
            used += frame.bytes().len();
        }
        self.unread = unread;
        self.unread.drain(..used);
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.handed.len() < REQUESTS_MAX && self.handed_bytes < HANDED_BYTES_MAX
    }

    /// Whether the packet was handed on.
    fn hand(&mut self, frame: Frame<'_>) -> Result<bool, End> {
        let bytes = frame.bytes().len();
        let sent = match frame.packet_type() {
            PacketType::Publish => {
                let publish = parse_publish(frame, self.version)?;
                let id = match publish.qos {
                    QoS::AtMostOnce => 0,
                    _ => match self.claim(Use::Publish(publish.packet_id)) {
                        Some(id) => id,
                        None => return Ok(false),
                    },
                };
                self.client.publish(&publish)?;
                Sent::Publish(id)
            }
            PacketType::Subscribe => {
                let subscribe = parse_subscribe(frame, self.version)?;
                let Some(id) = self.claim(Use::Subscribe(subscribe.packet_id)) else { return Ok(false) };
                self.client.subscribe(&subscribe)?;
                Sent::Subscribe(id)
            }
            PacketType::Unsubscribe => return self.unsubscribe(frame),
            PacketType::Puback => {
                let puback = parse_puback(frame, self.version)?;
                self.client.acknowledge(puback.packet_id)?;
                Sent::Acknowledgement(puback.packet_id)
            }
            PacketType::Pingreq => {
                self.handed.push_back(Handed { what: Hand::Ping, bytes: 0 });
                if self.handed.len() == 1 {
                    self.answer_pings();
                }
                return Ok(true);
            }
            PacketType::Disconnect => {
                self.client.disconnect()?;
                Sent::Disconnect
            }
            _ => return Err(End::out_of_step("the link sent what no client sends")),
        };
        self.note(sent, bytes);
        Ok(true)
    }

    /// One request a filter; where no more may go, the rest follows.
    fn unsubscribe(&mut self, frame: Frame<'_>) -> Result<bool, End> {
        let unsubscribe = parse_unsubscribe(frame, self.version)?;
        let packet_id = unsubscribe.packet_id;
        let count = unsubscribe.filters.len();
        self.unsubscribing
            .entry(packet_id)
            .or_insert_with(|| Unsubscribing { codes: vec![0; count], unanswered: count });
        for (place, filter) in unsubscribe.filters.iter().enumerate().skip(self.filters_handed) {
            let id = if self.has_room() { self.claim(Use::Unsubscribe(packet_id, place)) } else { None };
            let Some(id) = id else { return Ok(false) };
            let filter = filter.as_ref().map_err(|_| PacketError::Protocol("no topic filter"))?;
            self.client.unsubscribe(filter.as_str())?;
            self.note(Sent::Unsubscribe(id), filter.as_str().len());
            self.filters_handed += 1;
        }
        self.filters_handed = 0;
        Ok(true)
    }

    fn claim(&mut self, purpose: Use) -> Option<u16> {
        self.ids.as_mut()?.claim(purpose)
    }

    fn note(&mut self, sent: Sent, bytes: usize) {
        self.handed.push_back(Handed { what: Hand::Sent(sent), bytes });
        self.handed_bytes += bytes;
    }
}

/// The library takes all that [`Interpreter::has_room`] lets through.
impl Client {
    fn publish(&self, publish: &PublishRef<'_>) -> Result<(), End> {
        let topic = std::str::from_utf8(publish.topic).map_err(|_| PacketError::TopicInvalid)?;
        match self {
            Self::V4(client) => v4::publish(client, publish, topic),
            Self::V5(client) => v5::publish(client, publish, topic),
        }
    }

    fn subscribe(&self, subscribe: &Subscribe) -> Result<(), End> {
        match self {
            Self::V4(client) => v4::subscribe(client, subscribe),
            Self::V5(client) => v5::subscribe(client, subscribe),
        }
    }

    fn unsubscribe(&self, filter: &str) -> Result<(), End> {
        match self {
            Self::V4(client) => v4::unsubscribe(client, filter),
            Self::V5(client) => v5::unsubscribe(client, filter),
        }
    }

    fn acknowledge(&self, packet_id: u16) -> Result<(), End> {
        match self {
            Self::V4(client) => v4::acknowledge(client, packet_id),
            Self::V5(client) => v5::acknowledge(client, packet_id),
        }
    }

    fn disconnect(&self) -> Result<(), End> {
        match self {
            Self::V4(client) => taken(client.try_disconnect()),
            Self::V5(client) => taken(client.try_disconnect()),
        }
    }
}

/// The link's first packet, and what came with it.
async fn read_connect(from_link: &mut ReadHalf<DuplexStream>) -> Result<(Connect, Vec<u8>), End> {
    let mut bytes = Vec::new();
    loop {
        if let Some(frame) = next_frame(&bytes, LINK_PACKET_BYTES_MAX)? {
            let connect = parse_connect(frame)?;
            let rest = bytes.get(frame.bytes().len()..).unwrap_or_default().to_vec();
            return Ok((connect, rest));
        }
        if !matches!(from_link.read_buf(&mut bytes).await, Ok(1..)) {
            return Err(End::left());
        }
    }
}

/// As large as a packet can be: what a device may send, the link has checked.
const LINK_PACKET_BYTES_MAX: usize = VARINT_MAX as usize + 5;

/// Of requests that the library was given and has not sent, about. The link has them, too.
const HANDED_BYTES_MAX: usize = 1 << 20;

/// What is passed on to the link in one write.
const ANSWER_BYTES_A_TURN: usize = 32 << 10;
