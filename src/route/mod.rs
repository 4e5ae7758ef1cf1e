//! Which hub a topic belongs to, and what it is called there: device terms to hub terms and back.

mod config;

pub use config::{Ack, RouteConfig};

use std::fmt;

use crate::{
    denial::Denial,
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
        if to.has_device() && !from.has_device() {
            return Err(PatternError::NoDevice);
        }
        self.routes.push(Route { from, to, upstream, ack });
        Ok(())
    }

    /// The way of one permitted message. `buffer` holds the topic where the hub calls it otherwise.
    ///
    /// # Errors
    /// [`Denial::NotRouted`].
    #[inline]
    pub fn resolve<'t>(&self, permit: Permit<'t>, buffer: &'t mut String) -> Result<Envelope<'t>, Denial> {
        let topic = permit.topic().as_str();
        for route in &self.routes {
            if let Some(found) = route.from.capture(topic) {
                let topic = if route.is_identity() { topic } else { route.to.fill(&found, buffer) };
                return Ok(Envelope { upstream: route.upstream, ack: route.ack, topic });
            }
        }
        Err(Denial::NotRouted)
    }

    /// The way of a filter that a device may subscribe to: the hub, and the filter in its terms. `+` may stand where
    /// the route has `{device}`.
    ///
    /// # Errors
    /// [`Denial::NotRouted`]: no route leads to all that the filter matches.
    pub fn resolve_filter(&self, filter: &TopicFilter) -> Result<(usize, TopicFilter), Denial> {
        let mut buffer = String::new();
        let wide = filter.as_str();
        for route in &self.routes {
            let Some(found) = route.from.capture(wide) else { continue };
            let closed_but_wild = !route.from.open && found.rest.is_some();
            if found.device == Some("#") || closed_but_wild {
                continue;
            }
            let there = TopicFilter::try_from(route.to.fill(&found, &mut buffer)).map_err(|_| Denial::FilterInvalid)?;
            return Ok((route.upstream, there));
        }
        Err(Denial::NotRouted)
    }

    /// What a device calls the topic of a message that came from a hub.
    pub fn to_device<'t>(
        &self,
        upstream: usize,
        topic: TopicName<'t>,
        buffer: &'t mut String,
    ) -> Option<TopicName<'t>> {
        let of_hub = self.routes.iter().filter(|r| r.upstream == upstream);
        for route in of_hub {
            if let Some(found) = route.to.capture(topic.as_str()) {
                if route.is_identity() {
                    return Some(topic);
                }
                return TopicName::new(route.from.fill(&found, buffer).as_bytes()).ok();
            }
        }
        None
    }
}

impl Route {
    fn is_identity(&self) -> bool {
        self.from == self.to
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
    /// What stood for `#`; `None`: the parent level alone, which `#` includes.
    rest: Option<&'t str>,
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
        let mut device = None;
        let mut rest = match topic.strip_prefix(&**first) {
            Some(rest) => rest,
            None => return self.is_parent(first, topic, later.is_empty()).then_some(Capture { device, rest: None }),
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
                    return self.is_parent(literal, after, last).then_some(Capture { device, rest: None });
                }
            };
        }
        if self.open {
            Some(Capture { device, rest: Some(rest) })
        } else {
            rest.is_empty().then_some(Capture { device, rest: None })
        }
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
    /// `to` names `{device}`, `from` does not.
    NoDevice,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wildcard => "a route is literal text, {device}, and at most one # as its last level",
            Self::Placeholder => "the only placeholder is {device}",
            Self::Ends => "either both `from` and `to` end in # or neither does",
            Self::NoDevice => "`to` names {device}, but `from` does not",
        })
    }
}

impl std::error::Error for PatternError {}

const DEVICE: &str = "{device}";

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

    fn resolve(routes: &Routes, topic: &str) -> Result<(usize, String), Denial> {
        let all = Scope::new(
            vec![TopicFilter::try_from("#").expect("#"), TopicFilter::try_from("$iothub/#").expect("f")],
            vec![],
            true,
            2,
        );
        let permit = all.authorize_publish(TopicName::new(topic.as_bytes()).expect(topic), 1, false).expect("in scope");
        let mut buffer = String::new();
        routes.resolve(permit, &mut buffer).map(|e| (e.upstream, e.topic.to_owned()))
    }

    fn filter(routes: &Routes, filter: &str) -> Result<(usize, String), Denial> {
        routes.resolve_filter(&TopicFilter::try_from(filter).expect(filter)).map(|(u, f)| (u, f.as_str().to_owned()))
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
        let back = |topic: &str| {
            let mut buffer = String::new();
            let name = TopicName::new(topic.as_bytes()).expect(topic);
            routes.to_device(0, name, &mut buffer).map(|t| t.as_str().to_owned())
        };
        assert_eq!(back(&there).as_deref(), Some("up/a/b/c"));
        assert_eq!(back("site/a-x/in/b/c"), None, "two devices in one topic");
        assert_eq!(back("site/a/in/a/c"), None);
    }

    #[test]
    fn a_route_that_cannot_be_followed_is_refused() {
        let add = |from, to| Routes::default().add(from, to, 0, Ack::Durable);
        assert_eq!(add("a/+/#", None), Err(PatternError::Wildcard));
        assert_eq!(add("a#", None), Err(PatternError::Wildcard));
        assert_eq!(add("", None), Err(PatternError::Wildcard));
        assert_eq!(add("a/{dev}/#", None), Err(PatternError::Placeholder));
        assert_eq!(add("a/#", Some("b")), Err(PatternError::Ends));
        assert_eq!(add("a/#", Some("b/{device}/#")), Err(PatternError::NoDevice));
        assert_eq!(add("#", None), Ok(()));
    }
}
