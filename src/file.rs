//! Files that are made or replaced whole or not at all, with their mode from the first byte on; and locks between
//! processes. An operator who is root leaves nothing that the gateway's own user could not use.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner alone.
    Owner,
    /// The group, too.
    Group,
    /// Everybody: certificates and public keys.
    All,
}

/// What of a file tells one state of it from another, also where two processes look: its length, and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVersion {
    bytes: u64,
    written_s: i64,
    written_ns: i64,
}

impl FileVersion {
    /// Of the file as it stands; links are followed.
    ///
    /// # Errors
    /// What the disk says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self { bytes: metadata.len(), written_s: metadata.mtime(), written_ns: metadata.mtime_nsec() })
    }
}

/// Whether a file was made, or stood there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    New,
    /// It was there, and is as it was.
    Kept,
}

/// Writes a new file and syncs it; one that exists is kept as it is.
///
/// # Errors
/// What the disk says.
pub fn write_new(path: &Path, content: &[u8], readers: Readers) -> io::Result<Made> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(Made::Kept);
    }
    let directory = directory_of(path);
    fs::create_dir_all(directory)?;
    // Two that start at once do not share a draft.
    let draft = beside(path, &format!(".{}", std::process::id()));
    let written = write_draft(&draft, &[content], readers.mode()).and_then(|file| file.sync_all());
    let result = written.and_then(|()| publish(&draft, path));
    // After a link it is the second name, after a rename it is gone, after an error it is rubbish.
    let _ = fs::remove_file(&draft);
    sync_directory(directory)?;
    result
}

/// Replaces a file as a whole by these parts and syncs it: a reader sees the old one or the new one. Links are followed;
/// mode and owner stay. One that was not there may be read by `readers`. There is one writer at a time: whoever calls this
/// holds a [`lock`], or is the only one.
///
/// # Errors
/// What the disk says; the file is then as it was.
pub fn replace(path: &Path, parts: &[&[u8]], readers: Readers) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = match fs::metadata(&target) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let draft = beside(&target, ".new");
    let written = (|| {
        // What a crash left behind is not ours to keep.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mode = old.as_ref().map_or(readers.mode(), |old| old.mode() & 0o7777);
        let file = write_draft(&draft, parts, mode)?;
        match &old {
            Some(old) => {
                // The umask has its say at the making.
                file.set_permissions(PermissionsExt::from_mode(mode))?;
                give_to(&file, old)?;
            }
            None => leave_usable(&target, &file)?,
        }
        file.sync_all()?;
        fs::rename(&draft, &target)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written?;
    // The rename itself must survive a crash.
    sync_directory(directory_of(&target))
}

/// Locks a file, which is made where there is none, until what is answered is dropped. Waits for as long as `patience`.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]: another has it for longer. Or what the disk says.
pub fn lock(path: &Path, patience: Duration) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(Readers::Owner.mode()).open(path)?;
    leave_usable(path, &file)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if since.elapsed() < patience => thread::sleep(LOCK_RETRY_EVERY),
            Err(error) => return Err(error.into()),
        }
    }
}

/// An operator who is root must not leave a file that the gateway's own user, whose the directory is, cannot use.
///
/// # Errors
/// What the disk says.
pub fn leave_usable(path: &Path, file: &File) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    give_to(file, &fs::metadata(directory_of(path))?)
}

/// Makes a directory that its owner alone may enter, and those above it; one that exists is kept as it is. One that root
/// makes belongs to whose the directory above it is.
///
/// # Errors
/// What the disk says.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_private_directory(above)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => leave_usable(path, &File::open(path)?),
    }
}

/// Names that were made or changed in it survive a crash from here on.
///
/// # Errors
/// What the disk says.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Readers {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
            Self::All => 0o644,
        }
    }
}

fn write_draft(draft: &Path, parts: &[&[u8]], mode: u32) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    Ok(file)
}

/// A link fails where something stands already, and so never overwrites; a rename is for file systems without links.
fn publish(draft: &Path, path: &Path) -> io::Result<Made> {
    match fs::hard_link(draft, path) {
        Ok(()) => Ok(Made::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Made::Kept),
        Err(_) => fs::rename(draft, path).map(|()| Made::New),
    }
}

fn give_to(file: &File, like: &Metadata) -> io::Result<()> {
    let have = file.metadata()?;
    if (have.uid(), have.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    fchown(file, Some(like.uid()), Some(like.gid()))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Hidden, and in the same directory: a name of its own for each file.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    path.with_file_name(name)
}

/// For whom a lock is held some milliseconds at most.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_with_its_mode_and_never_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, readers, mode) in [("a", Readers::Owner, 0o600), ("b", Readers::All, 0o644)] {
            let path = directory.path().join("below").join(name);
            assert_eq!(write_new(&path, b"first", readers).expect("written"), Made::New);
            assert_eq!(write_new(&path, b"second", readers).expect("kept"), Made::Kept);
            assert_eq!(fs::read(&path).expect("read"), b"first");
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777 & !mode, 0, "{name}");
        }
        let left: Vec<_> = fs::read_dir(directory.path().join("below")).expect("a directory").collect();
        assert_eq!(left.len(), 2, "no draft is left: {left:?}");
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_a_link_stays_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, link) = (directory.path().join("key"), directory.path().join("link"));
        replace(&path, &[b"fir", b"st"], Readers::Owner).expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"first");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("set");
        std::os::unix::fs::symlink("key", &link).expect("a link");
        // What a crash left.
        fs::write(directory.path().join(".key.new"), "half").expect("written");
        replace(&link, &[b"second"], Readers::All).expect("written");
        assert_eq!(
            (&*fs::read(&path).expect("read"), fs::symlink_metadata(&link).expect("there").is_symlink()),
            (&b"second"[..], true)
        );
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o400);
        let left: Vec<_> = fs::read_dir(directory.path()).expect("a directory").collect();
        assert_eq!(left.len(), 2, "no draft is left: {left:?}");
        assert!(replace(Path::new("/nonexistent/key"), &[b"x"], Readers::Owner).is_err());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_kept_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &path).expect("a link");
        assert_eq!(write_new(&path, b"x", Readers::Owner).expect("kept"), Made::Kept);
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let held = lock(&path, Duration::ZERO).expect("free");
        let refused = lock(&path, Duration::from_millis(20)).expect_err("held").kind();
        assert_eq!(refused, io::ErrorKind::WouldBlock);
        drop(held);
        assert!(lock(&path, Duration::ZERO).is_ok());
    }
}
