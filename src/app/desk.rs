//! What the desk asks of shards and wiring.

use std::{sync::Arc, time::Instant};

use super::{changes::Changes, keys::Keys};
use crate::{
    admin::{
        AsideAsked, AsideDeed, AsideDone, AsideError, AsideList, AwayView, Control, DryRun, KeyList, ListState,
        Readiness, Reloaded, RotationAsked, RotationDone, RotationRefused, UpstreamState, UpstreamStatus,
    },
    config::Config,
    denial::CloseReason,
    id::DeviceId,
    meter,
    shard::{Shards, Site, Upstream},
    upstream::UpstreamKind,
};

/// [`Control`] of a running gateway.
pub(super) struct Desk {
    config: Arc<Config>,
    pub(super) site: Arc<Site>,
    pub(super) shards: Shards,
    changes: Arc<Changes>,
    keys: Arc<Keys>,
}

impl Desk {
    pub(super) fn new(
        config: &Arc<Config>,
        site: &Arc<Site>,
        shards: &Shards,
        changes: &Arc<Changes>,
        keys: &Arc<Keys>,
    ) -> Self {
        let (config, site, changes, keys) = (config.clone(), site.clone(), changes.clone(), keys.clone());
        Self { config, site, shards: shards.clone(), changes, keys }
    }
}

impl Control for Desk {
    fn close_session(&self, device: &DeviceId) -> bool {
        let live = self.site.registry.of_device(device.as_str());
        let was_cut =
            live.is_some_and(|live| self.shards.cut(&[(live, CloseReason::Administrative)], Instant::now()) > 0);
        let away = self.site.roster.of_device(device.as_str());
        away.iter().for_each(|(device, away)| self.shards.end(away.shard, device.clone()));
        was_cut || away.is_some()
    }

    fn away(&self, device: Option<&str>) -> Vec<AwayView> {
        let found = match device {
            Some(device) => self.site.roster.within_device(device),
            None => self.site.roster.all(),
        };
        found.iter().map(|(device, away)| AwayView::of(device, away)).collect()
    }

    fn set_gauges(&self) {
        gauge(&self.site, &self.changes);
    }

    fn upstreams(&self) -> Vec<UpstreamStatus> {
        let both = self.site.upstreams.iter().zip(&self.config.upstreams);
        let spool = self.site.spool.as_ref().map(|spool| (spool.fill(), spool.trouble()));
        let now_ms = self.site.clock.now_ms();
        both.enumerate()
            .map(|(index, (upstream, config))| {
                let fill = spool.as_ref().and_then(|(fill, _)| fill.hubs.get(index)).copied().unwrap_or_default();
                let connected = connected(upstream);
                let connections = upstream.status.len();
                let (kind, address) = match &config.kind {
                    UpstreamKind::Embedded => ("embedded", "in this process".to_owned()),
                    UpstreamKind::Mqtt(hub) if hub.wire.web_socket_path.is_some() => ("mqtt", hub.url()),
                    UpstreamKind::Mqtt(hub) => ("mqtt", format!("{}:{}", hub.host, hub.port)),
                    UpstreamKind::Nats(hub) => ("nats", hub.address()),
                };
                UpstreamStatus {
                    name: upstream.name.clone(),
                    kind: kind.into(),
                    address,
                    state: UpstreamState::of(connected, connections),
                    connected,
                    connections,
                    window: config.window * connections,
                    inflight: inflight(upstream),
                    messages_per_second: upstream.status.iter().map(|member| member.messages_per_second()).sum(),
                    backlog: upstream.status.iter().map(|member| member.backlog_bytes()).sum(),
                    spooling: upstream.status.iter().any(|member| member.is_spooling()),
                    spooled: fill.messages,
                    oldest_seconds: fill.oldest_ms.map(|at| now_ms.saturating_sub(at) / 1000),
                    set_aside: fill.aside,
                    spool_error: match &spool {
                        Some((_, None)) if holds_back(upstream) => Some(HELD_BACK.into()),
                        Some((_, trouble)) => trouble.clone(),
                        None => None,
                    },
                    last_error: upstream.status.iter().filter_map(|member| member.last_error()).max(),
                }
            })
            .collect()
    }

    fn aside(&self, hub: &str, count_max: usize) -> Result<AsideList, AsideError> {
        self.aside_of(hub, count_max)
    }

    fn decide_aside(&self, hub: &str, asked: &AsideAsked, deed: AsideDeed) -> Result<AsideDone, AsideError> {
        self.decide(hub, asked, deed)
    }

    fn readiness(&self) -> Readiness {
        let mut missing = self.changes.missing();
        if self.site.is_draining() {
            missing.push("the gateway is draining".into());
        }
        Readiness { missing }
    }

    fn list_state(&self) -> ListState {
        self.changes.list_state()
    }

    fn reload(&self) -> Result<Reloaded, Vec<String>> {
        let outcome = self.changes.reload();
        if outcome.mistakes.is_empty() {
            Ok(Reloaded { applied: outcome.applied, warnings: outcome.warnings })
        } else {
            Err(outcome.mistakes)
        }
    }

