//! The files of the log: `audit.jsonl`, those that were full, `audit.head`, and the lock.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Recorded,
    chain::{Entry, Link, hash_of},
};
use crate::file::{self, LOCK_PATIENCE, leave_usable, sync_directory};

/// Where entries are added.
pub(super) const LOG: &str = "audit.jsonl";

/// The log, open at its end. Its lock is held by the caller.
pub(super) struct Log {
    directory: PathBuf,
    file: File,
    bytes: u64,
    link: Link,
    kept_from: u64,
}

impl Log {
    /// Opens the log, and says how many bytes of a torn last line were cut off.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = open_log(directory)?;
        let end = End::of(&file)?;
        let torn = end.bytes - end.whole_bytes;
        if torn > 0 {
            // It was never reported as written. What was, and was cut off later, is missed by the head.
            file.set_len(end.whole_bytes)?;
            file.sync_data()?;
        }
        let last = match end.last_line {
            Some(line) => Some(line),
            None => archives(directory)?
                .last()
                .map(|path| End::of(&File::open(path)?))
                .transpose()?
                .and_then(|end| end.last_line),
        };
        let head = Head::read(directory)?;
        let link = link_after(last.as_deref(), head.as_ref());
        let kept_from = head.map_or(1, |head| head.kept_from);
        let log = Self { directory: directory.to_owned(), file, bytes: end.whole_bytes, link, kept_from };
        Ok((log, (torn > 0).then_some(torn)))
    }

    /// What the next entry hangs on.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Writes one entry, which hangs on [`link`](Self::link), and syncs it.
    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<Recorded> {
        if self.bytes >= LOG_BYTES_MAX {
            self.put_aside()?;
        }
        let mut line = entry.line().into_bytes();
        let sha256 = hash_of(&line);
        line.push(b'\n');
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.bytes += line.len() as u64;
        self.link = Link { sequence: entry.sequence, sha256: sha256.clone() };
        Head { link: self.link.clone(), kept_from: self.kept_from }.write(&self.directory)?;
        Ok(Recorded { sequence: entry.sequence, sha256 })
    }

    /// A full log is kept under the number of its last entry; of those, the oldest goes when there are too many.
    fn put_aside(&mut self) -> io::Result<()> {
        let name = format!("{ARCHIVE_START}{:020}{ARCHIVE_END}", self.link.sequence);
        fs::rename(self.directory.join(LOG), self.directory.join(name))?;
        self.file = open_log(&self.directory)?;
        self.bytes = 0;
        let kept = archives(&self.directory)?;
        for oldest in kept.iter().take(kept.len().saturating_sub(ARCHIVES_MAX)) {
            self.kept_from = last_sequence_of(oldest).map_or(self.kept_from, |last| last + 1);
            fs::remove_file(oldest)?;
        }
        sync_directory(&self.directory)
    }
}

/// Held while the log is changed. It is a file of its own: the log itself is replaced when it is full.
pub(super) fn lock(directory: &Path) -> io::Result<File> {
    file::lock(&directory.join("audit.lock"), LOCK_PATIENCE)
}

/// Logs that were full, the oldest first.
pub(super) fn archives(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if last_sequence_of(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The number that the name of a full log has: of its last entry.
fn last_sequence_of(archive: &Path) -> Option<u64> {
    archive.file_name()?.to_str()?.strip_prefix(ARCHIVE_START)?.strip_suffix(ARCHIVE_END)?.parse().ok()
}

/// `audit.head`: the last entry that was written, and the first that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) link: Link,
    pub(super) kept_from: u64,
}

impl Head {
    /// `None`: there is none, or it is damaged; the log itself then says where it ends.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(directory.join(HEAD)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&text);
        let mut words = text.split_whitespace();
        let head = (|| {
            let sequence = words.next()?.parse().ok()?;
            let sha256 = words.next().filter(|word| word.len() == Link::genesis().sha256.len())?.to_owned();
            let kept_from = words.next()?.parse().ok()?;
            Some(Self { link: Link { sequence, sha256 }, kept_from })
        })();
        Ok(head)
    }

    /// Always as many bytes, and less than a sector: overwritten in place, it is the old one or the new one.
    fn write(&self, directory: &Path) -> io::Result<()> {
        let Self { link, kept_from } = self;
        let text = format!("{:020} {} {kept_from:020}\n", link.sequence, link.sha256);
        let path = directory.join(HEAD);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(&path)?;
        leave_usable(&path, &file)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync_data()
    }
}

/// What the next entry hangs on. A head that is ahead of the log means that entries are missing: going on from the head
/// keeps the gap to be seen. A log that is ahead of its head was written and the head was not, by a crash in between.
fn link_after(last_line: Option<&[u8]>, head: Option<&Head>) -> Link {
    let of_log = last_line.map(|line| (Entry::parse(line).map(|entry| entry.sequence), hash_of(line)));
    match (of_log, head) {
        (Some((Some(sequence), sha256)), Some(head)) if sequence > head.link.sequence => Link { sequence, sha256 },
        (_, Some(head)) => head.link.clone(),
        (Some((sequence, sha256)), None) => Link { sequence: sequence.unwrap_or(0), sha256 },
        (None, None) => Link::genesis(),
    }
}

/// How a file of the log ends.
pub(super) struct End {
    bytes: u64,
    /// Up to the end of the last whole line.
    whole_bytes: u64,
    last_line: Option<Vec<u8>>,
}

impl End {
    fn of(mut file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let from = bytes.saturating_sub(2 * LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.take(2 * LINE_BYTES_MAX).read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = tail.get(..whole).unwrap_or_default();
        let last_line =
            lines.strip_suffix(b"\n").map(|lines| lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines));
        Ok(Self { bytes, whole_bytes: from + whole as u64, last_line: last_line.map(<[u8]>::to_vec) })
    }
}

fn open_log(directory: &Path) -> io::Result<File> {
    let path = directory.join(LOG);
    let is_new = !path.exists();
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(MODE).open(&path)?;
    if is_new {
        leave_usable(&path, &file)?;
        sync_directory(directory)?;
    }
    Ok(file)
}

pub(super) const HEAD: &str = "audit.head";
const ARCHIVE_START: &str = "audit.";
const ARCHIVE_END: &str = ".jsonl";
/// It says who did what.
const MODE: u32 = 0o600;
/// Some twenty thousand entries; in tests, some.
pub(super) const LOG_BYTES_MAX: u64 = if cfg!(test) { 16 << 10 } else { 4 << 20 };
/// 64 MiB with the log itself: years of an operator's work, a day of a busy token service.
pub(super) const ARCHIVES_MAX: usize = 15;
/// More than an entry can have: its texts are bounded, and a byte becomes six at most.
const LINE_BYTES_MAX: u64 = 32 << 10;
