//! What JetStream says: of a stream, and of a message that was published to it.

use serde::Deserialize;

use super::subject::covers;

/// The answer to a message, or to a question.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) error: Option<ApiError>,
    /// Of a message: where it is stored.
    pub(super) stream: Option<String>,
    /// Of a message: the stream had it.
    pub(super) duplicate: bool,
    /// Of a question.
    pub(super) config: Option<StreamConfig>,
    pub(super) state: StreamState,
}

/// What JetStream will not do, and why.
#[derive(Deserialize, Debug, Default, Clone, PartialEq, Eq)]
#[serde(default)]
pub(super) struct ApiError {
    pub(super) err_code: u32,
    pub(super) description: String,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct StreamConfig {
    subjects: Vec<String>,
    max_msgs: i64,
    max_bytes: i64,
    discard: String,
    storage: String,
    num_replicas: u32,
    no_ack: bool,
    sealed: bool,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct StreamState {
    messages: i64,
    bytes: i64,
}

/// A stream that takes messages.
#[derive(Debug)]
pub(super) struct Stream {
    subjects: Vec<String>,
    /// It may refuse a message and take the next one.
    pub(super) may_skip: bool,
    /// It forgets all when its server stops.
    pub(super) is_memory: bool,
}

impl Stream {
    /// What STREAM.INFO answered, if the stream takes messages.
    ///
    /// # Errors
    /// Why it takes none, to follow the stream's name.
    pub(super) fn of(answer: Answer) -> Result<Self, String> {
        if let Some(error) = answer.error {
            return Err(match error.err_code {
                STREAM_NOT_FOUND => "does not exist: create it, or name the one that takes the messages".to_owned(),
                JETSTREAM_NOT_ENABLED | JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => NO_JETSTREAM.to_owned(),
                _ => format!("cannot be looked at: {}", error.description),
            });
        }
        let Some(config) = answer.config else { return Err("was not described by the server".to_owned()) };
        if config.no_ack {
            return Err("acknowledges nothing (no_ack): no message in it would have a witness".to_owned());
        }
        if config.sealed {
            return Err("is sealed, and takes no message".to_owned());
        }
        let discards_new = config.discard == "new";
        let full = |limit: i64, there: i64| limit > 0 && there >= limit;
        if discards_new && (full(config.max_msgs, answer.state.messages) || full(config.max_bytes, answer.state.bytes))
        {
            return Err("is full, and discards what is new: make room, or raise its limits".to_owned());
        }
        Ok(Self {
            subjects: config.subjects,
            may_skip: discards_new || config.num_replicas > 1,
            is_memory: config.storage == "memory",
        })
    }

    /// Whether messages on `subject` are stored in it.
    pub(super) fn captures(&self, subject: &str) -> bool {
        self.subjects.iter().any(|pattern| covers(pattern, subject))
    }
}

/// Whose fault it is that a message was not stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// This message's: the reason code of MQTT 5.0 for it.
    Message(u8),
    /// The stream's, the server's or the configuration's: others would fare no better. A reason code for DISCONNECT.
    Hub(u8),
    /// Where the stream does not capture the subject, the message's; otherwise the hub's.
    Unclear,
}

impl ApiError {
    /// See [`Fault`].
    pub(super) fn fault(&self) -> Fault {
        match self.err_code {
            MESSAGE_TOO_LARGE => Fault::Message(PACKET_TOO_LARGE),
            EXPECTED_STREAM_DIFFERS => Fault::Unclear,
            // It has one text for each of its limits. One of a subject is no concern of others.
            STORE_FAILED if self.description.contains("per subject") => Fault::Message(QUOTA_OF_THIS_SUBJECT),
            STORE_FAILED => Fault::Hub(QUOTA_EXCEEDED),
            _ => Fault::Hub(SERVER_BUSY),
        }
    }
}

/// What an answer without JetStream means.
pub(super) const NO_JETSTREAM: &str = "cannot be reached: this server has no JetStream for this account";

/// Reason codes of MQTT 5.0 §2.4.
pub(super) const NOT_AUTHORIZED: u8 = 0x87;
pub(super) const SERVER_BUSY: u8 = 0x89;
pub(super) const TOPIC_NAME_INVALID: u8 = 0x90;
pub(super) const PACKET_TOO_LARGE: u8 = 0x95;
pub(super) const QUOTA_EXCEEDED: u8 = 0x97;
/// An implementation's own error: 0x97 would say that the hub has too much of everybody.
const QUOTA_OF_THIS_SUBJECT: u8 = 0x83;

/// Error codes of nats-server, `server/errors.json`.
const STREAM_NOT_FOUND: u32 = 10_059;
const JETSTREAM_NOT_ENABLED: u32 = 10_076;
const JETSTREAM_NOT_ENABLED_FOR_ACCOUNT: u32 = 10_039;
const MESSAGE_TOO_LARGE: u32 = 10_054;
const EXPECTED_STREAM_DIFFERS: u32 = 10_060;
const STORE_FAILED: u32 = 10_077;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn a_stream_that_takes_no_message_says_why() {
        for (text, why) in [
            (r#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#, "does not exist"),
            (r#"{"error":{"code":503,"err_code":10039,"description":"x"}}"#, "no JetStream"),
            (r#"{"error":{"code":503,"err_code":1,"description":"some reason"}}"#, "some reason"),
            (r#"{"type":"x"}"#, "not described"),
            (r#"{"config":{"no_ack":true}}"#, "acknowledges nothing"),
            (r#"{"config":{"sealed":true}}"#, "sealed"),
            (r#"{"config":{"max_msgs":10,"max_bytes":-1,"discard":"new"},"state":{"messages":10}}"#, "full"),
            (r#"{"config":{"max_msgs":-1,"max_bytes":10,"discard":"new"},"state":{"bytes":11}}"#, "full"),
        ] {
            let error = Stream::of(answer(text)).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_stream_that_takes_messages_says_which() {
        let old = r#"{"config":{"subjects":["devices.>"],"max_msgs":10,"discard":"old","num_replicas":1,"storage":"file"},
            "state":{"messages":10}}"#;
        let stream = Stream::of(answer(old)).expect("it drops the oldest");
        assert!(!stream.may_skip && !stream.is_memory);
        assert!(stream.captures("devices.a.b") && !stream.captures("other"));
        for skips in [r#"{"config":{"max_msgs":-1,"discard":"new"}}"#, r#"{"config":{"num_replicas":3}}"#] {
            assert!(Stream::of(answer(skips)).expect(skips).may_skip, "{skips}");
        }
        assert!(Stream::of(answer(r#"{"config":{"storage":"memory"}}"#)).expect("memory").is_memory);
    }

    #[test]
    fn a_message_is_at_fault_only_where_others_would_fare_better() {
        for (err_code, description, fault) in [
            (10_054, "message size exceeds maximum allowed", Fault::Message(0x95)),
            (10_060, "expected stream does not match", Fault::Unclear),
            (10_077, "maximum messages per subject exceeded", Fault::Message(0x83)),
            (10_077, "maximum messages exceeded", Fault::Hub(0x97)),
            (10_077, "maximum bytes exceeded", Fault::Hub(0x97)),
            (10_023, "insufficient resources", Fault::Hub(0x89)),
            (0, "", Fault::Hub(0x89)),
        ] {
            assert_eq!(ApiError { err_code, description: description.into() }.fault(), fault, "{description}");
        }
    }
}
