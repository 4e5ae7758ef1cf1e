//! Messages that their hub would not have: shown, sent again, or thrown away.

use std::{
    collections::HashSet,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{
    Backend,
    api::{Failure, audited},
};
use crate::{
    audit::Action,
    delivery::spool::{AsideMessage, Chosen},
};

/// Answer of `GET /v1/upstreams/{name}/aside`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideList {
    /// Oldest first.
    pub messages: Vec<AsideView>,
    /// How many there are, also where fewer are shown.
    pub total: u64,
}

/// One message that is set aside. Of its content only the size: it is the device's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideView {
    /// Names it: 16 hexadecimal digits.
    pub id: String,
    /// Name of its hub.
    pub hub: String,
    /// RFC 3339.
    pub received: String,
    /// In the hub's terms, escaped.
    pub topic: String,
    /// Bytes of it.
    pub payload_bytes: usize,
    /// Why it is not sent.
    pub why: String,
}

/// Body of `POST /v1/upstreams/{name}/aside/retry` and `/discard`: ids, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AsideAsked {
    /// As the listing names them.
    pub ids: Vec<String>,
    /// Every message that is set aside for the hub.
    pub all: bool,
}

/// Its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideDone {
    /// How many messages it was done to. Those that are sent again are set aside until they wait on the disk again.
    pub messages: usize,
    /// How many were meant and stay as they are: they are on their way already, or there is no room for them now.
    #[serde(default)]
    pub left: usize,
}

/// What is to be done with messages that are set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsideDeed {
    /// They wait for their hub again.
    Retry,
    /// They are gone for good.
    Discard,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AsideError {
    /// No hub of that name, or no spool for it.
    Unknown(String),
    /// What was asked makes no sense.
    Asked(String),
    /// The spool, or its disk.
    Spool(String),
}

/// `GET /v1/upstreams/{name}/aside?last=`.
pub(super) async fn list(
    State(backend): State<Backend>,
    Path(name): Path<String>,
    asked: Result<Query<HowMany>, QueryRejection>,
) -> Result<Json<AsideList>, Failure> {
    let Query(how_many) = asked?;
    let control = backend.control.clone();
    let list = move || control.aside(&name, how_many.last.unwrap_or(SHOWN));
    Ok(Json(tokio::task::spawn_blocking(list).await.map_err(|_| not_done())??))
}

/// `POST /v1/upstreams/{name}/aside/retry`.
pub(super) async fn retry(
    State(backend): State<Backend>,
    Path(name): Path<String>,
    asked: Result<Json<AsideAsked>, JsonRejection>,
) -> Result<Json<AsideDone>, Failure> {
    done(backend, name, asked?.0, AsideDeed::Retry).await
}

/// `POST /v1/upstreams/{name}/aside/discard`.
pub(super) async fn discard(
    State(backend): State<Backend>,
    Path(name): Path<String>,
    asked: Result<Json<AsideAsked>, JsonRejection>,
) -> Result<Json<AsideDone>, Failure> {
    done(backend, name, asked?.0, AsideDeed::Discard).await
}

async fn done(backend: Backend, name: String, asked: AsideAsked, deed: AsideDeed) -> Result<Json<AsideDone>, Failure> {
    let (control, hub) = (backend.control.clone(), name.clone());
    let work = move || control.decide_aside(&hub, &asked, deed);
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| not_done())??;
    let action = match deed {
        AsideDeed::Retry => Action::AsideRetried,
        AsideDeed::Discard => Action::AsideDiscarded,
    };
    audited(&backend, action, format!("upstream:{name}"), format!("{} messages", done.messages)).await;
    Ok(Json(done))
}

/// How many are shown.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HowMany {
    last: Option<usize>,
}

impl AsideView {
    /// As it is shown.
    pub(crate) fn of(hub: &str, message: &AsideMessage) -> Option<Self> {
        let record = message.record()?;
        let received = UNIX_EPOCH + Duration::from_millis(record.received_ms);
        Some(AsideView {
            id: format!("{:016x}", message.id),
            hub: hub.to_owned(),
            received: humantime::format_rfc3339_millis(received).to_string(),
            topic: record.topic.escape_debug().to_string(),
            payload_bytes: record.payload.len(),
            why: record.why.map_or_else(|| "not recorded".into(), |why| why.to_string()),
        })
    }
}

impl AsideAsked {
    /// Which messages are meant.
    pub(crate) fn chosen(&self) -> Result<Chosen, AsideError> {
        let no_sense = |what: String| Err(AsideError::Asked(what));
        match (self.all, self.ids.is_empty()) {
            (true, true) => return Ok(Chosen::All),
            (true, false) => return no_sense("ids and all: write one of them".into()),
            (false, true) => return no_sense("no ids: name messages, or all".into()),
            (false, false) => {}
        }
        let mut ids = HashSet::new();
        for id in &self.ids {
            match u64::from_str_radix(id, 16) {
                Ok(number) if id.len() == ID_DIGITS => _ = ids.insert(number),
                _ => return no_sense(format!("{id:?} is no id: it has 16 hexadecimal digits")),
            }
        }
        Ok(Chosen::Ids(ids))
    }
}

impl From<AsideError> for Failure {
    fn from(error: AsideError) -> Self {
        match error {
            AsideError::Unknown(what) => Self::new(StatusCode::NOT_FOUND, what),
            AsideError::Asked(what) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, what),
            AsideError::Spool(what) => Self::new(StatusCode::SERVICE_UNAVAILABLE, what),
        }
    }
}

fn not_done() -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the work was not done")
}

const SHOWN: usize = 1000;
const ID_DIGITS: usize = 16;
