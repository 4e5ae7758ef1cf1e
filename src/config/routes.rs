//! Every `[[route]]`.

use super::{
    document::{Found, Notes, Table},
    keys,
};
use crate::{
    policy::FilterTemplate,
    route::{Ack, RouteConfig},
    upstream::UpstreamConfig,
};

/// The routes of the file, or the default one when it names none.
pub(super) fn read_routes(notes: &Notes<'_>, file: &Table<'_>, upstreams: &[UpstreamConfig]) -> Vec<RouteConfig> {
    let tables = file.tables("route", &keys::ROUTE);
    let mut routes: Vec<RouteConfig> = Vec::new();
    match &tables {
        None => routes.extend(upstreams.first().map(|first| RouteConfig::new(FROM, &first.name))),
        Some(tables) => {
            for table in tables {
                let route = read_route(notes, table, upstreams);
                if let Some(same) = routes.iter().find(|other| !other.from.is_empty() && other.from == route.from) {
                    let what = format!("{:?} is routed to {:?} already.", route.from, same.upstream);
                    notes.mistake(
                        table.line_of("from"),
                        what,
                        "A topic goes to exactly one hub: take one of them out.",
                    );
                }
                routes.push(route);
            }
        }
    }
    for upstream in upstreams.iter().filter(|upstream| !upstream.name.is_empty()) {
        if !routes.iter().any(|route| route.upstream == upstream.name) {
            let what = format!("no route leads to the upstream {:?}.", upstream.name);
            notes.warn(file.line_of("upstream"), what, "Give it a [[route]], or take it out.");
        }
    }
    routes
}

fn read_route(notes: &Notes<'_>, table: &Table<'_>, upstreams: &[UpstreamConfig]) -> RouteConfig {
    table.require("from", "Write which topics it is about, like from = \"devices/{device}/#\".");
    table.require("upstream", "Write the name of an [[upstream]].");
    let from = table.parsed("from", template);
    let to = table.parsed("to", template);
    if let (Some(from), Some(to)) = (&from, &to) {
        check_mapping(notes, from, to);
    }
    let upstream = table.text("upstream");
    if let Some(found) = &upstream
        && !upstreams.iter().any(|upstream| upstream.name == found.value)
    {
        let names: Vec<String> = upstreams.iter().map(|upstream| format!("{:?}", upstream.name)).collect();
        let remedy = format!("There is: {}.", names.join(", "));
        notes.mistake(found.line, format!("there is no upstream {:?}.", found.value), remedy);
    }
    let ack = table.one_of("ack", &[("durable", Some(Ack::Durable)), ("hub", Some(Ack::Hub)), ("disk", None)]);
    if let Some(Found { value: None, line }) = ack {
        notes.not_in_this_version(line, "ack = \"disk\" (the spool)");
    }
    RouteConfig {
        from: from.map_or(String::new(), |found| found.value),
        to: to.map(|found| found.value),
        upstream: upstream.map_or("", |found| found.value).to_owned(),
        ack: ack.and_then(|found| found.value).unwrap_or_default(),
    }
}

/// A filter in which `{device}` may stand, once, as one whole level.
fn template(text: &str) -> Result<String, String> {
    let device_levels = text.split('/').filter(|level| *level == DEVICE).count();
    let rest = text.split('/').find(|level| *level != DEVICE && level.contains(['{', '}']));
    if let Some(level) = rest {
        return Err(format!(
            "in {text:?} the level {level:?} is no name: only {DEVICE} may stand in braces, as a whole level"
        ));
    }
    if device_levels > 1 {
        return Err(format!("{DEVICE} stands more than once in {text:?}"));
    }
    if text.starts_with("$share/") {
        return Err(format!("{text:?} is a shared subscription, and no topic"));
    }
    FilterTemplate::new(text).map_err(|error| format!("{text:?} is no topic filter: {error}"))?;
    Ok(text.to_owned())
}

/// A topic must find its way there and back.
fn check_mapping(notes: &Notes<'_>, from: &Found<String>, to: &Found<String>) {
    let wildcards = |text: &str| text.split('/').filter(|level| matches!(*level, "+" | "#")).collect::<String>();
    if wildcards(&from.value) != wildcards(&to.value) {
        notes.mistake(
            to.line,
            format!("the wildcards of {:?} are not those of {:?}.", to.value, from.value),
            "Write as many + and #, in the same order: what they stand for is carried over.",
        );
    }
    let has_device = |text: &str| text.split('/').any(|level| level == DEVICE);
    if has_device(&from.value) && !has_device(&to.value) {
        notes.mistake(
            to.line,
            format!("{:?} does not hold {DEVICE}: on the hub nobody could tell whose message it is.", to.value),
            format!("Put {DEVICE} into it."),
        );
    }
}

const DEVICE: &str = "{device}";

/// What is routed when the file names no route.
const FROM: &str = "devices/{device}/#";
