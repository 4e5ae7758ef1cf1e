//! Which hub a topic belongs to, and what it is called there: device terms to hub terms and back.

pub mod bag;
mod config;

pub use config::{Ack, RouteConfig};

use std::fmt;

use crate::{
    denial::Denial,
    id::DeviceId,
    policy::Permit,
    topic::{TopicFilter, TopicName},
};

/// All routes, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

#[derive(Debug)]
struct Route {
    from: Pattern,
    to: Pattern,
    upstream: usize,
    ack: Ack,
    /// `from` is the same topic for every device, like `$iothub/#`: who is connected stands for `{device}` in `to`.
    own: bool,
}

/// Where one message goes: what a [`Permit`] becomes.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'t> {
    /// Index of the hub.
    pub upstream: usize,
    /// Who must have it before the device is told.
    pub ack: Ack,
    /// The topic in the hub's terms.
    pub topic: &'t str,
}

impl Routes {
    /// Adds a route behind the others.
    ///
    /// # Errors
    /// What is wrong with `from` or `to`.
    pub fn add(&mut self, from: &str, to: Option<&str>, upstream: usize, ack: Ack) -> Result<(), PatternError> {
        let from = Pattern::new(from)?;
        let to = to.map_or_else(|| Ok(from.clone()), Pattern::new)?;
        if from.open != to.open {
            return Err(PatternError::Ends);
        }
        let own = to.has_device() && !from.has_device();
        self.routes.push(Route { from, to, upstream, ack, own });
        Ok(())
    }

    /// The way of one permitted message of `who`. `buffer` holds the topic where the hub calls it otherwise.
    ///
    /// # Errors
    /// [`Denial::NotRouted`].
    #[inline]
    pub fn resolve<'t>(
        &self,
        permit: Permit<'t>,
        who: &DeviceId,
        buffer: &'t mut String,
    ) -> Result<Envelope<'t>, Denial> {
        let topic = permit.topic().as_str();
        for route in &self.routes {
            if let Some(found) = route.from.capture(topic) {
                let topic = if route.is_identity() { topic } else { route.there(found, who, buffer) };
                return Ok(Envelope { upstream: route.upstream, ack: route.ack, topic });
            }
        }
        Err(Denial::NotRouted)
    }

    /// The way of a filter that `who` may subscribe to: the hub, and the filter in its terms. `+` may stand where the
    /// route has `{device}`.
    ///
    /// # Errors
    /// [`Denial::NotRouted`]: no route leads to all that the filter matches.
    pub fn resolve_filter(&self, filter: &TopicFilter, who: &DeviceId) -> Result<(usize, TopicFilter), Denial> {
        let mut buffer = String::new();
        let wide = filter.as_str();
        for route in &self.routes {
            let Some(found) = route.from.capture(wide) else { continue };
            let closed_but_wild = !route.from.open && found.rest.is_some();
            if found.device == Some("#") || closed_but_wild {
                continue;
            }
            let there = route.there(found, who, &mut buffer);
            let there = TopicFilter::try_from(there).map_err(|_| Denial::FilterInvalid)?;
            return Ok((route.upstream, there));
        }
        Err(Denial::NotRouted)
    }

    /// What `who` calls the topic of a message that came from a hub. Where several routes lead back, it is the name that
    /// the device has `wanted`; a message may also come before the hub has said that it is.
    pub fn to_device<'t>(
        &self,
        upstream: usize,
        topic: TopicName<'t>,
        who: &DeviceId,
        wanted: impl Fn(TopicName<'_>) -> bool,
        buffer: &'t mut String,
    ) -> Option<TopicName<'t>> {
        let mut best: Option<&Route> = None;
        for route in self.routes.iter().filter(|route| route.upstream == upstream) {
            let Some(name) = route.back(topic, who, buffer) else { continue };
            if wanted(name) {
                best = Some(route);
                break;
            }
            best = best.or(Some(route));
        }
        best?.back(topic, who, buffer)
    }
}

impl Route {
    fn is_identity(&self) -> bool {
        self.from == self.to
    }

    fn there<'b>(&self, found: Capture<'_>, who: &DeviceId, buffer: &'b mut String) -> &'b str {
        let found = if self.own { Capture { rest: found.rest, ..Capture::of(who) } } else { found };
        self.to.fill(&found, buffer)
    }

