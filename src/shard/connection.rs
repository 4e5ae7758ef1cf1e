//! One session on its home shard, from CONNACK to the last byte: walk 1 of ARCHITECTURE.md. [`drive`] shows a PUBLISH
//! from the socket to the hub's log, [`pump`](super::pump) shows it from there to its PUBACK.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Shard,
    accept::{self, Handed},
    ahead::{self, Ahead},
    deadlines::{look, must_end},
    device_hash, drain,
    kept::{self, CleanStart, Resumed},
    publish,
    renewal::{self, Renewed},
    sessions::{Pause, Rate, SessionCell, State, who_of},
    subscribe::{self, Asked},
    wills,
};
use crate::{
    delivery::{SessionRef, session_stamp},
    denial::{CloseReason, Denial},
    gate::Standing,
    listener::{Place, Stream},
    meter,
    packet::{Connect, Disconnect, next_frame},
    policy::{Grant, TokenKind},
    registry::{Attention, Cut, Live},
    session::server::{Inbound, Session, SessionPresent, Step},
    takeovers::{COUNT_MAX, Turned},
    time::Tick,
};

/// Makes a session of an admitted connection. Synchronous: what its task keeps for hours is no more than it needs.
pub(super) fn adopt(shard: &Rc<Shard>, handed: Handed) {
    let Handed { mut stream, mut connect, grant, epoch, peer, profile, unread, place } = handed;
    if let Err(error) = stream.attach() {
        return tracing::warn!(%peer, %error, "a connection cannot change shards");
    }
    let site = &shard.site;
    let now = site.now();
    let who = shard.sessions.borrow_mut().reserve();
    let live =
        Arc::new(Live::new(grant, (peer, connect.version), (shard.index, who.slot, who.generation), site.clock.now()));
    // Registered first, checked again after: a change that comes between finds the session or is found by it.
    let held = || Registration { shard: shard.clone(), live: live.clone(), who };
    let (registration, old, stays) = site.threshold().enter(&live, epoch, held, || site.clock.now());
    if let Err(reason) = stays {
        drop(registration);
        reinstate(shard, old);
        let denial = recheck_denial(reason);
        site.journal.connect_refused(&who_of(&live), denial, "it was withdrawn while the device connected");
        let answer = accept::refusal(&connect, profile, denial);
        tokio::task::spawn_local(async move { accept::close_gently(stream, &answer).await });
        return;
    }
    if let Some(old) = &old {
        // [MQTT-3.1.4-3]: only an authenticated newcomer ends the old session.
        shard.shards.cut(&[(old.clone(), CloseReason::TakenOver)], Instant::now());
        look_at_take_over(shard, &live, old, now);
    }
    let limits = site.session_limits(profile, &live.grant().scope);
    let clean_start = if connect.clean_start { CleanStart::Yes } else { CleanStart::No };
    let home = (live.device(), device_hash(live.device()));
    let mut resumed = kept::resume(shard, home, old.as_ref(), clean_start);
    let session = match &mut resumed {
        Some(resumed) => Session::resume(&connect, &limits, std::mem::take(&mut resumed.state), now),
        None => Session::accept(&connect, &limits, now),
    };
    let cell = Rc::new(session_cell(shard, (who, &live), session, now));
    session_opened(shard, &cell, &connect, resumed.as_ref());
    shard.sessions.borrow_mut().insert(cell.clone());
    wills::came_back(shard, cell.live.device(), cell.present.get());
    if let Some(will) = connect.will.take() {
        wills::accepted(shard, &cell, Box::new(will));
    }
    look(shard, &cell, now);
    if site.is_draining() {
        // It came before the drain, and finds its place among those who leave.
        drain::leave(shard, &cell);
    }
    tokio::task::spawn_local(run(registration, cell, stream, unread.into(), place));
}

/// Threat T7: two that are one device to us take turns.
fn look_at_take_over(shard: &Shard, live: &Live, old: &Live, now: Tick) {
    if shard.site.take_overs.seen(live.device(), now) == Turned::TooOften {
        let (device, peer, other) = (live.device(), live.peer, old.peer);
        tracing::warn!(%device, %peer, %other, "two connect as one device and take its session from each other");
        let detail = format!(
            "{COUNT_MAX} times in a minute another connection took the session over: {peer} from {other} at last. Two have \
             its token, or were given its id; revoke the token, or give one of them an id of its own."
        );
        shard.site.journal.took_over(&who_of(live), &detail);
    }
}

