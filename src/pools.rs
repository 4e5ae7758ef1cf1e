//! Which connection of a hub's pool each device has, and which it had: that depends on how many shards and connections
//! there are. A hub keeps filters and messages under the client id of a connection, so that a start with other numbers
//! has to fetch what waits under the old ones. It is kept in the state directory which ones those are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::file::{self, Readers};

/// How the devices are spread over the connections of one hub.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// What the client id of every connection begins with.
    pub client_id: String,
    /// How many shards there are.
    pub shards: usize,
    /// Connections of a shard.
    pub connections: usize,
}

impl Layout {
    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.shards * self.connections
    }

    /// Never: a pool has a connection or more.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the connection that the devices of a queue of the spool have.
    pub fn number_of(&self, queue: u16) -> usize {
        let (shard, connection) = place_of(queue, self.shards, self.connections);
        shard * self.connections + connection
    }

    /// The client id of a connection.
    pub fn client_id_of(&self, number: usize) -> String {
        client_id_of(&self.client_id, number)
    }

    fn is_possible(&self) -> bool {
        (1..=LEN_MAX).contains(&self.shards) && (1..=LEN_MAX).contains(&self.connections) && self.len() <= LEN_MAX
    }
}

/// The shard of a queue of the spool, and which of the shard's connections to a hub it has: all of a queue belongs to one
/// link, however many there are.
#[inline]
pub fn place_of(queue: u16, shards: usize, connections: usize) -> (usize, usize) {
    let queue = usize::from(queue);
    (queue % shards, queue / shards % connections)
}

/// The client id of the connection with this number, among all of a pool.
pub fn client_id_of(pool: &str, number: usize) -> String {
    format!("{pool}-{number}")
}

/// The pool of one hub: how it is, how it was, and what has yet to be fetched from there.
#[derive(Debug)]
pub struct Pool {
    now: Layout,
    earlier: Vec<Layout>,
    /// By number: the connection's filters are on the hub.
    placed: Vec<AtomicBool>,
    has_placed: AtomicBool,
    /// Client ids under which the hub may still have something.
    open: Mutex<BTreeSet<String>>,
}

impl Pool {
    fn new(now: Layout, earlier: Vec<Layout>) -> Self {
        let open = earlier.iter().flat_map(|layout| (0..layout.len()).map(|number| layout.client_id_of(number)));
        let placed = (0..now.len()).map(|_| AtomicBool::new(false)).collect();
        Self { open: Mutex::new(open.collect()), placed, has_placed: AtomicBool::new(false), now, earlier }
    }

    /// How it is.
    pub fn now(&self) -> &Layout {
        &self.now
    }

    /// How it was when the hub may have got what it still has; the latest last.
    pub fn earlier(&self) -> &[Layout] {
        &self.earlier
    }

    /// A connection has placed the filters of all its sessions.
    pub fn places(&self, number: usize) {
        if let Some(placed) = self.placed.get(number) {
            placed.store(true, Ordering::Release);
        }
        if self.placed.iter().all(|placed| placed.load(Ordering::Acquire)) {
            self.has_placed.store(true, Ordering::Release);
        }
    }

    /// Whether every connection has: nothing more is published that only an earlier one would get.
    pub fn has_placed(&self) -> bool {
        self.has_placed.load(Ordering::Acquire)
    }

    /// Nothing more is to be had under this client id.
    pub fn closes(&self, client_id: &str) {
        lock(&self.open).remove(client_id);
    }

    /// Client ids of earlier starts under which the hub may still have something.
    pub fn open(&self) -> usize {
        lock(&self.open).len()
    }

    fn is_settled(&self) -> bool {
        self.open() == 0
    }
}

/// The pools of all hubs.
#[derive(Debug)]
pub struct Pools {
    file: PathBuf,
    by_hub: BTreeMap<String, Pool>,
    /// Of hubs that are not configured now, and may be again.
    others: Kept,
    /// How many pools had something open when it was written last.
    written: AtomicUsize,
}

/// What the file says of each hub, the latest last.
type Kept = BTreeMap<String, Vec<Layout>>;

impl Pools {
    /// As they are now, by hub, and as the state directory says that they were. What cannot be read there is told in the
    /// log, and begun anew.
    pub fn open(state_dir: &Path, now: impl IntoIterator<Item = (String, Layout)>) -> Self {
        let file = state_dir.join(FILE);
        let mut kept = read(&file).unwrap_or_else(|error| {
            let path = file.display();
            tracing::warn!(%error, file = %path, "what hubs keep for connections of earlier starts is not fetched");
            Kept::default()
        });
        let by_hub = now.into_iter().map(|(hub, now)| {
            let mut earlier = kept.remove(&hub).unwrap_or_default();
            earlier.retain(|layout| *layout != now && layout.is_possible());
            (hub, Pool::new(now, earlier))
        });
        let by_hub = by_hub.collect();
        let pools = Self { by_hub, others: kept, file, written: AtomicUsize::new(0) };
        // Before a hub is asked for anything.
        pools.write();
        pools
    }

    /// The pool of a hub.
    pub fn of(&self, hub: &str) -> Option<&Pool> {
        self.by_hub.get(hub)
    }