    fn back<'t>(&self, topic: TopicName<'t>, who: &DeviceId, buffer: &'t mut String) -> Option<TopicName<'t>> {
        let found = match self.own {
            true => self.to.capture_own(topic.as_str(), who, buffer)?,
            false => self.to.capture(topic.as_str())?,
        };
        if self.is_identity() {
            return Some(topic);
        }
        TopicName::new(self.from.fill(&found, buffer).as_bytes()).ok()
    }
}

/// Literal text with `{device}` in it, and `#` at the end or not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// Before the first `{device}`, between them, after the last; without the `#`.
    literals: Vec<Box<str>>,
    /// Ends in `#`.
    open: bool,
}

/// What a pattern found in a topic.
struct Capture<'t> {
    device: Option<&'t str>,
    /// Where `{device}` stands for who is connected, and that is a module.
    module: Option<&'t str>,
    /// What stood for `#`; `None`: the parent level alone, which `#` includes.
    rest: Option<&'t str>,
}

impl<'t> Capture<'t> {
    fn of(who: &'t DeviceId) -> Self {
        Self { device: Some(who.device()), module: who.module(), rest: None }
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, PatternError> {
        let (body, open) = text.strip_suffix('#').map_or((text, false), |body| (body, true));
        if body.contains(['+', '#', '\0']) || open && !body.is_empty() && !body.ends_with('/') || text.is_empty() {
            return Err(PatternError::Wildcard);
        }
        let literals: Vec<Box<str>> = body.split(DEVICE).map(Into::into).collect();
        if literals.iter().any(|l| l.contains(['{', '}'])) {
            return Err(PatternError::Placeholder);
        }
        Ok(Self { literals, open })
    }

    fn has_device(&self) -> bool {
        self.literals.len() > 1
    }

    #[inline]
    fn capture<'t>(&self, topic: &'t str) -> Option<Capture<'t>> {
        let (first, later) = self.literals.split_first().expect("invariant: split() yields one part or more");
        // MQTT 5.0 [MQTT-4.7.2-1]: `#` is for no topic that begins with `$`.
        if first.is_empty() && topic.starts_with('$') {
            return None;
        }
        let (mut device, module) = (None, None);
        let mut rest = match topic.strip_prefix(&**first) {
            Some(rest) => rest,
            None => {
                let is_parent = self.is_parent(first, topic, later.is_empty());
                return is_parent.then_some(Capture { device, module, rest: None });
            }
        };
        for (i, literal) in later.iter().enumerate() {
            let level_end = rest.find('/').unwrap_or(rest.len());
            let (level, after) = rest.split_at(level_end);
            // What follows within the level belongs to the pattern: `{device}-x/`.
            let tail = literal.split('/').next().unwrap_or("");
            let id = level.strip_suffix(tail).filter(|id| !id.is_empty())?;
            if *device.get_or_insert(id) != id {
                return None;
            }
            let literal = literal.strip_prefix(tail).unwrap_or("");
            rest = match after.strip_prefix(literal) {
                Some(rest) => rest,
                None => {
                    let last = i + 1 == later.len();
                    return self.is_parent(literal, after, last).then_some(Capture { device, module, rest: None });
                }
            };
        }
        if self.open {
            Some(Capture { device, module, rest: Some(rest) })
        } else {
            rest.is_empty().then_some(Capture { device, module, rest: None })
        }
    }

    /// As [`capture`](Self::capture), where `{device}` can only be `who`.
    fn capture_own<'t>(&self, topic: &'t str, who: &DeviceId, buffer: &mut String) -> Option<Capture<'t>> {
        let begins = self.fill(&Capture { rest: Some(""), ..Capture::of(who) }, buffer);
        let rest = match topic.strip_prefix(begins) {
            Some(rest) if self.open => Some(rest),
            Some("") => None,
            Some(_) => return None,
            None if self.is_parent(begins, topic, true) => None,
            None => return None,
        };
        Some(Capture { device: None, module: None, rest })
    }

    /// `a/#` is for `a`, too (MQTT 5.0 §4.7.1.2).
    fn is_parent(&self, literal: &str, rest: &str, last: bool) -> bool {
        self.open && last && literal.strip_suffix('/') == Some(rest)
    }

    fn fill<'b>(&self, found: &Capture<'_>, buffer: &'b mut String) -> &'b str {
        buffer.clear();
        for (i, literal) in self.literals.iter().enumerate() {
            if i > 0 {
                buffer.push_str(found.device.unwrap_or(""));
                if let Some(module) = found.module {
                    buffer.push_str(MODULES);
                    buffer.push_str(module);
                }
            }
            buffer.push_str(literal);
        }
        match found.rest {
            Some(rest) => buffer.push_str(rest),
            None if self.open => drop(buffer.pop()),
            None => {}
        }
        buffer
    }
}

