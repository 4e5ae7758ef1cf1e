//! Every `[[route]]`.

use super::{
    document::{Found, Notes, Table},
    keys,
};
use crate::{
    gate::Profile,
    id::DeviceId,
    listener::ListenerConfig,
    route::{Ack, RouteConfig, Routes},
    topic::TopicFilter,
    upstream::{UpstreamConfig, UpstreamKind},
};

/// The routes of the file, or the default one when it names none.
pub(super) fn read_routes(
    notes: &Notes<'_>,
    file: &Table<'_>,
    listeners: &[ListenerConfig],
    upstreams: &[UpstreamConfig],
) -> Vec<RouteConfig> {
    let tables = file.tables("route", &keys::ROUTE);
    let mut routes: Vec<RouteConfig> = Vec::new();
    match &tables {
        None => {
            let is_google = listeners.iter().any(|listener| listener.profile == Profile::Google);
            let all = std::iter::once(FROM).chain(is_google.then_some(FROM_GOOGLE));
            routes.extend(all.filter_map(|from| {
                let first = upstreams.first()?;
                let ack = if first.kind == UpstreamKind::Embedded { Ack::Disk } else { Ack::default() };
                Some(RouteConfig { ack, ..RouteConfig::new(from, &first.name) })
            }));
        }
        Some(tables) => {
            for table in tables {
                let route = read_route(notes, table, upstreams);
                if let Some(other) = routes.iter().find(|other| takes_all_of(&other.from, &route.from)) {
                    let what =
                        format!("{:?} is never reached: {:?} above takes all its topics.", route.from, other.from);
                    notes.mistake(table.line_of("from"), what, "Put the narrower one first, or take one of them out.");
                }
                routes.push(route);
            }
        }
    }
    complete(notes, file, listeners, &mut routes);
    for upstream in upstreams.iter().filter(|upstream| !upstream.name.is_empty()) {
        if !routes.iter().any(|route| route.upstream == upstream.name) {
            let what = format!("no route leads to the upstream {:?}.", upstream.name);
            notes.warn(file.line_of("upstream"), what, "Give it a [[route]], or take it out.");
        }
    }
    routes
}

/// What devices of these clouds call alike, or otherwise than everybody else, finds its way without being written.
fn complete(notes: &Notes<'_>, file: &Table<'_>, listeners: &[ListenerConfig], routes: &mut Vec<RouteConfig>) {
    let has = |profile| listeners.iter().any(|listener| listener.profile == profile);
    if has(Profile::Azure) && !routes.iter().any(|route| route.from.starts_with(FROM_IOT_HUB_BEGINS)) {
        match routes.iter().find_map(twin_route) {
            Some(route) => routes.insert(0, route),
            None => notes.warn(
                file.line_of("route"),
                format!("no route leads to {TWIN_TO:?}: twins and methods of Azure's SDKs reach no hub."),
                format!("Write a [[route]] with from = \"{FROM_IOT_HUB}\" and to = \"{TWIN_TO}\"."),
            ),
        }
    }
    let is_google = |from: &str| from.starts_with(FROM_GOOGLE_BEGINS) || takes_all_of(from, FROM_GOOGLE);
    if has(Profile::Google) && !routes.iter().any(|route| is_google(&route.from)) {
        notes.warn(
            file.line_of("route"),
            format!("no route leads from {FROM_GOOGLE:?}: what devices of the profile google publish is refused."),
            format!("Write a [[route]] with from = \"{FROM_GOOGLE}\"."),
        );
    }
}

/// The way of `$iothub/…` by a route that leads to a device's own topics.
fn twin_route(route: &RouteConfig) -> Option<RouteConfig> {
    let mut routes = Routes::default();
    routes.add(&route.from, route.to.as_deref(), 0, route.ack).ok()?;
    let own = TopicFilter::try_from(TWIN_TO).expect("invariant: a constant that is a filter");
    let anybody = DeviceId::try_from("d").expect("invariant: a constant that is an id");
    let (_, to) = routes.resolve_filter(&own, &anybody).ok()?;
    Some(RouteConfig { from: FROM_IOT_HUB.into(), to: Some(to.as_str().into()), ..route.clone() })
}

