//! The log of sessions at a start: read before anything is served. Damage costs sessions, never the start.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::StartError;
use crate::{
    clock::Clock,
    config::Config,
    delivery::spool::{Directory, Keeper, Limits, Recovered, SegmentLog, Spool, SpoolError, SpoolKeys, salvage},
    id::DeviceId,
    meter,
    roster::Roster,
    session::image::{Image, Now},
    shard::{Found, SessionLog},
};

/// Where it is.
pub(super) fn folder(config: &Config) -> PathBuf {
    config.gateway.state_dir.join("sessions")
}

/// Opens the log, unless no session may outlive its connection.
pub(super) fn open(
    config: &Config,
    clock: &Clock,
    roster: &Roster,
) -> Result<Option<(Keeper, SessionLog)>, StartError> {
    if config.limits.session_expiry_max.is_zero() {
        return Ok(None);
    }
    let (folder, keys) = (folder(config), &config.spool.keys);
    let told = |error: SpoolError| {
        let remedy = match &error {
            SpoolError::Locked => "nothing was started. Stop it, or give this one a `state_dir` of its own",
            SpoolError::Version { .. } => "nothing was started. Use the version of the gateway that wrote it",
            _ => "nothing was started. Correct it, or set `expiry_max = \"0\"` under [session] to do without",
        };
        StartError::Spool(format!("{}: {error}; {remedy}", folder.display()))
    };
    // Entries, and what they are written anew to, have room beside each other.
    let limits = Limits::of_size(config.limits.sessions_size_max.0.saturating_mul(LOG_SIZES));
    let (mut log, recovered) = match open_log(&folder, limits, keys) {
        Err(SpoolError::Damaged { file, offset, what }) => {
            roster.found_damage();
            tracing::error!(file, offset, what, "the log of sessions is damaged: what can be read of it is kept");
            set_aside(&folder, limits, keys).map_err(told)?;
            open_log(&folder, limits, keys).map_err(told)?
        }
        opened => opened.map_err(told)?,
    };
    let now = Now { tick: clock.tick(), wall_ms: clock.now_ms() };
    let found = read(&mut log, &recovered, now, roster).map_err(told)?;
    if recovered.torn_bytes > 0 {
        let bytes = recovered.torn_bytes;
        tracing::warn!(bytes, "the last write to the log of sessions was cut short; nobody was answered for it");
        metrics::counter!(meter::SPOOL_TORN_BYTES).increment(bytes);
    }
    if !found.sessions.is_empty() {
        tracing::info!(sessions = found.sessions.len(), "sessions wait for their devices");
    }
    let keeper = Keeper::new(Box::new(log));
    let spool = keeper.handle();
    Ok(Some((keeper, SessionLog { spool, found })))
}

fn open_log(folder: &Path, limits: Limits, keys: &SpoolKeys) -> Result<(SegmentLog, Recovered), SpoolError> {
    let directory = Directory::open(folder).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => SpoolError::Locked,
        _ => SpoolError::Disk("open its directory", error),
    })?;
    SegmentLog::open(Box::new(directory), limits, &[NAME.to_owned()], keys)
}

/// Keeps the damaged files beside what could be read of them.
fn set_aside(folder: &Path, limits: Limits, keys: &SpoolKeys) -> Result<(), SpoolError> {
    let salvaged = salvage(folder, limits, keys)?;
    let kept_as = salvaged.kept_as.join(" ");
    tracing::error!(lost = salvaged.lost, kept_as, "sessions, or messages for them, may be lost");
    Ok(())
}

/// What the entries amount to.
fn read(log: &mut SegmentLog, recovered: &Recovered, now: Now, roster: &Roster) -> Result<Found, SpoolError> {
    let (mut image, mut found, mut strange) = (Image::default(), Found::default(), 0u64);
    for state in &recovered.streams {
        let (mut at, mut bytes) = (state.head, 0);
        while at < state.next {
            let run = log.read(state.stream, at, READ_BYTES)?;
            if run.count == 0 {
                break;
            }
            for record in run.records() {
                let applied = DeviceId::try_from(record.topic)
                    .map_err(|_| ())
                    .and_then(|device| image.apply(&device, record.payload, now).map_err(|_| ()));
                strange += u64::from(applied.is_err());
            }
            bytes += run.bytes.len() as u64;
            at = run.first + run.count;
        }
        found.queues.push((state.stream.queue, state.next, bytes));
    }
    if strange > 0 {
        roster.found_damage();
        tracing::error!(entries = strange, "entries of the log of sessions could not be understood");
    }
    let numbers = image.sessions.values().flat_map(|kept| kept.state.receipts());
    found.last = numbers.map(std::num::NonZeroU64::get).filter(|number| *number < u64::MAX).max().unwrap_or(0);
    found.wills = image
        .wills
        .into_iter()
        .flat_map(|(device, wills)| wills.into_iter().map(move |will| (device.clone(), will)))
        .collect();
    found.last_will = found.wills.iter().map(|(_, will)| will.number.get()).max().unwrap_or(0);
    found.sessions = image.sessions.into_iter().collect();
    Ok(found)
}

/// The one hub that the log knows: itself.
const NAME: &str = "sessions";
/// Of `size_max`, for the log on the disk.
const LOG_SIZES: u64 = 4;
/// One read of a queue.
const READ_BYTES: usize = 1 << 20;
