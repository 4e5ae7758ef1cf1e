//! What this gateway revoked by itself and may not add to the list, because that is signed elsewhere or cannot be written:
//! entries of its own, in the state directory. They are added to every list that is loaded, and lift nothing of it. Each has
//! an end, and is taken out at the next addition after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::super::mistake::Mistake;
use crate::{
    admin::{Keep, Ledger},
    credential::{ListEntry, RevocationList},
    time::UnixSeconds,
};

/// Where the entries stand that this gateway added by itself.
pub fn local_revocations(state_dir: &Path) -> PathBuf {
    state_dir.join(LOCAL)
}

/// Adds lines, and is done when they are on the disk. Those that have ended make place.
///
/// # Errors
/// A sentence: there are too many, or the disk does not take them. The file is then as it was.
pub fn revoke_locally(state_dir: &Path, lines: &[String], now: UnixSeconds) -> Result<PathBuf, String> {
    let path = local_revocations(state_dir);
    let ledger = Ledger::new(&path);
    let entry = |line: &str| ListEntry::parse(line.trim_start_matches('\u{feff}')).ok().flatten();
    let has_ended = |line: &str| entry(line).is_some_and(|entry| entry.has_ended(now));
    let mut kept = 0;
    ledger.each_line(|_, line| kept += usize::from(!has_ended(line))).map_err(|error| error.to_string())?;
    if kept + lines.len() > ENTRIES_MAX {
        return Err(format!("{} holds {kept} entries, and more than {ENTRIES_MAX} it may not", path.display()));
    }
    let keep = |line: &str| if has_ended(line) { Keep::No } else { Keep::Yes };
    ledger.edit(keep, lines, None).map_err(|error| error.to_string())?;
    Ok(path)
}

/// Its entries, and the lines that are none; there need be no file.
///
/// # Errors
/// When it is there and cannot be read: what it revokes would be lifted.
pub(super) fn read(state_dir: &Path) -> Result<(RevocationList, Vec<Mistake>), Mistake> {
    let path = local_revocations(state_dir);
    let unreadable = |what: String| {
        let remedy = "It holds what this gateway revoked by itself: let the gateway's user read it.";
        Mistake::of_file(&path, what, remedy)
    };
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((RevocationList::default(), Vec::new())),
        Err(error) => return Err(unreadable(format!("cannot be read: {error}."))),
        Ok(metadata) if !metadata.is_file() => return Err(unreadable("it is no file.".into())),
        Ok(metadata) if metadata.len() > BYTES_MAX => return Err(unreadable("it is too large to be ours.".into())),
        Ok(_) => {}
    }
    let bytes = fs::read(&path).map_err(|error| unreadable(format!("cannot be read: {error}.")))?;
    let (list, bad) = RevocationList::parse(&String::from_utf8_lossy(&bytes));
    Ok((list, bad.into_iter().map(|bad| super::named(&path, bad.line, &bad.what)).collect()))
}

/// Its name in the state directory.
const LOCAL: &str = "revocations.local.jsonl";
/// Tokens of lines that were stolen and have not expired: far more than a site sees. Some 20 MiB.
const ENTRIES_MAX: usize = 65_536;
/// Twice what the most entries of the longest line take.
const BYTES_MAX: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_added_and_those_that_ended_make_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let entry = |jti: &str, until: u64| {
            format!("{{\"jti\":\"{jti}\",\"issuer\":\"token-service\",\"until\":\"{}\"}}", UnixSeconds(until))
        };
        let (now, later) = (UnixSeconds(1_800_000_000), UnixSeconds(1_800_000_100));
        assert_eq!(read(directory.path()).expect("none is fine").0.len(), 0);
        revoke_locally(directory.path(), &[entry("a", now.0 + 50), entry("b", now.0 + 500)], now).expect("written");
        let (list, bad) = read(directory.path()).expect("readable");
        assert_eq!((list.len(), bad.len()), (2, 0));
        revoke_locally(directory.path(), &[entry("c", now.0 + 500)], later).expect("written");
        let text = fs::read_to_string(local_revocations(directory.path())).expect("text");
        assert!(!text.contains("\"a\"") && text.contains("\"b\"") && text.contains("\"c\""), "{text}");
    }

    #[test]
    fn it_has_a_bound_and_is_as_it_was_when_that_is_reached() {
        let directory = tempfile::tempdir().expect("a directory");
        let line = |n: usize| format!("{{\"device\":\"d{n}\"}}");
        let full: Vec<String> = (0..ENTRIES_MAX).map(line).collect();
        revoke_locally(directory.path(), &full, UnixSeconds(0)).expect("written");
        let refused = revoke_locally(directory.path(), &[line(ENTRIES_MAX)], UnixSeconds(0)).expect_err("full");
        assert!(refused.contains("65536"), "{refused}");
        assert_eq!(read(directory.path()).expect("readable").0.len(), ENTRIES_MAX);
    }

    #[test]
    fn what_is_there_and_cannot_be_read_is_a_mistake_and_not_an_empty_list() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(local_revocations(directory.path())).expect("a directory in its place");
        assert!(read(directory.path()).expect_err("no file").what.contains("no file"));
    }
}
