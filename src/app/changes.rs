//! A file has changed: read, judge, put in force, and end the sessions that it concerns. Walk 2 of ARCHITECTURE.md.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;

use super::{certificates::Certificates, list::List, same_file};
use crate::{
    admin::ListState,
    audit::{Action, Audit},
    config::{self, Config, GatewayConfig, LoadedIdentities, LoadedRevocations, Mistake, Reading, Schedule, Verified},
    credential::{Lifted, Replaced, RevocationList},
    denial::CloseReason,
    feed::{self, Follower, KeySetState, KeySets},
    gate::Identities,
    meter::{self, Alarm, AlarmState},
    registry::{Live, Reach},
    shard::{Shards, Site},
    time::UnixSeconds,
};

/// Puts changes in force, one at a time.
pub(super) struct Changes {
    config: Arc<Config>,
    site: Arc<Site>,
    certificates: Certificates,
    key_sets: KeySets,
    shards: OnceLock<Shards>,
    one_at_a_time: Mutex<()>,
    list: List,
    identity_files: Mutex<Vec<PathBuf>>,
    schedules: ArcSwap<Vec<Schedule>>,
    follower: OnceLock<Follower>,
    /// What else is read anew when the operator asks for it.
    beside: OnceLock<ReadAnew>,
}

/// Reads something of its own anew, and says what came of it.
type ReadAnew = Box<dyn Fn(&mut Outcome) + Send + Sync>;

/// What a reload did.
pub(super) struct Outcome {
    pub(super) applied: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) mistakes: Vec<String>,
}

impl Changes {
    pub(super) fn new(config: Arc<Config>, site: Arc<Site>, certificates: Certificates) -> Arc<Self> {
        let (one_at_a_time, list, identity_files) = (Mutex::default(), List::of(&config), Mutex::default());
        let (shards, follower, schedules) = (OnceLock::new(), OnceLock::new(), ArcSwap::default());
        let beside = OnceLock::new();
        let key_sets = KeySets::new(site.gate.misses().clone());
        Arc::new(Self {
            config,
            site,
            certificates,
            key_sets,
            shards,
            one_at_a_time,
            list,
            identity_files,
            schedules,
            follower,
            beside,
        })
    }

    /// At the start: mistakes in the identities stop it. A list with bad lines is applied; one that cannot be read has
    /// every CONNECT refused until it can.
    pub(super) fn load_all(&self) -> Result<(), Vec<Mistake>> {
        self.load_identities(Instant::now())?;
        // What is wrong with the list was logged, and has raised an alarm.
        let _ = self.load_revocations(Reading::Whole, Instant::now());
        Ok(())
    }

    /// From here on changes reach live sessions.
    pub(super) fn reaches(&self, shards: &Shards) {
        let _ = self.shards.set(shards.clone());
        // What changed between the first load and now found nobody.
        let _ = self.cut_whom_it_concerns(Instant::now(), Instant::now());
    }

    /// Files changed on disk.
    pub(super) fn apply(&self, paths: &[PathBuf]) {
        let noticed = Instant::now();
        let changed = |file: &PathBuf| paths.iter().any(|path| same_file(path, file));
        if changed(&self.config.gateway.revocations) {
            // Logged and alarmed where it failed.
            let _ = self.load_revocations(Reading::Appended, noticed);
            self.verify_list();
        }
        if changed(&self.local_list()) {
            self.local_list_changed(noticed);
        }
        if changed(&self.config.gateway.identities) || self.identity_files().iter().any(changed) {
            config::await_rotation(&self.config.gateway.state_dir);
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
            let GatewayConfig { identities, revocations, .. } = &self.config.gateway;
            let always = [identities.clone(), revocations.clone(), self.local_list()];
            follower.follow(always.into_iter().chain(self.identity_files()).chain(self.certificates.files()));
        }
    }

    /// The gateway changed them itself: they are put in force at once. What is wrong with them is logged.
    pub(super) fn identities_changed(&self) {
        let _ = self.load_identities(Instant::now());
    }

