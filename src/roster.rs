//! Sessions whose devices are away, as others may see them: who is waited for, until when, and how much waits for it. The
//! sessions themselves are their shards'. Written when one comes or goes, and counted in when a message waits.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{id::DeviceId, time::UnixSeconds};

/// See the module.
#[derive(Debug, Default)]
pub struct Roster {
    away: RwLock<HashMap<DeviceId, Arc<Away>>>,
    /// Of all messages that wait for devices with sessions that outlive their connections.
    messages: AtomicUsize,
    bytes: AtomicU64,
    bytes_max: u64,
    /// Shards with something on its way to the disk.
    writing: AtomicUsize,
    /// Something that was written was not there any more, or could not be read.
    damaged: AtomicBool,
}

/// One session whose device is away.
#[derive(Debug)]
pub struct Away {
    /// Since when.
    pub since: UnixSeconds,
    /// When the session ends, unless the device comes back.
    pub expires_at: UnixSeconds,
    /// Its home shard.
    pub shard: usize,
    /// Messages that wait for the device.
    pub messages: AtomicUsize,
    /// Filters that it has subscribed to.
    pub subscriptions: usize,
}

impl Roster {
    /// Nobody is away. All messages together may take so many bytes.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// A device went away.
    pub fn add(&self, device: DeviceId, away: Arc<Away>) {
        self.away.write().unwrap_or_else(PoisonError::into_inner).insert(device, away);
    }

    /// It is back, or its session is over.
    pub fn remove(&self, device: &DeviceId) {
        self.away.write().unwrap_or_else(PoisonError::into_inner).remove(device);
    }

    /// The session of a device, if it is away.
    pub fn of_device(&self, device: &str) -> Option<(DeviceId, Arc<Away>)> {
        self.read().get_key_value(device).map(|(device, away)| (device.clone(), away.clone()))
    }

    /// The session of a device and those of its modules, as far as they are away.
    pub fn within_device(&self, device: &str) -> Vec<(DeviceId, Arc<Away>)> {
        let all = self.read();
        let within = all.iter().filter(|(id, _)| id.as_str() == device || id.device() == device);
        within.map(|(device, away)| (device.clone(), away.clone())).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<(DeviceId, Arc<Away>)> {
        self.read().iter().map(|(device, away)| (device.clone(), away.clone())).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether nobody is away.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a message of so many bytes may wait, beside all that do.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.bytes.load(Relaxed).saturating_add(bytes) <= self.bytes_max
    }

    /// A message of so many bytes waits.
    pub fn keep(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.messages.fetch_add(1, Relaxed);
    }

    /// A message of so many bytes waits no more.
    pub fn let_go(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.messages.fetch_sub(1, Relaxed);
    }

    /// Messages that wait, and their bytes.
    pub fn waiting(&self) -> (usize, u64) {
        (self.messages.load(Relaxed), self.bytes.load(Relaxed))
    }

    /// A shard has something on its way to the disk, or has no more.
    pub fn writes(&self, writes: Writes) {
        match writes {
            Writes::Begins => self.writing.fetch_add(1, Relaxed),
            Writes::Ends => self.writing.fetch_sub(1, Relaxed),
        };
    }

    /// Whether something is on its way to the disk.
    pub fn is_writing(&self) -> bool {
        self.writing.load(Relaxed) > 0
    }

    /// What was written was found damaged: some sessions may be lost.
    pub fn found_damage(&self) {
        self.damaged.store(true, Relaxed);
    }

    /// Whether damage was found at this start.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Relaxed)
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<DeviceId, Arc<Away>>> {
        self.away.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Roster::writes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writes {
    /// The first thing since all was written.
    Begins,
    /// All is written.
    Ends,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_in_up_to_the_bound_of_all() {
        let roster = Roster::new(100);
        assert!(roster.has_room(100) && !roster.has_room(101));
        roster.keep(60);
        assert!(roster.has_room(40) && !roster.has_room(41) && !roster.has_room(u64::MAX));
        roster.keep(70);
        roster.let_go(60);
        assert_eq!((roster.waiting(), roster.has_room(30), roster.has_room(31)), ((1, 70), true, false));
    }

    #[test]
    fn who_is_away_is_found_until_it_is_back() {
        let roster = Roster::new(0);
        let device = DeviceId::try_from("pump-17").expect("an id");
        let (since, expires_at) = (UnixSeconds(5), UnixSeconds(10));
        let away = Away { since, expires_at, shard: 0, messages: AtomicUsize::new(3), subscriptions: 1 };
        roster.add(device.clone(), Arc::new(away));
        assert_eq!((roster.len(), roster.all().len()), (1, 1));
        assert!(roster.of_device("pump-17").is_some() && roster.of_device("pump-1").is_none());
        roster.remove(&device);
        assert!(roster.is_empty());
    }
}
