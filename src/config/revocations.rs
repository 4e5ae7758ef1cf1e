//! The revocation list's file. What its lines mean is told by [`RevocationList`]; here it is read, and its bad lines are
//! named as mistakes.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::mistake::Mistake;
use crate::{credential::RevocationList, size::Bytes};

/// A list that could be read.
#[derive(Debug)]
pub struct LoadedRevocations {
    /// Every good line.
    pub list: RevocationList,
    /// The lines that say nothing we understand. While there is one, nothing that was in force may be lifted.
    pub bad_lines: Vec<Mistake>,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
}

/// Reads the list.
///
/// # Errors
/// When the file cannot be read at all: every CONNECT is to be refused then.
pub fn load_revocations(path: &Path) -> Result<LoadedRevocations, Mistake> {
    let unreadable = |error: io::Error| {
        let what = match error.kind() {
            io::ErrorKind::NotFound => "the revocation list does not exist.".to_owned(),
            _ => format!("the revocation list cannot be read: {error}."),
        };
        let remedy = "Make it (it may be empty), or give the gateway's user the right to read it.";
        Mistake::of_file(path, what, remedy)
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if metadata.len() > LIST_BYTES_MAX.0 {
        let what = format!("the revocation list is larger than {LIST_BYTES_MAX}.");
        return Err(Mistake::of_file(path, what, "Take out the entries whose `until` has passed."));
    }
    let text = text_of(fs::read(path).map_err(unreadable)?);
    // An editor's byte order mark is no part of the first line.
    let (list, bad) = RevocationList::parse(text.strip_prefix('\u{feff}').unwrap_or(&text));
    let bad_lines = bad.into_iter().map(|bad| {
        let remedy = "Correct it, or put # before it; until then the list lifts nothing.";
        Mistake::at_line(path, bad.line, sentence(&bad.what), remedy)
    });
    Ok(LoadedRevocations { list, bad_lines: bad_lines.collect(), warnings: writable_by_others(path, &metadata) })
}

/// A line that is not UTF-8 is a bad line: the others count all the same, and no character is made up in it.
fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let lines = error.as_bytes().split(|byte| *byte == b'\n');
        lines.map(|line| str::from_utf8(line).unwrap_or("\u{fffd}")).collect::<Vec<_>>().join("\n")
    })
}

/// Threat T28: who can write the list can lift a revocation.
fn writable_by_others(path: &Path, metadata: &Metadata) -> Vec<Mistake> {
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o022 == 0 {
        return Vec::new();
    }
    let what = format!("its mode {mode:04o} lets group or others lift revocations.");
    vec![Mistake::of_file(path, what, format!("Run: chmod go-w {}", path.display()))]
}

fn sentence(what: &str) -> String {
    format!("{}.", what.trim_end_matches('.'))
}

/// Some five million entries.
const LIST_BYTES_MAX: Bytes = Bytes::mib(512);

#[cfg(test)]
mod tests {
    use super::*;

    fn load(content: &[u8]) -> LoadedRevocations {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        fs::write(&path, content).expect("written");
        load_revocations(&path).expect("readable")
    }

    #[test]
    fn good_lines_count_beside_bad_ones_which_are_named() {
        let loaded = load(b"\xef\xbb\xbf# a comment\n{\"device\": \"a\"}\n{\"device\": \"b\xff\"}\n{\"jty\": \"x\"}\n{\"jti\": \"y\"}\n");
        assert_eq!(loaded.list.len(), 2);
        assert_eq!(loaded.bad_lines.iter().filter_map(|bad| bad.line).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn a_list_that_others_may_write_is_warned_about() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        fs::write(&path, "").expect("written");
        for (mode, warnings) in [(0o600, 0), (0o644, 0), (0o664, 1), (0o602, 1)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(load_revocations(&path).expect("readable").warnings.len(), warnings, "{mode:o}");
        }
    }

    #[test]
    fn a_list_that_is_not_there_is_an_error() {
        let mistake = load_revocations(Path::new("/nowhere/list")).expect_err("no file");
        assert!(mistake.what.contains("does not exist"), "{mistake}");
    }
}
