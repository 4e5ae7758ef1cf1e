//! The revocation list as a file that operators, this gateway and git edit: one line is added, all else stays as it is.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    credential::{ListDigest, ListEntry, ListSigner, MintError, SignedHeader, SignedLine},
    file::{self, LOCK_PATIENCE, Readers},
    time::UnixSeconds,
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

    /// Visits every line with its number, from 1; none where there is no file. A line of a million need not be in memory
    /// with the others.
    ///
    /// # Errors
    /// [`LedgerError`] where it cannot be read.
    pub fn each_line(&self, mut visit: impl FnMut(usize, &str)) -> Result<(), LedgerError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed("read", error)),
        };
        lines_of(file, |number, line| visit(number, &String::from_utf8_lossy(line)))
            .map_err(|error| self.failed("read", error))
    }

    /// Whether the list has a signature, which any change would break.
    pub fn is_signed(&self) -> bool {
        let mut head = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(64).read_to_end(&mut head));
        read.is_ok() && SignedLine::is_begun(&head)
    }

    /// Adds one line at the end, and is done when it is on the disk. A small file is replaced as a whole; to a large one
    /// the line is written in one piece, so that its readers need not read all of it again.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was, or has a last line that is none.
    pub fn append(&self, line: &str) -> Result<(), LedgerError> {
        let target = self.target();
        let _lock = self.lock(&target)?;
        match fs::metadata(&target) {
            Ok(metadata) if metadata.len() > REPLACED_BYTES_MAX => {
                append_in_place(&target, line).map_err(|error| self.failed("write", error))
            }
            _ => self.rewrite(&target, |_| Keep::Yes, &[line.to_owned()], None).map(drop),
        }
    }

    /// Keeps the lines that `keep` says, byte by byte, adds others behind them, signs what comes of it where a signature
    /// is given, and puts it in the place of the file. Answers how many lines were left out.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was.
    pub fn edit(
        &self,
        keep: impl FnMut(&str) -> Keep,
        added: &[String],
        signature: Option<&Signature<'_>>,
    ) -> Result<usize, LedgerError> {
        let target = self.target();
        let _lock = self.lock(&target)?;
        self.rewrite(&target, keep, added, signature)
    }

    /// Takes out the lines that `is_gone` says, and is done when that is on the disk; says how many they were. All other
    /// lines stay as they are.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is then as it was. A signed list is not touched.
    pub fn remove_lines(&self, is_gone: impl Fn(&str) -> bool) -> Result<usize, LedgerError> {
        if self.is_signed() {
            let signed = io::Error::other("it is signed, and a change would break the signature");
            return Err(self.failed("change", signed));
        }
        let mut is_any = false;
        self.each_line(|_, line| is_any |= is_gone(line.trim()))?;
        if !is_any {
            return Ok(0);
        }
        self.edit(|line| if is_gone(line.trim()) { Keep::No } else { Keep::Yes }, &[], None)
    }

    fn rewrite(
        &self,
        target: &Path,
        mut keep: impl FnMut(&str) -> Keep,
        added: &[String],
        signature: Option<&Signature<'_>>,
    ) -> Result<usize, LedgerError> {
        let mut body = Body::default();
        match File::open(target) {
            Ok(file) => {
                let take = |_, line: &[u8]| body.take(line, &mut keep);
                lines_of(file, take).map_err(|error| self.failed("read", error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.failed("read", error)),
        }
        added.iter().for_each(|line| body.add(line));
        let header = match signature {
            Some(signature) => {
                let header = signature.of(&body);
                Some(header.map_err(|error| self.failed("sign", io::Error::other(error)))?)
            }
            None => None,
        };
        let parts = [header.as_deref().unwrap_or_default().as_bytes(), body.text.as_slice()];
        // Where there was none: it holds no secret, but it is not for everybody to write.
        file::replace(target, &parts, Readers::Group).map_err(|error| self.failed("write", error))?;
        Ok(body.left_out)
    }

    /// What links lead to.
    fn target(&self) -> PathBuf {
        fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    /// Held while it is changed, so that two writers do not lose each other's line. It is a file of its own: the list
    /// itself is replaced.
    fn lock(&self, target: &Path) -> Result<File, LedgerError> {
        let mut name = target.as_os_str().to_owned();
        name.push(".lock");
        file::lock(Path::new(&name), LOCK_PATIENCE).map_err(|error| self.failed("lock", error))
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

/// Whether a line stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// It does.
    Yes,
    /// It is left out.
    No,
}

/// How an edited list is signed.
#[derive(Debug)]
pub struct Signature<'a> {
    /// Who signs.
    pub signer: &'a ListSigner,
    /// A new epoch; `None`: that of the list as it was, or 1.
    pub epoch: Option<u64>,
    /// `None`: counted up from the list as it was, or the time in milliseconds, whichever is more.
    pub sequence: Option<u64>,
    /// For how long it holds; `None`: for as long as the list as it was.
    pub lifetime: Option<Duration>,
    /// By the signer's clock, in milliseconds since 1970.
    pub now_ms: u64,
}

impl Signature<'_> {
    /// The line before the body, with its line break.
    fn of(&self, body: &Body) -> Result<String, MintError> {
        let mut digest = ListDigest::default();
        digest.update(&body.text);
        let old = body.header.as_deref().and_then(|line| SignedLine::parse(line).ok());
        let old = old.as_ref().map(SignedLine::claimed);
        let signed_at = UnixSeconds(self.now_ms / 1000);
        let old_lifetime = old.map(|old| old.expires_at.since(old.signed_at));
        let epoch = self.epoch.or(old.map(|old| old.epoch)).unwrap_or(1);
        let after_old = old.filter(|old| old.epoch == epoch).map_or(0, |old| old.sequence.saturating_add(1));
        let header = SignedHeader {
            epoch,
            sequence: self.sequence.unwrap_or(after_old.max(self.now_ms)),
            signed_at,
            expires_at: signed_at.plus(self.lifetime.or(old_lifetime).unwrap_or(LIFETIME)),
            entries: body.entries,
            sha256: digest.so_far(),
        };
        Ok(self.signer.sign(&header)? + "\n")
    }
}

/// A list as it is to be written, without its header.
#[derive(Default)]
struct Body {
    header: Option<String>,
    text: Vec<u8>,
    entries: u64,
    left_out: usize,
}

impl Body {
    fn take(&mut self, line: &[u8], keep: &mut impl FnMut(&str) -> Keep) {
        let text = String::from_utf8_lossy(line);
        if self.text.is_empty() && self.header.is_none() && self.left_out == 0 && SignedLine::is_begun(line) {
            self.header = Some(text.trim_end().to_owned());
        } else if keep(text.trim_end_matches(['\r', '\n'])) == Keep::No {
            self.left_out += 1;
        } else {
            self.entries += u64::from(is_entry(&text));
            self.text.extend_from_slice(line);
        }
    }

    fn add(&mut self, line: &str) {
        if self.text.last().is_some_and(|last| *last != b'\n') {
            self.text.push(b'\n');
        }
        self.entries += u64::from(is_entry(line));
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
    }
}

fn is_entry(line: &str) -> bool {
    matches!(ListEntry::parse(line.trim_start_matches('\u{feff}')), Ok(Some(_)))
}

/// Lines with their line breaks.
fn lines_of(file: File, mut visit: impl FnMut(usize, &[u8])) -> io::Result<()> {
    let (mut reader, mut line, mut number) = (BufReader::with_capacity(256 << 10, file), Vec::new(), 0);
    while reader.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        visit(number, &line);
        line.clear();
    }
    Ok(())
}

