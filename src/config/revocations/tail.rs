//! The end of a list that is being read as a whole: what an operator adds stands there, and must not wait for the rest.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::credential::{ListReader, RevocationList};

/// What was told of the end.
pub(super) struct Tail {
    /// Up to here.
    told: u64,
    /// Nothing was: there may stand the middle of a line.
    begins_within_line: bool,
    /// How long the file was at the last look.
    len: u64,
}

impl Tail {
    /// Of a file of this length; `None`: all of it is read as quickly.
    pub(super) fn of(len: u64) -> Option<Self> {
        let told = len.checked_sub(TAIL_BYTES)?;
        Some(Self { told, begins_within_line: true, len: 0 })
    }

    /// Tells the good lines that came since the last look, at the first one those at the end. What cannot be read here is
    /// found when the whole is.
    pub(super) fn look(&mut self, file: &File, tell: &mut dyn FnMut(RevocationList)) {
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        if len <= self.len {
            return;
        }
        self.len = len;
        let Ok(bytes) = read(file, self.told, len) else { return };
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return };
        let (lines, _) = bytes.split_at(end + 1);
        let cut_off = lines.iter().position(|byte| *byte == b'\n').filter(|_| self.begins_within_line);
        // No first line of a file, in which alone a byte order mark may stand.
        let mut reader = ListReader::after_lines(1);
        reader.feed(lines.get(cut_off.map_or(0, |at| at + 1)..).unwrap_or_default());
        (self.told, self.begins_within_line) = (self.told + lines.len() as u64, false);
        let list = reader.finish().list;
        if !list.is_empty() {
            tell(list);
        }
    }
}

fn read(file: &File, from: u64, len: u64) -> io::Result<Vec<u8>> {
    // Of what comes in great amounts the rest is read with the whole.
    let count = len.saturating_sub(from).min(TAIL_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(count).unwrap_or_default()];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

/// Some five hundred lines.
const TAIL_BYTES: u64 = 64 << 10;
/// Told at once; below ten milliseconds.
const TAIL_BYTES_MAX: u64 = 512 << 10;
