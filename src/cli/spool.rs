//! `tollgate spool`: the messages on disk, and what is set aside among them.

use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::{
    ConfigFile, Outcome,
    desk::Desk,
    list::{folded, print_json, table},
    local::{now_by, print},
};
use crate::{
    admin::{AsideAsked, AsideDeed, AsideDone, AsideError, AsideList, AsideView, UpstreamList},
    config::Config,
    delivery::spool::{
        self, Chosen, Directory, Limits, Recovered, SegmentLog, Spool, SpoolError, SpoolKeys, discard_aside,
        list_aside, retry_aside,
    },
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

/// `tollgate spool aside`: of the gateway that runs, or of the spool of one that does not.
pub(super) fn aside(at: &ConfigFile, json: bool) -> Result<(), Outcome> {
    let mut all = Vec::new();
    match reach(at)? {
        Spools::Running(desk, hubs) => {
            for hub in hubs {
                let list: AsideList = desk.get(&format!("{}?last={SHOWN}", path_of(&hub)))?;
                all.extend(list.messages);
            }
        }
        Spools::Stopped(mut log, hubs) => {
            for (number, hub) in (0..).zip(&hubs) {
                let (messages, _) = list_aside(&mut *log, number, &Chosen::All, SHOWN).map_err(Outcome::failed)?;
                all.extend(messages.iter().filter_map(|message| AsideView::of(hub, message)));
            }
        }
    }
    if json {
        return print_json(&all);
    }
    if all.is_empty() {
        print("no message is set aside\n");
    }
    for AsideView { id, hub, received, topic, payload_bytes, why } in &all {
        print(&folded(&format!("{id}  {received}  {hub}  {topic}  {payload_bytes} bytes"), ""));
        print(&folded(why, "    "));
    }
    Ok(())
}

/// `tollgate spool retry` and `tollgate spool discard`.
pub(super) fn decide(at: &ConfigFile, which: &Aside, deed: AsideDeed) -> Result<(), Outcome> {
    let asked = AsideAsked { ids: which.ids.clone(), all: which.all };
    let chosen = asked.chosen().map_err(|error| match error {
        AsideError::Unknown(what) | AsideError::Asked(what) | AsideError::Spool(what) => Outcome::Failed(what),
    })?;
    let (mut messages, mut left) = (0, 0);
    match reach(at)? {
        Spools::Running(desk, hubs) => {
            let deed = if deed == AsideDeed::Retry { "retry" } else { "discard" };
            for hub in hubs {
                let done: AsideDone = desk.post(&format!("{}/{deed}", path_of(&hub)), &asked)?;
                messages += done.messages;
                left += done.left;
            }
        }
        Spools::Stopped(mut log, hubs) => {
            // By the clock that the gateway will hold it to.
            let wall_ms = now_by(&at.load_quietly()?).0 * 1000;
            for number in 0..hubs.len() as u16 {
                let done = match deed {
                    AsideDeed::Retry => retry_aside(&mut *log, number, &chosen, wall_ms),
                    AsideDeed::Discard => discard_aside(&mut *log, number, &chosen),
                };
                messages += done.map_err(Outcome::failed)?;
            }
        }
    }
    let done = if deed == AsideDeed::Retry { "wait for their hub again" } else { "are gone" };
    print(&format!("{messages} messages {done}\n"));
    if left > 0 {
        print(&format!("{left} stay set aside: they are on their way already, or there is no room for them now\n"));
    }
    if messages == 0 && left == 0 { Err(Outcome::Failed("no such message is set aside".into())) } else { Ok(()) }
}

/// `tollgate spool salvage`.
pub(super) fn salvage(at: &ConfigFile) -> Result<(), Outcome> {
    let place = place(at)?;
    // Released before anything else is done with it.
    let is_whole = open(&place).is_ok();
    let Place { folder, limits, keys, .. } = place;
    if is_whole {
        print(&format!(
            "{} is whole: there is nothing to salvage
",
            folder.display()
        ));
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

/// Which messages that are set aside.
#[derive(Debug, clap::Args)]
pub(super) struct Aside {
    /// As `tollgate spool aside` names them
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(super) ids: Vec<String>,
    /// Every one
    #[arg(long, conflicts_with = "ids")]
    pub(super) all: bool,
}

/// Where messages that are set aside are asked for.
enum Spools {
    /// The gateway that has the spool, and its hubs.
    Running(Desk, Vec<String>),
    /// The spool of a gateway that is stopped, and the hubs that it knows.
    Stopped(Box<SegmentLog>, Vec<String>),
}

/// The gateway that runs, where one has the spool or `--admin` names one; otherwise the spool itself.
fn reach(at: &ConfigFile) -> Result<Spools, Outcome> {
    if at.admin.is_none() {
        let place = place(at)?;
        let error = if place.folder.is_dir() { Directory::open(&place.folder).err() } else { None };
        if error.is_none_or(|error| error.kind() != std::io::ErrorKind::WouldBlock) {
            return Ok(Spools::Stopped(Box::new(open(&place)?.0), place.hubs));
        }
    }
    let desk = Desk::new(at, None)?;
    let list: UpstreamList = desk.get("/v1/upstreams")?;
    let hubs = list.upstreams.into_iter().map(|hub| hub.name).collect();
    Ok(Spools::Running(desk, hubs))
}

fn path_of(hub: &str) -> String {
    format!("/v1/upstreams/{}/aside", utf8_percent_encode(hub, NON_ALPHANUMERIC))
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

/// Of each hub; what is done to all is done to more.
const SHOWN: usize = 1000;
