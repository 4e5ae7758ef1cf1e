//! Going on without what is damaged: an operator's decision, never the gateway's own.
//!
//! What is whole is written anew into a directory of its own, a segment at a time. When all of it is there a *note* says
//! so, and which files are to make way; then these are renamed, a second note says that they are, and the new files take
//! their place, `CURRENT` last. While a note is there no spool opens, and a salvage that was interrupted goes on where it
//! was: nobody ever takes a part for the whole.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ASIDE, Batch, BatchRecord, Directory, Disk, Limits, SegmentLog, Spool, SpoolError, SpoolKeys, StreamId,
    format::{self, Frame, Kind, SegmentHeader},
    log::CURRENT,
    recover::{key_of, read_whole, records_of},
    segment::{frames, segment_name, segment_number},
    streams::{Extent, Streams},
};

/// What a salvage kept and what it could not.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Salvaged {
    /// Messages that wait again.
    pub messages: u64,
    /// Messages that are known to have been there and could not be read.
    pub lost: u64,
    /// Each damaged place: file, byte, and what is wrong. Of a salvage that was interrupted, as far as it was known.
    pub damage: Vec<(String, u64, &'static str)>,
    /// The damaged files, under the names that they have been given.
    pub kept_as: Vec<String>,
}

/// Reads whatever is whole in a damaged spool, writes it anew and keeps the old files beside it, renamed. Acknowledgements
/// that stood in a damaged place are forgotten: their messages are sent again.
///
/// # Errors
/// [`SpoolError`]: what the disk says; another version, or what was sealed with another key, is not touched. It may be
/// tried again.
pub fn salvage(path: &Path, limits: Limits, keys: &SpoolKeys) -> Result<Salvaged, SpoolError> {
    salvage_by_steps(path, limits, keys, &mut || Ok(()))
}

/// `step` is asked before each change of the directory.
pub(super) fn salvage_by_steps(
    path: &Path,
    limits: Limits,
    keys: &SpoolKeys,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> Result<Salvaged, SpoolError> {
    let directory = Directory::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => SpoolError::Locked,
        _ => SpoolError::of("open its directory", error),
    })?;
    let failed = |error| SpoolError::of("move what it salvaged", error);
    let mut damage = Vec::new();
    let is_begun = NOTES.iter().any(|note| path.join(note).exists());
    if !is_begun {
        let (messages, found) = write_anew(&directory, limits, keys, step)?;
        let note = Note { messages, lost: found.lost, moves: names_for(path, &directory)? };
        note.write(path, &directory, step).map_err(failed)?;
        damage = found.damage;
    }
    let note = Note::read(path).map_err(failed)?;
    let kept_as = note.moves.iter().map(|(_, kept)| kept.clone()).collect();
    put_in_place(path, &directory, &note, step).map_err(failed)?;
    Ok(Salvaged { messages: note.messages, lost: note.lost, damage, kept_as })
}

/// Whether a salvage was interrupted: what is in the directory is not the whole.
pub(super) fn unfinished<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names.find(|name| NOTES.contains(name))
}