    /// Writes down that earlier connections are over, where they are and it was not. It waits for the disk.
    pub fn save(&self) {
        if self.written.load(Ordering::Acquire) != self.unsettled() {
            self.write();
        }
    }

    fn unsettled(&self) -> usize {
        self.by_hub.values().filter(|pool| !pool.is_settled()).count()
    }

    fn write(&self) {
        let unsettled = self.unsettled();
        let of = |pool: &Pool| {
            let earlier = if pool.is_settled() { &[] } else { pool.earlier() };
            earlier.iter().chain([pool.now()]).cloned().collect()
        };
        let mut kept = self.others.clone();
        kept.extend(self.by_hub.iter().map(|(hub, pool)| (hub.clone(), of(pool))));
        let written = serde_json::to_vec_pretty(&kept).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            file::replace(&self.file, &[&text], Readers::Owner)
        });
        match written {
            Ok(()) => self.written.store(unsettled, Ordering::Release),
            Err(error) => {
                self.written.store(usize::MAX, Ordering::Release);
                let path = self.file.display();
                tracing::warn!(%error, file = %path, "it cannot be kept which connections hubs have");
            }
        }
    }
}

fn read(file: &Path) -> io::Result<Kept> {
    match fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error),
    }
}

/// What these guard is whole after a panic: every change of it is a single call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const FILE: &str = "pools.json";
/// More connections than any pool may have.
const LEN_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shards: usize, connections: usize) -> Layout {
        Layout { client_id: "tollgate-a-hub".into(), shards, connections }
    }

    fn open(folder: &Path, now: Layout) -> Pools {
        Pools::open(folder, [("hub".to_owned(), now)])
    }

    fn earlier(pools: &Pools) -> Vec<Layout> {
        pools.of("hub").expect("a pool").earlier().to_vec()
    }

    #[test]
    fn every_queue_has_one_connection() {
        for layout in [layout(1, 1), layout(2, 3), layout(3, 1), layout(256, 1)] {
            let mut queues = vec![0; layout.len()];
            (0..256).for_each(|queue| queues[layout.number_of(queue)] += 1);
            assert!(queues.iter().all(|queues| *queues > 0), "{layout:?}: {queues:?}");
        }
        assert_eq!((layout(2, 3).number_of(1), layout(2, 3).client_id_of(4)), (3, "tollgate-a-hub-4".into()));
    }

    #[test]
    fn earlier_layouts_are_remembered_until_they_are_over() {
        let folder = tempfile::tempdir().expect("a directory");
        let (a, b, c) = (layout(2, 1), layout(4, 1), layout(3, 1));
        assert_eq!(earlier(&open(folder.path(), a.clone())), []);
        assert_eq!(earlier(&open(folder.path(), a.clone())), []);
        let pools = open(folder.path(), b.clone());
        assert_eq!(earlier(&pools), std::slice::from_ref(&a));
        // Not over yet at the next start, nor at the one after it.
        let pool = pools.of("hub").expect("a pool");
        pool.closes("tollgate-a-hub-0");
        pool.closes("another");
        assert_eq!(pool.open(), 1);
        pools.save();
        assert_eq!(earlier(&open(folder.path(), c.clone())), [a.clone(), b.clone()]);
        let pools = open(folder.path(), a.clone());
        assert_eq!(earlier(&pools), [b, c], "and it is as it was");
        let pool = pools.of("hub").expect("a pool");
        assert_eq!(pool.open(), 4, "two of them had the same connections");
        (0..4).for_each(|number| pool.closes(&pool.now().client_id_of(number)));
        pools.save();
        assert_eq!(earlier(&open(folder.path(), a)), []);
    }

    #[test]
    fn a_hub_that_is_not_configured_for_a_while_is_not_forgotten() {
        let folder = tempfile::tempdir().expect("a directory");
        let other = |now: Layout| Pools::open(folder.path(), [("other".to_owned(), now)]);
        open(folder.path(), layout(2, 1));
        let pools = other(layout(3, 1));
        assert_eq!(pools.of("other").expect("a pool").earlier(), []);
        assert_eq!(earlier(&open(folder.path(), layout(3, 1))), [layout(2, 1)]);
        assert_eq!(other(layout(1, 1)).of("other").expect("a pool").earlier(), [layout(3, 1)]);
    }

    #[test]
    fn all_connections_have_placed_their_filters_when_each_has() {
        let pool = Pool::new(layout(2, 1), vec![]);
        pool.places(1);
        pool.places(7);
        assert!(!pool.has_placed());
        pool.places(0);
        assert!(pool.has_placed() && pool.is_settled());
    }

    #[test]
    fn a_file_that_is_no_such_file_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a directory");
        for text in ["{", r#"{"hub": [{"client_id": "x", "shards": 0, "connections": 1}]}"#] {
            fs::write(folder.path().join(FILE), text).expect("written");
            assert_eq!(earlier(&open(folder.path(), layout(2, 1))), []);
        }
        assert_eq!(earlier(&open(folder.path(), layout(2, 1))), []);
        assert_eq!(earlier(&open(folder.path(), layout(1, 1))), [layout(2, 1)]);
    }
}
