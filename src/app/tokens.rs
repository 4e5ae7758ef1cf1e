//! The token service's thread, and what the service needs of the gateway.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use super::{
    StartError, bind_one,
    changes::{Changes, Outcome},
};
use crate::{
    admin::{Ledger, NewRevocation, Revocation},
    audit::Audit,
    config::{self, Config, Mistake},
    listener::{Activated, Tls},
    shard::Site,
    time::UnixSeconds,
    token_service::{self, Backend, Control, OWN_ISSUER, Revoked, Service, Settings, TokenName, TokenServiceConfig},
};

/// A socket that nobody answers on yet.
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    socket: TcpListener,
    /// Read anew with those of the other listeners.
    pub(super) tls: Arc<Tls>,
}

/// A token service that runs.
pub(super) struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Binds the socket and reads the certificates, where there is to be a token service.
pub(super) fn bind(config: &Config, activated: &mut Activated) -> Result<Option<Bound>, StartError> {
    let Some(service) = &config.token_service else { return Ok(None) };
    let tls = Tls::load(&service.tls).map_err(|fault| {
        let remedy = "Name certificates and keys in PEM.";
        StartError::Mistakes(vec![Mistake::of_file(&fault.file, format!("{}.", fault.what), remedy)])
    })?;
    let refused = |error| StartError::Bind { address: service.bind, section: "[token_service]", error };
    let socket = bind_one(service.bind, activated).map_err(refused)?;
    Ok(Some(Bound { address: socket.local_addr().map_err(refused)?, socket, tls }))
}

/// Serves on a thread of its own until it is stopped.
pub(super) fn start(
    gateway_toml: PathBuf,
    config: &Arc<Config>,
    site: &Arc<Site>,
    changes: &Arc<Changes>,
    bound: Bound,
) -> Result<Running, StartError> {
    let failed = |error| StartError::Io("cannot start the token service", error);
    let of_it = config.token_service.as_ref().expect("invariant: what is bound is configured");
    let signing = config::read_signing(of_it, &config.gate).map_err(|mistake| StartError::Mistakes(vec![mistake]))?;
    let state_dir = &config.gateway.state_dir;
    let backend = Backend {
        gate: site.gate.clone(),
        profile: config.gate.profile,
        clock: site.clock.clone(),
        audit: Audit::open(state_dir),
        control: Arc::new(Wired {
            list: config.gateway.revocations.clone(),
            state_dir: state_dir.clone(),
            is_signed: config.list_rules.is_some(),
            changes: Arc::downgrade(changes),
        }),
    };
    let service = Arc::new(Service::open(backend, signing, settings(of_it), state_dir));
    let Bound { socket, tls, .. } = bound;
    changes.reloads_too({
        let service = service.clone();
        move |outcome| reload(&gateway_toml, &service, outcome)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(DISK_THREADS).build();
    let runtime = runtime.map_err(failed)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = move || {
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(socket)?;
            token_service::serve(listener, tls.acceptor(), service, async {
                // A sender that is gone means the same.
                let _ = stopped.await;
            })
            .await
        });
        if let Err(error) = served {
            tracing::error!(%error, "the token service has ended");
        }
    };
    let thread = std::thread::Builder::new().name("token-service".into()).spawn(serve).map_err(failed)?;
    Ok(Running { stop, thread })
}

impl Running {
    /// No new requests; those that it has come to their end, which each does within seconds.
    pub(super) fn stop(self) {
        drop(self.stop);
        // A panic there was logged there.
        let _ = self.thread.join();
    }
}

/// Callers, lives and rates of the file are read anew; the rest with a restart.
fn reload(gateway_toml: &Path, service: &Service, outcome: &mut Outcome) {
    let loaded = match Config::load(gateway_toml) {
        Ok(loaded) => loaded,
        Err(mistakes) => return outcome.mistakes.extend(mistakes.iter().map(ToString::to_string)),
    };
    let Some(of_it) = loaded.config.token_service else {
        let what = "[token_service] was taken out of gateway.toml: it ends with the next restart";
        return outcome.warnings.push(what.into());
    };
    service.change(settings(&of_it));
    outcome.applied.push(format!("callers of the token service from {}", gateway_toml.display()));
}

fn settings(of_it: &TokenServiceConfig) -> Settings {
    Settings { terms: of_it.terms.clone(), callers: of_it.callers.clone() }
}

/// [`Control`] of a running gateway.
struct Wired {
    list: PathBuf,
    state_dir: PathBuf,
    /// A change by us would break the signature.
    is_signed: bool,
    /// What is read anew holds the service: an owner here would hold both for ever.
    changes: Weak<Changes>,
}

impl Control for Wired {
    fn revoke(&self, tokens: &[Revoked], now: UnixSeconds) -> Result<Option<PathBuf>, String> {
        let entry = |revoked: &Revoked| {
            let (jti, token) = match revoked.name.clone() {
                TokenName::Jti(jti) => (Some(jti), None),
                TokenName::Token(token) => (None, Some(token)),
            };
            let entry = NewRevocation {
                issuer: jti.is_some().then(|| OWN_ISSUER.to_owned()),
                jti,
                token,
                reason: Some(revoked.reason.clone()),
                by: Some("token service".into()),
                at: Some(now.to_string()),
                until: Some(revoked.until.to_string()),
                ..NewRevocation::default()
            };
            Revocation::new(&entry).map(|entry| entry.line)
        };
        let lines = tokens.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        if lines.is_empty() {
            return Ok(None);
        }
        let written = self.write(&lines, now)?;
        if let Some(changes) = self.changes.upgrade() {
            changes.apply(std::slice::from_ref(&written));
        }
        Ok(Some(written))
    }
}

impl Wired {
    /// Into the list; beside it where that is signed elsewhere, or is not ours to write.
    fn write(&self, lines: &[String], now: UnixSeconds) -> Result<PathBuf, String> {
        if !self.is_signed && !config::is_signed(&self.list) {
            match Ledger::new(&self.list).append(&lines.join("\n")) {
                Ok(()) => return Ok(self.list.clone()),
                Err(error) => tracing::warn!(%error, "the gateway's revocations are kept beside the list"),
            }
        }
        config::revoke_locally(&self.state_dir, lines, now).map_err(|error| {
            let lines = lines.join(" ");
            format!("{error}: have these entries added to the list: {lines}")
        })
    }
}

/// Requests that wait for the disk at the same time.
const DISK_THREADS: usize = 4;
