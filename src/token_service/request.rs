//! What is asked of `POST /v1/tokens`, and what is answered.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{
    problem::{Code, Problem},
    refresh::Kind,
};
use crate::{credential::Rights, id::DeviceId};

/// The body of a request. An unknown member is an error: a misspelled limit must not be no limit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    pub(super) device: Option<String>,
    pub(super) kind: Option<Kind>,
    pub(super) rights: Option<Vec<Right>>,
    /// Seconds.
    pub(super) ttl: Option<u64>,
    pub(super) policy: Option<String>,
    pub(super) audience: Option<String>,
    /// Whether a refresh token is wanted.
    #[serde(default)]
    pub(super) refresh: bool,
    /// Authenticates, and is exchanged.
    #[serde(default, deserialize_with = "read_secret")]
    pub(super) refresh_token: Option<Zeroizing<String>>,
}

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Right {
    Publish,
    Subscribe,
}

impl Request {
    /// Reads a body.
    pub(super) fn read(body: &[u8]) -> Result<Self, Problem> {
        // What serde says of a body may hold a part of it, and a body may hold a token.
        let place = |error: serde_json::Error| {
            let expected = "device, kind (\"sas\" or \"jwt\"), rights ([\"publish\", \"subscribe\"]), ttl (seconds), policy, \
                            audience, refresh (true or false), refresh_token";
            let (line, column) = (error.line(), error.column());
            Problem::new(
                Code::RequestMalformed,
                format!(
                    "The body is not as expected at line {line}, column {column}: an object that may hold {expected}."
                ),
            )
        };
        serde_json::from_slice(body).map_err(place)
    }

    /// Whom the token is to be for.
    pub(super) fn device(&self) -> Result<Option<DeviceId>, Problem> {
        let read = |id: &String| DeviceId::try_from(&**id);
        self.device
            .as_ref()
            .map(read)
            .transpose()
            .map_err(|error| Problem::new(Code::RequestMalformed, format!("`device`: {error}.")))
    }

    /// What it is to be for; `None`: all that may be had.
    pub(super) fn rights(&self) -> Result<Option<Rights>, Problem> {
        let Some(named) = &self.rights else { return Ok(None) };
        if named.is_empty() {
            return Err(Problem::new(Code::RequestMalformed, "`rights` is empty: such a token would be of no use."));
        }
        let has = |right| named.contains(&right);
        Ok(Some(Rights { publish: has(Right::Publish), subscribe: has(Right::Subscribe) }))
    }

    /// How long it is to live.
    pub(super) fn ttl(&self) -> Result<Option<Duration>, Problem> {
        match self.ttl {
            Some(0) => Err(Problem::new(Code::RequestMalformed, "`ttl` is 0 seconds.")),
            ttl => Ok(ttl.map(Duration::from_secs)),
        }
    }
}

/// The body of an answer.
#[derive(Serialize)]
pub(super) struct Issued {
    pub(super) device: String,
    #[serde(serialize_with = "write_secret")]
    pub(super) token: Zeroizing<String>,
    pub(super) kind: Kind,
    pub(super) rights: Vec<Right>,
    /// RFC 3339.
    pub(super) expires_at: String,
    /// Seconds: for a device whose clock is not set.
    pub(super) expires_in: u64,
    /// RFC 3339: when to ask for the next one.
    pub(super) renew_after: String,
    /// Seconds.
    pub(super) renew_in: u64,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "write_some_secret")]
    pub(super) refresh_token: Option<Zeroizing<String>>,
    /// RFC 3339: after it no refresh token of this line is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refresh_ends_at: Option<String>,
}

fn read_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Option::<String>::deserialize(from).map(|text| text.map(Zeroizing::new))
}

fn write_secret<S: Serializer>(secret: &Zeroizing<String>, to: S) -> Result<S::Ok, S::Error> {
    secret.as_str().serialize(to)
}

fn write_some_secret<S: Serializer>(secret: &Option<Zeroizing<String>>, to: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|secret| secret.as_str()).serialize(to)
}

pub(super) fn named(rights: Rights) -> Vec<Right> {
    let held = [(Right::Publish, rights.publish), (Right::Subscribe, rights.subscribe)];
    held.into_iter().filter(|(_, held)| *held).map(|(right, _)| right).collect()
}

/// Whether all of `wanted` is in `held`.
pub(super) fn includes(held: Rights, wanted: Rights) -> bool {
    (held.publish || !wanted.publish) && (held.subscribe || !wanted.subscribe)
}
