//! A file has changed: read, judge, put in force, and end the sessions that it concerns. Walk 2 of ARCHITECTURE.md.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use super::{certificates::Certificates, same_file};
use crate::{
    config::{self, Config, LoadedIdentities, LoadedRevocations, Mistake},
    credential::{Replaced, RevocationList},
    denial::CloseReason,
    feed::Follower,
    meter::{self, Alarm, AlarmState},
    registry::Live,
    shard::{Shards, Site},
};

/// Puts changes in force, one at a time.
pub(super) struct Changes {
    config: Arc<Config>,
    site: Arc<Site>,
    certificates: Certificates,
    shards: OnceLock<Shards>,
    one_at_a_time: Mutex<()>,
    list_loaded: Mutex<Option<Instant>>,
    identity_files: Mutex<Vec<PathBuf>>,
    follower: OnceLock<Follower>,
}

/// What a reload did.
pub(super) struct Outcome {
    pub(super) applied: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) mistakes: Vec<String>,
}

/// What was wrong with a list that was applied all the same.
struct LoadedLines {
    bad_lines: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl Changes {
    pub(super) fn new(config: Arc<Config>, site: Arc<Site>, certificates: Certificates) -> Arc<Self> {
        let (one_at_a_time, list_loaded, identity_files) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (shards, follower) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { config, site, certificates, shards, one_at_a_time, list_loaded, identity_files, follower })
    }

    /// At the start: mistakes in the identities stop it. A list with bad lines is applied; one that cannot be read has
    /// every CONNECT refused until it can.
    pub(super) fn load_all(&self) -> Result<(), Vec<Mistake>> {
        self.load_identities(Instant::now())?;
        // What is wrong with the list was logged, and has raised an alarm.
        let _ = self.load_revocations(Instant::now());
        Ok(())
    }

    /// From here on changes reach live sessions.
    pub(super) fn reaches(&self, shards: &Shards) {
        let _ = self.shards.set(shards.clone());
        // What changed between the first load and now found nobody.
        let _ = self.cut(&self.all_sessions(), Instant::now());
    }

    /// Files changed on disk.
    pub(super) fn apply(&self, paths: &[PathBuf]) {
        let noticed = Instant::now();
        let changed = |file: &PathBuf| paths.iter().any(|path| same_file(path, file));
        if changed(&self.config.gateway.revocations) {
            // Logged and alarmed where it failed.
            let _ = self.load_revocations(noticed);
        }
        if changed(&self.config.gateway.identities) || self.identity_files().iter().any(changed) {
            let _ = self.load_identities(noticed);
        }
        if self.certificates.files().iter().any(changed) {
            self.load_certificates(noticed);
        }
    }

    /// From here on the key files that the identities name are watched with them.
    pub(super) fn follows(&self, follower: Follower) {
        let _ = self.follower.set(follower);
        self.follow();
    }

    fn follow(&self) {
        if let Some(follower) = self.follower.get() {
            let always = [self.config.gateway.identities.clone(), self.config.gateway.revocations.clone()];
            follower.follow(always.into_iter().chain(self.identity_files()).chain(self.certificates.files()));
        }
    }

    fn identity_files(&self) -> Vec<PathBuf> {
        self.identity_files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything is read anew, whether it changed or not.
    pub(super) fn reload(&self) -> Outcome {
        let mut outcome = Outcome { applied: vec![], warnings: vec![], mistakes: vec![] };
        match self.load_identities(Instant::now()) {
            Ok(warnings) => {
                outcome.applied.push(format!("identities from {}", self.config.gateway.identities.display()));
                outcome.warnings.extend(warnings.iter().map(ToString::to_string));
            }
            Err(mistakes) => outcome.mistakes.extend(mistakes.iter().map(ToString::to_string)),
        }
        let file = self.config.gateway.revocations.display();
        match self.load_revocations(Instant::now()) {
            Ok(LoadedLines { bad_lines, warnings }) => {
                outcome.applied.push(format!("revocations from {file}"));
                outcome.warnings.extend(warnings.iter().map(ToString::to_string));
                outcome.mistakes.extend(bad_lines.iter().map(ToString::to_string));
            }
            Err(mistake) => outcome.mistakes.push(mistake.to_string()),
        }
        let faults = self.load_certificates(Instant::now());
        if faults.is_empty() && !self.certificates.files().is_empty() {
            outcome.applied.push("certificates of the listeners".into());
        }
        outcome.mistakes.extend(faults);
        outcome
    }

    /// What stands in the way of serving.
    pub(super) fn missing(&self) -> Vec<String> {
        let identities = self.site.gate.identities().is_none().then(|| "identities are not loaded".to_owned());
        let list = self.site.gate.revocations().is_none().then(|| "the revocation list cannot be read".to_owned());
        identities.into_iter().chain(list).collect()
    }

    /// When the list in force was loaded.
    pub(super) fn list_loaded(&self) -> Option<Instant> {
        *self.list_loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many devices, policies, groups and issuers, and entries of the list there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        let devices = self.site.gate.identities().map_or(0, |all| all.keyring().devices().count());
        (devices, self.site.gate.revocations().map_or(0, |list| list.len()))
    }

    /// Certificates of listeners, and whose of clients they believe.
    pub(super) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Answers with what is wrong with their files.
    fn load_certificates(&self, noticed: Instant) -> Vec<String> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let (replaced, faults) = self.certificates.reload(self.site.clock.now());
        let mut closed = 0;
        if replaced == Replaced::Changed {
            self.site.gate.authorities_changed();
            closed = self.cut(&self.all_sessions(), noticed);
        }
        tracing::info!(?replaced, closed, faults = faults.len(), "certificates read");
        faults.iter().map(ToString::to_string).collect()
    }