fn read_route(notes: &Notes<'_>, table: &Table<'_>, upstreams: &[UpstreamConfig]) -> RouteConfig {
    table.require("from", "Write which topics it is about, like from = \"devices/{device}/#\".");
    table.require("upstream", "Write the name of an [[upstream]].");
    let from = table.parsed("from", template);
    let to = table.parsed("to", template);
    if let (Some(from), Some(to)) = (&from, &to) {
        check_mapping(notes, from, to);
    }
    if let Some(from) = from.as_ref().filter(|from| to.is_none() && from.value.starts_with(FROM_IOT_HUB_BEGINS)) {
        let what =
            format!("{:?} is the same for every device: on the hub nobody could tell whose message it is.", from.value);
        notes.mistake(from.line, what, format!("Add to = \"{TWIN_TO}\"."));
    }
    let upstream = table.text("upstream");
    if let Some(found) = &upstream
        && !upstreams.iter().any(|upstream| upstream.name == found.value)
    {
        let names: Vec<String> = upstreams.iter().map(|upstream| format!("{:?}", upstream.name)).collect();
        let remedy = format!("There is: {}.", names.join(", "));
        notes.mistake(found.line, format!("there is no upstream {:?}.", found.value), remedy);
    }
    let ack = table.one_of("ack", &[("durable", Ack::Durable), ("hub", Ack::Hub), ("disk", Ack::Disk)]);
    let named = upstream.as_ref().and_then(|found| upstreams.iter().find(|upstream| upstream.name == found.value));
    let ack = match (ack, named.map(|upstream| &upstream.kind)) {
        (found, Some(UpstreamKind::Embedded)) => {
            if let Some(Found { value: Ack::Hub, line }) = found {
                let what = "`ack = \"hub\"` has no effect: the embedded hub is memory of this process, and no witness.";
                notes.warn(line, what, "Write \"disk\", or take it out: devices are acknowledged from the disk.");
            }
            Ack::Disk
        }
        (found, _) => found.map_or(Ack::default(), |found| found.value),
    };
    RouteConfig {
        from: from.map_or(String::new(), |found| found.value),
        to: to.map(|found| found.value),
        upstream: upstream.map_or("", |found| found.value).to_owned(),
        ack,
    }
}

/// What [`Routes`] can follow.
fn template(text: &str) -> Result<String, String> {
    if text.starts_with("$share/") {
        return Err(format!("{text:?} is a shared subscription, and no topic"));
    }
    Routes::default().add(text, None, 0, Ack::default()).map_err(|error| format!("{text:?}: {error}"))?;
    Ok(text.to_owned())
}

/// A topic must find its way there and back.
fn check_mapping(notes: &Notes<'_>, from: &Found<String>, to: &Found<String>) {
    if let Err(error) = Routes::default().add(&from.value, Some(&to.value), 0, Ack::default()) {
        notes.mistake(to.line, format!("{error}."), "Write the same topic in the hub's terms.");
    }
    let is_of_one = from.value.contains(DEVICE) || from.value.starts_with(FROM_IOT_HUB_BEGINS);
    if is_of_one && !to.value.contains(DEVICE) {
        notes.mistake(
            to.line,
            format!("{:?} does not hold {DEVICE}: on the hub nobody could tell whose message it is.", to.value),
            format!("Put {DEVICE} into it."),
        );
    }
}

/// Whether a route takes all topics of another: where it stands before it, the other is never reached.
fn takes_all_of(by: &str, from: &str) -> bool {
    let is_exact = by.matches(DEVICE).count() == by.split('/').filter(|level| *level == DEVICE).count();
    if !is_exact || by.matches(DEVICE).count() > 1 {
        // Two devices in one topic, or a part of a level: narrower than any filter can say.
        return false;
    }
    let filter = |text: &str| {
        let levels: Vec<&str> = text.split('/').map(|level| if level.contains(DEVICE) { "+" } else { level }).collect();
        TopicFilter::try_from(&*levels.join("/"))
    };
    matches!((filter(by), filter(from)), (Ok(by), Ok(from)) if by.covers(&from))
}

const DEVICE: &str = "{device}";

/// What is routed when the file names no route.
const FROM: &str = "devices/{device}/#";
/// Likewise where a listener has the google profile, whose topics begin with a slash.
const FROM_GOOGLE: &str = "/devices/{device}/#";
const FROM_GOOGLE_BEGINS: &str = "/devices/";
/// Twins and methods in the terms of Azure's SDKs, the same for every device.
const FROM_IOT_HUB: &str = "$iothub/#";
const FROM_IOT_HUB_BEGINS: &str = "$iothub";
/// And on a hub.
const TWIN_TO: &str = "devices/{device}/iothub/#";
