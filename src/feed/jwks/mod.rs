//! Key sets that issuers publish by https: fetched on a timer and when a token names a key that nobody knows, each issuer
//! on a thread of its own, never on the path of a decision.
//!
//! A set that holds is written to a file, and that is all: the file is watched like any other that the identities name,
//! and is there after a restart without a network. A set that does not hold never replaces one that did.

mod address;
mod fetch;
mod schedule;

pub use address::Network;
pub use fetch::KeySetUrl;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::{
    credential::{Algorithm, parse_jwk_set},
    file::{Readers, make_private_directory, replace},
    gate::{Misses, Wake},
    meter,
};
use schedule::Schedule;

/// Where an issuer publishes its keys, and what is taken of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetSource {
    /// Name of the `[[issuer]]`.
    pub issuer: Arc<str>,
    /// `jwks_url`.
    pub url: KeySetUrl,
    /// `jwks_refresh`: how old a set may grow.
    pub refresh: Duration,
    /// `jwks_ca`: who may have signed the server's certificate; absent: the system's authorities.
    pub ca: Option<PathBuf>,
    /// `jwks_private_addresses`: addresses of no public network that may be asked all the same.
    pub private: Vec<Network>,
    /// What its keys may be for.
    pub algorithms: Vec<Algorithm>,
    /// Where the last good set is kept.
    pub file: PathBuf,
}

impl KeySetSource {
    /// Where the last good set of an issuer is kept: another address is another file, so that no set outlives the
    /// address that it came from.
    pub fn file_in(directory: &Path, issuer: &str, url: &KeySetUrl) -> PathBuf {
        let digest: String = Sha256::digest(url.as_str()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        directory.join(format!("{issuer}-{digest}.json"))
    }
}

/// How the last fetch of a set went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetState {
    /// Name of the `[[issuer]]`.
    pub issuer: Arc<str>,
    /// Why the last fetch failed; `None`: it did not, or is still under way.
    pub error: Option<String>,
}

/// Fetches for as long as it lives. A fetch that is under way when it is dropped comes to nothing.
pub struct KeySets {
    misses: Arc<Misses>,
    fetchers: Mutex<Vec<Arc<Fetcher>>>,
}

impl KeySets {
    /// Fetches nothing yet. `misses` is what the gate rings when a token names an unknown key.
    pub fn new(misses: Arc<Misses>) -> Self {
        Self { misses, fetchers: Mutex::default() }
    }

    /// From here on these sets are fetched and no others. One that is fetched already goes on as it was. What was fetched
    /// before `read` is in force.
    ///
    /// # Errors
    /// A thread could not be started; the others go on.
    pub fn follow(&self, sources: Vec<KeySetSource>, read: Instant) -> io::Result<()> {
        let mut fetchers = lock(&self.fetchers);
        let old = std::mem::take(&mut *fetchers);
        let mut result = Ok(());
        for source in sources {
            let same = old.iter().find(|fetcher| fetcher.source == source);
            let started = same.map_or_else(
                || {
                    let of_issuer = old.iter().find(|fetcher| fetcher.source.issuer == source.issuer);
                    Fetcher::start(source, of_issuer.and_then(|fetcher| lock(&fetcher.course).began))
                },
                |same| Ok(same.clone()),
            );
            match started {
                Ok(fetcher) => fetchers.push(fetcher),
                Err(error) => result = Err(error),
            }
        }
        fetchers.iter().for_each(|fetcher| fetcher.read_at(read));
        old.iter().filter(|old| !fetchers.iter().any(|kept| Arc::ptr_eq(old, kept))).for_each(|gone| gone.stop());
        self.misses.heard_by(fetchers.iter().map(|fetcher| {
            let wake: Arc<dyn Wake> = fetcher.clone();
            (fetcher.source.issuer.clone(), wake)
        }));
        result
    }

    /// How the last fetch of each went.
    pub fn states(&self) -> Vec<KeySetState> {
        let fetchers = lock(&self.fetchers);
        let state = |fetcher: &Arc<Fetcher>| KeySetState {
            issuer: fetcher.source.issuer.clone(),
            error: lock(&fetcher.error).clone(),
        };
        fetchers.iter().map(state).collect()
    }
}

impl Drop for KeySets {
    fn drop(&mut self) {
        lock(&self.fetchers).iter().for_each(|fetcher| fetcher.stop());
    }
}

impl fmt::Debug for KeySets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySets").field("states", &self.states()).finish()
    }
}

/// One issuer's thread, seen from outside.
struct Fetcher {
    source: KeySetSource,
    thread: Mutex<Option<thread::Thread>>,
    missed: AtomicBool,
    stopped: AtomicBool,
    course: Mutex<Course>,
    error: Mutex<Option<String>>,
}

/// How far a fetch has come.
#[derive(Debug, Default)]
struct Course {
    /// When the last fetch began: it stands when the file changes and a new thread takes over.
    began: Option<Instant>,
    /// A key was missed, and the fetch for it has not begun.
    is_asked: bool,
    is_fetching: bool,
    /// When another set was written to the file, until that was read.
    written: Option<Instant>,
}