    fn keys(&self) -> Result<KeyList, String> {
        self.keys.list()
    }

    fn rotate(
        &self,
        name: &str,
        asked: RotationAsked,
        dry_run: DryRun,
        by: &str,
    ) -> Result<RotationDone, RotationRefused> {
        self.keys.rotate(name, asked, dry_run, by)
    }
}

/// Messages of QoS 1 that a hub has not acknowledged.
pub(super) fn inflight(upstream: &Upstream) -> usize {
    upstream.status.iter().map(|member| member.inflight()).sum()
}

/// Messages that a device waits for.
pub(super) fn owed(upstream: &Upstream) -> usize {
    upstream.status.iter().map(|member| member.owed()).sum()
}

fn holds_back(upstream: &Upstream) -> bool {
    upstream.status.iter().any(|member| member.holds_back())
}

fn connected(upstream: &Upstream) -> usize {
    upstream.status.iter().filter(|member| member.is_connected()).count()
}

/// Sets the gauges that nobody sets when something happens.
pub(super) fn gauge(site: &Site, changes: &Changes) {
    if let Some(spool) = &site.spool {
        for (upstream, fill) in site.upstreams.iter().zip(spool.fill().hubs) {
            let age_ms = fill.oldest_ms.map_or(0, |at| site.clock.now_ms().saturating_sub(at));
            metrics::gauge!(meter::UPSTREAM_BACKLOG, "upstream" => upstream.name.clone()).set(fill.messages as f64);
            metrics::gauge!(meter::UPSTREAM_OLDEST_SECONDS, "upstream" => upstream.name.clone())
                .set(age_ms as f64 / 1000.0);
        }
    }
    for upstream in &site.upstreams {
        let window = upstream.link.window * upstream.status.len();
        metrics::gauge!(meter::UPSTREAM_WINDOW, "upstream" => upstream.name.clone()).set(window as f64);
    }
    metrics::gauge!(meter::BANNED_ADDRESSES).set(site.backoff.banned(site.now()) as f64);
    let take_overs = site.take_overs.are_alarming(site.now());
    meter::alarm(meter::Alarm::Takeover, if take_overs { meter::AlarmState::On } else { meter::AlarmState::Off });
    changes.watch_list();
    let fault = site.clock.fault().is_some();
    meter::alarm(meter::Alarm::Clock, if fault { meter::AlarmState::On } else { meter::AlarmState::Off });
    let unfetched = changes.key_set_errors();
    meter::alarm(
        meter::Alarm::KeySet,
        if unfetched.is_empty() { meter::AlarmState::Off } else { meter::AlarmState::On },
    );
    if let Some(spool) = &site.spool {
        let fill = spool.fill();
        let messages: u64 = fill.hubs.iter().map(|hub| hub.messages).sum();
        let oldest = fill.hubs.iter().filter_map(|hub| hub.oldest_ms).min();
        let age_ms = oldest.map_or(0, |at| site.clock.now_ms().saturating_sub(at));
        metrics::gauge!(meter::SPOOL_MESSAGES).set(messages as f64);
        metrics::gauge!(meter::SPOOL_BYTES).set(fill.bytes as f64);
        metrics::gauge!(meter::SPOOL_OLDEST_SECONDS).set(age_ms as f64 / 1000.0);
        metrics::gauge!(meter::SPOOL_SET_ASIDE).set(fill.hubs.iter().map(|hub| hub.aside).sum::<u64>() as f64);
        metrics::counter!(meter::SPOOL_SYNCS).absolute(spool.syncs());
        metrics::counter!(meter::SPOOL_APPENDED_BYTES).absolute(fill.wear.appended);
        metrics::counter!(meter::SPOOL_WRITTEN_BYTES).absolute(fill.wear.written);
        let trouble = spool.trouble().is_some() || site.upstreams.iter().any(holds_back);
        meter::alarm(meter::Alarm::Spool, if trouble { meter::AlarmState::On } else { meter::AlarmState::Off });
    }
    if let Some(sessions) = &site.sessions {
        let (messages, bytes) = site.roster.waiting();
        metrics::gauge!(meter::SESSIONS_AWAY).set(site.roster.len() as f64);
        metrics::gauge!(meter::SESSION_MESSAGES).set(messages as f64);
        metrics::gauge!(meter::SESSION_BYTES).set(bytes as f64);
        let trouble = sessions.trouble().is_some() || site.roster.is_damaged();
        meter::alarm(meter::Alarm::Sessions, if trouble { meter::AlarmState::On } else { meter::AlarmState::Off });
    }
    let away = site.upstreams.iter().any(|upstream| connected(upstream) == 0);
    meter::alarm(meter::Alarm::Hub, if away { meter::AlarmState::On } else { meter::AlarmState::Off });
}

const HELD_BACK: &str = "a device has its share of the room that is left, and waits (`size_max` under [spool])";
