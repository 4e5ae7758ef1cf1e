//! One connection to NATS, from the link's CONNECT to the end of either: MQTT 5.0 on one side, JetStream on the other.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, Event, HeaderMap, Message, PublishErrorKind, ServerError, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split},
    sync::mpsc,
};

use super::{
    NatsHub,
    commands::{Command, Commands},
    header::{Headers, write_properties},
    outbox::{Outbox, Pace, Waiting},
    stream::{
        Answer, Fault, NOT_AUTHORIZED, PACKET_TOO_LARGE, QUOTA_EXCEEDED, SERVER_BUSY, Stream, TOPIC_NAME_INVALID,
    },
    subject::{subject_of, subjects_of, topic_of},
};
use crate::{
    packet::{
        Connack, Frame, PacketError, PacketType, ProtocolVersion::V5_0, Publish, QoS, next_frame, parse_publish,
        parse_subscribe, parse_unsubscribe, write_connack, write_disconnect, write_pingresp, write_puback,
        write_publish, write_suback, write_subscription_id, write_unsuback,
    },
    session::client::PACKET_BYTES_MAX,
    topic::TopicFilter,
    upstream::{Dropped, Tally},
};

/// A connection that was made.
pub(super) struct Opened {
    pub(super) hub: NatsHub,
    pub(super) client: Client,
    pub(super) stream: Stream,
    /// What acknowledgements are addressed to, and a token.
    pub(super) inbox: String,
    pub(super) acks: Subscriber,
    pub(super) events: mpsc::Receiver<Event>,
}

/// Speaks for the hub until the connection is over, and says why it is.
pub(super) async fn interpret(opened: Opened, far: DuplexStream, tally: Arc<Tally>) -> io::Error {
    let (from_link, mut to_link) = split(far);
    let mut interpreter = Interpreter::new(opened, tally);
    let End { reason, why } = interpreter.run(from_link, &mut to_link).await;
    // What is known counts: acknowledgements first, then the reason.
    if let Some(reason) = reason {
        write_disconnect(&mut interpreter.answers, V5_0, reason, None, None);
    }
    _ = to_link.write_all(&interpreter.answers).await;
    _ = to_link.shutdown().await;
    io::Error::other(why)
}

struct Interpreter {
    hub: NatsHub,
    client: Client,
    stream: Stream,
    looked: Instant,
    inbox: String,
    acks: Subscriber,
    events: mpsc::Receiver<Event>,
    commands: Commands,
    outbox: Outbox<Outgoing>,
    /// Messages on their way, by the token of their acknowledgement.
    unanswered: BTreeMap<u64, Unanswered>,
    /// Subscriptions that the server has not yet passed over.
    asked: Vec<Asked>,
    token: u64,
    hasher: RandomState,
    tally: Arc<Tally>,
    /// What the link is owed.
    answers: Vec<u8>,
    /// The server's last words.
    complaint: Option<String>,
}

/// A message that is ready to go.
struct Outgoing {
    /// None at QoS 0.
    packet_id: Option<u16>,
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
}

struct Unanswered {
    packet_id: u16,
    device: u64,
    subject: Subject,
    since: Instant,
}

struct Asked {
    packet_id: u16,
    /// Each with its answer.
    filters: Vec<(Option<TopicFilter>, u8)>,
}

/// Why it is over. Without a reason code a message may have been what the server closed on.
struct End {
    reason: Option<u8>,
    why: String,
}

impl End {
    fn lost(why: impl ToString) -> Self {
        Self { reason: None, why: why.to_string() }
    }

    fn told(reason: u8, why: impl Into<String>) -> Self {
        Self { reason: Some(reason), why: why.into() }
    }
}

impl From<PacketError> for End {
    fn from(error: PacketError) -> Self {
        Self::told(error.reason_code(), error.what())
    }
}

impl Interpreter {
    fn new(opened: Opened, tally: Arc<Tally>) -> Self {
        let Opened { hub, client, stream, inbox, acks, events } = opened;
        let pace = if stream.may_skip { Pace::OneADevice } else { Pace::Pipelined };
        Self {
            hub,
            client,
            stream,
            looked: Instant::now(),
            inbox,
            acks,
            events,
            commands: Commands::default(),
            outbox: Outbox::new(pace),
            unanswered: BTreeMap::new(),
            asked: Vec::new(),
            token: 0,
            hasher: RandomState::new(),
            tally,
            answers: Vec::new(),
            complaint: None,
        }
    }