/// The newcomer was not let in after all: the session that it would have ended goes on, if it still may.
fn reinstate(shard: &Shard, old: Option<Arc<Live>>) {
    let Some(old) = old else { return };
    shard.site.registry.reinstate(&old);
    match shard.site.gate.standing(&old.grant(), shard.site.clock.now()) {
        Standing::Given => {}
        // It was found by nobody while the newcomer stood for the device: it connects again, and is told what it may.
        Standing::Narrowed(_) => drop(shard.shards.cut(&[(old, CloseReason::GrantWithdrawn)], Instant::now())),
        Standing::Ended(reason) => drop(shard.shards.cut(&[(old, reason)], Instant::now())),
    }
}

fn recheck_denial(reason: CloseReason) -> Denial {
    match reason {
        CloseReason::Expired => Denial::Expired,
        CloseReason::Revoked => Denial::Revoked,
        _ => Denial::Unavailable,
    }
}

fn session_cell(shard: &Shard, (who, live): (SessionRef, &Arc<Live>), session: Session, now: Tick) -> SessionCell {
    let site = &shard.site;
    let grant = &live.grant();
    let closes_at = site.clock.tick_of(grant.closes_at);
    let stamp = stamp_of(shard, grant);
    let rate = Rate::full(site.limits.publishes_per_second_per_device, now);
    let hash = device_hash(&grant.device);
    SessionCell::new((who, hash), live.clone(), session, stamp, rate, closes_at)
}

/// What each message of the device is stamped with, where a hub can read it.
pub(super) fn stamp_of(shard: &Shard, grant: &Grant) -> Box<[u8]> {
    if !shard.stamps {
        return Box::default();
    }
    let by = match &grant.issuer {
        Some(issuer) => format!("{}/{issuer}", grant.kind.as_str()),
        None => format!("{}/{}", grant.kind.as_str(), grant.key.slot()),
    };
    session_stamp(grant.device.as_str(), &shard.site.gateway, &by).into()
}

/// A token of this kind and key slot was believed.
pub(super) fn count_verified(shard: &Shard, grant: &Grant) {
    shard.site.key_uses.seen(grant.key_fingerprint, grant.expires_at, shard.site.clock.now());
    let slot = match grant.kind.token() {
        Some(TokenKind::Jwt) => "jwt".into(),
        _ => grant.key.slot().to_owned(),
    };
    metrics::counter!(meter::TOKENS_VERIFIED, "kind" => grant.kind.as_str(), "key_slot" => slot).increment(1);
}

fn session_opened(shard: &Shard, cell: &SessionCell, connect: &Connect, resumed: Option<&Resumed>) {
    let live = &cell.live;
    let state = &mut *cell.state.borrow_mut();
    kept::begin(shard, cell, state, resumed);
    let present = if resumed.is_some() { SessionPresent::Yes } else { SessionPresent::No };
    cell.present.set(present);
    state.session.connack(present, connect.assigned_client_id(), &mut state.out);
    let grant = cell.grant();
    if resumed.is_some() {
        // Its token, or the rules, may allow less than when it subscribed.
        subscribe::withdraw(shard, cell, state, &grant.scope, shard.site.now());
        state.session.pump(&mut state.out, shard.site.now());
        kept::note(shard, cell, state);
    }
    count_verified(shard, &grant);
    metrics::counter!(meter::CONNECTS, "result" => "admitted", "denial" => "").increment(1);
    metrics::gauge!(meter::SESSIONS).increment(1.0);
    let (device, token_id, key) = (grant.device.as_str(), grant.token_id, grant.key.as_str());
    let (version, snapshot, shard) = (connect.version, shard.site.gate.epoch(), shard.index);
    tracing::info!(peer = %live.peer, device, %token_id, key, ?version, snapshot, shard, "admitted");
}

/// Holds a session's place in the registry and in the shard, also when its task panics.
struct Registration {
    shard: Rc<Shard>,
    live: Arc<Live>,
    who: SessionRef,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shard.site.registry.remove(&self.live);
        for member in self.shard.members.iter().flatten() {
            member.session_gone(self.who, self.shard.site.now());
        }
        let mut sessions = self.shard.sessions.borrow_mut();
        if sessions.get(self.who).is_some() {
            metrics::gauge!(meter::SESSIONS).decrement(1.0);
        }
        sessions.remove(self.who);
    }
}

