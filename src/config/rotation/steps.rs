//! The order in which files are written, so that whatever comes in between leaves the old primary key somewhere.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    KeyOwner, Replace, RotateError,
    key_file::{KeyFile, Place, Slot},
};
use crate::file::{Readers, replace};

/// One thing that is done, whole or not at all.
#[derive(Debug)]
pub(super) enum Step {
    /// Says beside a secondary key that it is about to be the primary, too, for a moment.
    Mark(PathBuf, String),
    /// Replaces a file.
    Write(PathBuf, Zeroizing<String>),
    /// The moment is over.
    Unmark(PathBuf),
}

impl Step {
    pub(super) fn run(&self) -> Result<(), RotateError> {
        let (what, path, done) = match self {
            Self::Mark(path, owner) => ("write", path, replace(path, &[owner.as_bytes()], Readers::Owner)),
            Self::Write(path, content) => ("write", path, replace(path, &[content.as_bytes()], Readers::Owner)),
            Self::Unmark(path) => ("remove", path, remove(path)),
        };
        done.map_err(|error| RotateError::io(what, path, error))
    }

    /// The file that it writes, where it is one that stays.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::Write(path, _) => Some(path),
            Self::Mark(..) | Self::Unmark(_) => None,
        }
    }
}

/// What a rotation has to write, in order. The secondary comes first: between the steps the old primary is in both
/// places, or still in its own. A mark beside the secondary tells whoever reads the files then that both may be the same.
pub(super) fn plan(
    path: &Path,
    mut file: KeyFile,
    owner: &KeyOwner,
    what: Replace,
) -> Result<(Vec<Step>, Zeroizing<String>), RotateError> {
    let home = file.home(owner)?;
    let fresh = new_key()?;
    let mut secondary = home.secondary.clone();
    let (next, fills) = match what {
        Replace::Primary => {
            if secondary == Place::Nowhere {
                secondary = place_beside(&home.primary);
            }
            (Some(file.key(owner, Slot::Primary, &home.primary)?), home.secondary == Place::Nowhere)
        }
        Replace::Both if secondary == Place::Nowhere => (None, false),
        Replace::Both => (Some(new_key()?), false),
    };
    let mut steps = Vec::new();
    let is_one_file = home.primary == Place::Inline && secondary == Place::Inline;
    let mark = match (&secondary, what) {
        _ if is_one_file => None,
        (Place::File(file), Replace::Primary) => Some(mark_beside(file)),
        (Place::Inline, Replace::Primary) => Some(mark_beside(path)),
        _ => None,
    };
    steps.extend(mark.iter().map(|mark| Step::Mark(mark.clone(), owner.to_string())));
    if let Some(next) = &next {
        match &secondary {
            Place::Inline => {
                file.set_key(owner, Slot::Secondary, next)?;
                steps.extend((!is_one_file).then(|| Step::Write(path.to_owned(), file.text())));
            }
            Place::File(key_file) => {
                if fills {
                    is_free(key_file, next)?;
                }
                steps.push(Step::Write(key_file.clone(), line(next)));
                if fills {
                    file.set_file(owner, Slot::Secondary, key_file)?;
                    steps.push(Step::Write(path.to_owned(), file.text()));
                }
            }
            Place::Nowhere => {}
        }
    }
    match &home.primary {
        Place::File(key_file) => steps.push(Step::Write(key_file.clone(), line(&fresh))),
        _ => {
            file.set_key(owner, Slot::Primary, &fresh)?;
            steps.push(Step::Write(path.to_owned(), file.text()));
        }
    }
    steps.extend(mark.map(Step::Unmark));
    Ok((steps, fresh))
}

/// Whether a rotation is under way, or was broken off, that leaves both keys of this owner the same for a moment: the mark
/// stands beside the file that holds the secondary.
pub(in crate::config) fn is_marked(secondary_in: &Path, owner: &str) -> bool {
    fs::read_to_string(mark_beside(secondary_in)).is_ok_and(|marked| marked == owner)
}

/// 32 random bytes, as they are printed: in base64, whose own bytes are the key where `key_encoding` is `utf8`.
pub(super) fn new_key() -> Result<Zeroizing<String>, RotateError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *key).map_err(|error| RotateError::NoRandomness(io::Error::other(error)))?;
    Ok(Zeroizing::new(STANDARD.encode(*key)))
}

/// Where a secondary goes that was nowhere: to where the primary is.
fn place_beside(primary: &Place) -> Place {
    let Place::File(path) = primary else { return Place::Inline };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name =
        if name.contains("primary") { name.replace("primary", "secondary") } else { format!("{name}.secondary") };
    Place::File(path.with_file_name(name))
}

/// A file that nobody names is not overwritten, unless it is what a rotation that was broken off left there.
fn is_free(path: &Path, key: &str) -> Result<(), RotateError> {
    match fs::read_to_string(path).map(Zeroizing::new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(there) if there.trim_end() == key => Ok(()),
        _ => Err(RotateError::InTheWay { path: path.to_owned() }),
    }
}

fn line(key: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{key}\n"))
}

fn mark_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".rotating");
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// As `head -c 32 /dev/urandom` makes it.
const KEY_BYTES: usize = 32;