    async fn run(&mut self, mut from_link: ReadHalf<DuplexStream>, to_link: &mut WriteHalf<DuplexStream>) -> End {
        let mut unread = Vec::new();
        let mut clock = tokio::time::interval(LOOK_EVERY);
        loop {
            let moved = tokio::select! {
                biased;
                event = self.events.recv() => self.on_event(event),
                ack = self.acks.next() => self.on_acks(ack).await,
                read = from_link.read_buf(&mut unread), if self.outbox.has_room() => match read {
                    Ok(0) | Err(_) => Err(End::lost("the gateway left")),
                    Ok(_) => self.on_bytes(&mut unread).await,
                },
                command = self.commands.next() => {
                    self.on_commands(command);
                    Ok(())
                }
                _ = clock.tick() => self.on_clock().await,
            };
            let moved = match moved {
                Ok(()) => self.send().await,
                Err(end) => Err(end),
            };
            if let Err(end) = moved {
                return end;
            }
            if !self.answers.is_empty() {
                if to_link.write_all(&self.answers).await.is_err() {
                    return End::lost("the gateway left");
                }
                self.answers.clear();
            }
        }
    }

    /// Takes whole packets of the link.
    async fn on_bytes(&mut self, unread: &mut Vec<u8>) -> Result<(), End> {
        let mut used = 0;
        while let Some(frame) = next_frame(unread.get(used..).unwrap_or_default(), LINK_PACKET_BYTES_MAX)? {
            used += frame.bytes().len();
            match frame.packet_type() {
                PacketType::Publish => self.on_publish(frame)?,
                PacketType::Subscribe => self.on_subscribe(frame).await?,
                PacketType::Unsubscribe => self.on_unsubscribe(frame)?,
                PacketType::Pingreq => write_pingresp(&mut self.answers),
                PacketType::Connect => {
                    // Liveness of the server is for the library to watch.
                    let connack = Connack { qos_max: 1, server_keep_alive: Some(0), ..Connack::new(0) };
                    write_connack(&mut self.answers, V5_0, &connack);
                }
                PacketType::Disconnect => {
                    // What stands in the library's buffer must not be lost to a hasty end.
                    _ = self.client.flush().await;
                    return Err(End::lost("the gateway left"));
                }
                _ => {}
            }
        }
        unread.drain(..used);
        Ok(())
    }

    fn on_publish(&mut self, frame: Frame<'_>) -> Result<(), End> {
        let publish = parse_publish(frame, V5_0)?;
        let topic = std::str::from_utf8(publish.topic).map_err(|_| PacketError::TopicInvalid)?;
        let subject = subject_of(topic);
        let packet_id = (publish.qos > QoS::AtMostOnce).then_some(publish.packet_id);
        if subject.len() > SUBJECT_BYTES_MAX {
            self.refuse(packet_id, TOPIC_NAME_INVALID);
            return Ok(());
        }
        let Headers { map: headers, device } = Headers::of(&publish, self.hub.stream_name());
        let message =
            Outgoing { packet_id, subject: subject.into(), headers, payload: Bytes::copy_from_slice(publish.payload) };
        self.outbox.push(Waiting {
            message,
            device: self.hasher.hash_one(device),
            answered: packet_id.is_some(),
            bytes: frame.bytes().len(),
        });
        Ok(())
    }

    /// Sends what may go.
    async fn send(&mut self) -> Result<(), End> {
        while let Some(Waiting { message, device, .. }) = self.outbox.next() {
            let Outgoing { packet_id, subject, headers, payload } = message;
            let sent = match packet_id {
                None => self.client.publish_with_headers(subject, headers, payload).await,
                Some(packet_id) => {
                    let token = self.next_token();
                    let reply = format!("{}.{token:x}", self.inbox);
                    let unanswered = Unanswered { packet_id, device, subject: subject.clone(), since: Instant::now() };
                    self.unanswered.insert(token, unanswered);
                    self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
                }
            };
            match sent {
                Ok(()) => {}
                // It names the server's max_payload, headers included.
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => match packet_id {
                    Some(_) => self.answer(self.token, PACKET_TOO_LARGE),
                    None => self.refuse(None, PACKET_TOO_LARGE),
                },
                Err(_) => return Err(self.lost()),
            }
        }
        Ok(())
    }

    /// Takes the acknowledgement that came, and those that are there with it.
    async fn on_acks(&mut self, first: Option<Message>) -> Result<(), End> {
        let mut next = first;
        for _ in 0..ACKS_A_TURN {
            match next {
                Some(ack) => self.on_ack(&ack).await?,
                None => return Err(self.lost()),
            }
            match self.acks.next().now_or_never() {
                Some(ack) => next = ack,
                None => break,
            }
        }
        Ok(())
    }

