//! Topic names and topic filters (MQTT 5.0 §4.7), checked once; after that the type is the proof.

mod tree;

pub use tree::FilterTree;

use std::{fmt, sync::Arc};

/// A valid topic name, borrowed from the packet that carries it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName<'a>(&'a str);

impl<'a> TopicName<'a> {
    /// Checks bytes of a peer.
    ///
    /// # Errors
    /// [`TopicError`]: empty, longer than 65,535 bytes, not UTF-8, holding U+0000, a control character or a wildcard, more
    /// than 200 levels.
    pub fn new(bytes: &'a [u8]) -> Result<Self, TopicError> {
        let text = checked_text(bytes)?;
        if bytes.iter().filter(|b| **b == b'/').count() >= LEVELS_MAX {
            return Err(TopicError::TooDeep);
        }
        // MQTT 5.0 [MQTT-3.3.2-2], [MQTT-4.7.1-1]
        if bytes.iter().any(|b| matches!(b, b'+' | b'#')) {
            return Err(TopicError::Wildcard);
        }
        Ok(Self(text))
    }

    /// The name as it was sent.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for TopicName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for TopicName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A valid topic name that outlives its packet. Its memory is used again for the next one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OwnedTopicName(String);

impl OwnedTopicName {
    /// The name, borrowed: no need to check it again.
    pub fn name(&self) -> TopicName<'_> {
        TopicName(&self.0)
    }

    /// Takes another name in its place.
    pub fn replace(&mut self, name: TopicName<'_>) {
        self.0.clear();
        self.0.push_str(name.0);
    }
}

impl From<TopicName<'_>> for OwnedTopicName {
    fn from(name: TopicName<'_>) -> Self {
        Self(name.0.to_owned())
    }
}

impl fmt::Debug for OwnedTopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A valid topic filter. Shared subscriptions (`$share/…`) are no filters of this type: strip the prefix first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(Arc<str>);

impl TopicFilter {
    /// Checks bytes of a peer.
    ///
    /// # Errors
    /// [`TopicError`]: empty, longer than 65,535 bytes, not UTF-8, holding U+0000 or a control character, more than 200
    /// levels, or a wildcard that is not a whole level, or `#` before the last level.
    pub fn new(bytes: &[u8]) -> Result<Self, TopicError> {
        let text = checked_text(bytes)?;
        // Each level is a step down in tables that are searched and freed by recursion.
        if text.split('/').count() > LEVELS_MAX {
            return Err(TopicError::TooDeep);
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            // MQTT 5.0 [MQTT-4.7.1-1], [MQTT-4.7.1-2]
            let wild = level.contains(['+', '#']);
            if wild && level.len() > 1 || level == "#" && levels.peek().is_some() {
                return Err(TopicError::Wildcard);
            }
        }
        Ok(Self(text.into()))
    }

    /// The filter as it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a message on `topic` is for this filter (MQTT 5.0 §4.7.2: a leading wildcard matches no `$…`).
    pub fn matches(&self, topic: TopicName<'_>) -> bool {
        let (mut filter, mut name) = (self.0.split('/'), topic.0.split('/'));
        let mut first = true;
        loop {
            match (filter.next(), name.next()) {
                (None, None) => return true,
                (Some("#"), level) => return !(first && level.is_some_and(|l| l.starts_with('$'))),
                (Some("+"), Some(level)) if !(first && level.starts_with('$')) => {}
                (Some(want), Some(level)) if want == level => {}
                _ => return false,
            }
            first = false;
        }
    }

    /// Every topic that `other` matches is matched by `self`. SUBSCRIBE is authorized with this, never with
    /// [`matches`](Self::matches): `a/+` is not allowed because `a/b` would be.
    pub fn covers(&self, other: &TopicFilter) -> bool {
        let (mut wide, mut narrow) = (self.0.split('/'), other.0.split('/'));
        let mut first = true;
        loop {
            match (wide.next(), narrow.next()) {
                (None, None) => return true,
                (Some("#"), level) => return !(first && level.is_some_and(|l| l.starts_with('$'))),
                // `#` as the first level stands for one level or more; later it stands for none, too.
                (Some("+"), Some("#")) => return first && wide.next() == Some("#"),
                (Some("+"), Some(level)) if !(first && level.starts_with('$')) => {}
                (Some(want), Some(level)) if want == level && want != "+" => {}
                _ => return false,
            }
            first = false;
        }
    }