    /// Keys that are rotated by schedule.
    pub(super) fn schedules(&self) -> Arc<Vec<Schedule>> {
        self.schedules.load_full()
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
        self.list.looked_at();
        match self.load_revocations(Reading::Whole, Instant::now()) {
            Ok(LoadedRevocations { bad_lines, warnings, .. }) => {
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
        if let Some(read) = self.beside.get() {
            read(&mut outcome);
        }
        outcome
    }

    /// What else a reload reads.
    pub(super) fn reloads_too(&self, read: impl Fn(&mut Outcome) + Send + Sync + 'static) {
        let _ = self.beside.set(Box::new(read));
    }

    /// As asked for by SIGHUP: its answer is the log.
    pub(super) fn reload_by_signal(&self) {
        let Outcome { applied, mistakes, .. } = self.reload();
        let detail = match mistakes.len() {
            0 => applied.join(", "),
            n => format!("{n} mistakes: what has mistakes is not applied"),
        };
        let now = self.site.clock.now();
        Audit::open(&self.config.gateway.state_dir).note(Action::Reloaded, "SIGHUP", "files", &detail, now);
    }

    /// What stands in the way of serving.
    pub(super) fn missing(&self) -> Vec<String> {
        let identities = self.site.gate.identities().is_none().then(|| "identities are not loaded".to_owned());
        let list = match self.site.gate.revocations() {
            None => Some("the revocation list cannot be read, or is not signed as it must be".to_owned()),
            Some(list) if list.is_stale(self.site.clock.now()) => {
                Some("the signed revocation list is older than it may be".to_owned())
            }
            Some(_) => None,
        };
        identities.into_iter().chain(list).chain(self.without_keys()).collect()
    }

    /// How many devices, policies, groups and issuers, and entries of the list there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        let devices = self.site.gate.identities().map_or(0, |all| all.keyring().devices().count());
        (devices, self.site.gate.revocations().map_or(0, |list| list.len()))
    }

    /// Why key sets cannot be fetched, where that is so.
    pub(super) fn key_set_errors(&self) -> Vec<KeySetState> {
        self.key_sets.states().into_iter().filter(|state| state.error.is_some()).collect()
    }

    /// Issuers whose keys were never fetched: their tokens are refused until they are.
    fn without_keys(&self) -> Vec<String> {
        let Some(identities) = self.site.gate.identities() else { return Vec::new() };
        let errors = self.key_set_errors();
        let waiting = identities.keyring().issuers().filter(|issuer| issuer.is_without_keys());
        waiting
            .map(|issuer| {
                let error =
                    errors.iter().find(|state| state.issuer == issuer.name).and_then(|state| state.error.clone());
                let why = error.unwrap_or_else(|| "it is being fetched".into());
                format!("the key set of the issuer {:?} was never fetched: {why}", issuer.name)
            })
            .collect()
    }

    /// What the list's file was when it was read last, and what came of it.
    pub(super) fn list_state(&self) -> ListState {
        self.list.state(&self.config.gateway.revocations)
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
            // They are in force already, for newcomers too.
            let applied = Instant::now();
            self.site.gate.authorities_changed();
            self.site.journal.decided_by(self.site.gate.epoch());
            metrics::histogram!(meter::REVOCATION_APPLY_SECONDS).record(noticed.elapsed());
            closed = self.cut_whom_it_concerns(noticed, applied);
        }
        tracing::info!(?replaced, closed, faults = faults.len(), "certificates read");
        faults.iter().map(ToString::to_string).collect()
    }

