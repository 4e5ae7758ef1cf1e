//! The revocation list's file. What its lines mean is told by [`RevocationList`]; here it is read, as little of it as will
//! do, and its bad lines are named as mistakes.
//!
//! A file that has kept its place on the disk and the last 64 KiB of what was read of it, and is not shorter, is taken as
//! appended to: the new lines alone are read and come into force. That what stands before them is unchanged is proved after
//! that, by the SHA-256 of it, step by step ([`RevocationFile::verify`]); where it did change, the file is read as a whole.
//! That takes a second for a million lines: those at its end, and those that are appended meanwhile, are told before the
//! rest ([`RevocationFile::load`]). A signed list is always read as a whole, and believed as a whole.

mod highest;
mod local;
mod named;
mod tail;

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::tail::Tail;
pub use self::{
    local::{local_revocations, revoke_locally},
    named::{names_nobody, warn_of_entries_for_nobody},
};
use super::{Config, mistake::Mistake};
use crate::{
    credential::{
        ListDigest, ListReader, ListRules, ListStamp, ReadList, RevocationList, SignedHeader, SignedLine, WhenStale,
    },
    size::Bytes,
    time::UnixSeconds,
};

/// A list that could be read.
#[derive(Debug)]
pub struct LoadedRevocations {
    /// What is to be in force: every good line, and what was in force while there is a bad one.
    pub list: RevocationList,
    /// The lines that say nothing we understand. While there is one, nothing that was in force may be lifted.
    pub bad_lines: Vec<Mistake>,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
    /// Everybody may write the file.
    pub is_exposed: bool,
    /// What a signed list said of itself.
    pub header: Option<SignedHeader>,
    /// How much of the file was read.
    pub reading: Reading,
    /// Whether what was read of the file itself says nothing.
    pub is_bare: bool,
    /// What the gateway added by itself, which is in `list` too.
    pub local: RevocationList,
}

/// How much of the file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The lines that were appended, where there are only such.
    Appended,
    /// All of it.
    Whole,
}

/// Whether the beginning of the file is what was read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It is, or the whole file was read; or another file stands there, which is to be read anyway.
    Intact,
    /// One step was done of several: it is to be asked again at once.
    Underway,
    /// Lines were appended: they are to be read before the next step.
    Grown,
    /// It changed: the file is to be read as a whole.
    Changed,
    /// It was proved a moment ago; it is to be asked again later.
    Later,
}

/// The list's file, and what must be known of it to read no more than is new.
#[derive(Debug)]
pub struct RevocationFile {
    path: PathBuf,
    rules: Option<ListRules>,
    state_dir: PathBuf,
    seen: Option<Seen>,
    proved: Option<Proved>,
}

/// What was read.
#[derive(Debug)]
struct Seen {
    identity: (u64, u64),
    bytes: u64,
    lines: usize,
    ends_within_line: bool,
    bad_lines: Vec<Mistake>,
    /// Of all of it.
    digest: ListDigest,
    /// Of its last 64 KiB.
    block: [u8; 32],
    /// The file was written to since it was read as a whole, or since the proof began.
    is_touched: bool,
    proof: Option<Proof>,
}

