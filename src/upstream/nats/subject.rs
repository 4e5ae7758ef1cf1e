//! MQTT topics as NATS subjects, one to one.
//!
//! A level of a topic is a token of a subject. What a token cannot hold, or what means something there, is written as
//! `%` and two upper-case hexadecimal digits for each byte of its UTF-8; an empty level is a lone `%`. Of ASCII, letters,
//! digits and `- _ = : @ ! , ( ) ' ~ ; & ?` stand as they are, but an underscore at the beginning of the subject does not:
//! subjects that begin with `$` or `_` are the server's own, and no topic becomes one.
//!
//! No two topics become the same subject, and a subject that no topic becomes is nobody's message.

use crate::topic::{TopicFilter, TopicName};

/// The subject that a message on `topic` is published to.
pub fn subject_of(topic: &str) -> String {
    let mut subject = String::with_capacity(topic.len() + 16);
    for level in topic.split('/') {
        push_token(&mut subject, level);
    }
    subject
}

/// The topic of a message on `subject`; none where no topic becomes that subject.
pub fn topic_of(subject: &str) -> Option<String> {
    let mut topic = Vec::with_capacity(subject.len());
    for (i, token) in subject.split('.').enumerate() {
        if i > 0 {
            topic.push(b'/');
        }
        if token != EMPTY_LEVEL {
            unescape(token, &mut topic)?;
        }
    }
    let topic = String::from_utf8(topic).ok()?;
    (TopicName::new(topic.as_bytes()).is_ok() && subject_of(&topic) == subject).then_some(topic)
}

/// What is to be subscribed to for a filter. `a/#` is for `a`, too [MQTT-4.7.1-2], and takes a second subject.
pub fn subjects_of(filter: &TopicFilter) -> Vec<String> {
    let mut subject = String::with_capacity(filter.as_str().len() + 16);
    let mut subjects = Vec::with_capacity(2);
    for level in filter.as_str().split('/') {
        match level {
            "+" => push(&mut subject, "*"),
            "#" => {
                if !subject.is_empty() {
                    subjects.push(subject.clone());
                }
                push(&mut subject, ">");
            }
            _ => push_token(&mut subject, level),
        }
    }
    subjects.push(subject);
    subjects
}

/// Whether a message on `subject` is one for `pattern`, in which `*` is any token and `>` any rest.
pub(super) fn covers(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for part in pattern.split('.') {
        match (part, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(token)) if part == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Writes `%` and two digits for each byte that is not `plain`.
pub(super) fn escape(out: &mut String, text: &str, plain: impl Fn(usize, u8) -> bool) {
    for (i, c) in text.char_indices() {
        if c.is_ascii() && plain(i, c as u8) {
            out.push(c);
            continue;
        }
        let mut bytes = [0; 4];
        for byte in c.encode_utf8(&mut bytes).bytes() {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(HEX[usize::from(digit)].into());
            }
        }
    }
}

/// Takes `%` and two digits for the byte that they are; nothing where something else follows a `%`.
pub(super) fn unescape(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            byte => byte,
        });
    }
    Some(())
}

fn push_token(subject: &mut String, level: &str) {
    let first = subject.is_empty();
    push(subject, if level.is_empty() { EMPTY_LEVEL } else { "" });
    escape(subject, level, |i, byte| is_plain(byte) && !(first && i == 0 && byte == b'_'));
}

fn push(subject: &mut String, token: &str) {
    if !subject.is_empty() {
        subject.push('.');
    }
    subject.push_str(token);
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_=:@!,()'~;&?".contains(&byte)
}

fn digit(byte: u8) -> Option<u8> {
    HEX.iter().position(|hex| *hex == byte).map(|value| value as u8)
}

