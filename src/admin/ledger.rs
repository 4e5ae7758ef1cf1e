//! The revocation list as a file that operators, this gateway and git edit: one line is added, all else stays as it is.

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A file of lines that is replaced as a whole: a reader sees the old one or the new one.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The file of this name; links are followed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its text; empty where there is no file.
    ///
    /// # Errors
    /// [`LedgerError`] where it cannot be read.
    pub fn read(&self) -> Result<String, LedgerError> {
        match fs::read(&self.path) {
            // A byte that is no text makes one bad line, not a bad list.
            Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// Adds one line at the end, and is done when it is on the disk.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was.
    pub fn append(&self, line: &str) -> Result<(), LedgerError> {
        self.edit(|mut text| {
            if text.last().is_some_and(|last| *last != b'\n') {
                text.push(b'\n');
            }
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
            Some(text)
        })
    }

    /// Takes out the lines that `is_gone` says, and is done when that is on the disk; says how many they were. All other
    /// lines stay as they are.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was.
    pub fn remove_lines(&self, is_gone: impl Fn(&str) -> bool) -> Result<usize, LedgerError> {
        let mut gone = 0;
        self.edit(|text| {
            let lines = text.split_inclusive(|byte| *byte == b'\n');
            let kept: Vec<&[u8]> = lines.filter(|line| !is_gone(String::from_utf8_lossy(line).trim())).collect();
            gone = text.split_inclusive(|byte| *byte == b'\n').count() - kept.len();
            (gone > 0).then(|| kept.concat())
        })?;
        Ok(gone)
    }

    /// Replaces the text by what `change` makes of it; `None`: it stays.
    fn edit(&self, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> Result<(), LedgerError> {
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let _lock = self.lock(&target)?;
        let (text, metadata) = match File::open(&target) {
            Ok(mut file) => {
                let mut text = Vec::new();
                file.read_to_end(&mut text).map_err(|error| self.failed("read", error))?;
                (text, Some(file.metadata().map_err(|error| self.failed("read", error))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => return Err(self.failed("read", error)),
        };
        match change(text) {
            Some(text) => replace(&target, &text, metadata.as_ref()).map_err(|error| self.failed("write", error)),
            None => Ok(()),
        }
    }

    /// Held while it is changed, so that two writers do not lose each other's line. It is a file of its own: the list
    /// itself is replaced.
    fn lock(&self, target: &Path) -> Result<File, LedgerError> {
        let name = beside(target, ".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&name);
        let file = file.map_err(|error| self.failed("lock", error))?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_TIMEOUT => {
                    std::thread::sleep(LOCK_RETRY_EVERY);
                }
                Err(error) => return Err(self.failed("lock", error.into())),
            }
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> LedgerError {
        LedgerError { path: self.path.clone(), what, source }
    }
}

/// The list could not be read, locked or written. It is as it was.
#[derive(Debug)]
pub struct LedgerError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.what, self.path.display(), self.source)
    }
}

impl std::error::Error for LedgerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes beside the target, syncs, renames; mode and owner stay.
fn replace(target: &Path, text: &[u8], like: Option<&fs::Metadata>) -> io::Result<()> {
    let fresh = beside(target, ".new");
    let mode = like.map_or(MODE, |m| m.mode() & 0o7777);
    let written = (|| {
        // What a crash left behind is not ours to keep; nobody else writes it while the lock is held.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&fresh)?;
        file.write_all(text)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        if let Some(like) = like {
            keep_owner(&file, like)?;
        }
        file.sync_all()?;
        fs::rename(&fresh, target)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written?;
    // The rename itself must survive a crash: an entry that was reported as written is there.
    File::open(target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

/// An operator who is root must not take the list away from the gateway's own user.
fn keep_owner(file: &File, like: &fs::Metadata) -> io::Result<()> {
    let have = file.metadata()?;
    if (have.uid(), have.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid()))
}

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Of a list that did not exist: it holds no secret, but it is not for everybody to write.
const MODE: u32 = 0o640;
/// A writer holds the lock for some milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_RETRY_EVERY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory of its own, removed at the end.
    struct Room(PathBuf);

    impl Room {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tollgate-ledger-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_line_is_added_and_all_else_stays() {
        let room = Room::new("append");
        let path = room.0.join("list.jsonl");
        fs::write(&path, "# by hand\n\n{\"device\": \"a\"}").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("mode");
        Ledger::new(&path).append("{\"device\": \"b\"}").expect("appended");
        assert_eq!(Ledger::new(&path).read().expect("read"), "# by hand\n\n{\"device\": \"a\"}\n{\"device\": \"b\"}\n");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o604);
        assert!(!beside(&path, ".new").exists());
    }

    #[test]
    fn lines_are_taken_out_and_all_else_stays() {
        let room = Room::new("remove");
        let path = room.0.join("list.jsonl");
        fs::write(&path, "# by hand\r\n\n{\"device\": \"a\"}\né\n{\"device\": \"b\"}").expect("written");
        let gone = Ledger::new(&path).remove_lines(|line| line == "{\"device\": \"a\"}").expect("removed");
        assert_eq!(gone, 1);
        assert_eq!(fs::read_to_string(&path).expect("read"), "# by hand\r\n\né\n{\"device\": \"b\"}");
        assert_eq!(Ledger::new(&path).remove_lines(|line| line.contains("nobody")).expect("none"), 0);
    }

    #[test]
    fn a_list_that_is_a_link_stays_a_link() {
        let room = Room::new("link");
        let (real, link) = (room.0.join("real"), room.0.join("link"));
        fs::write(&real, "").expect("written");
        symlink(&real, &link).expect("a link");
        Ledger::new(&link).append("x").expect("appended");
        assert_eq!(fs::read_to_string(&real).expect("read"), "x\n");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    }

    #[test]
    fn writers_at_the_same_time_lose_no_line() {
        let room = Room::new("race");
        let path = room.0.join("list");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let ledger = Ledger::new(&path);
                scope.spawn(move || (0..5).for_each(|n| ledger.append(&format!("{writer}.{n}")).expect("appended")));
            }
        });
        let text = fs::read_to_string(&path).expect("read");
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 20, "{text}");
    }

    #[test]
    fn a_list_that_cannot_be_written_says_so() {
        let error = Ledger::new("/nonexistent/list").append("x").expect_err("no such directory");
        assert!(error.to_string().starts_with("cannot lock /nonexistent/list: "), "{error}");
    }
}