/// A proof that is under way: the file up to `end` is what was read of it.
#[derive(Debug)]
struct Proof {
    at: u64,
    digest: ListDigest,
    end: u64,
    expected: [u8; 32],
    took: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Proved {
    at: Instant,
    took: Duration,
}

impl RevocationFile {
    /// The file that a configuration names, held to its rules.
    pub fn of(config: &Config) -> Self {
        let (path, state_dir) = (config.gateway.revocations.clone(), config.gateway.state_dir.clone());
        Self { path, rules: config.list_rules.clone(), state_dir, seen: None, proved: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the list, and adds to it what the gateway revoked by itself. `in_force` is what the last call gave. While the whole of a large file is read, `early` is given the
    /// good lines at its end and those that are appended meanwhile: they are to be added to what is in force at once, so
    /// that a revocation does not wait for a million others. Nothing is lifted by them.
    ///
    /// # Errors
    /// When the file cannot be read at all, or is not signed as it must be: what is in force stays, and where there is
    /// nothing every CONNECT is to be refused.
    pub fn load(
        &mut self,
        reading: Reading,
        in_force: Option<&RevocationList>,
        early: &mut dyn FnMut(RevocationList),
        now: UnixSeconds,
    ) -> Result<LoadedRevocations, Mistake> {
        let (local, bad_lines) = local::read(&self.state_dir)?;
        let mut loaded = self.load_file(reading, in_force, early, now)?;
        loaded.list = loaded.list.with(&local);
        if let (false, Some(old)) = (bad_lines.is_empty(), in_force) {
            loaded.list = loaded.list.merge_for_safety(old);
        }
        loaded.bad_lines.extend(bad_lines);
        Ok(LoadedRevocations { local, ..loaded })
    }

    fn load_file(
        &mut self,
        reading: Reading,
        in_force: Option<&RevocationList>,
        early: &mut dyn FnMut(RevocationList),
        now: UnixSeconds,
    ) -> Result<LoadedRevocations, Mistake> {
        let file = File::open(&self.path).map_err(|error| unreadable(&self.path, &error))?;
        let metadata = file.metadata().map_err(|error| unreadable(&self.path, &error))?;
        check_file(&self.path, &metadata)?;
        if let (Reading::Appended, Some(in_force)) = (reading, in_force)
            && let Some(loaded) = self.load_appended(&file, &metadata, in_force)
        {
            return Ok(loaded);
        }
        self.seen = None;
        self.load_whole(file, &metadata, in_force, early, now)
    }

    /// What the gateway added by itself; `None` while a line of it says nothing, or it cannot be read.
    pub fn local(&self) -> Option<RevocationList> {
        local::read(&self.state_dir).ok().and_then(|(list, bad_lines)| bad_lines.is_empty().then_some(list))
    }

    /// Keeps the number of a signed list that came into force: what comes before it is refused from here on, also after
    /// a restart.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, header: &SignedHeader) -> Result<(), Mistake> {
        highest::write(&self.state_dir, header.highest()).map_err(|error| {
            let what = format!("the number of the signed list that is in force cannot be kept: {error}.");
            Mistake::of_file(highest::path(&self.state_dir), what, "Let the gateway's user write there.")
        })
    }

    /// Proves, a step at each call, that lines were appended and nothing else was done. It reads the whole file, and so is
    /// given no more than a twentieth of the time.
    pub fn verify(&mut self) -> Verified {
        let Some(seen) = self.seen.as_mut().filter(|seen| seen.is_touched || seen.proof.is_some()) else {
            return Verified::Intact;
        };
        if seen.proof.is_none() {
            if self.proved.is_some_and(|last| last.at.elapsed() < last.took * PROVE_AT_MOST_EVERY) {
                return Verified::Later;
            }
            seen.is_touched = false;
        }
        let fresh = || Proof {
            at: 0,
            digest: ListDigest::default(),
            end: seen.bytes,
            expected: seen.digest.so_far(),
            took: Duration::ZERO,
        };
        let proof = seen.proof.get_or_insert_with(fresh);
        let stepped = match step(&self.path, (seen.identity, seen.bytes), proof) {
            Ok(Step::Done) => Some(proof.digest.so_far() == proof.expected),
            Ok(Step::More) => return Verified::Underway,
            Ok(Step::Grown) => return Verified::Grown,
            Ok(Step::Replaced) => {
                seen.proof = None;
                return Verified::Intact;
            }
            Err(_) => None,
        };
        self.proved = Some(Proved { at: Instant::now(), took: proof.took });
        seen.proof = None;
        if stepped == Some(true) {
            return if seen.is_touched { Verified::Later } else { Verified::Intact };
        }
        self.seen = None;
        Verified::Changed
    }

    fn load_appended(
        &mut self,
        file: &File,
        metadata: &Metadata,
        in_force: &RevocationList,
    ) -> Option<LoadedRevocations> {
        let seen = self.seen.as_mut().filter(|seen| self.rules.is_none() && !seen.ends_within_line)?;
        let may_be_longer = seen.identity == (metadata.dev(), metadata.ino()) && metadata.len() >= seen.bytes;
        if !may_be_longer || block_before(file, seen.bytes).ok()? != seen.block {
            return None;
        }
        let mut reader = ListReader::after_lines(seen.lines);
        let mut digest = seen.digest.clone();
        let bytes = read_from(file, seen.bytes, |piece| {
            reader.feed(piece);
            digest.update(piece);
        });
        let bytes = seen.bytes + bytes.ok()?;
        let block = block_before(file, bytes).ok()?;
        let ReadList { list, bad_lines, lines, ends_within_line, .. } = reader.finish();
        seen.bad_lines.extend(bad_lines.into_iter().map(|bad| named(&self.path, bad.line, &bad.what)));
        seen.bad_lines.truncate(BAD_LINES_KEPT);
        (seen.bytes, seen.lines, seen.ends_within_line) = (bytes, lines, ends_within_line);
        (seen.digest, seen.block, seen.is_touched) = (digest, block, true);
        let (warnings, is_exposed) = writable_by_others(&self.path, metadata);
        let (is_bare, bad_lines, list) = (list.is_empty(), seen.bad_lines.clone(), in_force.with(&list));
        let (header, reading, local) = (None, Reading::Appended, RevocationList::default());
        Some(LoadedRevocations { list, bad_lines, warnings, is_exposed, header, reading, is_bare, local })
    }

    fn load_whole(
        &mut self,
        file: File,
        metadata: &Metadata,
        in_force: Option<&RevocationList>,
        early: &mut dyn FnMut(RevocationList),
        now: UnixSeconds,
    ) -> Result<LoadedRevocations, Mistake> {
        let failed = |error: io::Error| unreadable(&self.path, &error);
        let signed = self.read_header(&file, now)?;
        let body_at = signed.as_ref().map_or(0, |signed| signed.body_at);
        let (mut reader, mut digest) = (ListReader::default(), ListDigest::default());
        let mut head = vec![0; usize::try_from(body_at).unwrap_or_default()];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        reader.feed(&head);
        // A signature is over all of it: no line is believed before the last was read.
        let mut tail = in_force.filter(|_| signed.is_none()).and_then(|_| Tail::of(metadata.len()));
        let bytes = read_from(&file, body_at, |piece| {
            if let Some(tail) = &mut tail {
                tail.look(&file, early);
            }
            reader.feed(piece);
            digest.update(piece);
        });
        let bytes = body_at + bytes.map_err(failed)?;
        let ReadList { mut list, bad_lines, lines, entries, ends_within_line } = reader.finish();
        let bad_lines: Vec<Mistake> = bad_lines.iter().map(|bad| named(&self.path, bad.line, &bad.what)).collect();
        if let Some(Signed { header, stamp, .. }) = &signed {
            if header.sha256 != digest.so_far() || header.entries != entries as u64 {
                return Err(refused(
                    &self.path,
                    "what follows its header is not what was signed: it was changed or cut off",
                ));
            }
            list = list.stamped(*stamp);
        }
        if let (false, Some(old)) = (bad_lines.is_empty(), in_force) {
            list = list.merge_for_safety(old);
        }
        let (mut warnings, mut is_exposed) = (Vec::new(), false);
        if signed.is_none() {
            (warnings, is_exposed) = writable_by_others(&self.path, metadata);
            warnings.extend(self.signed_for_nobody(&file));
            let block = block_before(&file, bytes).map_err(failed)?;
            let (identity, bad_lines) = ((metadata.dev(), metadata.ino()), bad_lines.clone());
            let (is_touched, proof) = (false, None);
            let seen = Seen { identity, bytes, lines, ends_within_line, bad_lines, digest, block, is_touched, proof };
            self.seen = Some(seen);
        }
        let (header, reading) = (signed.map(|signed| signed.header), Reading::Whole);
        let (is_bare, local) = (list.is_empty(), RevocationList::default());
        Ok(LoadedRevocations { list, bad_lines, warnings, is_exposed, header, reading, is_bare, local })
    }

    /// The header of a list that must be signed, once it is believed.
    fn read_header(&self, file: &File, now: UnixSeconds) -> Result<Option<Signed>, Mistake> {
        let Some(rules) = &self.rules else { return Ok(None) };
        let head = first_bytes(file).map_err(|error| unreadable(&self.path, &error))?;
        if !SignedLine::is_begun(&head) {
            return Err(refused(&self.path, "it is not signed, and `revocation_keys` asks for a signature"));
        }
        let line = head.split(|byte| *byte == b'\n').next().filter(|line| line.len() < head.len());
        let line = line.and_then(|line| str::from_utf8(line).ok());
        let line = line.ok_or_else(|| refused(&self.path, "its header has no end"))?;
        let highest = highest::read(&self.state_dir)?;
        let claimed = SignedLine::parse(line).map_err(|why| refused(&self.path, &why))?;
        let (header, stamp) = claimed.judge(rules, highest, now).map_err(|why| refused(&self.path, &why))?;
        Ok(Some(Signed { header: header.clone(), stamp, body_at: line.len() as u64 + 1 }))
    }

    fn signed_for_nobody(&self, file: &File) -> Option<Mistake> {
        let is_signed = first_bytes(file).is_ok_and(|head| SignedLine::is_begun(&head));
        let what = "the list is signed, and nobody looks at the signature.";
        let remedy = "Name who may sign it: `revocation_keys` under [credentials] of gateway.toml.";
        is_signed.then(|| Mistake::at_line(&self.path, 1, what, remedy))
    }
}

struct Signed {
    header: SignedHeader,
    stamp: ListStamp,
    /// Where the entries begin.
    body_at: u64,
}

/// Reads the list once, as the gateway would at its start.
///
/// # Errors
/// As [`RevocationFile::load`].
pub fn load_revocations(config: &Config, now: UnixSeconds) -> Result<LoadedRevocations, Mistake> {
    RevocationFile::of(config).load(Reading::Whole, None, &mut |_| {}, now)
}

/// Whether the list on disk may be signed again after a change: a newer number on an older list, or on one that somebody
/// else changed, would lift revocations with nobody's will. That it expired is no reason, nor that none was ever in force.
///
/// # Errors
/// What is wrong with it, and how it is mended.
pub fn check_signed_again(config: &Config, now: UnixSeconds) -> Result<(), Mistake> {
    let Some(rules) = &config.list_rules else { return Ok(()) };
    if highest::read(&config.gateway.state_dir)?.is_none() && !is_signed(&config.gateway.revocations) {
        return Ok(());
    }
    let mut file = RevocationFile::of(config);
    file.rules = Some(ListRules { when_stale: WhenStale::Serve, ..rules.clone() });
    let loaded = file.load_file(Reading::Whole, None, &mut |_| {}, now);
    loaded.map(drop).map_err(|mistake| Mistake { remedy: mended_by(&file.path), ..mistake })
}

/// Whether a list, wherever it lies, has a number that comes before that of the list in force.
///
/// # Errors
/// That it does, and how it is mended.
pub fn check_not_older(config: &Config, list: &Path) -> Result<(), Mistake> {
    let Some(highest) = highest::read(&config.gateway.state_dir)? else { return Ok(()) };
    let head = File::open(list).and_then(|file| first_bytes(&file)).map_err(|error| unreadable(list, &error))?;
    let line = head.split(|byte| *byte == b'\n').next().and_then(|line| str::from_utf8(line).ok());
    let claimed = line.and_then(|line| SignedLine::parse(line).ok());
    let Some(header) = claimed.as_ref().map(SignedLine::claimed) else { return Ok(()) };
    let (ours, theirs) = ((highest.epoch, highest.sequence), (header.epoch, header.sequence));
    if theirs > ours || (theirs == ours && header.sha256 == highest.sha256) {
        return Ok(());
    }
    let was = if theirs < ours { "it is older" } else { "it is another list" };
    let why = format!(
        "it has epoch {} and sequence {}, and epoch {}, sequence {} was in force already: {was}",
        theirs.0, theirs.1, ours.0, ours.1
    );
    Err(Mistake { remedy: mended_by(list), ..refused(list, &why) })
}

fn mended_by(list: &Path) -> String {
    let sign = format!("tollgate revocations sign {} --key-file FILE --epoch N", list.display());
    format!(
        "Nothing is signed. Put the newest list back, and do it again; to have this one instead, with a new count: {sign}"
    )
}

/// A device that never ends, or a file that fills the memory, is no list.
fn check_file(path: &Path, metadata: &Metadata) -> Result<(), Mistake> {
    if !metadata.is_file() {
        return Err(Mistake::of_file(path, "the revocation list is no file.", "Name a file."));
    }
    if metadata.len() > LIST_BYTES_MAX.0 {
        let what = format!("the revocation list is larger than {LIST_BYTES_MAX}.");
        let remedy = "Run: tollgate revocations prune, which takes out the entries whose `until` has passed.";
        return Err(Mistake::of_file(path, what, remedy));
    }
    Ok(())
}

fn read_from(file: &File, at: u64, mut take: impl FnMut(&[u8])) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; PIECE_BYTES], 0);
    loop {
        match file.read_at(&mut buffer, at + bytes)? {
            0 => return Ok(bytes),
            count => {
                take(buffer.get(..count).unwrap_or_default());
                bytes += count as u64;
            }
        }
        if at + bytes > LIST_BYTES_MAX.0 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {LIST_BYTES_MAX}")));
        }
    }
}

