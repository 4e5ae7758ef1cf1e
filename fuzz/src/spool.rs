//! A spool whose newest segment holds whatever bytes: it opens, or says where the damage is; what it opened can be read
//! to its end, appended to, and opened again.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use tollgate::delivery::spool::{Disk, DiskFile, Limits, SegmentLog, Spool, SpoolError, SpoolKeys};

/// The first segment, and nothing else.
pub fn spool(data: &[u8]) {
    let disk = Memory::default();
    disk.0.lock().expect("one thread").insert(FIRST.to_owned(), data.to_vec());
    let Some(found) = open(&disk) else { return };
    let again = open(&disk).expect("what was opened is opened again");
    assert_eq!(again.torn_bytes, 0, "a torn end is cut once");
    assert_eq!((again.streams, again.devices), (found.streams, found.devices));
}

fn open(disk: &Memory) -> Option<tollgate::delivery::spool::Recovered> {
    let limits = Limits { bytes_max: 16 << 20, segment_bytes: 64 << 10 };
    let (mut log, found) =
        match SegmentLog::open(Box::new(disk.clone()), limits, &["hub".to_owned()], &SpoolKeys::default()) {
            Ok(opened) => opened,
            Err(SpoolError::Damaged { file, what, .. }) => {
                assert!(!file.is_empty() && !what.is_empty());
                return None;
            }
            Err(SpoolError::Version { .. } | SpoolError::Key { .. }) => return None,
            Err(error) => panic!("memory does not fail: {error}"),
        };
    for state in &found.streams {
        assert!(state.head <= state.next);
        let mut from = state.head;
        while from < state.next {
            let run = log.read(state.stream, from, 4096).expect("what was found is read");
            assert!(run.count > 0 && run.first >= from && run.records().count() as u64 == run.count);
            from = run.first + run.count;
        }
    }
    log.flush().expect("memory does not fail");
    Some(found)
}

const FIRST: &str = "0000000000000001.seg";

/// Files by name. Clones are the same disk.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

struct MemoryFile {
    disk: Memory,
    name: String,
}

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let files = self.0.lock().expect("one thread");
        Ok(files.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        if !self.0.lock().expect("one thread").contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(MemoryFile { disk: self.clone(), name: name.to_owned() }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.0.lock().expect("one thread").insert(name.to_owned(), Vec::new());
        self.open(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().expect("one thread").remove(name);
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        act(self.disk.0.lock().expect("one thread").entry(self.name.clone()).or_default())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        Ok(self.with(|bytes| {
            let rest = bytes.get(at as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        }))
    }

    fn write_at(&mut self, written: &[u8], at: u64) -> io::Result<()> {
        self.with(|bytes| {
            let end = at as usize + written.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[at as usize..end].copy_from_slice(written);
        });
        Ok(())
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.with(|bytes| bytes.truncate(len as usize));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