    fn load_identities(&self, noticed: Instant) -> Result<Vec<Mistake>, Vec<Mistake>> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let file = &self.config.gateway.identities;
        match feed::read_whole(file, || config::load_identities(file, &self.config.gate)) {
            Ok(LoadedIdentities { identities, warnings, files, schedules, key_sets }) => {
                meter::alarm(Alarm::Identities, AlarmState::Off);
                *self.identity_files.lock().unwrap_or_else(PoisonError::into_inner) = files;
                self.schedules.store(Arc::new(schedules));
                self.follow();
                let devices = identities.keyring().devices().count();
                self.forget_keys(&identities);
                let (new, now) = (Arc::new(identities), self.site.clock.now());
                let (closed, old) = self.site.threshold().put_identities_in_force(&new, &self.reached(noticed), now);
                if let Err(error) = self.key_sets.follow(key_sets, noticed) {
                    tracing::error!(%error, "a thread that fetches a key set cannot be started");
                }
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                let snapshot = self.site.gate.epoch();
                tracing::info!(file = %file.display(), devices, closed, snapshot, "identities in force");
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

    /// Of a key that nobody holds nothing needs to be known.
    fn forget_keys(&self, identities: &Identities) {
        let held = identities.keyring().fingerprints();
        self.site.key_uses.keep(|key| held.contains(&key));
    }

    fn load_revocations(&self, reading: Reading, noticed: Instant) -> Result<LoadedRevocations, Mistake> {
        feed::await_whole(&self.config.gateway.revocations);
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (self.site.gate.revocations(), self.site.clock.now());
        let mut early = |lines: RevocationList| self.add_early(&lines, noticed);
        let loaded = self.list.load(reading, before.as_deref(), &mut early, now)?;
        let old = self.site.gate.revocations().unwrap_or_default();
        let (list, old) = (&loaded.list, &*old);
        let closed = self.put_list_in_force(list, old, noticed);
        let lifted = list.lifted(old, now);
        self.list.came_into_force(&loaded, &lifted, now);
        metrics::gauge!(meter::REVOCATIONS).set(list.len() as f64);
        let (file, entries, bad_lines) =
            (self.config.gateway.revocations.display(), list.len(), loaded.bad_lines.len());
        let elapsed_ms = u64::try_from(noticed.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (reading, snapshot) = (loaded.reading, self.site.gate.epoch());
        tracing::info!(%file, entries, bad_lines, closed, ?reading, elapsed_ms, snapshot, "revocation list in force");
        if lifted.count > 0 {
            self.tell_lifted(&lifted, now);
        }
        Ok(loaded)
    }

    /// Where the gateway's own entries are.
    fn local_list(&self) -> PathBuf {
        config::local_revocations(&self.config.gateway.state_dir)
    }

    /// What the gateway added by itself comes into force without the list being read; where an operator took something out,
    /// all is read.
    fn local_list_changed(&self, noticed: Instant) {
        let one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = self.site.gate.revocations().zip(self.list.local_grew(self.site.clock.now()));
        let Some((old, local)) = grown else {
            drop(one);
            // Logged and alarmed where it failed.
            let _ = self.load_revocations(Reading::Whole, noticed);
            return;
        };
        let list = old.with(&local);
        if !list.added_since(&old, 1).is_empty() {
            let closed = self.put_list_in_force(&list, &old, noticed);
            metrics::gauge!(meter::REVOCATIONS).set(list.len() as f64);
            tracing::info!(closed, entries = local.len(), "revocations of the gateway itself in force");
        }
    }

    /// Removals by hand are honoured, logged and audited.
    fn tell_lifted(&self, lifted: &Lifted, now: UnixSeconds) {
        let ids = lifted.ids.join(" ");
        tracing::warn!(entries = lifted.count, ids, "entries were removed from the revocation list");
        let more = lifted.count - lifted.ids.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let detail = format!("{} entries that were in force stand in the list no more: {ids}{more}", lifted.count);
        let object = format!("file:{}", self.config.gateway.revocations.display());
        Audit::open(&self.config.gateway.state_dir).note(Action::RevocationRemoved, "file", &object, &detail, now);
    }

    /// Whether lines were appended to the list and nothing else was done, as was believed when they were read. It takes a
    /// while, in which more of them are read as they come.
    pub(super) fn verify_list(&self) {
        loop {
            let reading = match self.list.verify() {
                Verified::Underway => continue,
                Verified::Grown => Reading::Appended,
                Verified::Changed => {
                    tracing::warn!(
                        "the revocation list changed before its end while lines were appended: it is read as a whole"
                    );
                    Reading::Whole
                }
                Verified::Intact | Verified::Later => return,
            };
            // Logged and alarmed where it failed.
            if self.load_revocations(reading, Instant::now()).is_err() {
                return;
            }
        }
    }

    /// Sets what the list's age is, and the alarm that depends on it.
    pub(super) fn watch_list(&self) {
        self.list.watch(self.site.clock.now());
    }

    /// Lines at the end of a list whose other lines are still being read: they only add to what is in force.
    fn add_early(&self, lines: &RevocationList, noticed: Instant) {
        let Some(old) = self.site.gate.revocations() else { return };
        let list = old.with(lines);
        if list.added_since(&old, 1).is_empty() {
            return;
        }
        let closed = self.put_list_in_force(&list, &old, noticed);
        tracing::info!(closed, "lines at the end of the revocation list in force before the rest of it is read");
    }

    /// Answers with how many sessions it closed.
    fn put_list_in_force(&self, list: &RevocationList, old: &RevocationList, noticed: Instant) -> usize {
        let now = self.site.clock.now();
        let (closed, freed) = self.site.threshold().put_list_in_force(list, old, &self.reached(noticed), now);
        // Here, and not on a shard that happened to hold it last.
        drop(freed);
        closed
    }

    /// Asks the gate about every session, and ends those that it no longer lets in.
    fn cut_whom_it_concerns(&self, noticed: Instant, applied: Instant) -> usize {
        let threshold = self.site.threshold();
        threshold.cut(&threshold.everybody(), applied, &self.reached(noticed), self.site.clock.now())
    }

    fn reached(&self, noticed: Instant) -> Reached<'_> {
        Reached { site: &self.site, shards: self.shards.get(), noticed }
    }
}

/// How a change that was `noticed` then reaches shards, journal and metrics.
struct Reached<'a> {
    site: &'a Site,
    /// `None` at the start: there is nobody yet.
    shards: Option<&'a Shards>,
    noticed: Instant,
}

impl Reach for Reached<'_> {
    fn in_force(&self) {
        self.site.journal.decided_by(self.site.gate.epoch());
        metrics::histogram!(meter::REVOCATION_APPLY_SECONDS).record(self.noticed.elapsed());
    }

    fn end(&self, sessions: Vec<(Arc<Live>, CloseReason)>, applied: Instant) -> usize {
        let Some(shards) = self.shards.filter(|_| !sessions.is_empty()) else { return 0 };
        let closed = shards.cut(&sessions, applied);
        metrics::histogram!(meter::REVOCATION_DEAF_SECONDS).record(applied.elapsed());
        closed
    }

    fn narrowed(&self, sessions: &[Arc<Live>], applied: Instant) {
        let Some(shards) = self.shards else { return };
        metrics::histogram!(meter::REVOCATION_DEAF_SECONDS).record(applied.elapsed());
        shards.wake(sessions);
    }
}
