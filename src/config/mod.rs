//! What the files say: shapes, and every mistake in them at once.

mod development;
mod document;
mod files;
mod first_run;
mod gateway;
mod identities;
mod issuers;
mod key_sets;
mod keys;
mod listeners;
mod mistake;
mod names;
mod nats;
mod public_keys;
mod report;
mod revocations;
mod rotation;
mod routes;
mod token_service;
mod upstreams;
mod wire;

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio_rustls::rustls::pki_types::UnixTime;
use zeroize::Zeroizing;

pub use first_run::{FirstRun, admin_token_file, first_run, prepare_state};
pub use gateway::{Config, GatewayConfig, SpoolConfig};
pub use identities::{LoadedIdentities, load_identities};
pub use mistake::Mistake;
pub use report::Report;
pub use revocations::{
    LoadedRevocations, Reading, RevocationFile, Verified, check_not_older, check_signed_again, is_signed,
    load_revocations, local_revocations, names_nobody, revoke_locally,
};
pub use rotation::{
    Due, KeyOwner, KeySite, Lift, Replace, RotateError, Rotated, Schedule, Turner, add, await_rotation, due, finish,
    leaving, revoked_slots, rotate, survey,
};
pub use token_service::read_signing;

use crate::{file, listener::Transport};

/// A configuration that holds, and what an operator should know about it all the same.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
}

/// What could be made out of `gateway.toml`, for a report.
#[derive(Debug)]
pub struct Examined {
    /// Defaults stand where there are mistakes.
    pub config: Config,
    /// Every mistake, in the order of the file.
    pub mistakes: Vec<Mistake>,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
}

/// A text that its owner alone may read, without its last line break.
///
/// # Errors
/// When it cannot be read, is empty, or others may read it.
pub fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, Mistake> {
    files::read_secret(path).map_err(|fault| Mistake::of_file(path, fault.what, fault.remedy))
}

/// Makes a private key's file, readable by its owner alone, and a public one's. What exists is kept as it is.
///
/// # Errors
/// When one cannot be written.
pub fn write_key_pair(private: (&Path, &str), public: (&Path, &str)) -> io::Result<()> {
    file::write_new(private.0, private.1.as_bytes(), file::Readers::Owner)?;
    file::write_new(public.0, public.1.as_bytes(), file::Readers::All)?;
    Ok(())
}

impl Config {
    /// Reads `gateway.toml` and looks at every file that it names, but for identities and revocations, which are
    /// read anew whenever they change.
    ///
    /// # Errors
    /// Every mistake, in the order of the file.
    pub fn load(path: &Path) -> Result<Loaded, Vec<Mistake>> {
        let Examined { config, mistakes, warnings } = Self::examine(path).map_err(|mistake| vec![mistake])?;
        if mistakes.is_empty() { Ok(Loaded { config, warnings }) } else { Err(mistakes) }
    }

    /// Every file that a TLS listener shows or believes.
    pub fn tls_files(&self) -> Vec<PathBuf> {
        let files = self.listeners.iter().map(|listener| match &listener.transport {
            Transport::Tls(files) => files.all(),
            Transport::Tcp => Vec::new(),
        });
        let tokens = self.token_service.iter().map(|service| service.tls.all());
        files.chain(tokens).flatten().collect()
    }

    /// As [`load`](Self::load), for one who wants to go on in spite of mistakes.
    ///
    /// # Errors
    /// When the file itself cannot be read.
    pub fn examine(path: &Path) -> Result<Examined, Mistake> {
        let mut parsed = gateway::read(path)?;
        let found = files::check_files(path, &parsed.files, &mut parsed.config, UnixTime::now());
        parsed.mistakes.extend(found.mistakes);
        parsed.warnings.extend(found.warnings);
        for notes in [&mut parsed.mistakes, &mut parsed.warnings] {
            notes.sort();
            notes.dedup();
        }
        Ok(Examined { config: parsed.config, mistakes: parsed.mistakes, warnings: parsed.warnings })
    }
}
