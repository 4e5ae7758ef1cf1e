//! The admin API of a running gateway, asked over HTTP.

use std::{fs, path::PathBuf, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{ConfigFile, Outcome, local::reachable};
use crate::config::{self, Config};

/// Where a running gateway is asked, and with which token.
pub(super) struct Desk {
    agent: ureq::Agent,
    url: String,
    token: Zeroizing<String>,
}

/// Why the desk did not answer as asked.
#[derive(Debug)]
pub(super) enum DeskError {
    /// Nothing answers: no gateway runs there.
    Away(String),
    /// It answered, but not with what was asked for.
    Refused(String),
}

impl From<DeskError> for Outcome {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Away(why) | DeskError::Refused(why) => Self::Failed(why),
        }
    }
}

impl Desk {
    /// By arguments, or by the configuration. That is read only where an argument is missing.
    pub(super) fn new(at: &ConfigFile, config: Option<&Config>) -> Result<Self, Outcome> {
        let loaded;
        let config = match (config, &at.admin, &at.token_file) {
            (None, Some(_), Some(_)) => None,
            (None, ..) => {
                loaded = at.load()?;
                Some(&loaded)
            }
            (given, ..) => given,
        };
        let named = |config: Option<&Config>| config.map(|c| format!("http://{}", reachable(c.admin_bind)));
        let url = at.admin.clone().or_else(|| named(config)).unwrap_or_default();
        let file = at.token_file.clone().or_else(|| config.map(config::admin_token_file)).unwrap_or_default();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // A gateway's own machine is not behind a proxy, and the bearer token is not for one.
            .proxy(None)
            .build();
        Ok(Self { agent: agent.into(), url: url.trim_end_matches('/').to_owned(), token: read_token(&file)? })
    }

    /// `GET`.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, DeskError> {
        self.read(self.agent.get(self.at(path)).header("Authorization", self.bearer()).call())
    }

    /// `POST` of a JSON body.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, DeskError> {
        self.read(self.agent.post(self.at(path)).header("Authorization", self.bearer()).send_json(body))
    }

    /// `DELETE`.
    pub(super) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, DeskError> {
        self.read(self.agent.delete(self.at(path)).header("Authorization", self.bearer()).call())
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", *self.token)
    }

    fn read<T: DeserializeOwned>(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, DeskError> {
        let mut answer = answer.map_err(|error| self.away(&error))?;
        let (status, body) = (answer.status(), answer.body_mut().read_to_string());
        let body = body.map_err(|error| DeskError::Refused(format!("{}: the answer broke off: {error}", self.url)))?;
        if status.is_success() {
            let no_sense = |_| DeskError::Refused(format!("{}: the answer is not that of a Tollgate", self.url));
            return serde_json::from_str(&body).map_err(no_sense);
        }
        let said: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let why = said["error"].as_str().unwrap_or("no reason given");
        Err(DeskError::Refused(format!("{}: {} ({})", self.url, why, status.as_u16())))
    }

    fn away(&self, error: &ureq::Error) -> DeskError {
        DeskError::Away(format!(
            "no gateway answers at {}: {error}\n    Start one with `tollgate run`, or name where it listens with \
             --admin URL.",
            self.url
        ))
    }
}

fn read_token(file: &PathBuf) -> Result<Zeroizing<String>, Outcome> {
    match fs::read_to_string(file).map(Zeroizing::new) {
        Ok(text) => Ok(Zeroizing::new(text.trim().to_owned())),
        Err(error) => Err(Outcome::Failed(format!(
            "cannot read the admin token {}: {error}\n    The gateway makes it at its first start; ask in its working \
             directory and as its user, or name it with --token-file.",
            file.display()
        ))),
    }
}

/// A gateway's desk answers in milliseconds; a list of many sessions takes longer.
const TIMEOUT: Duration = Duration::from_secs(10);