    async fn on_ack(&mut self, ack: &Message) -> Result<(), End> {
        let Some(token) = ack.subject.strip_prefix(self.inbox.as_str()).and_then(|rest| rest.strip_prefix('.')) else {
            return Ok(());
        };
        if token == PASSED {
            self.passed();
            return Ok(());
        }
        let Some(token) = u64::from_str_radix(token, 16).ok().filter(|token| self.unanswered.contains_key(token))
        else {
            return Ok(());
        };
        let fault = if ack.status == Some(StatusCode::NO_RESPONDERS) {
            Some((Fault::Unclear, "nobody takes messages on its subjects".to_owned()))
        } else {
            match serde_json::from_slice::<Answer>(&ack.payload) {
                Ok(Answer { error: Some(error), .. }) => Some((error.fault(), error.description)),
                Ok(Answer { stream: Some(stream), duplicate, .. }) if stream == self.hub.stream_name() => {
                    if duplicate {
                        self.tally.duplicate();
                    }
                    None
                }
                // Not JetStream: another program answers what comes on this subject, and is no witness.
                _ => return Ok(()),
            }
        };
        match fault {
            None => self.answer(token, SUCCESS),
            Some((Fault::Message(reason), _)) => self.answer(token, reason),
            Some((Fault::Hub(reason), what)) => return Err(self.refused_all(reason, &what)),
            Some((Fault::Unclear, what)) => {
                if self.captures(token).await? {
                    return Err(self.refused_all(SERVER_BUSY, &what));
                }
                self.answer(token, TOPIC_NAME_INVALID);
            }
        }
        Ok(())
    }

    /// Whether the stream captures the subject of a message, as it is defined now.
    async fn captures(&mut self, token: u64) -> Result<bool, End> {
        if self.looked.elapsed() > LOOK_EVERY {
            let looked = self.hub.look_again(&self.client).await;
            self.stream = looked.map_err(|why| End::told(SERVER_BUSY, why))?;
            self.looked = Instant::now();
        }
        Ok(self.unanswered.get(&token).is_some_and(|message| self.stream.captures(&message.subject)))
    }

    fn refused_all(&self, reason: u8, what: &str) -> End {
        let name = self.hub.stream_name();
        let why = match reason {
            QUOTA_EXCEEDED => format!("the stream {name} takes no more: {what}"),
            _ => format!("the stream {name} did not take a message: {what}"),
        };
        End::told(reason, why)
    }

    /// The message was stored, or is not for this hub.
    fn answer(&mut self, token: u64, reason: u8) {
        let Some(message) = self.unanswered.remove(&token) else { return };
        self.outbox.answered(message.device);
        self.refuse(Some(message.packet_id), reason);
    }

    fn refuse(&mut self, packet_id: Option<u16>, reason: u8) {
        match packet_id {
            Some(packet_id) => write_puback(&mut self.answers, V5_0, packet_id, reason),
            None => self.tally.dropped(Dropped::HubRefused),
        }
    }

    async fn on_clock(&mut self) -> Result<(), End> {
        let Some((&token, oldest)) = self.unanswered.first_key_value() else { return Ok(()) };
        if oldest.since.elapsed() < ACKNOWLEDGED_WITHIN {
            return Ok(());
        }
        self.looked = Instant::now().checked_sub(2 * LOOK_EVERY).unwrap_or(self.looked);
        if !self.captures(token).await? {
            self.answer(token, TOPIC_NAME_INVALID);
            return Ok(());
        }
        let name = self.hub.stream_name();
        Err(End::lost(format!("the stream {name} did not acknowledge within {} s", ACKNOWLEDGED_WITHIN.as_secs())))
    }

    async fn on_subscribe(&mut self, frame: Frame<'_>) -> Result<(), End> {
        let subscribe = parse_subscribe(frame, V5_0)?;
        let mut filters = Vec::with_capacity(subscribe.requests.len());
        for request in subscribe.requests {
            let Ok(filter) = request.filter else {
                filters.push((None, UNSPECIFIED));
                continue;
            };
            if subjects_of(&filter).iter().any(|subject| subject.len() > SUBJECT_BYTES_MAX) {
                filters.push((Some(filter), TOPIC_FILTER_INVALID));
                continue;
            }
            let placed = self.commands.place(&self.client, &filter, subscribe.subscription_id).await;
            placed.map_err(|_| self.lost())?;
            // Core NATS delivers at most once.
            filters.push((Some(filter), QoS::AtMostOnce as u8));
        }
        self.asked.push(Asked { packet_id: subscribe.packet_id, filters });
        // A server answers a subscription only to refuse it. What comes back to ourselves was behind it.
        let back = format!("{}.{PASSED}", self.inbox);
        self.client.publish(back, Bytes::new()).await.map_err(|_| self.lost())
    }

