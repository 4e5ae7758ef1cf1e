//! Whether the chain holds, and if not, where it breaks first.

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    chain::{Entry, Link, hash_of},
    files::{HEAD, Head, LOG, archives},
};

/// What a check of the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries that hold.
    pub entries: u64,
    /// Numbers of the first and the last of them.
    pub range: Option<(u64, u64)>,
    /// SHA-256 of the last line that holds.
    pub sha256: Option<String>,
    /// What is worth knowing and breaks nothing.
    pub notes: Vec<String>,
    /// Where the chain breaks first.
    pub fault: Option<Fault>,
}

/// Where the chain breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; `None`: the file as a whole, or its end.
    pub line: Option<usize>,
    /// One sentence.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

pub(super) fn verify(directory: &Path) -> io::Result<Verified> {
    let mut check = Check { head: Head::read(directory)?, ..Check::default() };
    let head_file = directory.join(HEAD);
    let mut lines = read_all(directory, &mut check.found.notes)?;
    if check.head.is_none() && !lines.is_empty() {
        let what = if head_file.exists() { "is damaged" } else { "is missing" };
        let note = format!("{} {what}: entries that are missing at the end cannot be told.", head_file.display());
        check.found.notes.push(note);
    }
    lines.push(Line { file: directory.join(LOG), number: None, text: Vec::new() });
    for pair in lines.windows(2) {
        let [line, next] = pair else { continue };
        if let Err(fault) = check.line(line, next) {
            check.found.fault = Some(fault);
            return Ok(check.found);
        }
    }
    check.found.fault = check.end(&directory.join(LOG), lines.len() == 1);
    Ok(check.found)
}

/// One line, and where it stands.
struct Line {
    file: PathBuf,
    number: Option<usize>,
    text: Vec<u8>,
}

impl Line {
    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { file: self.file.clone(), line: self.number, what: what.into() }
    }
}

#[derive(Default)]
struct Check {
    head: Option<Head>,
    last: Option<Link>,
    last_line: Option<(PathBuf, Option<usize>)>,
    found: Verified,
}

impl Check {
    fn line(&mut self, line: &Line, next: &Line) -> Result<(), Fault> {
        let entry = Entry::parse(&line.text).ok_or_else(|| line.fault("this is no entry of the audit log."))?;
        let sha256 = hash_of(&line.text);
        let first = self.head.as_ref().map_or(1, |head| head.kept_from);
        match &self.last {
            None if entry.sequence == first && (first > 1 || entry.previous == Link::genesis().sha256) => {}
            None if entry.sequence == 1 && first == 1 => {
                return Err(line.fault("the first entry was changed: it names one before it."));
            }
            None => {
                let what = format!("the log begins with entry {}, and should with entry {first}.", entry.sequence);
                return Err(line.fault(what));
            }
            Some(last) if entry.sequence != last.sequence + 1 => {
                let (after, here) = (last.sequence, entry.sequence);
                return Err(line.fault(match here.checked_sub(after) {
                    Some(2..) => format!("entries {} to {} are missing before this line.", after + 1, here - 1),
                    _ => {
                        format!("entry {here} stands after entry {after}: lines were put in, or are in another order.")
                    }
                }));
            }
            Some(last) if entry.previous != last.sha256 => return Err(self.changed(line, &sha256, next)),
            Some(_) => {}
        }
        let (from, _) = self.found.range.unwrap_or((entry.sequence, 0));
        self.found.range = Some((from, entry.sequence));
        self.found.entries += 1;
        self.found.sha256 = Some(sha256.clone());
        self.last = Some(Link { sequence: entry.sequence, sha256 });
        self.last_line = Some((line.file.clone(), line.number));
        Ok(())
    }

    /// This line does not continue the one before: where what follows names it as it stands, the one before was changed.
    fn changed(&self, line: &Line, sha256: &str, next: &Line) -> Fault {
        let named_after = match Entry::parse(&next.text) {
            Some(entry) => Some(entry.previous),
            None => self.head.as_ref().map(|head| head.link.sha256.clone()),
        };
        match (&self.last_line, named_after) {
            (Some((file, number)), Some(named)) if named == sha256 => {
                let what = "this entry was changed after it was written.".to_owned();
                Fault { file: file.clone(), line: *number, what }
            }
            _ => line.fault("this entry was changed after it was written, or the one before it was."),
        }
    }

    /// Whether the log ends where its head says.
    fn end(&mut self, log: &Path, is_empty: bool) -> Option<Fault> {
        let at_end = |what: String| Some(Fault { file: log.to_owned(), line: None, what });
        let head = self.head.as_ref()?;
        let last = self.last.clone().unwrap_or_else(Link::genesis);
        if is_empty || head.link.sequence > last.sequence {
            let (first, end) = (last.sequence + 1, head.link.sequence);
            return at_end(format!("entries {first} to {end} are missing at the end."));
        }
        if head.link.sequence == last.sequence && head.link.sha256 != last.sha256 {
            let (file, line) = self.last_line.clone()?;
            return Some(Fault { file, line, what: "this entry, the last, was changed after it was written.".into() });
        }
        if head.link.sequence < last.sequence {
            let (first, end) = (head.link.sequence + 1, last.sequence);
            let note =
                format!("{HEAD} does not name entries {first} to {end}: a crash came between, or it was put back.");
            self.found.notes.push(note);
        }
        None
    }
}

fn read_all(directory: &Path, notes: &mut Vec<String>) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let log = directory.join(LOG);
    let mut files = archives(directory)?;
    files.extend(log.exists().then(|| log.clone()));
    for file in files {
        let text = fs::read(&file)?;
        let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            notes.push(format!("{} has mode {mode:04o}: others than its owner get at it.", file.display()));
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, torn) = text.split_at(whole);
        if !torn.is_empty() {
            let (bytes, file) = (torn.len(), file.display());
            notes.push(format!(
                "{file} ends in {bytes} bytes of an entry that was never finished: the next one mends it."
            ));
        }
        let each = whole.strip_suffix(b"\n").into_iter().flat_map(|text| text.split(|byte| *byte == b'\n'));
        lines.extend(each.enumerate().map(|(at, text)| Line {
            file: file.clone(),
            number: Some(at + 1),
            text: text.into(),
        }));
    }
    Ok(lines)
}
