//! `refresh.jsonl` of the state directory: the lines of refresh tokens, so that they outlive the process.
//!
//! One JSON record a line, appended and synced before a token is handed out: a line of tokens as a whole after each change,
//! that an answer was written, that a line has ended. The last record of a line counts. When the file is mostly of the past
//! it is written anew beside and renamed. A record that is cut off at the end was never answered for, and is dropped; one
//! that is damaged in the middle may hide that a token was used, so no refresh token is taken until an operator has looked.
//! The file holds hashes and the key of the tags, no token; its mode is 0600.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::refresh::{
    Answer, LINE_BYTES, Line, LineId, LineTerms, Origin, Outstanding, RefreshToken, SECRET_BYTES, Verdict,
};
use crate::{
    file::{self, Readers},
    id::DeviceId,
    time::UnixSeconds,
};

/// All lines, and the file that holds them.
pub(super) struct Store {
    path: PathBuf,
    lines_max: usize,
    held: Mutex<Held>,
    /// Held for as long as the store: one process writes.
    _lock: File,
}

struct Held {
    file: File,
    bytes: u64,
    tag_key: Zeroizing<Vec<u8>>,
    lines: HashMap<LineId, Line>,
    by_device: HashMap<String, Vec<LineId>>,
    /// A sync failed: what is on the disk is not known any more, so nothing is handed out.
    failed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    TagKey(String),
    Line(Box<Line>),
    Written { line: LineId, sequence: u32 },
    Ended(LineId),
}

