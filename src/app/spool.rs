//! The spool at a start: opened and read before anything is served.

use std::{io, path::PathBuf, time::Instant};

use super::StartError;
use crate::{
    config::Config,
    delivery::{
        BacklogConfig,
        spool::{ASIDE, Directory, Keeper, Limits, Recovered, SegmentLog, SpoolError, StreamState},
    },
    route::Ack,
};

/// A spool that was read.
pub(super) struct Opened {
    pub(super) keeper: Keeper,
    recovered: Recovered,
}

/// Where it is.
pub(super) fn folder(config: &Config) -> PathBuf {
    config.gateway.state_dir.join("spool")
}

/// Opens the spool, if any route may be acknowledged from it or messages wait in it.
pub(super) fn open(config: &Config) -> Result<Option<Opened>, StartError> {
    let folder = folder(config);
    if config.routes.iter().all(|route| route.ack == Ack::Hub) && !folder.exists() {
        return Ok(None);
    }
    let began = Instant::now();
    let told = |error: SpoolError| {
        let remedy = match &error {
            SpoolError::Damaged { .. } => {
                "nothing was started. What can be read is kept by `tollgate spool salvage`; see docs/operations.md"
            }
            SpoolError::Locked => "nothing was started. Stop it, or give this one a `state_dir` of its own",
            SpoolError::Key { .. } => {
                "nothing was started. Add that key to the file, on a line below the one that is to be used from here on"
            }
            SpoolError::Version { .. } => "nothing was started. Use the version of the gateway that wrote it",
            _ => "nothing was started",
        };
        StartError::Spool(format!("{}: {error}; {remedy}", folder.display()))
    };
    let directory = Directory::open(&folder).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => told(SpoolError::Locked),
        _ => told(SpoolError::Disk("open its directory", error)),
    })?;
    let names: Vec<String> = config.upstreams.iter().map(|upstream| upstream.name.clone()).collect();
    let limits = Limits::of_size(config.spool.size_max.0);
    let (log, recovered) = SegmentLog::open(Box::new(directory), limits, &names, &config.spool.keys).map_err(told)?;
    report(&recovered, began);
    Ok(Some(Opened { keeper: Keeper::new(Box::new(log)), recovered }))
}

fn report(recovered: &Recovered, began: Instant) {
    let messages: u64 = recovered.streams.iter().filter(|s| s.stream.queue != ASIDE).map(|s| s.next - s.head).sum();
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if recovered.torn_bytes > 0 {
        tracing::warn!(
            bytes = recovered.torn_bytes,
            "the last write to the spool was cut short; nobody was answered for it"
        );
        metrics::counter!(crate::meter::SPOOL_TORN_BYTES).increment(recovered.torn_bytes);
    }
    for (key, segments) in &recovered.sealed {
        match key {
            Some(key) => tracing::info!(%key, segments, "segments of the spool are encrypted"),
            None => tracing::debug!(segments, "segments of the spool are in the clear"),
        }
    }
    for (upstream, messages) in &recovered.strangers {
        tracing::warn!(upstream, messages, "messages wait in the spool for a hub that is not configured");
    }
    if messages > 0 {
        tracing::info!(messages, elapsed_ms, "messages wait in the spool");
    }
}

impl Opened {
    /// What waits for a hub; none where only the hub is a witness and nothing waits.
    pub(super) fn backlog(&self, config: &Config, upstream: usize) -> Option<BacklogConfig> {
        let number = u16::try_from(upstream).ok()?;
        let name = &config.upstreams.get(upstream)?.name;
        let queues: Vec<(u16, u64, u64)> = self
            .recovered
            .streams
            .iter()
            .filter(|state| state.stream.upstream == number && state.stream.queue != ASIDE)
            .map(|state| (state.stream.queue, state.head, state.next))
            .collect();
        let spools = config.routes.iter().any(|route| route.upstream == *name && route.ack != Ack::Hub);
        let aside = |state: &StreamState| state.stream.upstream == number && state.stream.queue == ASIDE;
        let aside = self.recovered.streams.iter().any(|state| aside(state) && state.head < state.next);
        let waits = aside || queues.iter().any(|(_, head, next)| head < next);
        (spools || waits).then(|| BacklogConfig {
            upstream: number,
            queues,
            devices: self
                .recovered
                .devices
                .iter()
                .filter(|(hub, ..)| *hub == number)
                .map(|(_, device, bytes)| (*device, *bytes))
                .collect(),
            spill_after: config.spool.spill_after,
            age_max: config.spool.age_max,
        })
    }
}
