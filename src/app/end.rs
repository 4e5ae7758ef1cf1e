//! The end: signals, the drain, and what is closed behind it.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
};

use super::{Gateway, desk};
use crate::shard::{Drain, Site};

/// Signals that the gateway heeds, from when it serves on.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// What a signal asks for.
pub(super) enum Asked {
    /// SIGHUP: files are to be read anew.
    Reload,
    /// SIGTERM or SIGINT.
    End,
}

impl Signals {
    /// # Errors
    /// No signal can be caught.
    pub(super) fn new() -> io::Result<Self> {
        let [term, int, hup] = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self { term: term?, int: int?, hup: hup? })
    }

    /// The next.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::End,
            _ = self.int.recv() => Asked::End,
            _ = self.hup.recv() => Asked::Reload,
        }
    }

    /// The next that asks for the end; there is nothing to read anew for.
    pub(super) async fn next_end(&mut self) {
        while let Asked::Reload = self.next().await {}
    }
}

impl Gateway {
    /// No connection is taken any more; sessions close in waves, each when it was answered for what it sent; then hubs
    /// are told. Within `limit`.
    pub(super) async fn drain(&self, limit: Duration) {
        let site = &self.site;
        let until = Instant::now() + limit;
        // For what comes after sessions.
        let sessions_until = until - (limit / 4).min(AFTER_SESSIONS);
        let sessions = site.registry.len();
        let waves = (A_SESSION * u32::try_from(sessions).unwrap_or(u32::MAX)).min(limit / 2);
        tracing::info!(sessions, waves_ms = waves.as_millis(), limit_s = limit.as_secs_f64(), "draining");
        site.begin_draining();
        self.shards.drain(Drain::InWaves(waves));
        wait(sessions_until, || site.registry.is_empty()).await;
        let left = site.registry.len();
        if left > 0 {
            tracing::warn!(sessions = left, "sessions wait for acknowledgements at the end of the drain: closed");
            self.shards.drain(Drain::AtOnce);
        }
        // Those who are just being heard, last words that are on their way, wills.
        let rest_until = (Instant::now() + REST).min(until);
        wait(rest_until, || site.connections.open() == 0 && owed(site) == 0).await;
        // What was noted of sessions until then is handed to the disk once a turn.
        let before: Vec<u64> = self.shards.beats().collect();
        let has_turned = || self.shards.beats().zip(&before).all(|(now, before)| now >= before + 2);
        wait((Instant::now() + REST).min(until), || has_turned() && owed(site) == 0 && !site.roster.is_writing()).await;
        self.shards.leave();
        let connected = || site.upstreams.iter().any(|u| u.status.iter().any(|member| member.is_connected()));
        wait((Instant::now() + LEAVE).min(until), || !connected()).await;
        tracing::info!(sessions = site.registry.len(), unsettled = owed(site), "drained");
    }

    /// Drains, and closes everything.
    pub(super) async fn end(&mut self, limit: Duration, stop: oneshot::Sender<()>, desk: JoinHandle<io::Result<()>>) {
        self.drain(limit).await;
        drop(stop);
        // It gives the requests that it has two seconds.
        let _ = desk.await;
        let (tokens, site) = (self.tokens.take(), self.site.clone());
        let (keeper, sessions, hubs) = (self.keeper.take(), self.sessions.take(), std::mem::take(&mut self.hubs));
        // On a thread that is left behind where somebody does not want to wait for it.
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(tokens) = tokens {
                tokens.stop();
            }
            site.clock.keep();
            site.key_uses.save();
            site.pools.save();
            // What hubs acknowledged is made lasting.
            drop(keeper);
            drop(sessions);
            // Hubs outlive the pool.
            drop(hubs);
        });
        // A panic there was logged there.
        let _ = closed.await;
        tracing::info!("stopped");
    }
}

/// Messages that somebody waited for when their hub or the disk answered last.
fn owed(site: &Site) -> usize {
    site.upstreams.iter().map(desk::owed).sum()
}

async fn wait(until: Instant, holds: impl Fn() -> bool) {
    while !holds() && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
}

/// Sessions a second that the gateways which take them over can admit, with a TLS handshake each: a thousand.
const A_SESSION: Duration = Duration::from_millis(1);
/// Part of the limit that is kept for hubs and the spool.
const AFTER_SESSIONS: Duration = Duration::from_secs(2);
/// Last words are given half a second; a CONNECT that is on its way takes no longer.
const REST: Duration = Duration::from_secs(1);
/// Hubs are told within this.
const LEAVE: Duration = Duration::from_secs(1);
/// How often the drain looks.
const LOOK: Duration = Duration::from_millis(20);
