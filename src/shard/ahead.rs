//! While a session waits, for a hub, for its rate or for the answers to what it sent, nothing that it sends is handled. Its
//! PINGREQs are answered nevertheless: a device that gets no answer gives up the connection, and sends everything again on
//! the next one. To find them, what it sends is read ahead, up to a bound, and after a while only: most waits are short, and
//! cost nothing.

use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{
    Shard,
    connection::wanted_bytes,
    sessions::{SessionCell, State},
};
use crate::{
    delivery::SessionRef,
    listener::Stream,
    packet::{PacketType, next_frame},
    time::Tick,
};

/// Sessions of a shard that began to wait, the earliest first. Each stands there once.
#[derive(Default)]
pub(super) struct Waiting(RefCell<VecDeque<(Tick, SessionRef)>>);

/// How a session waits.
#[derive(Clone, Copy, Default)]
pub(super) struct Waits {
    since: Option<Tick>,
    /// It stands in [`Waiting`].
    is_listed: bool,
    /// There is nothing more to read: how the connection ended is seen when its turn comes.
    has_ended: bool,
}

/// Whether there is something to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ahead {
    /// A PINGREQ was answered.
    Answered,
    /// Nothing.
    Quiet,
}

/// The session has handled all that was read, and does not wait.
#[inline]
pub(super) fn goes_on(cell: &SessionCell) {
    let waits = cell.waits.get();
    if waits.since.is_some() {
        cell.waits.set(Waits { is_listed: waits.is_listed, ..Waits::default() });
    }
}

/// The session waits. What is read ahead stands in `unread`, behind what waits there.
pub(super) fn read(
    shard: &Shard,
    cell: &SessionCell,
    mut stream: Pin<&mut Stream>,
    unread: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Ahead {
    let (now, mut waits) = (shard.site.now(), cell.waits.get());
    let since = *waits.since.get_or_insert(now);
    if !waits.is_listed {
        waits.is_listed = true;
        shard.waiting.0.borrow_mut().push_back((now, cell.who));
    }
    cell.waits.set(waits);
    if now.since(since) < AFTER {
        return Ahead::Quiet;
    }
    let bytes_max = shard.site.limits.maximum_packet_size.get();
    // The first packet may be a large one that is there already.
    let unread_max = wanted_bytes(unread, bytes_max).min(unread.len()) + BYTES_MAX;
    let mut ahead = answer_pings(cell, unread, bytes_max, now);
    while ahead == Ahead::Quiet && unread.len() < unread_max && !cell.waits.get().has_ended {
        let mut scratch = shard.scratch.borrow_mut();
        let room = scratch.len().min(unread_max - unread.len());
        let mut buffer = ReadBuf::new(&mut scratch[..room]);
        match stream.as_mut().poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => unread.extend_from_slice(buffer.filled()),
            Poll::Ready(_) => cell.waits.set(Waits { has_ended: true, ..cell.waits.get() }),
            Poll::Pending => break,
        }
        ahead = answer_pings(cell, unread, bytes_max, now);
    }
    ahead
}

/// Wakes those who have waited for a while.
pub(super) fn tick(shard: &Shard, now: Tick) {
    let mut waiting = shard.waiting.0.borrow_mut();
    while let Some((since, who)) = waiting.front().copied()
        && now.since(since) >= AFTER
    {
        waiting.pop_front();
        let Some(cell) = shard.session(who) else { continue };
        let waits = cell.waits.get();
        match waits.since {
            Some(since) if now.since(since) < AFTER => waiting.push_back((now, who)),
            Some(_) => {
                cell.waits.set(Waits { is_listed: false, ..waits });
                cell.wake();
            }
            None => cell.waits.set(Waits { is_listed: false, ..waits }),
        }
    }
}

/// Answers the PINGREQs among whole packets, and takes them out.
fn answer_pings(cell: &SessionCell, unread: &mut Vec<u8>, bytes_max: usize, now: Tick) -> Ahead {
    let State { session, out, .. } = &mut *cell.state.borrow_mut();
    let (mut at, mut kept) = (0, 0);
    while let Some(rest) = unread.get(at..)
        && let Ok(Some(frame)) = next_frame(rest, bytes_max)
    {
        let (kind, len) = (frame.packet_type(), frame.bytes().len());
        if kind == PacketType::Disconnect {
            break;
        }
        let is_answered = kind == PacketType::Pingreq && session.handle(frame, out, now).is_ok();
        if !is_answered {
            unread.copy_within(at..at + len, kept);
            kept += len;
        }
        at += len;
    }
    if at == kept {
        return Ahead::Quiet;
    }
    unread.drain(kept..at);
    Ahead::Answered
}

/// So long a session waits before it is read ahead: less than any client waits for a PINGRESP.
const AFTER: Duration = Duration::from_secs(1);

/// Bytes that are read ahead of a session that waits.
const BYTES_MAX: usize = 16 << 10;
