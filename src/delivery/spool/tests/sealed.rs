//! The spool encrypted: nothing readable on the disk, and nothing opened by another key or in another place.

use super::{
    super::{
        cipher::Seal,
        format::{Frame, Kind, SEGMENT_HEADER_BYTES},
    },
    *,
};

const FIRST: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const SECOND: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const SECOND_AND_FIRST: &str =
    "# of May\nICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
/// One key, then another before it, and so on.
pub(super) const ROTATED: [&str; 2] = [FIRST_AND_SECOND, SECOND_AND_FIRST];
const FIRST_AND_SECOND: &str =
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\nICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

fn sealed(disk: &SimDisk, keys: &str) -> (SegmentLog, Recovered) {
    open_with(disk, SMALL, keys).unwrap_or_else(|error| panic!("{error}"))
}

fn holds(disk: &SimDisk, text: &[u8]) -> bool {
    disk.names().iter().any(|name| disk.bytes_of(name).windows(text.len()).any(|window| window == text))
}

#[test]
fn nothing_of_a_message_can_be_read_on_the_disk_and_all_of_it_with_the_key() {
    for (keys, readable) in [("", true), (FIRST, false)] {
        let disk = SimDisk::default();
        let (mut log, _) = sealed(&disk, keys);
        for n in 0..60 {
            log.append(&[one(1, n, 300), batch(&[(ASIDE, 0, b"set aside")])]).expect("room");
        }
        log.acknowledge(stream(1), 20);
        log.flush().expect("room");
        for text in [&b"devices/d/x"[..], b"1/30/", b"xxxxxxxx", b"set aside", b"\x26\x00\x01a\x00\x01b"] {
            assert_eq!(holds(&disk, text), readable, "{:?}", String::from_utf8_lossy(text));
        }
        let (mut log, recovered) = sealed(&disk.after_kill(), keys);
        assert_eq!(state(&recovered, 1), (20, 60));
        assert_eq!(payloads(&mut log, 1, 20).expect("whole"), (20..60).map(|n| payload(1, n, 300)).collect::<Vec<_>>());
        assert_eq!(payloads(&mut log, ASIDE, 0).expect("whole").len(), 60);
        assert_eq!(recovered.devices.len(), 1);
    }
}

#[test]
fn no_nonce_comes_twice_also_where_the_same_group_is_written_again() {
    let keys = SpoolKeys::parse(FIRST).expect("a key");
    let seal = Seal::new(keys.sealing().expect("a key")).unwrap_or_else(|error| panic!("{error}"));
    let key = keys.of_segment(&seal, 1).expect("its key");
    let frame = Frame { kind: Kind::Records, upstream: HUB, queue: 1, count: 1, first: 0, body: b"again", len: 0 };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let mut sealer = key.sealer().unwrap_or_else(|error| panic!("{error}"));
        for _ in 0..3 {
            let sealed = sealer.seal(&frame);
            let (nonce, rest) = sealed.split_at(12);
            assert!(seen.insert(nonce.to_vec()) && seen.insert(rest.to_vec()));
            assert_eq!(key.open(&Frame { body: &sealed, ..frame }).as_deref(), Some(frame.body));
        }
    }
    let another = Seal::new(seal.key).unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(another.salt, seal.salt, "and no segment has the key of another");
}

#[test]
fn without_its_key_nothing_is_opened_and_the_key_is_named() {
    let disk = SimDisk::default();
    let (mut log, recovered) = sealed(&disk, FIRST);
    log.append(&[one(1, 0, 10)]).expect("room");
    let Some((Some(id), 1)) = recovered.sealed.first().copied() else { panic!("{recovered:?}") };
    for other in ["", SECOND] {
        let before = disk.bytes_of("0000000000000001.seg");
        let error = open_with(&disk.after_kill(), SMALL, other).err().expect("refused");
        assert!(matches!(&error, SpoolError::Key { key, .. } if *key == id), "{error}");
        assert!(
            error.to_string().contains(&id.to_string()) && error.to_string().contains("`key_file` of [spool]"),
            "{error}"
        );
        assert_eq!(disk.bytes_of("0000000000000001.seg"), before, "and nothing is changed");
    }
}

