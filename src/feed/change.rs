//! Whether one file changed, and whether whoever writes it has finished.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What inotify said since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hint {
    /// The file's content was written to.
    pub(super) written: bool,
    /// Something was closed after writing, or renamed into place.
    pub(super) finished: bool,
}

/// What a look told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it was reported.
    Same,
    /// It differs, and seems to be in the middle of a write.
    Unfinished {
        /// When it is taken as it is, if nothing happens until then.
        look_again: Instant,
    },
    /// It differs. From here on this is how it was reported.
    Changed,
}

/// One file, as it was reported and as it was last seen.
pub(super) struct WatchedFile {
    path: PathBuf,
    /// `None` after [`forget`](Self::forget): whatever it is, it is to be reported.
    reported: Option<Sight>,
    seen: Sight,
    seen_since: Option<Instant>,
}

impl WatchedFile {
    /// As it is.
    pub(super) fn observe(path: PathBuf) -> Self {
        let sight = Sight::of(&path);
        Self { path, reported: Some(sight.clone()), seen: sight, seen_since: None }
    }

    /// Whatever it is, it is to be reported.
    pub(super) fn unknown(path: PathBuf) -> Self {
        Self { reported: None, ..Self::observe(path) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the next look report it.
    pub(super) fn forget(&mut self) {
        self.reported = None;
    }

    /// Looks at the file.
    pub(super) fn look(&mut self, hint: Hint, now: Instant) -> Verdict {
        let stamp = Stamp::of(&self.path);
        if self.reported.as_ref().is_some_and(|reported| reported.stamp == stamp) {
            self.seen_since = None;
            // Two writes of one length within a tick of the kernel's clock have one stamp: the hint tells them apart.
            return if hint.written && stamp.is_some() { self.report(Sight::of(&self.path)) } else { Verdict::Same };
        }
        if self.seen.stamp != stamp || self.seen_since.is_none() {
            self.seen = Sight::of(&self.path);
            self.seen_since = Some(now);
        }
        let look_again = self.seen_since.unwrap_or(now) + SETTLE;
        if now >= look_again || self.is_finished(hint) {
            return self.report(self.seen.clone());
        }
        Verdict::Unfinished { look_again }
    }

    fn report(&mut self, sight: Sight) -> Verdict {
        self.seen = sight.clone();
        self.reported = Some(sight);
        self.seen_since = None;
        Verdict::Changed
    }

    /// A list is lines: one that is missing, empty or without its last line break is likely to be in the middle of a
    /// write. So is one that is not what it was and more, until it is closed: half of a list that is being rewritten
    /// would lift what the other half holds.
    fn is_finished(&self, hint: Hint) -> bool {
        self.seen.end.as_ref().is_some_and(|end| end.is_line_break) && (hint.finished || self.was_appended_to())
    }

    fn was_appended_to(&self) -> bool {
        let Some(Sight { stamp: Some(old), end: Some(end) }) = &self.reported else { return false };
        let Some(new) = self.seen.stamp else { return false };
        let is_longer = (old.device, old.inode) == (new.device, new.inode) && old.bytes < new.bytes;
        is_longer && End::before(old.bytes, &self.path).is_ok_and(|now| now == *end)
    }
}

/// Reads a file that may be in the middle of a write: again, until what was read is all that the writer had to say.
/// [`WatchedFile::look`] tells when a write is finished, and the next one can begin before the file is read.
pub fn read_whole<T>(path: &Path, mut read: impl FnMut() -> T) -> T {
    let give_up = Instant::now() + WHOLE_WITHIN;
    loop {
        let before = await_whole_until(path, give_up);
        let content = read();
        if Instant::now() >= give_up || before.stamp == Stamp::of(path) {
            return content;
        }
    }
}

/// Waits until a file does not look as if it were in the middle of a write, but not for ever.
pub fn await_whole(path: &Path) {
    await_whole_until(path, Instant::now() + WHOLE_WITHIN);
}

fn await_whole_until(path: &Path, give_up: Instant) -> Sight {
    loop {
        let sight = Sight::of(path);
        if sight.is_whole() || Instant::now() >= give_up {
            return sight;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// What a file looks like, as far as it is cheap to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    /// `None`: there is no such file.
    stamp: Option<Stamp>,
    /// Of its last bytes; `None` when they could not be read.
    end: Option<End>,
}

impl Sight {
    fn of(path: &Path) -> Self {
        let stamp = Stamp::of(path);
        let end = stamp.and_then(|stamp| End::before(stamp.bytes, path).ok());
        Self { stamp, end }
    }

    /// It ends with a line, or was left alone for a while, or is not there.
    fn is_whole(&self) -> bool {
        let Some(stamp) = &self.stamp else { return true };
        self.end.as_ref().is_none_or(|end| end.is_line_break) || stamp.was_left_alone(SystemTime::now())
    }
}

/// The last bytes of a file, told by their hash, since they may be secret: what was only appended to has them in their
/// place still.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    sha256: [u8; 32],
    is_line_break: bool,
}

impl End {
    fn before(offset: u64, path: &Path) -> io::Result<Self> {
        let bytes = offset.min(END_BYTES);
        let mut buffer = Zeroizing::new(vec![0; usize::try_from(bytes).unwrap_or(0)]);
        File::open(path)?.read_exact_at(&mut buffer, offset - bytes)?;
        Ok(Self { sha256: Sha256::digest(&*buffer).into(), is_line_break: buffer.last() == Some(&b'\n') })
    }
}

/// Of the file that links lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// By the clock of the machine that has the file: where it is ahead of ours nothing can be told.
    fn was_left_alone(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.modified;
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return true };
        let modified = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        now.duration_since(modified).map_or(true, |age| age >= SETTLE)
    }
}

/// How long a file that seems unfinished must be left alone before it is taken as it is.
const SETTLE: Duration = Duration::from_millis(200);
/// How long a reader waits for a file that is written to all the time.
const WHOLE_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Enough for the last lines of a list.
const END_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::OpenOptions, io::Write};

    const SILENT: Hint = Hint { written: false, finished: false };
    const FINISHED: Hint = Hint { written: false, finished: true };

    /// Changes a file that held `a\nb\n`, and looks at it.
    fn looks(change: impl FnOnce(&Path), hint: Hint) -> (tempfile::TempDir, WatchedFile, Verdict, Instant) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        fs::write(&path, "a\nb\n").expect("written");
        let mut file = WatchedFile::observe(path);
        let now = Instant::now();
        assert_eq!(file.look(SILENT, now), Verdict::Same);
        change(&file.path);
        let verdict = file.look(hint, now);
        (directory, file, verdict, now)
    }

    fn write(content: &'static str) -> impl Fn(&Path) {
        move |path| fs::write(path, content).expect("written")
    }

    fn append(content: &'static str) -> impl Fn(&Path) {
        move |path| {
            let mut file = OpenOptions::new().append(true).open(path).expect("open");
            file.write_all(content.as_bytes()).expect("written");
        }
    }

    #[test]
    fn whole_lines_that_are_appended_change_a_file_at_once() {
        let (_directory, mut file, verdict, now) = looks(append("c\n"), SILENT);
        assert_eq!((verdict, file.look(SILENT, now)), (Verdict::Changed, Verdict::Same));
    }

    #[test]
    fn half_a_rewrite_is_waited_for() {
        for content in ["b\n", "x\nb\nc\n", "a\nx\n"] {
            let (_directory, mut file, verdict, now) = looks(write(content), SILENT);
            assert_eq!(verdict, Verdict::Unfinished { look_again: now + SETTLE }, "{content:?}");
            assert_eq!(file.look(FINISHED, now), Verdict::Changed, "{content:?}");
        }
    }

    #[test]
    fn what_ends_in_the_middle_of_a_line_is_taken_after_it_was_left_alone() {
        let tick = Duration::from_millis(1);
        for change in [write(""), write("a"), write("a\nb\nc")] {
            let (_directory, mut file, verdict, now) = looks(change, FINISHED);
            assert_eq!(verdict, Verdict::Unfinished { look_again: now + SETTLE });
            assert_eq!(file.look(SILENT, now + SETTLE - tick), verdict);
            // More is written: the time begins again.
            append("d")(&file.path);
            let later = now + SETTLE - tick;
            assert_eq!(file.look(SILENT, later), Verdict::Unfinished { look_again: later + SETTLE });
            assert_eq!(file.look(SILENT, later + SETTLE), Verdict::Changed);
        }
    }

    #[test]
    fn a_file_that_is_missing_is_waited_for_and_then_gone() {
        let (directory, mut file, verdict, now) = looks(|_| (), SILENT);
        assert_eq!(verdict, Verdict::Same);
        let aside = directory.path().join("aside");
        fs::rename(&file.path, &aside).expect("renamed");
        assert_eq!(file.look(FINISHED, now), Verdict::Unfinished { look_again: now + SETTLE });
        assert_eq!(file.look(FINISHED, now + SETTLE), Verdict::Changed);
    }

    #[test]
    fn a_write_that_left_the_same_stamp_is_told_by_the_hint() {
        let (_directory, mut file, _, now) = looks(|_| (), SILENT);
        assert_eq!(file.look(Hint { written: true, finished: false }, now), Verdict::Changed);
    }

    #[test]
    fn a_file_that_is_being_rewritten_is_read_when_it_is_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        fs::write(&path, "a\nb\n").expect("written");
        // Truncated as it is read, then half of it, then all.
        let mut steps = vec!["c\nd\n", "c", ""];
        let content = read_whole(&path, || {
            let content = fs::read_to_string(&path).expect("there");
            if let Some(next) = steps.pop() {
                fs::write(&path, next).expect("written");
            }
            content
        });
        assert_eq!((content.as_str(), steps.len()), ("c\nd\n", 0));
    }

    #[test]
    fn a_file_that_is_written_by_another_thread_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        let mut file = File::create(&path).expect("made");
        let writer = thread::spawn(move || file.write_all(b"a\n").expect("written"));
        assert_eq!(read_whole(&path, || fs::read_to_string(&path).expect("there")), "a\n");
        writer.join().expect("no panic");
    }

    #[test]
    fn an_empty_file_and_one_without_a_last_line_break_are_read_in_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        for content in ["", "half"] {
            let path = directory.path().join("list");
            fs::write(&path, content).expect("written");
            assert_eq!(read_whole(&path, || fs::read_to_string(&path).expect("there")), content);
        }
        let begun = Instant::now();
        await_whole(&directory.path().join("none"));
        assert!(begun.elapsed() < WHOLE_WITHIN);
    }
}
