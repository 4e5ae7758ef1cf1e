//! The format, byte by byte: `docs/spool-format.md` explains this file.

use super::{
    super::format::{
        Check, Frame, HeaderFault, Kind, SEGMENT_HEADER_BYTES, SegmentHeader, begin_group, parse_frame, parse_group,
        seal, write_frame,
    },
    *,
};

#[test]
fn a_segment_is_written_as_documented() {
    let salt = 0x0403_0201;
    let mut bytes = SegmentHeader { number: 2, previous_end: 0x1234, salt }.write();
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
    write_frame(&mut group, &records, salt);
    seal(&mut group, 9, salt);
    bytes.extend_from_slice(&group);
    let golden = include_str!("../../../../tests/golden/spool-segment.hex");
    let hex: Vec<String> = bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect()).collect();
    assert_eq!(hex.join("\n"), golden.trim_end(), "the format is what it was, or it has another version");
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
    let header = SegmentHeader { number: 1, previous_end: 0, salt }.write();
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
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        bytes[SEGMENT_HEADER_BYTES - 4..SEGMENT_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    });
    let error = open(&disk, SMALL).err().expect("refused");
    assert!(matches!(error, SpoolError::Version { version: 2, .. }), "{error}");
    assert!(error.to_string().contains("version 2") && error.to_string().contains("reads and writes 1"), "{error}");
}