    fn load_identities(&self, noticed: Instant) -> Result<Vec<Mistake>, Vec<Mistake>> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let file = &self.config.gateway.identities;
        match config::load_identities(file, &self.config.gate) {
            Ok(LoadedIdentities { identities, warnings, files }) => {
                meter::alarm(Alarm::Identities, AlarmState::Off);
                *self.identity_files.lock().unwrap_or_else(PoisonError::into_inner) = files;
                self.follow();
                let devices = identities.keyring().devices().count();
                let old = self.site.gate.load_identities(Arc::new(identities));
                let closed = self.cut(&self.all_sessions(), noticed);
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                tracing::info!(file = %file.display(), devices, closed, "identities in force");
                drop(old);
                Ok(warnings)
            }
            Err(mistakes) => {
                meter::alarm(Alarm::Identities, AlarmState::On);
                mistakes.iter().for_each(|mistake| tracing::error!("{mistake}"));
                Err(mistakes)
            }
        }
    }

    fn load_revocations(&self, noticed: Instant) -> Result<LoadedLines, Mistake> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let file = &self.config.gateway.revocations;
        let loaded = config::load_revocations(file).inspect_err(|mistake| {
            meter::alarm(Alarm::List, AlarmState::On);
            let kept = self.site.gate.revocations().is_some();
            tracing::error!(kept, "{mistake}");
        })?;
        let LoadedRevocations { mut list, bad_lines, warnings } = loaded;
        let old = self.site.gate.revocations();
        bad_lines.iter().take(BAD_LINES_LOGGED).for_each(|mistake| tracing::error!("{mistake}"));
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if let (false, Some(old)) = (bad_lines.is_empty(), &old) {
            list = list.merge_for_safety(old);
        }
        meter::alarm(Alarm::List, if bad_lines.is_empty() { AlarmState::Off } else { AlarmState::On });
        let entries = list.len();
        let concerned = self.put_in_force(list, old.as_deref());
        let closed = self.cut(&concerned, noticed);
        tracing::info!(file = %file.display(), entries, bad_lines = bad_lines.len(), closed, "revocation list in force");
        Ok(LoadedLines { bad_lines, warnings })
    }

    /// The new list, and whom it concerns. Looked for after it is in force: whoever comes later is asked by the gate.
    fn put_in_force(&self, list: RevocationList, old: Option<&RevocationList>) -> Vec<Arc<Live>> {
        let none = RevocationList::default();
        let old = old.unwrap_or(&none);
        let now = self.site.clock.now();
        let lifted = list.lifted(old, now);
        if lifted.count > 0 {
            let (entries, ids) = (lifted.count, lifted.ids.join(" "));
            tracing::warn!(entries, ids, "entries were removed from the revocation list");
        }
        metrics::gauge!(meter::REVOCATIONS).set(list.len() as f64);
        *self.list_loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let registry = &self.site.registry;
        // Beyond so many entries it costs less to ask every session.
        let added = list.added_since(old, registry.len().max(ENTRIES_LOOKED_FOR));
        let freed = self.site.gate.load_revocations(Arc::new(list));
        let concerned = if added.everybody || !added.keys.is_empty() || !added.times.is_empty() {
            self.all_sessions()
        } else {
            let devices = added.devices.iter().filter_map(|device| registry.of_device(device.as_str()));
            let tokens = added.tokens.iter().flat_map(|token| registry.of_token(*token));
            let jtis = added.jtis.iter().flat_map(|jti| registry.of_jti(*jti));
            devices.chain(tokens).chain(jtis).collect()
        };
        // Here, and not on a shard that happened to hold it last.
        drop(freed);
        concerned
    }

    /// Asks the gate about each, and ends those that it no longer lets in.
    fn cut(&self, concerned: &[Arc<Live>], noticed: Instant) -> usize {
        let Some(shards) = self.shards.get() else { return 0 };
        let (now, applied) = (self.site.clock.now(), Instant::now());
        let ended: Vec<(Arc<Live>, CloseReason)> = concerned
            .iter()
            .filter_map(|live| Some((live.clone(), self.site.gate.recheck(&live.grant, now)?)))
            .collect();
        if ended.is_empty() {
            return 0;
        }
        let closed = shards.cut(&ended, applied);
        metrics::histogram!(meter::REVOCATION_DEAF_SECONDS).record(noticed.elapsed());
        closed
    }

    fn all_sessions(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::with_capacity(self.site.registry.len());
        self.site.registry.for_each(|live| all.push(live.clone()));
        all
    }
}

/// The rest is counted: one broken export must not fill a disk.
const BAD_LINES_LOGGED: usize = 20;
/// A change of a few entries finds its sessions by index, however few there are.
const ENTRIES_LOOKED_FOR: usize = 1000;
