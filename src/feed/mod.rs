//! The feed: files that an operator edits, noticed as soon as a write to them is finished.
//!
//! inotify is the hint and makes it fast; a look at every file twice a second is the truth, since a watch can be lost
//! with its directory, on a network file system, or when the kernel's queue runs over. What the files mean is the
//! caller's business: it is told which changed, and loads them anew.

mod change;
mod jwks;

pub use change::{await_whole, read_whole};
pub use jwks::{KeySetSource, KeySetState, KeySetUrl, KeySets, Network};

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};

use change::{Hint, Verdict, WatchedFile};

/// Files as they are at one moment. Observe first, load them after that, then [`watch`](Self::watch): what changes in
/// between is reported too.
pub struct Files {
    files: Vec<WatchedFile>,
    inbox: Arc<Inbox>,
}

impl Files {
    /// Remembers what each file looks like; one that does not exist is waited for.
    pub fn observe(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: paths.into_iter().map(WatchedFile::observe).collect(), inbox: Arc::default() }
    }

    /// Changes which files are watched; `on_change` may hold it, for files that a file names.
    pub fn follower(&self) -> Follower {
        Follower { inbox: Arc::clone(&self.inbox) }
    }

    /// Calls `on_change` with the files that changed, from a thread of its own, until the [`Watch`] is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started. Without inotify a change is noticed later, that is all.
    pub fn watch(self, on_change: impl FnMut(&[PathBuf]) + Send + 'static) -> io::Result<Watch> {
        let Self { files, inbox } = self;
        let mut feed = Feed { hints: Hints::new(&inbox), files, inbox: Arc::clone(&inbox), on_change };
        let thread = thread::Builder::new().name("tollgate-feed".into()).spawn(move || feed.run())?;
        Ok(Watch { inbox, thread: Some(thread) })
    }
}

/// See [`Files::follower`].
#[derive(Clone)]
pub struct Follower {
    inbox: Arc<Inbox>,
}

impl Follower {
    /// From here on these files are watched and no others. One that was not watched before is reported once, since it
    /// may have changed after it was loaded.
    pub fn follow(&self, paths: impl IntoIterator<Item = PathBuf>) {
        let paths = paths.into_iter().collect();
        self.inbox.signal(|signals| signals.follow = Some(paths));
    }
}

/// Watches for as long as it lives; dropping it waits for a call that is under way.
#[must_use]
pub struct Watch {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.inbox.signal(|signals| signals.stop = true);
        if let Some(thread) = self.thread.take() {
            // A panic of the caller's function was caught and logged where it happened.
            let _ = thread.join();
        }
    }
}

struct Feed<F> {
    files: Vec<WatchedFile>,
    hints: Hints,
    inbox: Arc<Inbox>,
    on_change: F,
}

impl<F: FnMut(&[PathBuf])> Feed<F> {
    fn run(&mut self) {
        let mut next_look = Instant::now();
        loop {
            self.hints.follow(&self.files);
            let Some(mut signals) = self.inbox.wait_until(next_look) else { return };
            if let Some(paths) = signals.follow.take() {
                self.follow(paths);
                signals.written.clear();
            }
            let now = Instant::now();
            next_look = now + LOOK_EVERY;
            let mut changed = Vec::new();
            for (index, file) in self.files.iter_mut().enumerate() {
                let hint = Hint { written: signals.written.contains(&index), finished: signals.finished };
                match file.look(hint, now) {
                    Verdict::Same => {}
                    Verdict::Unfinished { look_again } => next_look = next_look.min(look_again),
                    Verdict::Changed => changed.push(index),
                }
            }
            if !changed.is_empty() {
                self.report(&changed);
            }
        }
    }

    fn follow(&mut self, paths: Vec<PathBuf>) {
        let mut known = std::mem::take(&mut self.files);
        for path in paths {
            if self.files.iter().any(|file| file.path() == path) {
                continue;
            }
            let file = known.iter().position(|file| file.path() == path).map(|index| known.swap_remove(index));
            self.files.push(file.unwrap_or_else(|| WatchedFile::unknown(path)));
        }
        lock(&self.inbox.names).clear();
        self.hints.follow(&self.files);
    }

    /// A revocation that is not applied must not go unnoticed: after a panic the same files are reported again.
    fn report(&mut self, changed: &[usize]) {
        let paths: Vec<PathBuf> = changed.iter().map(|index| self.files[*index].path().to_owned()).collect();
        tracing::debug!(files = ?paths, "changed");
        if catch_unwind(AssertUnwindSafe(|| (self.on_change)(&paths))).is_err() {
            tracing::error!(files = ?paths, "applying a change panicked; it is tried again");
            changed.iter().for_each(|index| self.files[*index].forget());
        }
    }
}