/// What is wrong with `from` or `to` of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// A wildcard other than one `#` as the last level, or nothing at all.
    Wildcard,
    /// A brace that is not `{device}`.
    Placeholder,
    /// One of the two ends in `#`, the other does not.
    Ends,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wildcard => "a route is literal text, {device}, and at most one # as its last level",
            Self::Placeholder => "the only placeholder is {device}",
            Self::Ends => "either both `from` and `to` end in # or neither does",
        })
    }
}

impl std::error::Error for PatternError {}

const DEVICE: &str = "{device}";
/// Between a device and its module, as in IoT Hub's topics.
const MODULES: &str = "/modules/";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Scope;

    fn routes(all: &[(&str, Option<&str>)]) -> Routes {
        let mut routes = Routes::default();
        for (i, (from, to)) in all.iter().enumerate() {
            routes.add(from, *to, i, Ack::Durable).expect(from);
        }
        routes
    }

    fn id(text: &str) -> DeviceId {
        DeviceId::try_from(text).expect(text)
    }

    fn resolve(routes: &Routes, topic: &str) -> Result<(usize, String), Denial> {
        resolve_of(routes, "somebody", topic)
    }

    fn resolve_of(routes: &Routes, who: &str, topic: &str) -> Result<(usize, String), Denial> {
        let filters = ["#", "$iothub/#", "$other/#"].map(|all| TopicFilter::try_from(all).expect(all));
        let all = Scope::new(filters.into(), vec![], true, 2);
        let permit = all.authorize_publish(TopicName::new(topic.as_bytes()).expect(topic), 1, false).expect("in scope");
        let mut buffer = String::new();
        routes.resolve(permit, &id(who), &mut buffer).map(|e| (e.upstream, e.topic.to_owned()))
    }

    fn filter(routes: &Routes, filter: &str) -> Result<(usize, String), Denial> {
        filter_of(routes, "somebody", filter)
    }

    fn filter_of(routes: &Routes, who: &str, filter: &str) -> Result<(usize, String), Denial> {
        let filter = TopicFilter::try_from(filter).expect(filter);
        routes.resolve_filter(&filter, &id(who)).map(|(u, f)| (u, f.as_str().to_owned()))
    }

    fn back(routes: &Routes, who: &str, topic: &str, wanted: &str) -> Option<String> {
        let (mut buffer, wanted) = (String::new(), TopicFilter::try_from(wanted).expect(wanted));
        let name = TopicName::new(topic.as_bytes()).expect(topic);
        routes.to_device(0, name, &id(who), |name| wanted.matches(name), &mut buffer).map(|t| t.as_str().to_owned())
    }

    #[test]
    fn a_topic_takes_the_first_route_that_leads() {
        let routes = routes(&[
            ("devices/{device}/events/#", None),
            ("devices/{device}/#", Some("site-9/{device}/up/#")),
            ("fleet/status", None),
        ]);
        assert_eq!(resolve(&routes, "devices/a/events/x?y=%2F"), Ok((0, "devices/a/events/x?y=%2F".into())));
        assert_eq!(resolve(&routes, "devices/a/events"), Ok((0, "devices/a/events".into())));
        assert_eq!(resolve(&routes, "devices/a/eventsx"), Ok((1, "site-9/a/up/eventsx".into())));
        assert_eq!(resolve(&routes, "devices/a"), Ok((1, "site-9/a/up".into())));
        assert_eq!(resolve(&routes, "fleet/status"), Ok((2, "fleet/status".into())));
        for nowhere in ["devices", "devices/", "fleet/status/x", "fleet", "x/devices/a/events"] {
            assert_eq!(resolve(&routes, nowhere), Err(Denial::NotRouted), "{nowhere}");
        }
    }

    #[test]
    fn a_filter_is_mapped_as_its_topics_are() {
        let routes = routes(&[("devices/{device}/#", Some("site/{device}/#"))]);
        assert_eq!(filter(&routes, "devices/a/+/x"), Ok((0, "site/a/+/x".into())));
        assert_eq!(filter(&routes, "devices/a/#"), Ok((0, "site/a/#".into())));
        assert_eq!(filter(&routes, "devices/+/events/#"), Ok((0, "site/+/events/#".into())));
        for wide in ["#", "+/a/#", "devices/#"] {
            assert_eq!(filter(&routes, wide), Err(Denial::NotRouted), "{wide}");
        }
    }

    #[test]
    fn the_way_back_ends_where_the_way_there_began() {
        let routes = routes(&[("up/{device}/#", Some("site/{device}-x/in/{device}/#"))]);
        let (_, there) = resolve(&routes, "up/a/b/c").expect("routed");
        assert_eq!(there, "site/a-x/in/a/b/c");
        let back = |topic: &str| back(&routes, "somebody", topic, "#");
        assert_eq!(back(&there).as_deref(), Some("up/a/b/c"));
        assert_eq!(back("site/a-x/in/b/c"), None, "two devices in one topic");
        assert_eq!(back("site/a/in/a/c"), None);
    }

    #[test]
    fn a_topic_that_every_device_calls_alike_is_its_own_on_the_hub() {
        let mut routes = Routes::default();
        for (from, to) in
            [("$iothub/#", Some("site/{device}/iothub/#")), ("site/{device}/#", None), ("$up", Some("{device}/up"))]
        {
            routes.add(from, to, 0, Ack::Durable).expect(from);
        }
        let get = "$iothub/twin/GET/?$rid=1";
        assert_eq!(resolve_of(&routes, "a", get), Ok((0, "site/a/iothub/twin/GET/?$rid=1".into())));
        assert_eq!(resolve_of(&routes, "a/m", get), Ok((0, "site/a/modules/m/iothub/twin/GET/?$rid=1".into())));
        assert_eq!(filter_of(&routes, "a", "$iothub/+/res/#"), Ok((0, "site/a/iothub/+/res/#".into())));
        assert_eq!(filter_of(&routes, "a/m", "$iothub/#"), Ok((0, "site/a/modules/m/iothub/#".into())));

        let answer = "site/a/iothub/twin/res/200/?$rid=1";
        let back = |who, topic: &str, wanted| back(&routes, who, topic, wanted);
        assert_eq!(back("a", answer, "$iothub/#").as_deref(), Some("$iothub/twin/res/200/?$rid=1"));
        assert_eq!(back("a/m", "site/a/modules/m/iothub", "$iothub/#").as_deref(), Some("$iothub"));
        for another in ["b", "a/m", "a1", "site"] {
            assert_eq!(back(another, answer, "$iothub/#").as_deref(), Some(answer), "of {another} it is not");
        }
        assert_eq!(back("a", "site/a/modules/m/iothub/x", "#").as_deref(), Some("site/a/modules/m/iothub/x"));
        assert_eq!(back("a", answer, "site/a/#").as_deref(), Some(answer), "by the name that it asked for");
        assert_eq!(back("a", "a/up", "$up").as_deref(), Some("$up"));
        assert_eq!(back("a", "b/up", "#"), None);
        assert_eq!(back("a", "a/up/x", "#"), None);
    }

    #[test]
    fn a_route_for_everything_is_for_no_topic_that_begins_with_a_dollar() {
        let routes = routes(&[("#", None), ("$other/#", Some("other/#"))]);
        assert_eq!(resolve(&routes, "$other/x"), Ok((1, "other/x".into())));
        assert_eq!(filter(&routes, "$other/#"), Ok((1, "other/#".into())));
        assert_eq!(resolve(&routes, "$iothub/x"), Err(Denial::NotRouted));
        assert_eq!(filter(&routes, "$iothub/#"), Err(Denial::NotRouted));
        assert_eq!(filter(&routes, "#"), Ok((0, "#".into())));
    }

    #[test]
    fn a_route_that_cannot_be_followed_is_refused() {
        let add = |from, to| Routes::default().add(from, to, 0, Ack::Durable);
        assert_eq!(add("a/+/#", None), Err(PatternError::Wildcard));
        assert_eq!(add("a#", None), Err(PatternError::Wildcard));
        assert_eq!(add("", None), Err(PatternError::Wildcard));
        assert_eq!(add("a/{dev}/#", None), Err(PatternError::Placeholder));
        assert_eq!(add("a/#", Some("b")), Err(PatternError::Ends));
        assert_eq!(add("a/#", Some("b/{device}/#")), Ok(()));
        assert_eq!(add("#", None), Ok(()));
    }
}