async fn run(registration: Registration, cell: Rc<SessionCell>, mut stream: Stream, unread: Box<[u8]>, place: Place) {
    let shard = registration.shard.clone();
    let mut unread = Vec::from(unread);
    let mut work = if unread.is_empty() { Work::Read } else { Work::Frames };
    let reason =
        std::future::poll_fn(|cx| drive(&shard, &cell, Pin::new(&mut stream), &mut unread, &mut work, cx)).await;
    let cut = cell.live.cut();
    let reason = cut.map_or(reason, |cut| cut.reason);
    wills::left(&shard, &cell, reason);
    kept::park(&shard, &cell, reason);
    drop(registration);
    let last_words = {
        let state = &mut *cell.state.borrow_mut();
        let elsewhere = shard.site.server_reference.as_deref();
        state.session.disconnect(reason, elsewhere, &mut state.out);
        std::mem::take(&mut state.out)
    };
    // In memory of its own: a session that lives needs none for its end.
    Box::pin(close(&shard, &cell, (reason, cut), stream, &last_words)).await;
    drop(place);
}

async fn close(
    shard: &Shard,
    cell: &SessionCell,
    (reason, cut): (CloseReason, Option<Cut>),
    stream: Stream,
    last_words: &[u8],
) {
    let who = cell.identified();
    let detail = shard.site.gate.why_ended(&cell.grant(), reason, shard.site.clock.now());
    shard.site.journal.closed(&who, reason, &detail);
    if let Some(cut) = cut.filter(|c| matches!(c.reason, CloseReason::Revoked | CloseReason::GrantWithdrawn)) {
        metrics::histogram!(meter::REVOCATION_CUT_SECONDS).record(cut.applied.elapsed());
    }
    if reason != CloseReason::ConnectionLost && lasts(shard, cell).await {
        accept::close_gently(stream, last_words).await;
    }
}

/// Waits until what the last words promise is on the disk; `false`: it does not get there in time, and nothing is promised.
async fn lasts(shard: &Shard, cell: &SessionCell) -> bool {
    let until = shard.site.now().plus(LASTS_WITHIN);
    while !shard.kept.is_lasting(cell.after_batch.get()) {
        if shard.site.now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

/// What a session's next poll begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// The socket.
    Read,
    /// Frames that were read and not handled.
    Frames,
}

/// One poll of a session: what is owed is written, then as much is read as the hub takes.
fn drive(
    shard: &Shard,
    cell: &SessionCell,
    mut stream: Pin<&mut Stream>,
    unread: &mut Vec<u8>,
    work: &mut Work,
    cx: &mut Context<'_>,
) -> Poll<CloseReason> {
    cell.polled_by(cx);
    let mut handled_bytes = 0;
    loop {
        if handled_bytes >= TURN_BYTES {
            // What it sends next waits until everybody else has had a turn.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match cell.live.attention() {
            None => {}
            Some(Attention::Cut(cut)) => return Poll::Ready(cut.reason),
            Some(Attention::Regranted) => {
                renewal::narrowed(shard, cell, &mut cell.state.borrow_mut(), shard.site.now())
            }
        }
        // Hubs and the disk have spoken meanwhile: what their answers promise is written down before they leave.
        kept::note(shard, cell, &mut cell.state.borrow_mut());
        if !shard.kept.is_lasting(cell.after_batch.get()) {
            // What is owed to the device promises what is on its way to the disk.
            publish::done(shard, cell);
            return Poll::Pending;
        }
        match write_out(shard, cell, stream.as_mut(), cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::ConnectionLost),
            Poll::Pending => {
                // A device that does not read must not hold places that others wait for.
                publish::done(shard, cell);
                return Poll::Pending;
            }
        }
        if cell.pause() == Pause::Leaving {
            // Everything that it was acknowledged is written.
            let is_settled = cell.state.borrow().session.in_flight() == 0;
            return if is_settled { Poll::Ready(CloseReason::Draining) } else { Poll::Pending };
        }
        if cell.pause() != Pause::None || !cell.state.borrow().session.wants_input() {
            let ahead = ahead::read(shard, cell, stream.as_mut(), unread, cx);
            if !unread.is_empty() {
                *work = Work::Frames;
            }
            match ahead {
                Ahead::Answered => continue,
                Ahead::Quiet => return Poll::Pending,
            }
        }
        let mut scratch = shard.scratch.borrow_mut();
        let outcome = match *work {
            Work::Frames => {
                let outcome = handle(shard, cell, unread);
                forget(unread, outcome.as_ref().map_or(0, |o| o.used));
                outcome
            }
            Work::Read => {
                ahead::goes_on(cell);
                let source = match ready!(read(shard, stream.as_mut(), unread, &mut scratch, cx)) {
                    Ok(source) => source,
                    Err(_) => return Poll::Ready(CloseReason::ConnectionLost),
                };
                match source {
                    Source::Scratch(filled) => {
                        let outcome = handle(shard, cell, &scratch[..filled]);
                        keep(unread, &scratch[..filled], outcome.as_ref().map_or(0, |o| o.used));
                        outcome
                    }
                    Source::Unread => {
                        let outcome = handle(shard, cell, unread);
                        forget(unread, outcome.as_ref().map_or(0, |o| o.used));
                        outcome
                    }
                }
            }
        };
        match outcome {
            Ok(handled) => {
                *work = handled.next;
                handled_bytes += handled.used;
                if handled.used > 0 || unread.is_empty() {
                    cell.begun.set(None);
                }
                if handled.next == Work::Read && !unread.is_empty() {
                    must_end(shard, cell, &cell.begun);
                }
            }
            Err(reason) => return Poll::Ready(reason),
        }
    }
}

