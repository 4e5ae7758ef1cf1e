//! The end of a shard's sessions: in waves, so that those who take them over are not stormed, and each when it has been
//! answered for what it sent.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Shard,
    sessions::{Pause, SessionCell},
};
use crate::{delivery::SessionRef, denial::CloseReason};

/// How sessions are closed when the gateway ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drain {
    /// Spread over so long. Each is read from no more, gets the acknowledgements that are due to it, and is closed.
    InWaves(Duration),
    /// All that are left, whatever is due to them.
    AtOnce,
}

/// Takes no more connections, and closes sessions in waves.
pub(super) fn begin(shard: &Rc<Shard>, within: Duration) {
    shard.site.begin_draining();
    shard.closing.notify_waiters();
    tokio::task::spawn_local(waves(shard.clone(), within));
}

/// All that are left are deaf.
pub(super) fn deafen_all(shard: &Shard) -> Vec<SessionRef> {
    let deafen = |cell: &Rc<SessionCell>| {
        cell.live.deafen(CloseReason::Draining, Instant::now());
        cell.who
    };
    shard.sessions.borrow().iter().map(deafen).collect()
}

/// It is read from no more, and closes when the last of its messages is acknowledged.
pub(super) fn leave(shard: &Shard, cell: &SessionCell) {
    cell.set_pause(Pause::Leaving);
    for (upstream, _) in shard.members.iter().enumerate() {
        shard.member(upstream, cell.hash).gives_up(cell.who);
    }
    cell.wake();
}

async fn waves(shard: Rc<Shard>, within: Duration) {
    let mut left: Vec<SessionRef> = shard.sessions.borrow().iter().map(|cell| cell.who).collect();
    // In no order: neighbours in the table came together, and would come back together to one address.
    left.sort_by_cached_key(|_| random());
    let waves = left.chunks(WAVE_SESSIONS);
    let apart = within.div_f64(waves.len().max(1) as f64);
    for wave in waves {
        // Anywhere within its part of the time: gateways of a site that end together do not beat time.
        let before = apart.mul_f64(f64::from(random() >> 16) / f64::from(u16::MAX));
        tokio::time::sleep(before).await;
        for who in wave {
            if let Some(cell) = shard.session(*who) {
                leave(&shard, &cell);
            }
        }
        tokio::time::sleep(apart - before).await;
    }
}

/// Without randomness all leave in the order in which they stand, which is no reason to stay.
fn random() -> u32 {
    getrandom::u32().unwrap_or_default()
}

/// As many as other sessions wait for without noticing.
const WAVE_SESSIONS: usize = 64;