const EMPTY_LEVEL: &str = "%";
const HEX: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_topic_and_its_subject() {
        for (topic, subject) in [
            ("devices/pump-17/messages/events/", "devices.pump-17.messages.events.%"),
            ("a", "a"),
            ("/", "%.%"),
            ("a//b", "a.%.b"),
            ("a.b/c d", "a%2Eb.c%20d"),
            ("*/>/%", "%2A.%3E.%25"),
            ("$JS/API/STREAM/DELETE/X", "%24JS.API.STREAM.DELETE.X"),
            ("$SYS", "%24SYS"),
            ("_INBOX/x/_y", "%5FINBOX.x._y"),
            ("größe/温度", "gr%C3%B6%C3%9Fe.%E6%B8%A9%E5%BA%A6"),
            ("x/k=v&l=%20?$rid=1", "x.k=v&l=%2520?%24rid=1"),
        ] {
            assert_eq!(subject_of(topic), subject);
            assert_eq!(topic_of(subject).as_deref(), Some(topic));
        }
        assert_eq!(subject_of("no topic\r\nPUB x 1\r\n"), "no%20topic%0D%0APUB%20x%201%0D%0A");
    }

    #[test]
    fn a_subject_that_no_topic_becomes_is_nobodys() {
        for subject in [
            "", ".", "a.", "a..b", "$JS.API", "_INBOX.x", "a%2", "a%zz", "a%2e", "%41", "a b", "ü", "%.%00", "%%",
            "%2B", "a%23", "%FF",
        ] {
            assert_eq!(topic_of(subject), None, "{subject}");
        }
    }

    #[test]
    fn a_filter_and_its_subjects() {
        for (filter, subjects) in [
            ("a/b", &["a.b"][..]),
            ("a/+/c", &["a.*.c"]),
            ("+", &["*"]),
            ("#", &[">"]),
            ("a/#", &["a", "a.>"]),
            ("+/#", &["*", "*.>"]),
            ("/#", &["%", "%.>"]),
            ("devices/a.b/+/#", &["devices.a%2Eb.*", "devices.a%2Eb.*.>"]),
        ] {
            assert_eq!(subjects_of(&TopicFilter::try_from(filter).expect(filter)), subjects, "{filter}");
        }
    }

    #[test]
    fn a_stream_captures_what_its_subjects_cover() {
        for (pattern, subject, yes) in [
            ("devices.>", "devices.a", true),
            ("devices.>", "devices", false),
            (">", "a", true),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.b", false),
            ("a.*", "a.b.c", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(covers(pattern, subject), yes, "{pattern} {subject}");
        }
    }

    proptest! {
        #[test]
        fn every_topic_comes_back(topic in "[^+#\\p{C}]{1,40}") {
            let subject = subject_of(&topic);
            prop_assert_eq!(topic_of(&subject), Some(topic));
        }

        #[test]
        fn no_two_texts_have_the_same_subject(one in "[^+#]{1,6}", other in "[^+#]{1,6}") {
            prop_assert_eq!(subject_of(&one) == subject_of(&other), one == other);
        }

        #[test]
        fn a_subject_can_do_no_harm(topic in "[^+#\0]{1,40}") {
            let subject = subject_of(&topic);
            prop_assert!(subject.bytes().all(|b| b.is_ascii_graphic() && !b"*>$\"\\".contains(&b)));
            prop_assert!(subject.split('.').all(|token| !token.is_empty()));
            prop_assert!(!subject.starts_with('_'));
        }

        #[test]
        fn subjects_and_filters_agree(
            topic in proptest::collection::vec(prop_oneof![Just(""), Just("a"), Just("b.c"), Just("_x"), Just("ü")], 1..4),
            filter in proptest::collection::vec(prop_oneof![Just(""), Just("a"), Just("b.c"), Just("_x"), Just("ü"), Just("+")], 1..4),
            open in proptest::bool::ANY,
        ) {
            let topic = topic.join("/");
            let filter = filter.join("/") + if open { "/#" } else { "" };
            prop_assume!(!topic.is_empty() && !filter.is_empty());
            let filter = TopicFilter::try_from(filter.as_str()).expect("a filter");
            let subject = subject_of(&topic);
            let matched = subjects_of(&filter).iter().filter(|pattern| covers(pattern, &subject)).count();
            let name = TopicName::new(topic.as_bytes()).expect("a topic");
            prop_assert_eq!(matched, usize::from(filter.matches(name)), "one copy, or none");
        }
    }
}