/// Everything that is wanted and whole, in a directory of its own.
fn write_anew(
    directory: &Directory,
    limits: Limits,
    keys: &SpoolKeys,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(u64, Found), SpoolError> {
    let failed = |error| SpoolError::of("write what it salvages", error);
    let names = directory.list().map_err(|error| SpoolError::of("read its directory", error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|(name, _)| segment_number(name)).collect();
    numbers.sort_unstable();
    let mut found = Found::default();
    for number in &numbers {
        found.look_through(directory, *number, keys)?;
    }
    found.settle();
    let fresh = directory.path().join(FRESH);
    step().map_err(failed)?;
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    step().map_err(failed)?;
    let disk = Directory::open(&fresh).map_err(failed)?;
    // It must hold what the old one held.
    let limits = Limits { bytes_max: u64::MAX, ..limits };
    let (mut log, _) = SegmentLog::open(Box::new(disk), limits, &found.hubs, keys)?;
    let mut written = Written::default();
    // A record that was moved lies behind those that follow it: then it takes more than one round.
    while found.streams.values().any(|stream| !stream.extents.is_empty()) {
        let before = written.records;
        for number in &numbers {
            step().map_err(failed)?;
            found.copy(directory, *number, keys, &mut log, &mut written)?;
        }
        if written.records == before {
            return Err(SpoolError::Damaged { file: FRESH.into(), offset: 0, what: "the files change meanwhile" });
        }
    }
    log.flush()?;
    Ok((written.messages, found))
}

/// What is whole: where it lies, not what it is.
#[derive(Default)]
struct Found {
    /// Names of hubs; an index of it is a [`StreamId`]'s.
    hubs: Vec<String>,
    streams: Streams,
    heads: HashMap<StreamId, u64>,
    damage: Vec<(String, u64, &'static str)>,
    lost: u64,
}

/// What was written so far.
#[derive(Default)]
struct Written {
    /// The number of the next record, by stream; they begin anew, so that no gap is left.
    next: HashMap<StreamId, u64>,
    records: u64,
    messages: u64,
}

impl Found {
    fn look_through(&mut self, directory: &Directory, number: u64, keys: &SpoolKeys) -> Result<(), SpoolError> {
        let mut damage = std::mem::take(&mut self.damage);
        let scanned = scan(directory, number, keys, &mut damage, &mut |frame, _| {
            let id = self.stream(frame);
            if frame.kind == Kind::Checkpoint {
                let head = self.heads.entry(id).or_default();
                *head = frame.first.max(*head);
            } else if let Some(end) = frame.end() {
                let extent = Extent { first: frame.first, end, segment: number, first_ms: 0 };
                self.streams.entry(id).or_default().append(extent, &mut |_, _| {});
            }
        });
        self.damage = damage;
        scanned
    }

    /// What was acknowledged is not wanted; what is missing before the last that is there is lost.
    fn settle(&mut self) {
        for (id, stream) in &mut self.streams {
            let head = self.heads.get(id).copied().unwrap_or(0);
            stream.acknowledge(head, &mut |_, _| {});
            let Some(last) = stream.extents.back() else { continue };
            let there: u64 = stream.extents.iter().map(|extent| extent.end - extent.first.max(head)).sum();
            self.lost += last.end - head - there;
        }
    }

    /// Writes what of a segment comes next in its streams.
    fn copy(
        &mut self,
        directory: &Directory,
        number: u64,
        keys: &SpoolKeys,
        log: &mut SegmentLog,
        written: &mut Written,
    ) -> Result<(), SpoolError> {
        let mut due: BTreeMap<StreamId, (u64, u64)> = BTreeMap::new();
        for (id, stream) in &mut self.streams {
            if let Some(next) = stream.extents.pop_front_if(|next| next.segment == number) {
                due.insert(*id, (next.first.max(stream.head), next.end));
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        // Of two that have one number the later one is meant.
        let mut records: BTreeMap<(StreamId, u64), Vec<u8>> = BTreeMap::new();
        scan(directory, number, keys, &mut Vec::new(), &mut |frame, mut rest| {
            let id = self.stream(frame);
            let Some((first, end)) = due.get(&id).copied().filter(|_| frame.kind != Kind::Checkpoint) else { return };
            for at in frame.first..frame.first + u64::from(frame.count) {
                let Some((_, len)) = format::parse_record(rest) else { return };
                if (first..end).contains(&at) {
                    records.insert((id, at), rest[..len].to_vec());
                }
                rest = &rest[len..];
            }
        })?;
        let mut batch = Batch::default();
        for ((id, _), record) in records {
            if batch.upstream != id.upstream || batch.bytes.len() > BATCH_BYTES {
                append(log, &mut batch)?;
            }
            let next = written.next.entry(id).or_default();
            let (start, len) = (batch.bytes.len() as u32, record.len() as u32);
            batch.records.push(BatchRecord { queue: id.queue, number: *next, start, len });
            batch.bytes.extend_from_slice(&record);
            batch.upstream = id.upstream;
            *next += 1;
            written.records += 1;
            written.messages += u64::from(id.queue != ASIDE);
        }
        append(log, &mut batch)
    }

    fn stream(&mut self, frame: &Frame<'_>) -> StreamId {
        let known = self.hubs.iter().position(|hub| hub == frame.upstream);
        let upstream = known.unwrap_or_else(|| {
            self.hubs.push(frame.upstream.to_owned());
            self.hubs.len() - 1
        });
        StreamId { upstream: u16::try_from(upstream).unwrap_or(u16::MAX), queue: frame.queue }
    }
}

fn append(log: &mut SegmentLog, batch: &mut Batch) -> Result<(), SpoolError> {
    let batch = std::mem::take(batch);
    if batch.records.is_empty() { Ok(()) } else { log.append(&[Arc::new(batch)]) }
}

/// Shows every whole frame of a segment, with its records.
fn scan(
    directory: &Directory,
    number: u64,
    keys: &SpoolKeys,
    damage: &mut Vec<(String, u64, &'static str)>,
    visit: &mut dyn FnMut(&Frame<'_>, &[u8]),
) -> Result<(), SpoolError> {
    let name = segment_name(number);
    let file = directory.open(&name).map_err(|error| SpoolError::of("open a segment", error))?;
    let bytes = read_whole(&*file)?;
    let header = match SegmentHeader::parse(&bytes) {
        Ok(header) => header,
        Err(format::HeaderFault::Version(version)) => return Err(SpoolError::Version { file: name, version }),
        Err(format::HeaderFault::Damaged) => {
            // Without its salt nothing in it can be told from damage.
            damage.push((name, 0, "its header is not that of a segment"));
            return Ok(());
        }
    };
    let key = key_of(&header, keys)?;
    let (mut at, mut group_number) = (header.len(), 0);
    while at < bytes.len() {
        let Some(group) = format::parse_group(&bytes[at..], header.salt) else {
            let next = format::find_group_after(&bytes[at..], group_number, header.salt);
            damage.push((name.clone(), at as u64, "a group is not what was written"));
            match next {
                Some(next) => at += next,
                None => break,
            }
            continue;
        };
        for (_, frame) in frames(group.body) {
            let Some(frame) = frame else { break };
            match records_of(&frame, key.as_ref()) {
                Some(records) => visit(&frame, &records),
                None => damage.push((name.clone(), at as u64, "records are not what was sealed")),
            }
        }
        group_number = group.number;
        at += group.len;
    }
    Ok(())
}

/// That everything was written anew, and which old file gets which name.
struct Note {
    messages: u64,
    lost: u64,
    moves: Vec<(String, String)>,
}

/// The old files, and names for them that are free.
fn names_for(path: &Path, directory: &Directory) -> Result<Vec<(String, String)>, SpoolError> {
    let names = directory.list().map_err(|error| SpoolError::of("read its directory", error))?;
    let mut old: Vec<String> = names.into_iter().map(|(name, _)| name).filter(|name| is_of_spool(name)).collect();
    old.sort_unstable();
    let free = |name: &String| {
        let free = (0..).map(|n| format!("{name}.damaged-{n}")).find(|kept| !path.join(kept).exists());
        free.expect("invariant: there are more numbers than files")
    };
    Ok(old.into_iter().map(|name| (name.clone(), free(&name))).collect())
}

fn is_of_spool(name: &str) -> bool {
    name == CURRENT || segment_number(name).is_some()
}

impl Note {
    /// It is there as a whole, or not.
    fn write(&self, path: &Path, directory: &Directory, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut text = format!("{} {}\n", self.messages, self.lost);
        self.moves.iter().for_each(|(old, kept)| text += &format!("{old} {kept}\n"));
        let begun = path.join(NOTE_BEGUN);
        step()?;
        fs::write(&begun, text)?;
        fs::File::open(&begun)?.sync_all()?;
        step()?;
        fs::rename(begun, path.join(NOTES[0]))?;
        directory.sync_directory()
    }

    fn read(path: &Path) -> io::Result<Self> {
        let note = NOTES.iter().map(|note| path.join(note)).find(|note| note.exists());
        let text = fs::read_to_string(note.ok_or(io::ErrorKind::NotFound)?)?;
        let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
        let count = |text: &str| text.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (messages, lost) = pairs.next().ok_or(io::ErrorKind::InvalidData)?;
        let (messages, lost) = (count(messages)?, count(lost)?);
        Ok(Self { messages, lost, moves: pairs.map(|(old, kept)| (old.to_owned(), kept.to_owned())).collect() })
    }
}

/// The old files make way, and then the new ones take their place. It may be begun anywhere in it.
fn put_in_place(
    path: &Path,
    directory: &Directory,
    note: &Note,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let [making_way, taking_place] = NOTES.map(|note| path.join(note));
    if making_way.exists() {
        for (old, kept) in &note.moves {
            if path.join(old).exists() {
                step()?;
                fs::rename(path.join(old), path.join(kept))?;
            }
        }
        directory.sync_directory()?;
        step()?;
        fs::rename(&making_way, &taking_place)?;
        directory.sync_directory()?;
    }
    let fresh = path.join(FRESH);
    if fresh.exists() {
        let files = fs::read_dir(&fresh)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        let name_of = |file: &PathBuf| file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let mut names: Vec<String> = files.iter().map(name_of).filter(|name| is_of_spool(name)).collect();
        // Digits come before letters: CURRENT is the last.
        names.sort_unstable();
        for name in names {
            step()?;
            fs::rename(fresh.join(&name), path.join(&name))?;
        }
        directory.sync_directory()?;
        step()?;
        fs::remove_dir_all(&fresh)?;
    }
    step()?;
    fs::remove_file(taking_place)?;
    directory.sync_directory()
}

const FRESH: &str = "salvage";
const NOTE_BEGUN: &str = "SALVAGE.new";
/// While the old files make way, and while the new ones take their place.
const NOTES: [&str; 2] = ["SALVAGE.1", "SALVAGE.2"];
const BATCH_BYTES: usize = 1 << 20;
