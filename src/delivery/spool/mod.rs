//! The spool: messages on disk, until a hub has them. An own segment log, written by one thread for all shards.
//!
//! A *stream* is one queue of one hub; a device belongs to one of 256 queues by its hash, so order per device is the
//! order of a stream. A *record* is one message of a stream. What was appended together is a *group*: one write, one
//! fdatasync, one answer. Groups lie in *segments*, files that are only ever appended to, and unlinked from the oldest on
//! when nothing in them is wanted. How the bytes lie is told in `docs/spool-format.md` and held by a golden file.
//!
//! What holds, whatever the disk does short of forgetting what it said it had written:
//! - What [`Spool::append`] answered for is read back, in order, until it is acknowledged.
//! - A group that was not answered for may be there after a crash or not, but as a whole.
//! - A torn last group is cut and counted. Damage elsewhere is refused with its place; [`salvage`] goes on without it.
//! - After a failed fdatasync nothing more is written to that segment: the next group goes to a new one, whose header says
//!   where the old one ends.
//! - A full or read-only disk refuses, cuts back what it had begun, and takes again when it can.

mod aside;
mod cipher;
mod disk;
mod format;
mod keeper;
mod log;
mod moves;
mod recover;
mod salvage;
mod segment;
mod streams;

use std::{fmt, io, sync::Arc};

pub use aside::{AsideMessage, Chosen, discard_aside, list_aside, retry_aside};
pub use cipher::{KeyId, SpoolKeys};
pub use disk::{Directory, Disk, DiskFile};
pub use format::Record;
pub use keeper::{Answer, Fetched, Keeper, LinkAddress, SpoolHandle, Wanted};
pub use log::SegmentLog;
pub use salvage::{Salvaged, salvage};

pub(crate) use format::{parse_record, record_len, write_record};

/// One queue of one hub. Hubs are counted as the names given to [`SegmentLog::open`] are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StreamId {
    /// Which hub.
    pub upstream: u16,
    /// Which queue of it.
    pub queue: u16,
}

/// Messages that are appended together. Its records are those of one link, each stream's in order.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Which hub.
    pub upstream: u16,
    /// Records, as the format has them.
    pub bytes: Vec<u8>,
    /// Where each record lies.
    pub records: Vec<BatchRecord>,
    /// The spool has all of them already, and will not keep them where they are: they may take what is kept free for
    /// such moves.
    pub moves: bool,
}

impl Batch {
    /// Bytes of the payloads alone.
    fn payload_bytes(&self) -> u64 {
        let of_record = |record: &BatchRecord| parse_record(self.bytes.get(record.start as usize..)?);
        self.records.iter().filter_map(of_record).map(|(record, _)| record.payload.len() as u64).sum()
    }
}

/// One record of a [`Batch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchRecord {
    /// Which queue; [`ASIDE`]: set aside, and numbered by the spool.
    pub queue: u16,
    /// Its number in the stream.
    pub number: u64,
    /// Where in the bytes it begins.
    pub start: u32,
    /// How long it is.
    pub len: u32,
}

/// A stream as it was found at a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamState {
    /// Which.
    pub stream: StreamId,
    /// The first record that is not acknowledged.
    pub head: u64,
    /// The number of the next record.
    pub next: u64,
}

/// What a start found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Every stream that was ever written to and is still known.
    pub streams: Vec<StreamState>,
    /// Bytes of records that wait, by hub and by hash of the device.
    pub devices: Vec<(u16, u64, u64)>,
    /// Bytes of a torn group that were cut from the end.
    pub torn_bytes: u64,
    /// Hubs that messages wait for and that are not configured: name and messages.
    pub strangers: Vec<(String, u64)>,
    /// How many segments are sealed with which key; none: in the clear.
    pub sealed: Vec<(Option<KeyId>, usize)>,
}

/// Consecutive records of a stream.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Run {
    /// Number of the first.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// The records, one after another.
    pub bytes: Vec<u8>,
}

impl Run {
    /// Its records, each as it was recorded.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (record, len) = parse_record(rest)?;
            rest = &rest[len..];
            Some(record)
        })
    }
}

/// How full the spool is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Fill {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that may still be appended.
    pub free: u64,
    /// What was written since it was opened.
    pub wear: Wear,
    /// Of each hub.
    pub hubs: Vec<HubFill>,
}

/// Bytes since the spool was opened: the one by the other is its write amplification.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Wear {
    /// Of messages that were appended and synced, payloads alone.
    pub appended: u64,
    /// That were given to the disk: topics, properties, frames, seals, checkpoints, what was copied forward, `CURRENT`. Also
    /// where the disk then failed. What the file system adds is not in it.
    pub written: u64,
}

