//! From accept() to the end of CONNECT: whoever comes is bounded in time and memory until it is known, each in a task
//! of its own, and moves to its home shard once it is.

use std::{
    borrow::Cow,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use zeroize::Zeroizing;

use super::{
    Door, Entrance, HeldBy, Shard, Site, connection,
    holding::{Decided, until_keys_came},
    home_of, renewal,
};
use crate::{
    credential::{PeerCertificate, Refused},
    denial::Denial,
    gate::{Admission, BanOf, Judged, Profile, WillTopic, client_id_of_user_name},
    id::TokenId,
    journal::{Token, Who, printable},
    listener::{
        Accepted, Acceptor, HandshakeError, Place, ProxyError, Standing, Stream, UpgradeError, Upgraded,
        WebSocketRules, read_proxy_header, upgrade,
    },
    meter::{BANS, CONNECTS},
    packet::{
        Connect, PacketType, Password, ProblemInformation, ProtocolVersion, connect_answer_version, next_frame,
        parse_connect,
    },
    policy::Grant,
    session::server::{Session, SessionLimits, SessionPresent, write_refusal},
    time::Tick,
};

/// An admitted connection on its way to its home shard.
#[derive(Debug)]
pub struct Handed {
    pub(super) stream: Stream,
    pub(super) connect: Connect,
    pub(super) grant: Grant,
    /// The gate's epoch before it decided: while it is the same, the decision stands.
    pub(super) epoch: u64,
    pub(super) peer: SocketAddr,
    pub(super) profile: Profile,
    /// What was read behind the CONNECT.
    pub(super) unread: Vec<u8>,
    pub(super) place: Place,
}

/// Accepts until the gateway ends.
pub(super) async fn run(shard: Rc<Shard>, door: Door) {
    let listener = match TcpListener::from_std(door.listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listening socket cannot be polled"),
    };
    let mut closing = pin!(shard.closing.notified());
    closing.as_mut().enable();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => enter(&shard, socket, canonical(peer), &door.entrance, door.held_by),
            Err(error) => {
                // As a rule: no file left. Connections wait in the backlog meanwhile.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    if door.held_by == HeldBy::Gateway
        && let Err(error) = turn_away_waiting(&shard, listener, &door.entrance)
    {
        tracing::debug!(%error, "a listening socket is closed with who waited at it");
    }
}

/// The socket ends here: whom the kernel has let in already is told why, where that can be told.
fn turn_away_waiting(shard: &Rc<Shard>, listener: TcpListener, entrance: &Arc<Entrance>) -> io::Result<()> {
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((socket, peer)) => {
                socket.set_nonblocking(true)?;
                enter(shard, TcpStream::from_std(socket)?, canonical(peer), entrance, HeldBy::Gateway);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Gives a new connection a task, a place and a deadline.
fn enter(shard: &Rc<Shard>, socket: TcpStream, peer: SocketAddr, entrance: &Arc<Entrance>, held_by: HeldBy) {
    let Some(place) = shard.site.connections.enter() else {
        return refuse_unheard(shard, peer, Denial::ConnectionQuota);
    };
    // Where the socket outlives this gateway, whoever comes at the last moment is let in and leaves with the others: an
    // upgrade refuses nobody.
    let verdict = if shard.site.is_draining() && held_by == HeldBy::Gateway {
        Some(Denial::Draining)
    } else if entrance.proxies.cover(peer.ip()) {
        // Behind a balancer all come from one address: whose they are is judged once its header has said it.
        None
    } else {
        judge(shard, peer, &place)
    };
    if let Some(denial) = verdict.filter(|denial| is_turned_away(*denial, entrance)) {
        return refuse_unheard(shard, peer, denial);
    }
    // Acknowledgements are small and wanted at once; a socket that cannot be told is still a socket.
    let _ = socket.set_nodelay(true);
    let arrival = Arrival { socket: Some(socket), peer, entrance: entrance.clone(), place, verdict };
    let task = tokio::task::spawn_local(greet(shard.clone(), arrival));
    make_room(shard, (!entrance.proxies.cover(peer.ip())).then_some(peer), task.abort_handle());
}

/// What is held against a connection before it has said a word.
fn judge(shard: &Shard, peer: SocketAddr, place: &Place) -> Option<Denial> {
    let site = &shard.site;
    if !site.connect_limiter.allow(peer.ip(), site.now()) {
        Some(Denial::ConnectRate)
    } else if place.standing() == Standing::OverQuota {
        Some(Denial::ConnectionQuota)
    } else {
        None
    }
}

/// Where a handshake comes before CONNECT, it costs more than the connection is worth.
fn is_turned_away(denial: Denial, entrance: &Entrance) -> bool {
    let dear = entrance.tls.is_some() || entrance.web_socket.is_some();
    dear && matches!(denial, Denial::ConnectRate | Denial::Draining)
}

/// A socket that takes both families sees those of the old one under names of the new one.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// A connection that was accepted and is not heard yet.
struct Arrival {
    /// Until a stream is made of it.
    socket: Option<TcpStream>,
    peer: SocketAddr,
    entrance: Arc<Entrance>,
    place: Place,
    /// Decided before a byte was read.
    verdict: Option<Denial>,
}

/// Those who have not said who they are hold a part of all places. A balancer's address is nobody's.
fn make_room(shard: &Rc<Shard>, peer: Option<SocketAddr>, newest: tokio::task::AbortHandle) {
    let max = pending_max(shard.site.limits.connections_max, shard.shards.len());
    if let Some(oldest) = shard.pending.borrow_mut().enter(peer.map(|peer| peer.ip()), newest, max) {
        oldest.abort();
        count_refusal(Denial::ConnectTimeout);
    }
}

/// How many of `places` one shard of `shards` leaves to the unknown.
fn pending_max(places: usize, shards: usize) -> usize {
    let part = (places / PENDING_PART).max(PENDING_MIN.min(places / 2));
    (part / shards).max(1)
}

/// Lets go of tasks that have ended.
pub(super) fn tidy(shard: &Shard) {
    shard.pending.borrow_mut().tidy();
}

fn count_refusal(denial: Denial) {
    metrics::counter!(CONNECTS, "result" => "refused", "denial" => denial.tag()).increment(1);
}

async fn greet(shard: Rc<Shard>, mut arrival: Arrival) {
    let limit = shard.site.limits.connect_timeout;
    let heard = timeout(limit, hear(&shard, &mut arrival)).await;
    let Arrival { peer, entrance, place, verdict, .. } = arrival;
    match heard {
        Ok(Ok(Heard { stream, certificate, connect, unread })) => {
            let caller = Caller { peer, profile: entrance.profile, certificate, place };
            decide(&shard, stream, connect, unread, caller, verdict).await;
        }
        Ok(Err(Unheard::Refused { denial, stream, answer, detail, token_id })) => {
            let who = Who { device: "", peer, token_id };
            shard.site.journal.connect_refused(&who, denial, &detail);
            if let Some(stream) = stream {
                close_gently(*stream, &answer).await;
            }
        }
        Ok(Err(Unheard::Gone(reason))) => tracing::debug!(%peer, reason, "gone before CONNECT"),
        Err(_) => refuse_unheard(&shard, peer, Denial::ConnectTimeout),
    }
}

/// A whole CONNECT.
struct Heard {
    stream: Stream,
    certificate: Option<Arc<PeerCertificate>>,
    connect: Connect,
    unread: Vec<u8>,
}

/// What came instead of a CONNECT.
enum Unheard {
    /// Something that has to be refused, and in which words.
    Refused {
        denial: Denial,
        stream: Option<Box<Stream>>,
        answer: Vec<u8>,
        detail: Cow<'static, str>,
        /// The fingerprint of its certificate, where that is what is refused.
        token_id: Option<TokenId>,
    },
    /// Nothing, or an end in the middle.
    Gone(&'static str),
}

/// What may come before MQTT, then a CONNECT.
async fn hear(shard: &Shard, arrival: &mut Arrival) -> Result<Heard, Unheard> {
    let entrance = arrival.entrance.clone();
    if entrance.proxies.cover(arrival.peer.ip()) {
        hear_proxy(shard, arrival).await?;
    }
    let socket = arrival.socket.take().ok_or(Unheard::Gone("with its socket"))?;
    let Accepted { stream, certificate } = match &entrance.tls {
        None => Accepted { stream: Stream::tcp(socket), certificate: None },
        Some(acceptor) => shake_hands(shard, acceptor, socket).await.map_err(|error| match error {
            HandshakeError::Gone => Unheard::Gone("within the TLS handshake"),
            HandshakeError::Refused(Refused { denial, detail, token_id, .. }) => {
                Unheard::Refused { denial, stream: None, answer: Vec::new(), detail: detail.into(), token_id }
            }
        })?,
    };
    let (stream, bearer) = match &entrance.web_socket {
        None => (stream, None),
        Some(rules) => hear_upgrade(shard, stream, rules).await?,
    };
    let mut heard = hear_connect(shard, stream, certificate).await?;
    let connect = &mut heard.connect;
    // The token of the upgrade counts where CONNECT has none.
    if connect.password.is_none() && connect.authentication_method.is_none() {
        connect.password = bearer.map(|token| Password::new(&token));
    }
    assign_client_id(connect, entrance.profile);
    Ok(heard)
}

/// A device may leave its client id to the server [MQTT-3.1.3-6]: it is the device that its user name says it is, which its
/// token has to prove like any other. 3.1.1 asks for a clean session [MQTT-3.1.3-7]. Google's user names mean nothing.
fn assign_client_id(connect: &mut Connect, profile: Profile) {
    let may_be_assigned = connect.version == ProtocolVersion::V5_0 || connect.clean_start;
    if connect.client_id.is_empty()
        && may_be_assigned
        && profile != Profile::Google
        && let Some(id) = connect.user_name.as_deref().and_then(client_id_of_user_name)
    {
        connect.client_id = id.into();
        connect.client_id_assigned = true;
    }
}

/// Who really connects, from the balancer; then that one is judged.
async fn hear_proxy(shard: &Shard, arrival: &mut Arrival) -> Result<(), Unheard> {
    let socket = arrival.socket.as_mut().ok_or(Unheard::Gone("with its socket"))?;
    let named = read_proxy_header(socket, arrival.peer).await.map_err(|error| match error {
        ProxyError::Gone => Unheard::Gone("within the PROXY header"),
        ProxyError::Malformed(_) => refused_silently(Denial::Malformed, format!("The PROXY protocol: {error}.")),
    })?;
    arrival.peer = canonical(named);
    arrival.verdict = arrival.verdict.or_else(|| judge(shard, arrival.peer, &arrival.place));
    match arrival.verdict.filter(|denial| is_turned_away(*denial, &arrival.entrance)) {
        Some(denial) => Err(refused_silently(denial, String::new())),
        None => Ok(()),
    }
}

async fn hear_upgrade(
    shard: &Shard,
    stream: Stream,
    rules: &WebSocketRules,
) -> Result<(Stream, Option<Zeroizing<Vec<u8>>>), Unheard> {
    match upgrade(stream, rules, shard.site.limits.maximum_packet_size.get()).await {
        Ok(Upgraded { stream, bearer }) => Ok((stream, bearer)),
        Err(UpgradeError::Gone(_)) => Err(Unheard::Gone("within the WebSocket request")),
        Err(UpgradeError::Declined { answer, why, stream }) => Err(Unheard::Refused {
            denial: Denial::UpgradeDeclined,
            stream: Some(stream),
            answer,
            detail: why.into(),
            token_id: None,
        }),
    }
}

async fn hear_connect(
    shard: &Shard,
    mut stream: Stream,
    certificate: Option<Arc<PeerCertificate>>,
) -> Result<Heard, Unheard> {
    let bytes_max = shard.site.limits.connect_packet_size_max.get();
    let mut buffer = Vec::with_capacity(CONNECT_BYTES);
    loop {
        match next_frame(&buffer, bytes_max) {
            Ok(None) if buffer.first().is_none_or(|first| *first == CONNECT_FIRST) => {}
            Ok(Some(frame)) if frame.packet_type() == PacketType::Connect => {
                let used = frame.bytes().len();
                return match parse_connect(frame) {
                    Ok(connect) => Ok(Heard { stream, certificate, connect, unread: buffer.split_off(used) }),
                    Err(error) => {
                        let mut answer = Vec::new();
                        if let Some(version) = connect_answer_version(frame) {
                            write_refusal(version, error.denial(), ProblemInformation::Requested, &mut answer);
                        }
                        let stream = Some(Box::new(stream));
                        let (denial, detail) = (error.denial(), error.what().into());
                        Err(Unheard::Refused { denial, stream, answer, detail, token_id: None })
                    }
                };
            }
            // MQTT 3.1.1 [MQTT-3.1.0-1]: the first packet is a CONNECT.
            Ok(_) => return Err(unheard(Denial::Malformed, stream, "the first packet is no CONNECT")),
            Err(error) => return Err(unheard(error.denial(), stream, error.what())),
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) if buffer.is_empty() => return Err(Unheard::Gone("without a byte")),
            Ok(0) | Err(_) => return Err(Unheard::Gone("within CONNECT")),
            Ok(_) => {}
        }
    }
}

/// Nothing can be said to whom nothing was understood of yet.
fn refused_silently(denial: Denial, detail: String) -> Unheard {
    Unheard::Refused { denial, stream: None, answer: Vec::new(), detail: detail.into(), token_id: None }
}

/// A storm of handshakes costs a processor what it costs; this keeps it from costing live sessions their turn. Nobody
/// holds a turn while it waits for its peer.
async fn shake_hands(shard: &Shard, acceptor: &Acceptor, socket: TcpStream) -> Result<Accepted, HandshakeError> {
    socket.readable().await.map_err(|_| HandshakeError::Gone)?;
    let turn = shard.handshakes.acquire().await;
    let mut handshake = pin!(acceptor.accept(socket));
    // Key exchange and signature answer the first flight, which is there.
    let first = poll_fn(|context| Poll::Ready(handshake.as_mut().poll(context))).await;
    tokio::task::yield_now().await;
    drop(turn);
    match first {
        Poll::Ready(done) => done,
        Poll::Pending => handshake.await,
    }
}

fn unheard(denial: Denial, stream: Stream, detail: &'static str) -> Unheard {
    let (stream, detail) = (Some(Box::new(stream)), detail.into());
    Unheard::Refused { denial, stream, answer: Vec::new(), detail, token_id: None }
}

struct Caller {
    peer: SocketAddr,
    profile: Profile,
    certificate: Option<Arc<PeerCertificate>>,
    place: Place,
}

/// The gate decides; then the connection is refused, or goes home.
async fn decide(
    shard: &Rc<Shard>,
    mut stream: Stream,
    connect: Connect,
    unread: Vec<u8>,
    Caller { peer, profile, certificate, place }: Caller,
    verdict: Option<Denial>,
) {
    let site = &shard.site;
    // A device that comes back takes the place of its own session, which may not have noticed yet that it is gone.
    let takes_over =
        |denial: &Denial| *denial == Denial::ConnectionQuota && site.registry.of_device(&connect.client_id).is_some();
    let (epoch, admitted) = match verdict.filter(|denial| !takes_over(denial)) {
        Some(denial) => (0, Err(Refused::new(denial, ""))),
        None => admit(shard, &connect, &admission(&connect, certificate.as_ref(), profile), peer).await,
    };
    match admitted {
        Ok(grant) => {
            let home = home_of(&grant.device, shard.shards.len());
            if home == shard.index {
                return connection::adopt(
                    shard,
                    Handed { stream, connect, grant, epoch, peer, profile, unread, place },
                );
            }
            if let Err(error) = stream.detach() {
                return tracing::warn!(%peer, %error, "a connection cannot change shards");
            }
            let handed = Box::new(Handed { stream, connect, grant, epoch, peer, profile, unread, place });
            shard.shards.hand(home, handed).await;
        }
        Err(Refused { denial, token_id, detail, .. }) => {
            let who = Who { device: &connect.client_id, peer, token_id };
            match admission(&connect, certificate.as_ref(), profile).password {
                Some(bytes) => {
                    site.journal.token_refused(&who, (denial, &detail), &Token { bytes, profile }, site.now());
                }
                None => {
                    site.journal.connect_refused(&who, denial, &detail);
                }
            }
            close_gently(stream, &refusal(&connect, profile, denial)).await;
        }
    }
}

/// Asks the gate, within what an address may cost from which somebody guesses.
async fn admit(shard: &Shard, connect: &Connect, request: &Admission<'_>, peer: SocketAddr) -> Decided {
    let Site { gate, backoff, .. } = &*shard.site;
    let password = request.password.unwrap_or_default();
    // A certificate alone costs a chain of signatures.
    let is_costly = || request.password.map_or(request.certificate.is_some(), |password| gate.is_costly(password));
    if !backoff.allows_check(peer.ip(), is_costly, shard.site.now()) {
        return (0, Err(Refused::new(Denial::CheckRate, "The token was not looked at.")));
    }
    let ask = || (gate.epoch(), ask_gate(shard, connect, request));
    let (mut epoch, mut asked) = ask();
    if asked.as_ref().is_err_and(|refused| gate.awaits_keys(password, refused.denial)) {
        // Apart, since few are held: what is heard of all others is not to be larger for it.
        (epoch, asked) = Box::pin(until_keys_came(shard, password, (epoch, asked), ask)).await;
    }
    let judged = asked.map_err(|refused| {
        let Judged { refused, ban_begins } = backoff.judge(peer.ip(), password, refused, shard.site.now());
        if let Some(of) = ban_begins {
            if of == BanOf::Address {
                metrics::counter!(BANS).increment(1);
            }
            tracing::warn!(%peer, detail = printable(&refused.detail), "an address or a token is banned");
        }
        refused
    });
    (epoch, judged)
}

fn ask_gate(shard: &Shard, connect: &Connect, request: &Admission<'_>) -> Result<Grant, Refused> {
    // MQTT 5.0 §4.12: a method that is not served.
    if let Some(method) = &connect.authentication_method
        && !AUTHENTICATION_METHODS.contains(&method.as_str())
    {
        let detail = format!("The authentication method is {method:?}.");
        return Err(Refused::new(Denial::AuthenticationMethodUnknown, detail));
    }
    if let (Some(method), Some(token)) = (&connect.authentication_method, request.password) {
        renewal::check_method(method, token)?;
    }
    let grant = shard.site.gate.admit(request, shard.site.clock.now())?;
    // A 3.1.1 device cannot be told what is offered: a will of QoS 2 is sent with QoS 1.
    if connect.version == ProtocolVersion::V5_0 {
        let limits = shard.site.session_limits(request.profile, &grant.scope);
        check_offer(connect, &limits, shard.site.now())
            .map_err(|refused| refused.about(grant.token_id, Some(&grant.device)))?;
    }
    Ok(grant)
}

fn check_offer(connect: &Connect, limits: &SessionLimits, now: Tick) -> Result<(), Refused> {
    limits
        .check_will(connect)
        .map_err(|denial| Refused::new(denial, "The will asks for what CONNACK would not offer."))?;
    // MQTT 5.0 [MQTT-3.1.2-24]: who takes no CONNACK can be told nothing else either.
    if let Some(bytes_max) = connect.maximum_packet_size.filter(|bytes| *bytes < LARGE_CONNACK) {
        let mut connack = Vec::new();
        Session::accept(connect, limits, now).connack(SessionPresent::No, connect.assigned_client_id(), &mut connack);
        if connack.len() > bytes_max as usize {
            let detail = format!("Its Maximum Packet Size is {bytes_max}; CONNACK has {} bytes.", connack.len());
            return Err(Refused::new(Denial::PacketTooLarge, detail));
        }
    }
    Ok(())
}

fn admission<'a>(
    connect: &'a Connect,
    certificate: Option<&'a Arc<PeerCertificate>>,
    profile: Profile,
) -> Admission<'a> {
    // MQTT 5.0 §3.1.2.11.9: a token may come as authentication data instead of the password.
    let by_method = connect.authentication_method.is_some();
    let password = if by_method { connect.authentication_data.as_ref() } else { connect.password.as_ref() };
    Admission {
        client_id: &connect.client_id,
        user_name: connect.user_name.as_deref(),
        password: password.map(|p| p.as_bytes()),
        certificate,
        profile,
        will: connect.will.as_ref().map(|w| WillTopic { topic: &w.topic, qos: w.qos as u8, retain: w.retain }),
    }
}

/// CONNACK that refuses. Azure's SDKs are told 5 where others are told 2.
pub(super) fn refusal(connect: &Connect, profile: Profile, denial: Denial) -> Vec<u8> {
    let mut answer = Vec::new();
    write_refusal(connect.version, denial, connect.problem_information, &mut answer);
    let bytes_max = connect.maximum_packet_size.unwrap_or(u32::MAX) as usize;
    // MQTT 5.0 [MQTT-3.2.2-19], [MQTT-3.1.2-24]: without the reason string, or without a word.
    if answer.len() > bytes_max {
        answer.clear();
        write_refusal(connect.version, denial, ProblemInformation::Declined, &mut answer);
    }
    if answer.len() > bytes_max {
        answer.clear();
    }
    let identifier_rejected = denial.row().connack_v4 == Some(2);
    if connect.version == ProtocolVersion::V3_1_1
        && profile == Profile::Azure
        && identifier_rejected
        && let Some(code) = answer.last_mut()
    {
        *code = 5;
    }
    answer
}

fn refuse_unheard(shard: &Shard, peer: SocketAddr, denial: Denial) {
    shard.site.journal.connect_refused(&Who { device: "", peer, token_id: None }, denial, "");
}

/// Writes the last words and closes so that they arrive: a socket closed with unread bytes would be reset, and the
/// peer might never see them.
pub(super) async fn close_gently(mut stream: Stream, last_words: &[u8]) {
    let farewell = async {
        stream.write_all(last_words).await?;
        stream.shutdown().await?;
        let mut left = LINGER_BYTES_MAX;
        poll_fn(|cx| {
            // Of the stack: thousands that are closed at once would each hold such a buffer.
            let mut rest = [const { MaybeUninit::uninit() }; REST_BYTES];
            while left > 0 {
                let mut buffer = ReadBuf::uninit(&mut rest);
                ready!(Pin::new(&mut stream).poll_read(cx, &mut buffer))?;
                match buffer.filled().len() {
                    0 => break,
                    n => left = left.saturating_sub(n),
                }
            }
            Poll::Ready(io::Result::Ok(()))
        })
        .await
    };
    // Whatever goes wrong here, the connection is over.
    let _ = timeout(LINGER, farewell).await;
}

/// A token may come as Authentication Data under one of these.
const AUTHENTICATION_METHODS: [&str; 2] = ["SAS", "JWT"];
/// Fixed header of a CONNECT [MQTT-3.1.0-1].
const CONNECT_FIRST: u8 = 0x10;
/// A CONNECT with a SAS token or a small JWT.
const CONNECT_BYTES: usize = 1024;
/// No CONNACK of ours is larger: a client id and an authentication method are its longest parts.
const LARGE_CONNACK: u32 = 512;
/// After a failure to accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// How long a peer may take to take its leave.
const LINGER: Duration = Duration::from_millis(500);
/// What it may still say meanwhile.
const LINGER_BYTES_MAX: usize = 256 << 10;
/// One read of them.
const REST_BYTES: usize = 4096;
/// One of so many places of a shard may be held by connections that are not known yet.
const PENDING_PART: usize = 4;
/// Or so many, up to half of all: a small site's devices come all at once, too.
const PENDING_MIN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unknown_never_hold_all_places() {
        for (places, shards, max) in
            [(10_000, 2, 1250), (10_000, 1, 2500), (600, 2, 128), (100, 2, 25), (4, 1, 2), (1, 1, 1)]
        {
            assert_eq!(pending_max(places, shards), max, "{places} places, {shards} shards");
        }
    }
}
