//! The format, byte by byte: `docs/spool-format.md` explains this file.

use super::{
    super::cipher::{Seal, Sealer},
    super::format::{
        Check, Frame, HeaderFault, Kind, SEGMENT_HEADER_BYTES, SegmentHeader, begin_group, parse_frame, parse_group,
        seal, write_frame,
    },
    *,
};

#[test]
fn a_segment_is_written_as_documented() {
    let golden = include_str!("../../../../tests/golden/spool-segment.hex");
    assert_eq!(hex(&documented(None)), golden.trim_end(), "the format is what it was, or it has another version");
}

#[test]
fn a_segment_that_is_encrypted_is_written_as_documented_and_opens_with_its_key() {
    let keys = SpoolKeys::parse(GOLDEN_KEY).expect("a key");
    let seal = Seal { key: keys.sealing().expect("a key"), salt: *b"0123456789abcdef" };
    let bytes = documented(Some((&keys, seal)));
    let golden = include_str!("../../../../tests/golden/spool-segment-sealed.hex");
    assert_eq!(hex(&bytes), golden.trim_end(), "the format is what it was, or it has another version");
    let header = SegmentHeader::parse(&bytes).expect("a header");
    assert_eq!((header.seal, header.len()), (Some(seal), 72));
    let group = parse_group(&bytes[72..], header.salt).expect("whole");
    let head = parse_frame(group.body, Check::Trusted).expect("whole");
    let records = parse_frame(&group.body[head.len..], Check::Trusted).expect("whole");
    let key = keys.of_segment(&seal, 2).expect("its key");
    let opened = key.open(&records).expect("what was sealed");
    assert_eq!(parse_record(&opened), Some((record(b"hello"), opened.len())));
    // It is bound to what it is part of: to its segment, its stream, its numbers.
    assert!(keys.of_segment(&seal, 3).expect("a key").open(&records).is_none());
    for other in [Frame { queue: 6, ..records }, Frame { first: 5, ..records }, Frame { upstream: "other", ..records }]
    {
        assert!(key.open(&other).is_none(), "{other:?}");
    }
}

/// Segment 2: a checkpoint of queue 5 and its record 4.
fn documented(sealed: Option<(&SpoolKeys, Seal)>) -> Vec<u8> {
    let salt = 0x0403_0201;
    let mut bytes = SegmentHeader { number: 2, previous_end: 0x1234, salt, seal: sealed.map(|(_, seal)| seal) }.write();
    let mut group = Vec::new();
    begin_group(&mut group);
    let head = Frame {
        kind: Kind::Checkpoint,
        upstream: HUB,
        queue: 5,
        count: 0,
        first: 3,
        body: &4u64.to_le_bytes(),
        len: 0,
    };
    write_frame(&mut group, &head, salt);
    let mut body = Vec::new();
    write_record(&mut body, &record(b"hello"));
    let records = Frame { kind: Kind::Records, upstream: HUB, queue: 5, count: 1, first: 4, body: &body, len: 0 };
    match sealed {
        Some((keys, seal)) => {
            let key = keys.of_segment(&seal, 2).expect("its key");
            let body = Sealer::with_nonce(&key, [0xA0; 12]).seal(&records);
            write_frame(&mut group, &Frame { body: &body, ..records }, salt);
        }
        None => _ = write_frame(&mut group, &records, salt),
    }
    seal(&mut group, 9, salt);
    bytes.extend_from_slice(&group);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_was_written_is_read_back() {
    let salt = 77;
    let mut group = Vec::new();
    begin_group(&mut group);
    let mut body = Vec::new();
    write_record(&mut body, &record(b""));
    let frame = Frame { kind: Kind::Moved, upstream: HUB, queue: 255, count: 1, first: 1 << 40, body: &body, len: 0 };
    let range = write_frame(&mut group, &frame, salt);
    seal(&mut group, 1, salt);
    let parsed = parse_group(&group, salt).expect("whole");
    assert_eq!((parsed.number, parsed.len), (1, group.len()));
    let read = parse_frame(&group[range], Check::Checksum(salt)).expect("whole");
    assert_eq!((read.kind, read.upstream, read.queue, read.end()), (Kind::Moved, HUB, 255, Some((1 << 40) + 1)));
    assert_eq!(parse_record(read.body), Some((record(b""), body.len())));
    assert_eq!(body.len(), record_len(11, 7, 0));
    assert!(parse_group(&group, salt + 1).is_none(), "a payload cannot pass for a group of another segment");
}

#[test]
fn every_flipped_bit_is_seen() {
    let salt = 5;
    let mut group = Vec::new();
    begin_group(&mut group);
    let mut body = Vec::new();
    write_record(&mut body, &record(b"x"));
    let frame = Frame { kind: Kind::Records, upstream: HUB, queue: 1, count: 1, first: 0, body: &body, len: 0 };
    write_frame(&mut group, &frame, salt);
    seal(&mut group, 1, salt);
    let header = SegmentHeader { number: 1, previous_end: 0, salt, seal: None }.write();
    for bit in 0..group.len() * 8 {
        let mut flipped = group.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(parse_group(&flipped, salt).is_none(), "bit {bit}");
    }
    for bit in 0..header.len() * 8 {
        let mut flipped = header.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHeader::parse(&flipped), Err(HeaderFault::Damaged), "bit {bit}");
    }
}

#[test]
fn another_version_is_told_from_damage() {
    let disk = SimDisk::default();
    drop(opened(&disk, SMALL));
    disk.damage("0000000000000001.seg", |bytes| {
        bytes[8] = 3;
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        bytes[SEGMENT_HEADER_BYTES - 4..SEGMENT_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    });
    let error = open(&disk, SMALL).err().expect("refused");
    assert!(matches!(error, SpoolError::Version { version: 3, .. }), "{error}");
    assert!(
        error.to_string().contains("version 3") && error.to_string().contains("reads and writes 1 and 2"),
        "{error}"
    );
}

/// Bytes 0 to 31.
const GOLDEN_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