fn first_bytes(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEADER_BYTES_MAX];
    let count = file.read_at(&mut head, 0)?;
    head.truncate(count);
    Ok(head)
}

fn block_before(file: &File, end: u64) -> io::Result<[u8; 32]> {
    let bytes = end.min(BLOCK_BYTES);
    let mut block = vec![0; usize::try_from(bytes).unwrap_or_default()];
    file.read_exact_at(&mut block, end - bytes)?;
    let mut digest = ListDigest::default();
    digest.update(&block);
    Ok(digest.so_far())
}

/// What a step of a proof found.
enum Step {
    Done,
    More,
    /// There is more behind what was read.
    Grown,
    /// It is another file, or shorter: whoever watches it has it read.
    Replaced,
}

fn step(path: &Path, (identity, bytes): ((u64, u64), u64), proof: &mut Proof) -> io::Result<Step> {
    let begun = Instant::now();
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if identity != (metadata.dev(), metadata.ino()) || metadata.len() < bytes {
        return Ok(Step::Replaced);
    }
    if metadata.len() > bytes {
        return Ok(Step::Grown);
    }
    let step_end = proof.end.min(proof.at + STEP_BYTES);
    let mut buffer = vec![0; PIECE_BYTES];
    while proof.at < step_end {
        let count = usize::try_from(step_end - proof.at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let piece = buffer.get_mut(..count).unwrap_or_default();
        file.read_exact_at(piece, proof.at)?;
        proof.digest.update(piece);
        proof.at += count as u64;
    }
    proof.took += begun.elapsed();
    Ok(if proof.at == proof.end { Step::Done } else { Step::More })
}

/// Threat T28: who can write the list can lift a revocation. Links are followed: it is the file itself that counts.
fn writable_by_others(path: &Path, metadata: &Metadata) -> (Vec<Mistake>, bool) {
    let mut warnings = Vec::new();
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        let what = format!("its mode {mode:04o} lets group or others lift revocations.");
        warnings.push(Mistake::of_file(path, what, format!("Run: chmod go-w {}", path.display())));
    }
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != own {
        let what = format!("it belongs to the user {owner}, who can lift revocations.");
        warnings.push(Mistake::of_file(path, what, "Leave it, if that is the operator; else run: chown"));
    }
    (warnings, mode & 0o002 != 0)
}