    /// The filter of the topics that both match; `None`: there is no such topic.
    pub fn intersection(&self, other: &TopicFilter) -> Option<TopicFilter> {
        // A leading wildcard matches no `$…` (MQTT 5.0 §4.7.2).
        let is_wild = |filter: &TopicFilter| filter.0.starts_with(['+', '#']);
        if self.0.starts_with('$') && is_wild(other) || other.0.starts_with('$') && is_wild(self) {
            return None;
        }
        let (mut ours, mut theirs) = (self.0.split('/').peekable(), other.0.split('/').peekable());
        let mut levels: Vec<&str> = Vec::new();
        loop {
            let level = match (ours.peek().copied(), theirs.peek().copied()) {
                (None, None) => break,
                // `#` stands for whatever the other asks for from here on, and for none.
                (Some("#"), _) => {
                    levels.extend(theirs);
                    break;
                }
                (_, Some("#")) => {
                    levels.extend(ours);
                    break;
                }
                (Some("+"), Some(level)) | (Some(level), Some("+")) => level,
                (Some(level), Some(same)) if level == same => level,
                _ => return None,
            };
            levels.push(level);
            ours.next();
            theirs.next();
        }
        // Empty: `/#` and `+` would both match the empty topic, if there were one.
        Self::try_from(&*levels.join("/")).ok()
    }

    /// Where the filter is `literal/#`: `literal/`. A topic that begins with it is matched: one comparison.
    pub fn literal_prefix(&self) -> Option<&str> {
        let prefix = self.0.strip_suffix('#')?;
        (!prefix.is_empty() && !prefix.contains('+')).then_some(prefix)
    }
}

impl TryFrom<&str> for TopicFilter {
    type Error = TopicError;
    fn try_from(text: &str) -> Result<Self, TopicError> {
        Self::new(text.as_bytes())
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Why bytes are no topic name or no topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicError {
    /// No byte [MQTT-4.7.3-1].
    Empty,
    /// More than 65,535 bytes [MQTT-4.7.3-3].
    TooLong,
    /// Not UTF-8 [MQTT-1.5.4-1].
    NotUtf8,
    /// Holds U+0000 [MQTT-4.7.3-2].
    Nul,
    /// Holds a control character or a code point that is no character.
    Control,
    /// More than 200 levels.
    TooDeep,
    /// A wildcard where none may stand.
    Wildcard,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::TooLong => "it is longer than 65,535 bytes",
            Self::NotUtf8 => "it is not UTF-8",
            Self::Nul => "it holds U+0000",
            Self::Control => "it holds a control character",
            Self::TooDeep => "it has more than 200 levels",
            Self::Wildcard => "it has a wildcard where none may stand",
        })
    }
}

impl std::error::Error for TopicError {}

/// Whether a text holds what MQTT 5.0 §1.5.4 and MQTT 3.1.1 §1.5.3 let a receiver refuse: control characters and code
/// points that are no characters. Hubs do refuse it, by closing a connection that many devices share.
#[inline]
pub fn has_control_characters(text: &str) -> bool {
    if text.is_ascii() {
        return text.bytes().any(|byte| byte.is_ascii_control());
    }
    text.chars().any(|c| c.is_control() || matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE)
}

fn checked_text(bytes: &[u8]) -> Result<&str, TopicError> {
    if bytes.is_empty() {
        return Err(TopicError::Empty);
    }
    if bytes.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    if bytes.contains(&0) {
        return Err(TopicError::Nul);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| TopicError::NotUtf8)?;
    if has_control_characters(text) { Err(TopicError::Control) } else { Ok(text) }
}

