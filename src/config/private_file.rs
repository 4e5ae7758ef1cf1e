//! Files that are made or replaced whole or not at all, with their mode from the first byte on.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Its owner alone.
    Owner,
    /// Everybody: certificates and public keys.
    All,
}

/// Whether a file was made, or stood there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    New,
    Kept,
}

/// Writes a new file and syncs it; one that exists is kept as it is.
pub(super) fn write_new(path: &Path, content: &[u8], readers: Readers) -> io::Result<Made> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(Made::Kept);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)?;
    let draft = draft_beside(path);
    let result = write_draft(&draft, content, readers).and_then(|()| publish(&draft, path));
    // After a link it is the second name, after a rename it is gone, after an error it is rubbish.
    let _ = fs::remove_file(&draft);
    File::open(directory)?.sync_all()?;
    result
}

/// Replaces a file as a whole and syncs it: a reader sees the old one or the new one. Links are followed; mode and owner
/// stay, and a file that was not there is its owner's alone, who is that of the directory.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (mode, like) = match fs::metadata(&target) {
        Ok(metadata) => (metadata.mode() & 0o7777, metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0o600, fs::metadata(directory)?),
        Err(error) => return Err(error),
    };
    let draft = draft_beside(&target);
    let written = (|| {
        // What a crash left behind is not ours to keep.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        let have = file.metadata()?;
        if (have.uid(), have.gid()) != (like.uid(), like.gid())
            && (target.exists() || rustix::process::geteuid().is_root())
        {
            std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        // The umask has its say at the making.
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, &target)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written?;
    File::open(directory)?.sync_all()
}

/// Makes a directory that its owner alone may enter; one that exists is kept as it is.
pub(super) fn make_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_draft(draft: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::All => 0o644,
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A link fails where something stands already, and so never overwrites; a rename is for file systems without links.
fn publish(draft: &Path, path: &Path) -> io::Result<Made> {
    match fs::hard_link(draft, path) {
        Ok(()) => Ok(Made::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Made::Kept),
        Err(_) => fs::rename(draft, path).map(|()| Made::New),
    }
}

fn draft_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

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
        replace(&path, b"first").expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("set");
        std::os::unix::fs::symlink("key", &link).expect("a link");
        replace(&link, b"second").expect("written");
        assert_eq!(
            (&*fs::read(&path).expect("read"), fs::symlink_metadata(&link).expect("there").is_symlink()),
            (&b"second"[..], true)
        );
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o400);
        let left: Vec<_> = fs::read_dir(directory.path()).expect("a directory").collect();
        assert_eq!(left.len(), 2, "no draft is left: {left:?}");
        assert!(replace(Path::new("/nonexistent/key"), b"x").is_err());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_kept_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &path).expect("a link");
        assert_eq!(write_new(&path, b"x", Readers::Owner).expect("kept"), Made::Kept);
    }
}