/// What a refused exchange was refused for; `R` is the reason of whoever was to make the access token.
#[derive(Debug)]
pub(super) enum Refusal<R> {
    /// No token of ours, of no line, or of one that has ended: and why, for the operator.
    Unknown(&'static str),
    /// It was used before. The line is dead; its access tokens are to be revoked, then [`Store::end`] is to be called.
    Reused(Box<Line>),
    /// So many access tokens are outstanding that no further one could be revoked: when there is room.
    Crowded(UnixSeconds),
    /// No access token was made, and the refresh token is as good as before.
    Refused(R),
    /// The disk.
    Failed(StoreError),
}

impl Store {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError`]: it cannot be read, is damaged, or another process has it.
    pub(super) fn open(state_dir: &Path, now: UnixSeconds) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        let failed = |what| move |source: io::Error| StoreError { path: state_dir.join(FILE), what, source };
        let lock = file::lock(&state_dir.join(LOCK), Duration::ZERO).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => failed("lock")(io::Error::other("another process has it")),
            _ => failed("lock")(error),
        })?;
        let (tag_key, mut lines) = match fs::read_to_string(&path) {
            Ok(text) => read(&Zeroizing::new(text)).map_err(failed("read"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (random::<32>().map_err(failed("make"))?.to_vec().into(), HashMap::new())
            }
            Err(error) => return Err(failed("read")(error)),
        };
        lines.retain(|_, line| now.0 < line.ends_at || line.reused);
        let mut by_device: HashMap<String, Vec<LineId>> = HashMap::new();
        for line in lines.values() {
            by_device.entry(line.device.clone()).or_default().push(line.line.clone());
        }
        let (file, bytes) = write_anew(&path, &tag_key, &lines).map_err(failed("write"))?;
        let held = Mutex::new(Held { file, bytes, tag_key, lines, by_device, failed: false });
        Ok(Self { path, lines_max: LINES_MAX, held, _lock: lock })
    }

    /// Begins a line with its first access token; answers its first refresh token.
    ///
    /// # Errors
    /// [`StoreError`]: the disk, or there are as many lines as may be.
    pub(super) fn begin(
        &self,
        device: &DeviceId,
        (origin, terms): (Origin, LineTerms),
        first: Outstanding,
        ends_at: UnixSeconds,
        now: UnixSeconds,
    ) -> Result<RefreshToken, StoreError> {
        let mut held = self.held()?;
        if held.lines.len() >= self.lines_max {
            let ended = held.lines.values().filter(|line| now.0 >= line.ends_at && !line.reused);
            let ended: Vec<LineId> = ended.map(|line| line.line.clone()).collect();
            ended.iter().for_each(|line| held.remove(line));
            if held.lines.len() >= self.lines_max {
                return Err(self.failed("add to", io::Error::other(format!("it holds {} lines", self.lines_max))));
            }
        }
        let fresh = |error| self.failed("add to", error);
        let token = RefreshToken::make(
            random::<LINE_BYTES>().map_err(fresh)?,
            1,
            random_secret().map_err(fresh)?,
            &held.tag_key,
        );
        let line = Line {
            line: token.line(),
            device: device.as_str().to_owned(),
            origin,
            terms,
            began_at: now.0,
            ends_at: ends_at.0,
            used_at: now.0,
            sequence: 1,
            current: token.hash(),
            before: None,
            outstanding: vec![first],
            reused: false,
        };
        let crowded_out = held.crowded_out(device, now);
        let mut records: Vec<Record> = crowded_out.iter().cloned().map(Record::Ended).collect();
        records.push(Record::Line(Box::new(line.clone())));
        self.append(&mut held, &records)?;
        crowded_out.iter().for_each(|old| held.remove(old));
        held.by_device.entry(line.device.clone()).or_default().push(line.line.clone());
        held.lines.insert(line.line.clone(), line);
        Ok(token)
    }

    /// Exchanges a refresh token for an access token, which `make` makes for the line's device, and the next refresh token.
    /// Both are on the disk when this returns. What became of the answer is to be told by [`Store::answered`].
    ///
    /// # Errors
    /// [`Refusal`]; but for [`Refusal::Reused`] the line is as it was.
    pub(super) fn exchange<T, R>(
        &self,
        presented: &str,
        attempt: Option<String>,
        make: impl FnOnce(&Line) -> Result<(T, Outstanding), R>,
        now: UnixSeconds,
    ) -> Result<(T, RefreshToken), Refusal<R>> {
        let mut held = self.held().map_err(Refusal::Failed)?;
        let token = RefreshToken::read(presented, &held.tag_key)
            .ok_or(Refusal::Unknown("It is no refresh token of this gateway."))?;
        let line = held.lines.get(&token.line()).ok_or(Refusal::Unknown("Its line has ended or was revoked."))?.clone();
        match line.judge(&token, attempt.as_deref(), now) {
            Verdict::Current | Verdict::Again => {}
            Verdict::Ended => return Err(Refusal::Unknown("Its line has come to its end.")),
            Verdict::Unknown => return Err(Refusal::Unknown("It is newer than what is kept of its line.")),
            Verdict::Reused => {
                let dead = Line { reused: true, ..line };
                if !held.lines.get(&dead.line).is_some_and(|line| line.reused) {
                    held.lines.insert(dead.line.clone(), dead.clone());
                    // Dead in memory whatever the disk does.
                    if let Err(error) = self.append(&mut held, &[Record::Line(Box::new(dead.clone()))]) {
                        tracing::error!(%error, line = dead.line, "a refresh token was used twice");
                    }
                }
                return Err(Refusal::Reused(Box::new(dead)));
            }
        }
        if let Some(at) = line.room_at(now) {
            return Err(Refusal::Crowded(at));
        }
        let (made, outstanding) = make(&line).map_err(Refusal::Refused)?;
        let secret = random_secret().map_err(|error| Refusal::Failed(self.failed("add to", error)))?;
        let successor = RefreshToken::make(token.line_bytes(), line.sequence + 1, secret, &held.tag_key);
        let next = line.next(&token, &successor, attempt, outstanding, now);
        self.append(&mut held, &[Record::Line(Box::new(next.clone()))]).map_err(Refusal::Failed)?;
        held.lines.insert(next.line.clone(), next);
        Ok((made, successor))
    }

    /// Whether the answer with a line's current token was written to its connection.
    pub(super) fn answered(&self, line: &LineId, sequence: u32, answer: Answer) {
        let Ok(mut held) = self.held() else { return };
        let Some(of) = held.lines.get_mut(line).filter(|line| line.sequence == sequence) else { return };
        let Some(before) = &mut of.before else { return };
        before.answer = answer;
        if answer == Answer::Written {
            // Not synced: a power cut leaves the token before once more, which the next use of either shows.
            let record = Record::Written { line: line.clone(), sequence };
            if let Err(error) = self.write(&mut held, &[record]) {
                tracing::error!(%error, "refresh tokens");
            }
        }
    }

    /// Forgets a line: each of its tokens is unknown from here on.
    ///
    /// # Errors
    /// [`StoreError`]: it is forgotten until the next start only.
    pub(super) fn end(&self, line: &LineId) -> Result<(), StoreError> {
        let mut held = self.held()?;
        held.remove(line);
        self.append(&mut held, &[Record::Ended(line.clone())])
    }

    /// Lines of which a token was used twice, and whose access tokens the process had no time to revoke.
    pub(super) fn reused(&self) -> Vec<Line> {
        self.held().map_or_else(|_| Vec::new(), |held| held.lines.values().filter(|l| l.reused).cloned().collect())
    }

    fn held(&self) -> Result<MutexGuard<'_, Held>, StoreError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.failed {
            true => Err(self.failed("sync", io::Error::other("an earlier write failed; restart the gateway"))),
            false => Ok(held),
        }
    }

    /// Writes and syncs.
    fn append(&self, held: &mut Held, records: &[Record]) -> Result<(), StoreError> {
        self.write(held, records)?;
        // After a failed sync the kernel may have dropped what it could not write: trying again would prove nothing.
        held.file.sync_data().map_err(|error| {
            held.failed = true;
            self.failed("sync", error)
        })
    }

    fn write(&self, held: &mut Held, records: &[Record]) -> Result<(), StoreError> {
        if held.bytes > BYTES_CALM && held.bytes > 2 * bytes_of(&held.lines) {
            match write_anew(&self.path, &held.tag_key, &held.lines) {
                Ok((file, bytes)) => (held.file, held.bytes) = (file, bytes),
                // The old one still serves.
                Err(error) => tracing::error!(%error, file = %self.path.display(), "cannot be written anew"),
            }
        }
        let text = records.iter().map(line_of).collect::<String>();
        if let Err(error) = held.file.write_all(text.as_bytes()) {
            // A part of a record must not stand before the next one.
            held.failed = held.file.set_len(held.bytes).is_err();
            return Err(self.failed("write", error));
        }
        held.bytes += text.len() as u64;
        Ok(())
    }

    fn failed(&self, what: &'static str, source: io::Error) -> StoreError {
        StoreError { path: self.path.clone(), what, source }
    }
}

impl Held {
    fn remove(&mut self, line: &LineId) {
        let Some(removed) = self.lines.remove(line) else { return };
        if let Some(of_device) = self.by_device.get_mut(&removed.device) {
            of_device.retain(|other| other != line);
            if of_device.is_empty() {
                self.by_device.remove(&removed.device);
            }
        }
    }

    /// Lines of a device that make place for a new one: those that ended, and the longest unused of too many.
    fn crowded_out(&self, device: &DeviceId, now: UnixSeconds) -> Vec<LineId> {
        let ids = self.by_device.get(device.as_str()).map_or(&[][..], Vec::as_slice);
        let (mut alive, ended): (Vec<&Line>, Vec<&Line>) =
            ids.iter().filter_map(|id| self.lines.get(id)).filter(|l| !l.reused).partition(|l| now.0 < l.ends_at);
        alive.sort_by_key(|line| line.used_at);
        let too_many = (alive.len() + 1).saturating_sub(LINES_PER_DEVICE_MAX);
        ended.into_iter().chain(alive.into_iter().take(too_many)).map(|line| line.line.clone()).collect()
    }
}

/// The refresh tokens could not be read or kept.
#[derive(Debug)]
pub(super) struct StoreError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.what, self.path.display(), self.source)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

type Kept = (Zeroizing<Vec<u8>>, HashMap<LineId, Line>);

fn read(text: &str) -> io::Result<Kept> {
    let damaged = |number: usize| {
        io::Error::other(format!(
            "line {number} is damaged, and may hide that a refresh token was used: put the file back from a backup of this \
             minute, or move it away, which ends all refresh tokens"
        ))
    };
    let (mut tag_key, mut lines) = (None, HashMap::new());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // A record without its end was never synced, so nobody was answered.
        let Some(line) = line.strip_suffix('\n') else { break };
        match serde_json::from_str(line).map_err(|_| damaged(index + 1))? {
            Record::TagKey(key) => tag_key = Some(STANDARD.decode(key).map_err(|_| damaged(index + 1))?.into()),
            Record::Line(line) => drop(lines.insert(line.line.clone(), *line)),
            Record::Written { line, sequence } => {
                let of = lines.get_mut(&line).filter(|line| line.sequence == sequence);
                if let Some(before) = of.and_then(|line| line.before.as_mut()) {
                    before.answer = Answer::Written;
                }
            }
            Record::Ended(line) => drop(lines.remove(&line)),
        }
    }
    Ok((tag_key.ok_or_else(|| damaged(1))?, lines))
}

/// The file without its past.
fn write_anew(path: &Path, tag_key: &[u8], lines: &HashMap<LineId, Line>) -> io::Result<(File, u64)> {
    let mut text = Zeroizing::new(line_of(&Record::TagKey(STANDARD.encode(tag_key))));
    lines.values().for_each(|line| text.push_str(&line_of(&Record::Line(Box::new(line.clone())))));
    file::replace(path, &[text.as_bytes()], Readers::Owner)?;
    Ok((OpenOptions::new().append(true).open(path)?, text.len() as u64))
}

fn line_of(record: &Record) -> String {
    let mut text = serde_json::to_string(record).expect("invariant: a record has no key that is no text");
    text.push('\n');
    text
}

/// About what they take in the file.
fn bytes_of(lines: &HashMap<LineId, Line>) -> u64 {
    lines.values().map(|line| 500 + 80 * line.outstanding.len() as u64).sum()
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn random_secret() -> io::Result<Zeroizing<[u8; SECRET_BYTES]>> {
    random().map(Zeroizing::new)
}

const FILE: &str = "refresh.jsonl";
const LOCK: &str = "refresh.lock";
/// About 60 MiB of memory.
const LINES_MAX: usize = 100_000;
/// One that is in use, and some that a device forgot when it was set up anew.
const LINES_PER_DEVICE_MAX: usize = 8;
/// Below this the file is left alone.
const BYTES_CALM: u64 = 1 << 20;

#[cfg(test)]
mod tests;