/// What the watcher's thread tells the feed's.
#[derive(Default)]
struct Inbox {
    /// Every name of a file, and its places in the list.
    names: Mutex<BTreeMap<PathBuf, Vec<usize>>>,
    signals: Mutex<Signals>,
    wake: Condvar,
}

#[derive(Default)]
struct Signals {
    is_set: bool,
    stop: bool,
    /// What is to be watched instead.
    follow: Option<Vec<PathBuf>>,
    /// Files whose content was written to.
    written: Vec<usize>,
    /// Something was closed after writing, or renamed into place.
    finished: bool,
}

impl Inbox {
    fn signal(&self, change: impl FnOnce(&mut Signals)) {
        let mut signals = lock(&self.signals);
        change(&mut signals);
        signals.is_set = true;
        self.wake.notify_one();
    }

    fn take(&self, event: &Event) {
        let (written, finished) = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => (false, true),
            EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => (false, true),
            EventKind::Modify(ModifyKind::Data(_)) => (true, false),
            EventKind::Access(_) => return,
            _ => (false, false),
        };
        let names = lock(&self.names);
        let files = event.paths.iter().filter_map(|path| names.get(path)).flatten().copied();
        let files: Vec<usize> = files.filter(|_| written).collect();
        self.signal(|signals| {
            signals.finished |= finished;
            for index in files {
                if !signals.written.contains(&index) {
                    signals.written.push(index);
                }
            }
        });
    }

    /// `None` when the watch has ended.
    fn wait_until(&self, deadline: Instant) -> Option<Signals> {
        let signals = lock(&self.signals);
        let rest = deadline.saturating_duration_since(Instant::now());
        let waited = self.wake.wait_timeout_while(signals, rest, |signals| !signals.is_set);
        let signals = std::mem::take(&mut *waited.unwrap_or_else(PoisonError::into_inner).0);
        (!signals.stop).then_some(signals)
    }
}

/// inotify on the directories of the files: of their names, and of what links lead to.
struct Hints {
    watcher: Option<RecommendedWatcher>,
    inbox: Arc<Inbox>,
    directories: BTreeMap<PathBuf, Identity>,
}

/// Device and inode: a directory that was made anew has another, and the old one's watch is gone.
type Identity = (u64, u64);

impl Hints {
    fn new(inbox: &Arc<Inbox>) -> Self {
        let sink = Arc::clone(inbox);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => sink.take(&event),
            // The queue ran over, or a watch broke: look at everything.
            Err(_) => sink.signal(|_| {}),
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "no inotify: changes are noticed within half a second"))
            .ok();
        Self { watcher, inbox: Arc::clone(inbox), directories: BTreeMap::new() }
    }

    /// Watches every directory that matters, also one that came or was replaced since.
    fn follow(&mut self, files: &[WatchedFile]) {
        let Some(watcher) = &mut self.watcher else { return };
        for (index, file) in files.iter().enumerate() {
            let resolved = fs::canonicalize(file.path()).ok();
            // Events name a file below the absolute path of its directory.
            for path in [std::path::absolute(file.path()).ok(), resolved.clone()].into_iter().flatten() {
                let mut names = lock(&self.inbox.names);
                let indices = names.entry(path).or_default();
                if !indices.contains(&index) {
                    indices.push(index);
                }
            }
            for directory in
                [directory_of(file.path()), resolved.as_deref().and_then(directory_of)].into_iter().flatten()
            {
                let Some(identity) = identity_of(directory) else { continue };
                if self.directories.get(directory) == Some(&identity) {
                    continue;
                }
                match watcher.watch(directory, RecursiveMode::NonRecursive) {
                    Ok(()) => drop(self.directories.insert(directory.to_owned(), identity)),
                    Err(error) => tracing::debug!(%error, directory = %directory.display(), "not watched"),
                }
            }
        }
    }
}