/// One write of a line that is whole: whoever reads meanwhile sees it or does not.
fn append_in_place(target: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).open(target)?;
    let mut last = [b'\n'];
    file.read_exact_at(&mut last, file.metadata()?.len().saturating_sub(1))?;
    let begin = if last == *b"\n" { "" } else { "\n" };
    file.write_all(format!("{begin}{line}\n").as_bytes())?;
    file.sync_all()
}

/// Up to this a file is replaced by a change of one line: nobody ever sees half of it.
const REPLACED_BYTES_MAX: u64 = 1 << 20;
/// Of a list that was never signed and is not said how long it holds.
const LIFETIME: Duration = Duration::from_hours(30 * 24);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

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
        assert_eq!(fs::read_to_string(&path).expect("read"), "# by hand\n\n{\"device\": \"a\"}\n{\"device\": \"b\"}\n");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o604);
        assert!(!path.with_file_name(".list.jsonl.new").exists());
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
    fn a_large_list_is_appended_to_where_it_stands() {
        let room = Room::new("large");
        let path = room.0.join("list");
        fs::write(&path, "#\n".repeat(1 << 20) + "# no line break").expect("written");
        let place = fs::metadata(&path).expect("there").ino();
        Ledger::new(&path).append("{\"device\": \"a\"}").expect("appended");
        Ledger::new(&path).append("{\"device\": \"b\"}").expect("appended");
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.ends_with("#\n# no line break\n{\"device\": \"a\"}\n{\"device\": \"b\"}\n"));
        assert_eq!(fs::metadata(&path).expect("there").ino(), place);
    }

    #[test]
    fn what_is_kept_is_kept_byte_by_byte() {
        let room = Room::new("edit");
        let path = room.0.join("list");
        fs::write(&path, b"# \xff\r\n\n{\"device\": \"a\"}\r\n  {\"device\": \"b\"}").expect("written");
        let keep = |line: &str| if line == "{\"device\": \"a\"}" { Keep::No } else { Keep::Yes };
        assert_eq!(Ledger::new(&path).edit(keep, &["x".into()], None).expect("edited"), 1);
        assert_eq!(fs::read(&path).expect("read"), b"# \xff\r\n\n  {\"device\": \"b\"}\nx\n");
    }

    #[test]
    fn a_list_that_cannot_be_written_says_so() {
        let error = Ledger::new("/nonexistent/list").append("x").expect_err("no such directory");
        assert!(error.to_string().starts_with("cannot lock /nonexistent/list: "), "{error}");
    }
}