/// Keeps what was not used, and no memory where nothing is left.
fn keep(unread: &mut Vec<u8>, frames: &[u8], used: usize) {
    let rest = frames.get(used..).unwrap_or_default();
    if rest.is_empty() {
        *unread = Vec::new();
    } else {
        unread.clear();
        unread.extend_from_slice(rest);
    }
}

/// Takes off what was used. Nothing is copied while a large packet comes piece by piece.
fn forget(unread: &mut Vec<u8>, used: usize) {
    unread.drain(..used.min(unread.len()));
    if unread.is_empty() {
        *unread = Vec::new();
    }
}

/// Where the bytes of a read stand.
enum Source {
    /// In the first so many bytes of the scratch buffer.
    Scratch(usize),
    /// In `unread`: a packet larger than the scratch buffer.
    Unread,
}

fn read(
    shard: &Shard,
    stream: Pin<&mut Stream>,
    unread: &mut Vec<u8>,
    scratch: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<Source>> {
    let have = unread.len();
    let wanted = wanted_bytes(unread, shard.site.limits.maximum_packet_size.get());
    if wanted > scratch.len() || have * 2 > scratch.len() {
        // Room for the rest of one packet only: what follows it is read into the scratch buffer.
        if unread.capacity() == have {
            unread.reserve_exact(wanted.saturating_sub(have).clamp(1, LARGE_READ_BYTES));
        }
        let read = read_into(stream, unread, cx);
        return ready!(read).map_or_else(|e| Poll::Ready(Err(e)), |()| Poll::Ready(Ok(Source::Unread)));
    }
    scratch[..have].copy_from_slice(unread);
    let mut buffer = ReadBuf::new(&mut scratch[have..]);
    ready!(stream.poll_read(cx, &mut buffer))?;
    match buffer.filled().len() {
        0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        n => Poll::Ready(Ok(Source::Scratch(have + n))),
    }
}

fn read_into(stream: Pin<&mut Stream>, unread: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let have = unread.len();
    unread.resize(unread.capacity(), 0);
    let mut buffer = ReadBuf::new(&mut unread[have..]);
    let polled = stream.poll_read(cx, &mut buffer);
    let filled = buffer.filled().len();
    unread.truncate(have + filled);
    match polled {
        Poll::Ready(Ok(())) if filled == 0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        other => other,
    }
}

/// How long the packet is that `unread` begins with; what cannot be told is left to the parser.
pub(super) fn wanted_bytes(unread: &[u8], bytes_max: usize) -> usize {
    let length = unread.get(1..).and_then(|rest| crate::packet::read_varint(rest).ok().flatten());
    length.map_or(0, |(body, bytes)| (body as usize + bytes + 1).min(bytes_max))
}

/// How far a poll came with what was read.
struct Handled {
    used: usize,
    next: Work,
}

/// Frames in order, until one finds no room, the device has to be written to first, or none is left.
fn handle(shard: &Shard, cell: &SessionCell, bytes: &[u8]) -> Result<Handled, CloseReason> {
    let now = shard.site.now();
    let bytes_max = shard.site.limits.maximum_packet_size.get();
    let state = &mut *cell.state.borrow_mut();
    state.session.heard(now);
    let mut used = 0;
    let next = loop {
        let rest = bytes.get(used..).unwrap_or_default();
        let Some(frame) = next_frame(rest, bytes_max)? else { break Work::Read };
        match cell.live.attention() {
            None => {}
            Some(Attention::Cut(cut)) => return Err(cut.reason),
            Some(Attention::Regranted) => renewal::narrowed(shard, cell, state, now),
        }
        // Its turn on the wheel may come late, after a suspension above all: what it sends after its time is not taken.
        if cell.closes_at.get() <= now {
            return Err(CloseReason::Expired);
        }
        if state.out.len() > OUT_BYTES_MAX || !state.session.wants_input() {
            break Work::Frames;
        }
        let State { session, out, .. } = state;
        match session.handle(frame, out, now)? {
            Step::Done => {}
            Step::Publish(inbound) if renewal::is_renewal(&inbound) => {
                let named = (inbound.packet_id, inbound.qos);
                let renewed = renewal::renew(shard, cell, inbound.publish.payload, now);
                match renewal::by_publish(renewed, cell, state, named, now)? {
                    Renewed::Done => {}
                    Renewed::Wait(pause) => {
                        cell.set_pause(pause);
                        break Work::Frames;
                    }
                }
            }
            Step::Renew(token) => {
                let method = session.authentication_method().unwrap_or_default();
                match renewal::by_auth(shard, cell, (method, token.as_bytes()), now)? {
                    Renewed::Done => session.renewed(out),
                    Renewed::Wait(pause) => {
                        cell.set_pause(pause);
                        break Work::Frames;
                    }
                }
            }
            Step::Publish(inbound) => match publish::offer(shard, cell, &inbound, now) {
                publish::Offered::Taken => {
                    let Inbound { packet_id, qos, .. } = inbound;
                    session.publish_accepted(packet_id, qos);
                }
                publish::Offered::Refused(denial) => {
                    let Inbound { packet_id, qos, .. } = inbound;
                    session.publish_accepted(packet_id, qos);
                    session.publish_refused(packet_id, denial, out)?;
                }
                publish::Offered::Dropped => {}
                publish::Offered::Wait(pause) => {
                    cell.set_pause(pause);
                    break Work::Frames;
                }
            },
            // Hubs have not answered for filters that these are about, or count with: they keep their turn.
            Step::Subscribe(request) => match subscribe::subscribe(shard, cell, state, request, now) {
                Asked::Now => {}
                Asked::Later => break pause_for_hubs(cell),
            },
            Step::Unsubscribe(request) => match subscribe::unsubscribe(shard, cell, state, &request, now) {
                Asked::Now => {}
                Asked::Later => break pause_for_hubs(cell),
            },
            Step::Disconnect(Disconnect { reason: 0, .. }) => return Err(CloseReason::ClientDisconnect),
            // MQTT 5.0 [MQTT-3.1.2-8]: any other reason leaves the will, as if the connection had been lost.
            Step::Disconnect(_) => return Err(CloseReason::ConnectionLost),
        }
        used += frame.bytes().len();
    };
    kept::note(shard, cell, state);
    publish::done(shard, cell);
    Ok(Handled { used, next })
}

fn pause_for_hubs(cell: &SessionCell) -> Work {
    cell.set_pause(Pause::Subscribing);
    Work::Frames
}

/// Writes all that is owed to the device; what waits behind it follows.
fn write_out(
    shard: &Shard,
    cell: &SessionCell,
    mut stream: Pin<&mut Stream>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let state = &mut *cell.state.borrow_mut();
    let mut wrote = false;
    while !state.out.is_empty() {
        let Poll::Ready(taken) = stream.as_mut().poll_write(cx, &state.out) else {
            must_end(shard, cell, &cell.blocked);
            return Poll::Pending;
        };
        match taken? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            n => drop(state.out.drain(..n)),
        }
        cell.blocked.set(None);
        wrote = true;
        if state.out.is_empty() {
            state.session.pump(&mut state.out, shard.site.now());
            kept::note(shard, cell, state);
            if !shard.kept.is_lasting(cell.after_batch.get()) {
                return Poll::Pending;
            }
        }
    }
    if state.out.capacity() > OUT_BYTES_KEPT {
        state.out = Vec::new();
    }
    if wrote || !matches!(*stream, Stream::Tcp(_)) {
        let flushed = stream.poll_flush(cx);
        match flushed {
            Poll::Pending => must_end(shard, cell, &cell.blocked),
            Poll::Ready(_) => cell.blocked.set(None),
        }
        return flushed;
    }
    Poll::Ready(Ok(()))
}

/// What one session is handled of in one turn: some hundreds of small messages, or one large packet.
const TURN_BYTES: usize = 64 << 10;
/// Bytes that may be owed to a device before it is read from again.
const OUT_BYTES_MAX: usize = 64 << 10;
/// The disk is given so long to take what a session's last answers promise.
const LASTS_WITHIN: Duration = Duration::from_secs(1);
/// What an idle session keeps of its buffer.
const OUT_BYTES_KEPT: usize = 256;
/// One read of a large packet.
const LARGE_READ_BYTES: usize = 64 << 10;
