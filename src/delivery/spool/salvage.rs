//! Going on without what is damaged: an operator's decision, never the gateway's own.

use std::path::Path;

use super::{
    ASIDE, Batch, BatchRecord, Directory, Disk, Limits, SegmentLog, Spool, SpoolError, SpoolKeys, StreamId,
    format::{self, GROUP_HEADER_BYTES, Kind, SegmentHeader},
    log::CURRENT,
    recover::{key_of, read_whole, records_of},
    segment::{frames, segment_name, segment_number},
};
use std::{collections::BTreeMap, sync::Arc};

/// What a salvage kept and what it could not.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Salvaged {
    /// Messages that wait again.
    pub messages: u64,
    /// Messages that are known to have been there and could not be read.
    pub lost: u64,
    /// Each damaged place: file, byte, and what is wrong.
    pub damage: Vec<(String, u64, &'static str)>,
    /// The damaged files, under the names that they have been given.
    pub kept_as: Vec<String>,
}

/// Reads whatever is whole in a damaged spool, writes it anew and keeps the old files beside it, renamed. Acknowledgements
/// that stood in a damaged place are forgotten: their messages are sent again.
///
/// # Errors
/// [`SpoolError`]: what the disk says; another version, or what was sealed with another key, is not touched.
pub fn salvage(path: &Path, limits: Limits, keys: &SpoolKeys) -> Result<Salvaged, SpoolError> {
    let directory = Directory::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => SpoolError::Locked,
        _ => SpoolError::of("open its directory", error),
    })?;
    let failed = |error| SpoolError::of("read its directory", error);
    let names: Vec<String> = directory.list().map_err(failed)?.into_iter().map(|(name, _)| name).collect();
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let mut found = Found::default();
    for number in &numbers {
        found.read(&directory, *number, keys)?;
    }
    let fresh = path.join(FRESH);
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    let names_of_hubs: Vec<String> = found.streams.keys().map(|(name, _)| name.clone()).collect();
    let messages = found.write_to(&fresh, limits, names_of_hubs, keys)?;
    // The fresh files take the place of the old ones only when all of them are whole.
    let mut kept_as = Vec::new();
    let old = numbers.iter().map(|number| segment_name(*number)).chain([CURRENT.to_owned()]);
    for name in old.filter(|name| names.contains(name)) {
        let kept = (0..).map(|n| format!("{name}.damaged-{n}")).find(|kept| !path.join(kept).exists());
        let kept = kept.expect("invariant: there are more numbers than files");
        std::fs::rename(path.join(&name), path.join(&kept)).map_err(failed)?;
        kept_as.push(kept);
    }
    for entry in std::fs::read_dir(&fresh).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name != super::disk::LOCK {
            std::fs::rename(entry.path(), path.join(name)).map_err(failed)?;
        }
    }
    std::fs::remove_dir_all(&fresh).map_err(failed)?;
    directory.sync_directory().map_err(failed)?;
    Ok(Salvaged { messages, lost: found.lost, damage: found.damage, kept_as })
}

/// All that is whole.
#[derive(Default)]
struct Found {
    /// By hub and queue.
    streams: BTreeMap<(String, u16), Stream>,
    damage: Vec<(String, u64, &'static str)>,
    lost: u64,
}

/// Head, and records by number.
type Stream = (u64, BTreeMap<u64, Vec<u8>>);

impl Found {
    fn read(&mut self, directory: &Directory, number: u64, keys: &SpoolKeys) -> Result<(), SpoolError> {
        let name = segment_name(number);
        let file = directory.open(&name).map_err(|error| SpoolError::of("open a segment", error))?;
        let bytes = read_whole(&*file)?;
        let header = match SegmentHeader::parse(&bytes) {
            Ok(header) => header,
            Err(format::HeaderFault::Version(version)) => return Err(SpoolError::Version { file: name, version }),
            Err(format::HeaderFault::Damaged) => {
                // Without its salt nothing in it can be told from damage.
                self.damage.push((name, 0, "its header is not that of a segment"));
                return Ok(());
            }
        };
        let key = key_of(&header, keys)?;
        let (mut at, mut group_number) = (header.len(), 0);
        while at < bytes.len() {
            let Some(group) = format::parse_group(&bytes[at..], header.salt) else {
                let next = format::find_group_after(&bytes[at..], group_number, header.salt);
                self.damage.push((name.clone(), at as u64, "a group is not what was written"));
                match next {
                    Some(next) => at += next,
                    None => break,
                }
                continue;
            };
            for (_, frame) in frames(group.body) {
                let Some(frame) = frame else { break };
                match records_of(&frame, key.as_ref()) {
                    Some(records) => self.take(&frame, &records),
                    None => self.damage.push((name.clone(), at as u64, "records are not what was sealed")),
                }
            }
            group_number = group.number;
            at += group.len;
        }
        debug_assert!(at >= GROUP_HEADER_BYTES);
        Ok(())
    }

    fn take(&mut self, frame: &format::Frame<'_>, mut rest: &[u8]) {
        let (head, records) = self.streams.entry((frame.upstream.to_owned(), frame.queue)).or_default();
        if frame.kind == Kind::Checkpoint {
            *head = frame.first.max(*head);
            return;
        }
        for number in frame.first..frame.first + u64::from(frame.count) {
            let Some((_, len)) = format::parse_record(rest) else { return };
            records.insert(number, rest[..len].to_vec());
            rest = &rest[len..];
        }
    }

    /// Writes what is wanted to a new log; numbers begin anew, so that no gap is left.
    fn write_to(
        &mut self,
        fresh: &Path,
        limits: Limits,
        mut hubs: Vec<String>,
        keys: &SpoolKeys,
    ) -> Result<u64, SpoolError> {
        hubs.dedup();
        let disk = Directory::open(fresh).map_err(|error| SpoolError::of("make a directory", error))?;
        // It must hold what the old one held.
        let limits = Limits { bytes_max: u64::MAX, ..limits };
        let (mut log, _) = SegmentLog::open(Box::new(disk), limits, &hubs, keys)?;
        let mut messages = 0;
        for ((name, queue), (head, records)) in &self.streams {
            let upstream = hubs.iter().position(|hub| hub == name).and_then(|at| u16::try_from(at).ok());
            let Some(upstream) = upstream else { continue };
            let wanted: Vec<(&u64, &Vec<u8>)> = records.range(*head..).collect();
            if let Some((last, _)) = wanted.last() {
                self.lost += **last + 1 - *head - wanted.len() as u64;
            }
            let stream = StreamId { upstream, queue: *queue };
            for (part, chunk) in wanted.chunks(RECORDS_A_GROUP).enumerate() {
                let mut batch = Batch { upstream, ..Batch::default() };
                for (at, (_, record)) in chunk.iter().enumerate() {
                    let number = (part * RECORDS_A_GROUP + at) as u64;
                    let (start, len) = (batch.bytes.len() as u32, record.len() as u32);
                    batch.records.push(BatchRecord { queue: stream.queue, number, start, len });
                    batch.bytes.extend_from_slice(record);
                }
                log.append(&[Arc::new(batch)])?;
            }
            messages += if *queue == ASIDE { 0 } else { wanted.len() as u64 };
        }
        log.flush()?;
        Ok(messages)
    }
}

const FRESH: &str = "salvage";
const RECORDS_A_GROUP: usize = 256;