/// Deeper than any device needs, far less than a thread's stack bears, and what mosquitto takes as a hub.
const LEVELS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::try_from(text).expect(text)
    }

    fn name(text: &str) -> TopicName<'_> {
        TopicName::new(text.as_bytes()).expect(text)
    }

    #[test]
    fn names_and_filters_are_refused_by_the_rule_they_break() {
        assert_eq!(TopicName::new(b""), Err(TopicError::Empty));
        for control in ["a\u{1}", "\u{1F}", "a/\u{7F}/b", "é\u{9F}", "\u{FDD0}", "\u{FFFF}", "\u{1FFFE}"] {
            assert_eq!(TopicName::new(control.as_bytes()), Err(TopicError::Control), "{control:?}");
            assert_eq!(TopicFilter::new(control.as_bytes()), Err(TopicError::Control), "{control:?}");
        }
        for good in ["a b~", "é\u{A0}", "\u{FEFF}a", "\u{2A6D4}"] {
            assert_eq!(TopicName::new(good.as_bytes()).map(TopicName::as_str), Ok(good));
        }
        assert!(TopicName::new("/".repeat(199).as_bytes()).is_ok());
        assert_eq!(TopicName::new("/".repeat(200).as_bytes()), Err(TopicError::TooDeep));
        assert_eq!(TopicName::new(&[b'x'; 65_536]), Err(TopicError::TooLong));
        assert_eq!(TopicName::new(b"a\0"), Err(TopicError::Nul));
        assert_eq!(TopicName::new(b"a/\xff"), Err(TopicError::NotUtf8));
        assert_eq!(TopicName::new(b"\xed\xa0\x80"), Err(TopicError::NotUtf8));
        for bad in ["a/+", "#", "a+"] {
            assert_eq!(TopicName::new(bad.as_bytes()), Err(TopicError::Wildcard), "{bad}");
        }
        for bad in ["a+", "a/#/b", "a#", "+a/b", "##"] {
            assert_eq!(TopicFilter::try_from(bad), Err(TopicError::Wildcard), "{bad}");
        }
        assert_eq!(TopicFilter::try_from(&*"/".repeat(200)), Err(TopicError::TooDeep));
        assert_eq!(filter(&"/".repeat(199)).as_str().len(), 199);
        for good in ["#", "+", "/", "+/+", "a//b", "a/+/#", "é/x"] {
            assert_eq!(filter(good).as_str(), good);
        }
    }

    #[test]
    fn matching_follows_section_4_7() {
        for (f, n) in [
            ("#", "a/b"),
            ("a/#", "a"),
            ("a/#", "a/"),
            ("+", "a"),
            ("/+", "/a"),
            ("+/+", "/a"),
            ("a/+/c", "a//c"),
            ("$s/#", "$s/x"),
        ] {
            assert!(filter(f).matches(name(n)), "{f} matches {n}");
        }
        for (f, n) in
            [("#", "$s/x"), ("+/x", "$s/x"), ("+", "/a"), ("a/+", "a"), ("a/b", "a/bc"), ("a/#", "ab"), ("a", "a/")]
        {
            assert!(!filter(f).matches(name(n)), "{f} does not match {n}");
        }
    }

    #[test]
    fn covering_is_by_every_topic() {
        for (w, n) in [
            ("a/#", "a/+"),
            ("a/#", "a"),
            ("#", "+/x"),
            ("+/#", "#"),
            ("a/+", "a/b"),
            ("a/+/#", "a/b"),
            ("$s/#", "$s/a/#"),
        ] {
            assert!(filter(w).covers(&filter(n)), "{w} covers {n}");
        }
        for (w, n) in [
            ("a/b", "a/+"),
            ("a/+", "a/#"),
            ("#", "$s/#"),
            ("a/+/#", "a/#"),
            ("+/x", "$s/x"),
            ("a/b/#", "a/+/#"),
            ("+/+/#", "#"),
        ] {
            assert!(!filter(w).covers(&filter(n)), "{w} does not cover {n}");
        }
    }

    fn any_filter() -> impl Strategy<Value = TopicFilter> {
        (prop::collection::vec(prop::sample::select(vec!["a", "b", "+", "", "$s"]), 0..4), any::<bool>())
            .prop_filter_map("not empty", |(mut levels, hash)| {
                if hash {
                    levels.push("#");
                }
                TopicFilter::try_from(&*levels.join("/")).ok()
            })
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "", "$s"]), 1..6)
            .prop_map(|l| l.join("/"))
            .prop_filter("not empty", |t| !t.is_empty())
    }

    /// Every name of up to five levels: enough to tell any two filters of up to four apart.
    fn all_names() -> Vec<String> {
        let levels = ["a", "b", "c", "", "$s"];
        let mut all: Vec<String> = vec![];
        let mut last: Vec<String> = levels.iter().map(|l| (*l).to_owned()).collect();
        for _ in 0..5 {
            all.extend(last.iter().filter(|n| !n.is_empty()).cloned());
            last = last.iter().flat_map(|n| levels.iter().map(move |l| format!("{n}/{l}"))).collect();
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_covered_is_matched(wide in any_filter(), narrow in any_filter(), topic in any_name()) {
            if wide.covers(&narrow) && narrow.matches(name(&topic)) {
                prop_assert!(wide.matches(name(&topic)), "{wide} covers {narrow} but not {topic}");
            }
        }
    }

    #[test]
    fn what_two_filters_share_is_one_filter_or_nothing() {
        for (one, other, both) in [
            ("devices/d1/events/#", "devices/+/events/alarm", Some("devices/d1/events/alarm")),
            ("a/+/c", "+/b/+", Some("a/b/c")),
            ("a/#", "a", Some("a")),
            ("a/#", "#", Some("a/#")),
            ("a/+/#", "a/b", Some("a/b")),
            ("a/+/#", "a", None),
            ("a/+", "a/b/#", Some("a/b")),
            ("$s/#", "#", None),
            ("$s/x", "+/x", None),
            ("$s/+", "$s/x", Some("$s/x")),
            ("a/$s", "a/+", Some("a/$s")),
            ("/#", "+", None),
            ("+/+", "/a", Some("/a")),
            ("a/b", "a/c", None),
        ] {
            for (one, other) in [(one, other), (other, one)] {
                let shared = filter(one).intersection(&filter(other));
                assert_eq!(shared.as_ref().map(TopicFilter::as_str), both, "{one} and {other}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_topic_matches_the_intersection_where_it_matches_both(
            one in any_filter(), other in any_filter(), topic in any_name()
        ) {
            let shared = one.intersection(&other).is_some_and(|both| both.matches(name(&topic)));
            let both = one.matches(name(&topic)) && other.matches(name(&topic));
            prop_assert_eq!(shared, both, "{} and {}: {}", one, other, topic);
        }
    }

    #[test]
    fn covers_is_exactly_containment() {
        let names = all_names();
        let levels = ["a", "b", "+", "", "$s"];
        let mut filters: Vec<String> = vec!["#".into()];
        let mut last: Vec<String> = levels.iter().map(|l| (*l).to_owned()).collect();
        for _ in 0..2 {
            for f in &last {
                filters.extend([f.clone(), format!("{f}/#")]);
            }
            last = last.iter().flat_map(|n| levels.iter().map(move |l| format!("{n}/{l}"))).collect();
        }
        let filters: Vec<_> = filters.iter().filter_map(|f| TopicFilter::try_from(&**f).ok()).collect();
        for wide in &filters {
            for narrow in &filters {
                let contained = names.iter().filter(|n| narrow.matches(name(n))).all(|n| wide.matches(name(n)));
                // `/#` would match the empty topic, if there were one: `covers` stays on the safe side there.
                if narrow.as_str() != "/#" {
                    assert_eq!(wide.covers(narrow), contained, "{wide} covers {narrow}");
                }
            }
        }
    }
}