#[test]
fn a_key_is_replaced_by_putting_the_next_before_it() {
    let disk = SimDisk::default();
    let (mut log, _) = sealed(&disk, "");
    log.append(&[one(1, 0, 10)]).expect("room");
    let mut ids = Vec::new();
    for (keys, number) in [(FIRST, 1), (SECOND_AND_FIRST, 2)] {
        let (mut log, _) = sealed(&disk, keys);
        log.append(&[one(1, number, 10)]).expect("room");
        let (mut log, recovered) = sealed(&disk, keys);
        assert_eq!(payloads(&mut log, 1, 0).expect("whole").len() as u64, number + 1);
        assert_eq!(recovered.sealed.len() as u64, number + 1, "what is there stays as it is, what comes is sealed");
        ids = recovered.sealed.iter().map(|(id, _)| *id).collect();
    }
    assert_eq!(ids.first(), Some(&None));
    // When all of it is gone, the new key is enough.
    let (mut log, _) = sealed(&disk, SECOND_AND_FIRST);
    log.acknowledge(stream(1), 3);
    log.flush().expect("room");
    drop(log);
    let (_, recovered) = sealed(&disk, SECOND);
    assert_eq!((state(&recovered, 1), recovered.sealed.len()), ((3, 3), 1));
}

#[test]
fn what_was_changed_behind_its_checksums_is_damage() {
    let disk = SimDisk::default();
    let (mut log, _) = sealed(&disk, FIRST);
    log.append(&[one(1, 0, 100)]).expect("room");
    drop(log);
    disk.damage("0000000000000001.seg", |bytes| {
        let (header, groups) = bytes.split_at_mut(SEGMENT_HEADER_BYTES + 32);
        let salt = u32::from_le_bytes(*header[32..].first_chunk().expect("a salt"));
        let first = 24 + u32::from_le_bytes(*groups[4..].first_chunk().expect("a length")) as usize;
        let (_, group) = groups.split_at_mut(first);
        // A bit of the ciphertext, and both checksums anew, as somebody would who can write.
        *group.last_mut().expect("a tag") ^= 1;
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &group[24..44]), &group[48..]);
        group[44..48].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &group[..20]), &group[24..]);
        group[20..24].copy_from_slice(&crc.to_le_bytes());
    });
    let error = open_with(&disk, SMALL, FIRST).err().expect("refused");
    assert!(matches!(error, SpoolError::Damaged { what: "records are not what was sealed", .. }), "{error}");
    assert!(open_with(&disk, SMALL, FIRST).is_err(), "it is no torn end, and is not cut");
}

#[test]
fn a_salvage_of_what_is_encrypted_wants_the_key_and_writes_with_it() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("spool");
    let keys = SpoolKeys::parse(FIRST).expect("a key");
    let open = || SegmentLog::open(Box::new(Directory::open(&path).expect("free")), SMALL, &[HUB.to_owned()], &keys);
    let (mut log, _) = open().unwrap_or_else(|error| panic!("{error}"));
    for n in 0..60 {
        log.append(&[one(1, n, 300)]).expect("room");
    }
    drop(log);
    let damaged = path.join("0000000000000003.seg");
    let mut bytes = std::fs::read(&damaged).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).expect("writable");
    assert!(matches!(salvage(&path, SMALL, &SpoolKeys::default()), Err(SpoolError::Key { .. })));
    let salvaged = salvage(&path, SMALL, &keys).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((salvaged.messages, salvaged.lost), (59, 1), "{salvaged:?}");
    let (mut log, recovered) = open().unwrap_or_else(|error| panic!("{error}"));
    assert!(recovered.sealed.iter().all(|(key, _)| key.is_some()), "{recovered:?}");
    assert_eq!(payloads(&mut log, 1, 0).expect("whole").len(), 59);
}

#[test]
fn a_file_of_keys_holds_base64_of_32_random_bytes_a_line() {
    let long = format!("{FIRST}\n{FIRST}");
    for (text, about) in [
        ("", "no key"),
        ("# nothing\n\n", "no key"),
        ("c2VjcmV0\n", "line 1 holds 6 bytes"),
        ("# a\nnot base64!\n", "line 2 is not base64"),
        ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "one byte again and again"),
        (&long, "line 2 holds a key that stands above it"),
    ] {
        let error = SpoolKeys::parse(text).expect_err("refused");
        assert!(error.contains(about), "{text:?}: {error}");
    }
    let keys = SpoolKeys::parse(SECOND_AND_FIRST).expect("two keys");
    assert!(!format!("{keys:?}").contains("ICEi") && format!("{keys:?}").contains("KeyId"), "{keys:?}");
}
