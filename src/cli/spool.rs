//! `tollgate spool`: the messages on disk of a gateway that is stopped.

use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

use super::{
    ConfigFile, Outcome,
    list::{folded, print_json, table},
    local::print,
};
use crate::{
    config::Config,
    delivery::spool::{self, ASIDE, Directory, Limits, Recovered, SegmentLog, Spool, SpoolError, SpoolKeys, StreamId},
};

/// `tollgate spool check`.
pub(super) fn check(at: &ConfigFile, json: bool) -> Result<(), Outcome> {
    let place = place(at)?;
    let (log, recovered) = open(&place)?;
    let Place { folder, hubs, .. } = place;
    let fill = log.fill();
    let hubs: Vec<HubView> = hubs
        .iter()
        .zip(&fill.hubs)
        .map(|(name, hub)| HubView { hub: name.clone(), messages: hub.messages, set_aside: hub.aside })
        .chain(recovered.strangers.iter().map(|(name, messages)| HubView {
            hub: format!("{name} (not configured)"),
            messages: *messages,
            set_aside: 0,
        }))
        .collect();
    if json {
        return print_json(&hubs);
    }
    let mut rows = vec![["hub", "messages", "set aside"].map(String::from)];
    rows.extend(hubs.iter().map(|view| [view.hub.clone(), view.messages.to_string(), view.set_aside.to_string()]));
    print(&table(&rows));
    if recovered.torn_bytes > 0 {
        print(&format!("{} bytes of a write that was cut short were taken off the end\n", recovered.torn_bytes));
    }
    for (key, segments) in &recovered.sealed {
        let files = if *segments == 1 { "file" } else { "files" };
        print(&match key {
            Some(key) => format!("{segments} {files} encrypted with the key {key}\n"),
            None => format!("{segments} {files} in the clear\n"),
        });
    }
    print(&format!("{} is whole\n", folder.display()));
    Ok(())
}

/// `tollgate spool aside`.
pub(super) fn aside(at: &ConfigFile, json: bool) -> Result<(), Outcome> {
    let place = place(at)?;
    let (mut log, recovered) = open(&place)?;
    let hubs = place.hubs;
    let mut all = Vec::new();
    for state in recovered.streams.iter().filter(|state| state.stream.queue == ASIDE) {
        read_aside(&mut log, (state.stream, &hubs), (state.head, state.next), &mut all)?;
    }
    if json {
        return print_json(&all);
    }
    if all.is_empty() {
        print("no message is set aside\n");
    }
    for view in &all {
        print(&folded(&format!("{}  {}  {}  {} bytes", view.received, view.hub, view.topic, view.payload_bytes), ""));
    }
    Ok(())
}

/// `tollgate spool salvage`.
pub(super) fn salvage(at: &ConfigFile) -> Result<(), Outcome> {
    let place = place(at)?;
    // Released before anything else is done with it.
    let is_whole = open(&place).is_ok();
    let Place { folder, limits, keys, .. } = place;
    if is_whole {
        print(&format!("{} is whole: there is nothing to salvage
", folder.display()));
        return Ok(());
    }
    let salvaged = spool::salvage(&folder, limits, &keys).map_err(Outcome::failed)?;
    for (file, offset, what) in &salvaged.damage {
        print(&folded(&format!("{file}, byte {offset}: {what}"), ""));
    }
    print(&format!("{} messages are kept\n", salvaged.messages));
    if salvaged.lost > 0 {
        print(&format!("{} messages between them are missing\n", salvaged.lost));
    }
    print(&folded(&format!("the files as they were: {}", salvaged.kept_as.join(" ")), ""));
    Ok(())
}

/// Where the spool is and what is to be found in it.
struct Place {
    folder: PathBuf,
    limits: Limits,
    hubs: Vec<String>,
    keys: SpoolKeys,
}

#[derive(Debug, Serialize)]
struct HubView {
    hub: String,
    messages: u64,
    set_aside: u64,
}

/// Of its content only the size: it is the device's.
#[derive(Debug, Serialize)]
struct AsideView {
    hub: String,
    received: String,
    topic: String,
    payload_bytes: usize,
}

fn place(at: &ConfigFile) -> Result<Place, Outcome> {
    let config = Config::examine(at.gateway_file().path()).map_err(Outcome::failed)?.config;
    Ok(Place {
        keys: config.spool.keys.clone(),
        folder: config.gateway.state_dir.join("spool"),
        limits: Limits::of_size(config.spool.size_max.0),
        hubs: config.upstreams.iter().map(|upstream| upstream.name.clone()).collect(),
    })
}

fn open(place: &Place) -> Result<(SegmentLog, Recovered), Outcome> {
    let Place { folder, limits, hubs, keys } = place;
    if !folder.is_dir() {
        return Err(Outcome::failed(format!("{}: there is no spool", folder.display())));
    }
    let directory = Directory::open(folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            Outcome::failed(format!("{}; stop it first, or ask it: tollgate upstreams", SpoolError::Locked))
        }
        _ => Outcome::failed(format!("{}: {error}", folder.display())),
    })?;
    SegmentLog::open(Box::new(directory), *limits, hubs, keys).map_err(Outcome::failed)
}

fn read_aside(
    log: &mut SegmentLog,
    (stream, hubs): (StreamId, &[String]),
    (from, to): (u64, u64),
    all: &mut Vec<AsideView>,
) -> Result<(), Outcome> {
    let mut at = from;
    while at < to {
        let run = log.read(stream, at, READ_BYTES).map_err(Outcome::failed)?;
        all.extend(run.records().map(|record| AsideView {
            hub: hubs.get(usize::from(stream.upstream)).cloned().unwrap_or_default(),
            received:
                humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(record.received_ms)).to_string(),
            topic: record.topic.escape_debug().to_string(),
            payload_bytes: record.payload.len(),
        }));
        at += run.count.max(1);
    }
    Ok(())
}

const READ_BYTES: usize = 256 << 10;
