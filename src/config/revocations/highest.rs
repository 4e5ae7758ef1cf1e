//! The number of the highest signed list that was in force, kept in the state directory: what comes before it is a rollback.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::super::mistake::Mistake;
use crate::{
    credential::Highest,
    file::{self, Readers},
};

/// Its name in the state directory.
const HIGHEST: &str = "revocations.highest";

pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(HIGHEST)
}

/// `None`: no signed list was ever in force. What cannot be read forbids nothing less than every list.
pub(super) fn read(state_dir: &Path) -> Result<Option<Highest>, Mistake> {
    let path = path(state_dir);
    let remedy = "Find out who changed it; once you trust the list, delete this file: the next list begins anew.";
    match fs::read_to_string(&path) {
        Ok(text) => match Highest::parse(&text) {
            Some(highest) => Ok(Some(highest)),
            None => Err(Mistake::of_file(&path, "it does not say which signed list was in force.", remedy)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Mistake::of_file(&path, format!("cannot be read: {error}."), remedy)),
    }
}

/// Whole or not at all, and on the disk when this returns.
pub(super) fn write(state_dir: &Path, highest: Highest) -> io::Result<()> {
    let path = path(state_dir);
    if fs::read_to_string(&path).is_ok_and(|text| Highest::parse(&text) == Some(highest)) {
        return Ok(());
    }
    file::replace(&path, &[highest.line().as_bytes()], Readers::Owner)
}