    /// The server has passed over the oldest subscription that was asked for, and said what it had to say.
    fn passed(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let asked = self.asked.remove(0);
        let codes: Vec<u8> = asked.filters.iter().map(|(_, code)| *code).collect();
        write_suback(&mut self.answers, V5_0, asked.packet_id, &codes);
    }

    fn on_unsubscribe(&mut self, frame: Frame<'_>) -> Result<(), End> {
        let unsubscribe = parse_unsubscribe(frame, V5_0)?;
        for filter in unsubscribe.filters.iter().flatten() {
            self.commands.take_back(filter);
        }
        let codes = vec![SUCCESS; unsubscribe.filters.len()];
        write_unsuback(&mut self.answers, V5_0, unsubscribe.packet_id, &codes);
        Ok(())
    }

    fn on_commands(&mut self, first: Command) {
        self.on_command(&first);
        while self.answers.len() < COMMAND_BYTES_A_TURN
            && let Some(command) = self.commands.next_ready()
        {
            self.on_command(&command);
        }
    }

    fn on_command(&mut self, command: &Command) {
        let Command { subscription_id, message } = command;
        let Some(topic) = topic_of(&message.subject) else {
            return self.tally.dropped(Dropped::NoSubscriber);
        };
        let mut properties = Vec::new();
        if let Some(id) = subscription_id {
            write_subscription_id(&mut properties, *id);
        }
        if let Some(headers) = &message.headers {
            write_properties(headers, &mut properties);
        }
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: &topic,
            packet_id: 0,
            properties: &[&properties],
            payload: &message.payload,
        };
        if publish.encoded_len(V5_0) > PACKET_BYTES_MAX || topic.len() > usize::from(u16::MAX) {
            return self.tally.dropped(Dropped::TooLarge);
        }
        write_publish(&mut self.answers, V5_0, &publish);
    }

    fn on_event(&mut self, event: Option<Event>) -> Result<(), End> {
        match event {
            Some(Event::ServerError(ServerError::Other(text))) => self.on_complaint(&text),
            Some(Event::ServerError(error)) => self.complaint = Some(error.to_string()),
            Some(Event::SlowConsumer(_)) => self.tally.dropped(Dropped::NotReading),
            Some(Event::Disconnected | Event::Closed) | None => return Err(self.lost()),
            Some(_) => {}
        }
        Ok(())
    }

    /// What the server says of one subject is nobody else's concern.
    fn on_complaint(&mut self, text: &str) {
        let subject = text.split('"').nth(1).unwrap_or_default();
        if text.starts_with("Permissions Violation for Publish") {
            let theirs = |message: &Unanswered| *message.subject == *subject;
            let tokens: Vec<u64> = self.unanswered.iter().filter(|(_, m)| theirs(m)).map(|(token, _)| *token).collect();
            tokens.into_iter().for_each(|token| self.answer(token, NOT_AUTHORIZED));
            if subject.strip_prefix(self.inbox.as_str()).is_some() {
                // Without a word to ourselves there is no telling later than this.
                self.passed();
            }
        } else if text.starts_with("Permissions Violation for Subscription") {
            let Self { asked, commands, .. } = self;
            for (filter, code) in asked.iter_mut().flat_map(|asked| &mut asked.filters) {
                if let Some(filter) = filter
                    && subjects_of(filter).iter().any(|own| own == subject)
                {
                    commands.take_back(filter);
                    *code = NOT_AUTHORIZED;
                }
            }
        } else {
            self.complaint = Some(text.to_owned());
        }
    }

    fn lost(&self) -> End {
        End::lost(match &self.complaint {
            Some(complaint) => format!("connection lost: the server said {complaint:?}"),
            None => "connection lost: the server closed it".to_owned(),
        })
    }

    fn next_token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }
}

/// The token of a word to ourselves.
const PASSED: &str = "passed";

/// Reason codes of MQTT 5.0 §2.4.
const SUCCESS: u8 = 0x00;
const UNSPECIFIED: u8 = 0x80;
const TOPIC_FILTER_INVALID: u8 = 0x8F;

/// nats-server reads a line of 4,096 bytes (`max_control_line`): the subject, where to answer, and two lengths.
const SUBJECT_BYTES_MAX: usize = 3_800;

/// More than any device may send.
const LINK_PACKET_BYTES_MAX: usize = 16 << 20;

/// A stream with a leader acknowledges within milliseconds; electing one takes seconds.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Acknowledgements that are passed on in one write.
const ACKS_A_TURN: usize = 512;
/// Messages of the hub that are passed on in one write.
const COMMAND_BYTES_A_TURN: usize = 32 << 10;
