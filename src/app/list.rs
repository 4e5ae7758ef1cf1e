//! The revocation list as a running gateway keeps it: its file, how old it is, and what is wrong with it.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{
    admin::ListState,
    config::{Config, LoadedRevocations, Mistake, Reading, RevocationFile, Verified},
    credential::{Lifted, ListStamp, RevocationList},
    file::FileVersion,
    meter::{self, Alarm, AlarmState},
    time::UnixSeconds,
};

/// One list, and the alarm that speaks of it.
pub(super) struct List {
    file: Mutex<RevocationFile>,
    /// Apart from the file, which may be read for a second.
    health: Mutex<Health>,
    /// What the gateway added by itself, as far as it is in force.
    local: Mutex<RevocationList>,
    told: Mutex<Told>,
}

/// What came of the file, for whoever wrote to it.
#[derive(Default)]
struct Told {
    /// The state of the file that is being read. It is asked for before the first byte: what is read may be newer, and
    /// then the file is read again.
    reading: Option<FileVersion>,
    /// The last one that was read to its end.
    read: Option<FileVersion>,
    refused: Option<String>,
    bad_lines: usize,
}

/// Why the alarm is raised: as long as one of these lasts.
#[derive(Default)]
struct Health {
    loaded: Option<Instant>,
    stamp: Option<ListStamp>,
    /// The file cannot be read, or its signature is not what it must be: the last good list is in force.
    is_refused: bool,
    has_bad_lines: bool,
    /// Everybody may write it.
    is_exposed: bool,
    /// Threat T28: it held entries, and holds none.
    is_emptied: bool,
    /// Its number could not be kept: after a restart an older one would be taken.
    is_forgotten: bool,
    is_stale: bool,
}

impl List {
    pub(super) fn of(config: &Config) -> Self {
        let (health, local, told) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { file: Mutex::new(RevocationFile::of(config)), health, local, told }
    }

    /// Reads the file and says in the log what is wrong with it. See [`RevocationFile::load`] for `early`.
    pub(super) fn load(
        &self,
        reading: Reading,
        in_force: Option<&RevocationList>,
        early: &mut dyn FnMut(RevocationList),
        now: UnixSeconds,
    ) -> Result<LoadedRevocations, Mistake> {
        let mut file = lock(&self.file);
        lock(&self.told).reading = FileVersion::of(file.path()).ok();
        let loaded = file.load(reading, in_force, early, now);
        drop(file);
        match &loaded {
            Ok(LoadedRevocations { bad_lines, warnings, .. }) => {
                bad_lines.iter().take(BAD_LINES_LOGGED).for_each(|mistake| tracing::error!("{mistake}"));
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            }
            Err(mistake) => {
                tracing::error!(kept = in_force.is_some(), "{mistake}");
                lock(&self.health).is_refused = true;
                self.tell(Some(mistake.to_string()), 0);
                self.watch(now);
            }
        }
        loaded
    }

    /// The list came into force, and so much was lifted by it.
    pub(super) fn came_into_force(&self, loaded: &LoadedRevocations, lifted: &Lifted, now: UnixSeconds) {
        lock(&self.local).clone_from(&loaded.local);
        let kept = loaded.header.as_ref().map(|header| lock(&self.file).remember(header));
        let kept = kept.transpose().inspect_err(|mistake| tracing::error!("{mistake}"));
        let mut health = lock(&self.health);
        if loaded.is_bare && lifted.count > 0 {
            health.is_emptied = true;
            tracing::error!(
                entries = lifted.count,
                "the revocation list is empty and was not: if that is meant, `tollgate` reload ends the alarm"
            );
        }
        health.is_emptied &= loaded.is_bare;
        health.is_forgotten = kept.is_err();
        (health.is_refused, health.is_exposed) = (false, loaded.is_exposed);
        health.has_bad_lines = !loaded.bad_lines.is_empty();
        (health.loaded, health.stamp) = (Some(Instant::now()), loaded.list.stamp());
        drop(health);
        self.tell(None, loaded.bad_lines.len());
        self.watch(now);
    }

    fn tell(&self, refused: Option<String>, bad_lines: usize) {
        let mut told = lock(&self.told);
        *told = Told { reading: None, read: told.reading, refused, bad_lines };
    }

    /// What the file was when it was read last, and what came of it.
    pub(super) fn state(&self, file: &Path) -> ListState {
        let told = lock(&self.told);
        let (file, refused) = (file.display().to_string(), told.refused.clone());
        ListState { file, read: told.read, refused, bad_lines: told.bad_lines }
    }

    /// What the gateway added by itself since then, where nothing was taken out: no more needs to be read for it.
    pub(super) fn local_grew(&self, now: UnixSeconds) -> Option<RevocationList> {
        let read = lock(&self.file).local()?;
        let mut local = lock(&self.local);
        (read.lifted(&local, now).count == 0).then(|| {
            local.clone_from(&read);
            read
        })
    }

    /// An operator asked for the files to be read again, and so has looked: an empty list is meant.
    pub(super) fn looked_at(&self) {
        lock(&self.health).is_emptied = false;
    }

    /// One step of the proof that what stands before appended lines is what was read; see [`RevocationFile::verify`].
    pub(super) fn verify(&self) -> Verified {
        lock(&self.file).verify()
    }

    /// Sets age and alarm as time goes by.
    pub(super) fn watch(&self, now: UnixSeconds) {
        let mut health = lock(&self.health);
        let is_stale = health.stamp.is_some_and(|stamp| now >= stamp.stale_from);
        if is_stale && !health.is_stale {
            tracing::error!("the signed revocation list is older than it may be");
        }
        health.is_stale = is_stale;
        let age = match (health.stamp, health.loaded) {
            (Some(stamp), _) => Some(now.since(stamp.signed_at)),
            (None, loaded) => loaded.map(|loaded| loaded.elapsed()),
        };
        if let Some(age) = age {
            metrics::gauge!(meter::REVOCATION_LIST_AGE_SECONDS).set(age.as_secs_f64());
        }
        let Health { is_refused, has_bad_lines, is_exposed, is_emptied, is_forgotten, is_stale, .. } = *health;
        let lasts = is_refused || has_bad_lines || is_exposed || is_emptied || is_forgotten || is_stale;
        meter::alarm(Alarm::List, if lasts { AlarmState::On } else { AlarmState::Off });
    }
}

/// What these guard is whole after a panic: every change of it is a single store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rest is counted: one broken export must not fill a disk.
const BAD_LINES_LOGGED: usize = 20;