fn directory_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn identity_of(directory: &Path) -> Option<Identity> {
    fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// No call under these locks can panic, so what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bound for a change that inotify did not tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::OpenOptions,
        io::Write,
        os::unix::fs::symlink,
        sync::mpsc::{Receiver, channel},
    };

    /// What the feed reported of one file: its content at that time.
    struct Bench {
        path: PathBuf,
        reports: Receiver<String>,
        _watch: Watch,
        directory: tempfile::TempDir,
    }

    fn bench(first: &str) -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        fs::write(&path, first).expect("written");
        start(directory, path)
    }

    fn start(directory: tempfile::TempDir, path: PathBuf) -> Bench {
        let (reported, reports) = channel();
        let watch = Files::observe([path.clone()]).watch(move |paths| {
            let content = fs::read_to_string(&paths[0]).unwrap_or_else(|_| "(none)".into());
            // The test is over.
            let _ = reported.send(content);
        });
        Bench { path, reports, _watch: watch.expect("a thread"), directory }
    }

    impl Bench {
        /// Waits for a report of this content; others before it are of earlier states.
        fn expect(&self, content: &str) -> Duration {
            let begun = Instant::now();
            while let Ok(found) = self.reports.recv_timeout(Duration::from_secs(10)) {
                if found == content {
                    return begun.elapsed();
                }
            }
            panic!("{content:?} was never reported");
        }

        fn append(&self, text: &str) -> fs::File {
            let mut file = OpenOptions::new().append(true).open(&self.path).expect("open");
            file.write_all(text.as_bytes()).expect("written");
            file
        }

        fn beside(&self, name: &str, content: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            fs::write(&path, content).expect("written");
            path
        }
    }

    #[test]
    fn an_appended_line_is_reported_while_the_file_is_still_open() {
        let bench = bench("a\n");
        let mut times = Vec::new();
        let mut content = String::from("a\n");
        for n in 0..10 {
            content.push_str(&format!("{n}\n"));
            let open = bench.append(&format!("{n}\n"));
            times.push(bench.expect(&content));
            drop(open);
        }
        times.sort();
        assert!(times[5] < Duration::from_millis(100), "{times:?}");
    }

    #[test]
    fn a_rewrite_is_reported_however_it_is_done() {
        let bench = bench("a\n");
        fs::write(&bench.path, "truncated and written\n").expect("written");
        bench.expect("truncated and written\n");
        fs::rename(bench.beside("new", "renamed\n"), &bench.path).expect("renamed");
        bench.expect("renamed\n");
        fs::remove_file(&bench.path).expect("removed");
        bench.expect("(none)");
        fs::write(&bench.path, "made anew\n").expect("written");
        bench.expect("made anew\n");
        fs::write(&bench.path, "").expect("written");
        bench.expect("");
    }

    #[test]
    fn a_line_without_its_end_is_reported_once_it_is_left_alone() {
        let bench = bench("a\n");
        let open = bench.append("half");
        bench.expect("a\nhalf");
        drop(open);
        drop(bench.append(" and whole\n"));
        bench.expect("a\nhalf and whole\n");
    }

    #[test]
    fn links_are_followed_and_a_link_that_is_swapped_is_a_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let (v1, v2) = (directory.path().join("v1"), directory.path().join("v2"));
        for (version, content) in [(&v1, "one\n"), (&v2, "two\n")] {
            fs::create_dir(version).expect("made");
            fs::write(version.join("list"), content).expect("written");
        }
        // As Kubernetes mounts a secret.
        symlink("v1", directory.path().join("..data")).expect("a link");
        let path = directory.path().join("list");
        symlink("..data/list", &path).expect("a link");
        let bench = start(directory, path);
        symlink("v2", bench.directory.path().join("..new")).expect("a link");
        fs::rename(bench.directory.path().join("..new"), bench.directory.path().join("..data")).expect("renamed");
        bench.expect("two\n");
        drop(bench.append("three\n"));
        bench.expect("two\nthree\n");
    }

    #[test]
    fn a_file_whose_directory_comes_later_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = directory.path().join("below");
        let bench = start(directory, below.join("list"));
        fs::create_dir(&below).expect("made");
        fs::write(&bench.path, "here\n").expect("written");
        bench.expect("here\n");
    }

    #[test]
    fn what_changes_between_observing_and_watching_is_reported() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        let files = Files::observe([path.clone()]);
        fs::write(&path, "early\n").expect("written");
        let (reported, reports) = channel();
        let watch = files.watch(move |paths| reported.send(paths.to_vec()).expect("a listener")).expect("a thread");
        assert_eq!(reports.recv_timeout(Duration::from_secs(10)), Ok(vec![path]));
        drop(watch);
        assert!(reports.recv().is_err(), "the function is dropped with the watch");
    }

    #[test]
    fn the_files_that_are_watched_can_be_changed_while_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        let (reported, reports) = channel();
        let files = Files::observe([first.clone()]);
        let (follower, both) = (files.follower(), [first.clone(), second.clone()]);
        let _watch = files.watch(move |paths| {
            follower.follow(both.clone());
            paths.iter().for_each(|path| reported.send(path.clone()).expect("a listener"));
        });
        for (path, content) in [(&first, "a\n"), (&second, "b\n")] {
            fs::write(path, content).expect("written");
            while reports.recv_timeout(Duration::from_secs(10)).expect("reported") != *path {}
        }
    }

    #[test]
    fn a_change_whose_application_panicked_is_reported_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        let (reported, reports) = channel();
        let mut calls = 0;
        let files = Files::observe([path.clone()]);
        let _watch = files.watch(move |_| {
            calls += 1;
            assert!(calls > 1, "the first call fails");
            reported.send(calls).expect("a listener");
        });
        fs::write(&path, "x\n").expect("written");
        assert!(reports.recv_timeout(Duration::from_secs(10)).expect("again") >= 2);
    }
}
