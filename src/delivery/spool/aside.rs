//! What was set aside, for whoever decides about it: shown, sent again, or thrown away.
//!
//! A message is named by a hash of its record, which no move of it changes. The stream of what is set aside is
//! acknowledged from its beginning like any other: what is to stay and lies before what goes is written anew behind it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{ASIDE, Batch, BatchRecord, Record, Spool, SpoolError, StreamId, parse_record, queue_of, write_record};
use crate::delivery::spooling::come_anew;

/// Which messages are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chosen {
    /// Every one.
    All,
    /// Those that are named.
    Ids(HashSet<u64>),
    /// One for each time that it is named: a message that was sent again may have been set aside again, under its name.
    Each(Vec<u64>),
}

impl Chosen {
    /// Whether the next message, the oldest first, is meant.
    fn picks(&self) -> impl FnMut(u64) -> bool {
        let mut left: HashMap<u64, usize> = HashMap::new();
        if let Self::Each(ids) = self {
            ids.iter().for_each(|id| *left.entry(*id).or_default() += 1);
        }
        move |id| match self {
            Self::All => true,
            Self::Ids(ids) => ids.contains(&id),
            Self::Each(_) => left.get_mut(&id).filter(|left| **left > 0).map(|left| *left -= 1).is_some(),
        }
    }
}

/// One message that is set aside, as it was recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AsideMessage {
    /// Names it.
    pub id: u64,
    /// Its record.
    pub bytes: Vec<u8>,
}

impl AsideMessage {
    /// What the record says.
    pub fn record(&self) -> Option<Record<'_>> {
        parse_record(&self.bytes).map(|(record, _)| record)
    }
}

/// The oldest of a hub's messages that are chosen, up to so many and a mebibyte or so; and how many are set aside.
///
/// # Errors
/// [`SpoolError`]: they cannot be read.
pub fn list_aside(
    spool: &mut dyn Spool,
    upstream: u16,
    chosen: &Chosen,
    count_max: usize,
) -> Result<(Vec<AsideMessage>, u64), SpoolError> {
    let (head, next) = spool.extent(stream_of(upstream));
    let (mut found, mut bytes, mut picks) = (Vec::new(), 0, chosen.picks());
    each(spool, upstream, &mut |_, message| {
        let wanted = picks(id_of(message)) && found.len() < count_max && bytes < LIST_BYTES_MAX;
        if wanted {
            bytes += message.len();
            found.push(AsideMessage { id: id_of(message), bytes: message.to_vec() });
        }
    })?;
    Ok((found, next - head))
}

/// Takes messages out for good; says how many.
///
/// # Errors
/// [`SpoolError`]: some may be taken out already, and no other is lost.
pub fn discard_aside(spool: &mut dyn Spool, upstream: u16, chosen: &Chosen) -> Result<usize, SpoolError> {
    take_out(spool, upstream, chosen, Then::Gone)
}

/// Has messages wait for their hub again, behind what waits already and as if they had come at `wall_ms`, in milliseconds
/// since 1970; says how many. For a spool that no link uses.
///
/// # Errors
/// [`SpoolError`]: messages may wait again and still be set aside.
pub fn retry_aside(spool: &mut dyn Spool, upstream: u16, chosen: &Chosen, wall_ms: u64) -> Result<usize, SpoolError> {
    take_out(spool, upstream, chosen, Then::Waiting { wall_ms })
}

/// What becomes of a message that is set aside no longer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Gone,
    Waiting { wall_ms: u64 },
}

/// Piece by piece, so that a spool without room has room for each: what stays and what waits again is written behind, and
/// then the piece is given up.
fn take_out(spool: &mut dyn Spool, upstream: u16, chosen: &Chosen, then: Then) -> Result<usize, SpoolError> {
    let (mut meant, mut picks) = (BTreeSet::new(), chosen.picks());
    each(spool, upstream, &mut |number, message| {
        if picks(id_of(message)) {
            meant.insert(number);
        }
    })?;
    let last = meant.last().copied();
    let (mut head, _) = spool.extent(stream_of(upstream));
    let mut piece_bytes = READ_BYTES;
    while let Some(last) = last.filter(|last| head <= *last) {
        let mut number = head;
        let run = spool.read(stream_of(upstream), number, piece_bytes)?;
        let (mut piece, mut rest) = (Batch { upstream, moves: true, ..Batch::default() }, &run.bytes[..]);
        let mut next_of = HashMap::new();
        while number <= last
            && let Some((record, len)) = parse_record(rest)
        {
            let (message, after) = rest.split_at(len);
            let place = match (meant.contains(&number), then) {
                (false, _) => Some((ASIDE, 0)),
                (true, Then::Gone) => None,
                (true, Then::Waiting { .. }) => {
                    let queue = queue_of(record.device);
                    let next = next_of.entry(queue).or_insert_with(|| spool.extent(StreamId { upstream, queue }).1);
                    *next += 1;
                    Some((queue, *next - 1))
                }
            };
            if let Some((queue, number)) = place {
                let start = piece.bytes.len();
                match then {
                    Then::Waiting { wall_ms } if queue != ASIDE => {
                        let (record, properties) = come_anew(&record, wall_ms);
                        write_record(&mut piece.bytes, &Record { properties: &properties, ..record });
                    }
                    _ => piece.bytes.extend_from_slice(message),
                }
                let len = (piece.bytes.len() - start) as u32;
                piece.records.push(BatchRecord { queue, number, start: start as u32, len });
            }
            number += 1;
            rest = after;
            if piece.bytes.len() >= piece_bytes {
                break;
            }
        }
        if run.count == 0 {
            break;
        }
        if !piece.records.is_empty() {
            match spool.append(&[Arc::new(piece)]) {
                Err(SpoolError::SizeMax) if piece_bytes > PIECE_BYTES => {
                    piece_bytes = PIECE_BYTES;
                    continue;
                }
                appended => appended?,
            }
        }
        spool.acknowledge(stream_of(upstream), number);
        head = number;
    }
    spool.flush()?;
    Ok(meant.len())
}

/// What a message is named by.
pub(crate) fn id_of(record: &[u8]) -> u64 {
    // FNV-1a: nobody who could choose the bytes gains anything by two that are named alike.
    record
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn each(spool: &mut dyn Spool, upstream: u16, visit: &mut dyn FnMut(u64, &[u8])) -> Result<(), SpoolError> {
    let stream = stream_of(upstream);
    let (mut number, next) = spool.extent(stream);
    while number < next {
        let run = spool.read(stream, number, READ_BYTES)?;
        let mut rest = &run.bytes[..];
        while let Some((_, len)) = parse_record(rest) {
            let (message, after) = rest.split_at(len);
            visit(number, message);
            number += 1;
            rest = after;
        }
        if run.count == 0 {
            break;
        }
    }
    Ok(())
}

fn stream_of(upstream: u16) -> StreamId {
    StreamId { upstream, queue: ASIDE }
}

const READ_BYTES: usize = 256 << 10;
/// Less than the smallest spool keeps free for moves.
const PIECE_BYTES: usize = 16 << 10;
const LIST_BYTES_MAX: usize = 1 << 20;