impl Fetcher {
    fn start(source: KeySetSource, began: Option<Instant>) -> io::Result<Arc<Self>> {
        let fetcher = Arc::new(Self {
            source,
            thread: Mutex::default(),
            missed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            course: Mutex::new(Course { began, ..Course::default() }),
            error: Mutex::default(),
        });
        let own = fetcher.clone();
        let name = "tollgate-jwks".to_owned();
        let handle = thread::Builder::new().name(name).spawn(move || own.run())?;
        *lock(&fetcher.thread) = Some(handle.thread().clone());
        Ok(fetcher)
    }

    fn run(&self) {
        let mut schedule = Schedule::new(self.source.refresh, lock(&self.course).began, Instant::now());
        while !self.stopped.load(Ordering::Relaxed) {
            let mut course = lock(&self.course);
            if self.missed.swap(false, Ordering::AcqRel) {
                schedule.missed();
                course.is_asked = true;
            }
            let now = Instant::now();
            if let Some(wait) = schedule.wait(now) {
                drop(course);
                thread::park_timeout(wait);
                continue;
            }
            schedule.begin(now);
            *course = Course { began: Some(now), is_fetching: true, ..Course::default() };
            drop(course);
            let fetched = self.fetch();
            let mut course = lock(&self.course);
            course.is_fetching = false;
            course.written = matches!(fetched, Ok(Fetched::Anew { .. })).then(Instant::now);
            drop(course);
            schedule.ended(fetched.is_ok());
            self.note(fetched);
        }
    }

    fn fetch(&self) -> Result<Fetched, String> {
        let text = fetch::fetch(&self.source)?;
        let (keys, skipped) = parse_jwk_set(&text, &self.source.algorithms)
            .map_err(|error| format!("the set cannot be used: {error}"))?;
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(Fetched::Same);
        }
        if fs::read_to_string(&self.source.file).is_ok_and(|old| old.trim_end() == text.trim_end()) {
            return Ok(Fetched::Same);
        }
        let file = &self.source.file;
        keep(file, &text).map_err(|error| format!("the set cannot be kept in {}: {error}", file.display()))?;
        let issuer = &*self.source.issuer;
        skipped.iter().for_each(|skipped| {
            tracing::warn!(issuer, key = skipped.key, why = skipped.why, "a key of a set is not used")
        });
        Ok(Fetched::Anew { keys: keys.len() })
    }

    /// One line when something changes; a server that is away for a night is not worth a line every half minute.
    fn note(&self, fetched: Result<Fetched, String>) {
        let (issuer, url) = (&*self.source.issuer, self.source.url.as_str());
        let result = match &fetched {
            Ok(Fetched::Anew { .. }) => "fetched",
            Ok(Fetched::Same) => "unchanged",
            Err(_) => "failed",
        };
        metrics::counter!(meter::KEY_SET_FETCHES, "result" => result).increment(1);
        let mut last = lock(&self.error);
        match fetched {
            Ok(Fetched::Anew { keys }) => tracing::info!(issuer, url, keys, "a key set was fetched"),
            Ok(Fetched::Same) if last.is_some() => tracing::info!(issuer, url, "a key set can be fetched again"),
            Ok(Fetched::Same) => tracing::debug!(issuer, url, "a key set is what it was"),
            Err(error) => {
                if last.as_ref() != Some(&error) {
                    tracing::warn!(issuer, url, error, "a key set cannot be fetched: the last good one stays in force");
                }
                *last = Some(error);
                return;
            }
        }
        *last = None;
    }

    /// The files were read, all that was in them at this time.
    fn read_at(&self, time: Instant) {
        lock(&self.course).written.take_if(|written| *written <= time);
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }
}

impl Wake for Fetcher {
    fn wake(&self) {
        if !self.missed.swap(true, Ordering::AcqRel) {
            self.unpark();
        }
    }

    fn is_underway(&self) -> bool {
        let course = lock(&self.course);
        // The first fetch begins by itself.
        let Some(began) = course.began else { return true };
        let is_asked = course.is_asked || self.missed.load(Ordering::Acquire);
        course.is_fetching
            || (is_asked && began.elapsed() >= schedule::APART)
            || course.written.is_some_and(|written| written.elapsed() < READ_WITHIN)
    }
}

/// A watch looks twice a second at the files; where the identities have a mistake meanwhile, the set does not come into
/// force at all.
const READ_WITHIN: Duration = Duration::from_secs(5);

enum Fetched {
    Anew { keys: usize },
    Same,
}

/// Whole or not at all. It ends in a line break, by which the watch sees that it is finished.
fn keep(file: &Path, text: &str) -> io::Result<()> {
    make_private_directory(file.parent().unwrap_or(Path::new(".")))?;
    replace(file, &[text.trim_end().as_bytes(), b"\n"], Readers::Owner)
}

/// No call under these locks can panic, so what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