/// What waits for one hub.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct HubFill {
    /// Messages that are not acknowledged.
    pub messages: u64,
    /// Messages that were set aside.
    pub aside: u64,
    /// When the oldest that waits was received; milliseconds of the wall clock, early rather than late.
    pub oldest_ms: Option<u64>,
}

/// How much there may be, and in what pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes_max: u64,
    /// Bytes after which a segment ends.
    pub segment_bytes: u64,
}

/// What keeps messages. One thread calls it.
pub trait Spool: Send {
    /// Appends all batches as one group and syncs it. All of them are there, or none.
    ///
    /// # Errors
    /// [`SpoolError`]: none is answered for; they may be appended again, with the same numbers.
    fn append(&mut self, batches: &[Arc<Batch>]) -> Result<(), SpoolError>;

    /// Records before `upto` are not wanted any more. Lasting after the next [`append`](Self::append) or
    /// [`flush`](Self::flush): after a crash before it they come again.
    fn acknowledge(&mut self, stream: StreamId, upto: u64);

    /// Records from `from` on, about so many bytes, at least one where one is there.
    ///
    /// # Errors
    /// [`SpoolError`]: damage, or what the disk says.
    fn read(&mut self, stream: StreamId, from: u64, bytes: usize) -> Result<Run, SpoolError>;

    /// Makes acknowledgements lasting and gives back space.
    ///
    /// # Errors
    /// [`SpoolError`]: it may be tried again.
    fn flush(&mut self) -> Result<(), SpoolError>;

    /// The first record of a stream that is not acknowledged, and the number of the next.
    fn extent(&self, stream: StreamId) -> (u64, u64);

    /// How full it is.
    fn fill(&self) -> Fill;
}

/// Why the spool does not take, find or open something.
#[derive(Debug)]
pub enum SpoolError {
    /// `size_max` is reached.
    SizeMax,
    /// The disk is full, or the quota of the user on it.
    DiskFull(io::Error),
    /// The file system is mounted read-only.
    ReadOnly(io::Error),
    /// The disk failed otherwise.
    Disk(&'static str, io::Error),
    /// Another process has the directory.
    Locked,
    /// Bytes that are not what was written.
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// It is sealed with a key that was not given.
    Key {
        /// The file.
        file: String,
        /// The name of that key.
        key: KeyId,
    },
    /// Another version wrote it.
    Version {
        /// The file.
        file: String,
        /// That version.
        version: u16,
    },
}

impl SpoolError {
    pub(super) fn of(what: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(error),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(error),
            _ => Self::Disk(what, error),
        }
    }

    /// One word for a metric or a status.
    pub fn tag(&self) -> &'static str {
        match self {
            Self::SizeMax => "size_max",
            Self::DiskFull(_) => "disk_full",
            Self::ReadOnly(_) => "read_only",
            Self::Disk(..) => "disk",
            Self::Locked => "locked",
            Self::Damaged { .. } => "damaged",
            Self::Key { .. } => "key",
            Self::Version { .. } => "version",
        }
    }
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SizeMax => f.write_str("the spool is full (`size_max` under [spool])"),
            Self::DiskFull(error) => write!(f, "the disk of the spool is full: {error}"),
            Self::ReadOnly(error) => write!(f, "the disk of the spool is read-only: {error}"),
            Self::Disk(what, error) => write!(f, "the spool cannot {what}: {error}"),
            Self::Locked => f.write_str("another gateway uses the spool"),
            Self::Damaged { file, offset, what } => write!(f, "{file} is damaged at byte {offset}: {what}"),
            Self::Key { file, key } => {
                write!(f, "{file} is encrypted with the key {key}, which the `key_file` of [spool] does not hold")
            }
            Self::Version { file, version } => write!(
                f,
                "{file} was written in version {version} of the spool's format; this program reads and writes {} and {}",
                format::VERSION,
                format::VERSION_SEALED
            ),
        }
    }
}

impl std::error::Error for SpoolError {}

impl Limits {
    /// Pieces that suit a spool of so many bytes.
    pub fn of_size(bytes_max: u64) -> Self {
        Self { bytes_max, segment_bytes: (bytes_max / 16).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX) }
    }
}

/// The queue of a device: order per device is the order of its queue.
pub fn queue_of(device: u64) -> u16 {
    ((device >> 40) % u64::from(format::QUEUES)) as u16
}

/// Queues of a hub.
pub const QUEUES: u16 = format::QUEUES;
/// The stream of what a hub would not take.
pub const ASIDE: u16 = u16::MAX;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// A start reads a segment at a time into memory.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;

#[cfg(test)]
mod tests;
