//! A disk that fails on request and forgets what was not synced: sector by sector, in any order.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use super::super::{Disk, DiskFile};

/// See the module. Clones are the same disk.
#[derive(Clone, Default)]
pub(super) struct SimDisk(Arc<Mutex<World>>);

#[derive(Default)]
pub(super) struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    lasting_names: BTreeMap<String, usize>,
    /// Changes of the directory since it was synced.
    moves: Vec<(String, Option<usize>)>,
    /// Calls that may fail, so far.
    pub(super) calls: u64,
    /// The call with this number fails.
    pub(super) fails_at: Option<(u64, Fault)>,
    /// So many bytes fit on the disk.
    pub(super) bytes_max: Option<u64>,
    pub(super) read_only: bool,
    /// Says that it synced, and does not.
    pub(super) lies: bool,
    /// The process is gone: nothing more reaches the disk.
    dead: bool,
    pub(super) syncs: u64,
    pub(super) written: u64,
    pub(super) read: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The call fails and nothing happens. A sync: what was written may be lost, and later syncs do not say so.
    Error,
    /// A write that ends half-way, and fails.
    Short,
    /// From this call on, nothing happens: the process was killed, or the power went.
    Crash,
}

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    lasting: Vec<u8>,
    /// Since the last sync.
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

impl SimDisk {
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test panics while it holds the disk")
    }

    pub(super) fn boxed(&self) -> Box<dyn Disk> {
        Box::new(self.clone())
    }

    /// What a kill -9 leaves: all that was written. What was not synced is as little on the disk as before.
    pub(super) fn after_kill(&self) -> Self {
        let world = self.world();
        Self(Arc::new(Mutex::new(World {
            inodes: world.inodes.clone(),
            names: world.names.clone(),
            lasting_names: world.lasting_names.clone(),
            moves: world.moves.clone(),
            ..World::default()
        })))
    }

    /// What a power cut leaves: all that was synced, and of the rest what `kept` says, sector by sector.
    pub(super) fn after_power_cut(&self, kept: &mut dyn FnMut() -> bool) -> Self {
        let world = self.world();
        let mut names = world.lasting_names.clone();
        for (name, to) in &world.moves {
            if kept() {
                match to {
                    Some(inode) => drop(names.insert(name.clone(), *inode)),
                    None => drop(names.remove(name)),
                }
            }
        }
        let inodes = world.inodes.iter().map(|inode| Inode { lasting: inode.survives(kept), ..Inode::default() });
        Self::fresh(inodes.collect(), names)
    }

    fn fresh(mut inodes: Vec<Inode>, names: BTreeMap<String, usize>) -> Self {
        for inode in &mut inodes {
            inode.now.clone_from(&inode.lasting);
            inode.pending.clear();
        }
        Self(Arc::new(Mutex::new(World { inodes, lasting_names: names.clone(), names, ..World::default() })))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.world().names.keys().cloned().collect()
    }

    pub(super) fn bytes_of(&self, name: &str) -> Vec<u8> {
        let world = self.world();
        world.inodes[world.names[name]].now.clone()
    }

    /// Changes a file behind the spool's back.
    pub(super) fn damage(&self, name: &str, how: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let inode = world.names[name];
        how(&mut world.inodes[inode].now);
        let now = world.inodes[inode].now.clone();
        world.inodes[inode].lasting = now;
        world.inodes[inode].pending.clear();
    }

    pub(super) fn lose(&self, name: &str) {
        let mut world = self.world();
        world.names.remove(name);
        world.lasting_names.remove(name);
    }
}

impl Inode {
    fn survives(&self, kept: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let mut file = self.lasting.clone();
        for change in &self.pending {
            match change {
                Change::Cut(len) if kept() => file.resize(*len, 0),
                Change::Cut(_) => {}
                Change::Write(at, bytes) => {
                    let mut from = 0;
                    while from < bytes.len() {
                        let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(bytes.len());
                        if kept() {
                            file.resize(file.len().max(at + to), 0);
                            file[at + from..at + to].copy_from_slice(&bytes[from..to]);
                        }
                        from = to;
                    }
                }
            }
        }
        file
    }
}

impl World {
    fn call(&mut self) -> Result<Option<Fault>, io::Error> {
        self.calls += 1;
        if let Some((_, fault)) = self.fails_at.filter(|(at, _)| *at == self.calls) {
            match fault {
                Fault::Crash => self.dead = true,
                Fault::Error => return Err(io::Error::other("EIO")),
                Fault::Short => return Ok(Some(fault)),
            }
        }
        if self.dead {
            return Err(io::Error::other("dead"));
        }
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(None)
    }

    fn bytes(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].now.len() as u64).sum()
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let world = self.world();
        Ok(world.names.iter().map(|(name, inode)| (name.clone(), world.inodes[*inode].now.len() as u64)).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.world().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.world();
        world.call()?;
        world.inodes.push(Inode::default());
        let inode = world.inodes.len() - 1;
        world.names.insert(name.to_owned(), inode);
        world.moves.push((name.to_owned(), Some(inode)));
        drop(world);
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        world.moves.push((name.to_owned(), None));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        if !world.lies {
            world.lasting_names = world.names.clone();
            world.moves.clear();
        }
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.disk.world();
        let rest = world.inodes[self.inode].now.get(at as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        world.read += n as u64;
        Ok(n)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        let fault = world.call()?;
        let at = at as usize;
        let grows = (at + bytes.len()).saturating_sub(world.inodes[self.inode].now.len()) as u64;
        let full = world.bytes_max.is_some_and(|max| world.bytes() + grows > max);
        let written = if fault == Some(Fault::Short) || full { &bytes[..bytes.len() / 2] } else { bytes };
        world.written += written.len() as u64;
        let inode = &mut world.inodes[self.inode];
        inode.now.resize(inode.now.len().max(at + written.len()), 0);
        inode.now[at..at + written.len()].copy_from_slice(written);
        inode.pending.push(Change::Write(at, written.to_vec()));
        match (full, fault) {
            (true, _) => Err(io::ErrorKind::StorageFull.into()),
            (_, Some(_)) => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        }
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.call()?;
        let inode = &mut world.inodes[self.inode];
        inode.now.resize(len as usize, 0);
        inode.pending.push(Change::Cut(len as usize));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut world = self.disk.world();
        let called = world.call();
        if called.is_err() && !world.dead && !world.read_only {
            // What was dirty counts as clean from here on, and is nowhere: a later sync succeeds.
            world.inodes[self.inode].pending.clear();
        }
        called?;
        world.syncs += 1;
        if !world.lies {
            // What a failed sync dropped is in no later one.
            let inode = &mut world.inodes[self.inode];
            inode.lasting = inode.survives(&mut || true);
            inode.pending.clear();
        }
        Ok(())
    }
}

const SECTOR: usize = 512;