fn named(path: &Path, line: usize, what: &str) -> Mistake {
    let remedy = "Correct it, or put # before it; until then the list lifts nothing.";
    Mistake::at_line(path, line, format!("{}.", what.trim_end_matches('.')), remedy)
}

fn unreadable(path: &Path, error: &io::Error) -> Mistake {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "the revocation list does not exist.".to_owned(),
        _ => format!("the revocation list cannot be read: {error}."),
    };
    Mistake::of_file(path, what, "Make it (it may be empty), or give the gateway's user the right to read it.")
}

fn refused(path: &Path, why: &str) -> Mistake {
    let remedy = "Put the list there as its signer made it, or sign it: tollgate revocations sign.";
    Mistake::of_file(path, format!("the revocation list is refused: {why}."), remedy)
}

/// Whether the file has a signature, which any change would break; no where there is no file.
pub fn is_signed(path: &Path) -> bool {
    File::open(path).and_then(|file| first_bytes(&file)).is_ok_and(|head| SignedLine::is_begun(&head))
}

/// Some five million entries.
const LIST_BYTES_MAX: Bytes = Bytes::mib(512);
/// What is in memory of the file at once.
const PIECE_BYTES: usize = 256 << 10;
/// A header has some 350 bytes.
const HEADER_BYTES_MAX: usize = 1024;
/// Of the end of what was read; a rewrite that keeps them, the place of the file and their place in it is found later.
const BLOCK_BYTES: u64 = 64 << 10;
/// Times the time that it takes.
const PROVE_AT_MOST_EVERY: u32 = 20;
/// Some ten milliseconds: so long a line that is appended waits for the proof of those before it.
const STEP_BYTES: u64 = 4 << 20;
/// One broken export must not fill the memory.
const BAD_LINES_KEPT: usize = 1000;

#[cfg(test)]
mod tests;
