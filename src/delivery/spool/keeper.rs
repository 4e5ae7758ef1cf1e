//! The thread that writes, syncs and reads for all shards. What is asked of it stands in one place that holds at most one
//! batch and one read of each link; what was asked while it synced becomes the next group.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Batch, Chosen, Fill, Run, Spool, SpoolError, StreamId, discard_aside};

/// Which link is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LinkAddress {
    /// Its shard.
    pub shard: usize,
    /// Its hub.
    pub upstream: usize,
    /// Its place among the members of the shard.
    pub member: usize,
}

/// A part of a stream that a link wants to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Which stream.
    pub stream: StreamId,
    /// From which record on.
    pub from: u64,
    /// About how many bytes.
    pub bytes: usize,
}

/// A part of a stream that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// Which queue.
    pub queue: u16,
    /// What was there, or why it cannot be read.
    pub run: Result<Run, &'static str>,
}

/// What a link is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Its batch is on the disk, or is not.
    Appended(Result<(), &'static str>),
    /// What it wanted to read.
    Read(Vec<Fetched>),
}

/// What others ask of the spool. Cheap to clone; no call waits for the disk.
#[derive(Clone, Debug)]
pub struct SpoolHandle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    mail: Mutex<Mail>,
    woken: Condvar,
    seen: Mutex<Seen>,
    /// Messages that are set aside and on their way back: as many as are listed at once for each who asks.
    claimed: Mutex<HashSet<(u16, u64)>>,
    free: AtomicU64,
}

/// What was asked and is not begun.
#[derive(Debug, Default)]
struct Mail {
    appends: Vec<(LinkAddress, Arc<Batch>)>,
    reads: Vec<(LinkAddress, Vec<Wanted>)>,
    acknowledged: BTreeMap<StreamId, u64>,
    /// Messages that were set aside and wait for their hub again, by hub.
    again: BTreeMap<u16, Vec<u64>>,
    asked: Vec<Work>,
    ends: bool,
}

/// Something else to be done with the spool.
struct Work(Box<DoneWith>);

type DoneWith = dyn FnOnce(&mut dyn Spool) + Send;

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

/// What others may see.
#[derive(Clone, Debug, Default)]
struct Seen {
    fill: Fill,
    trouble: Option<String>,
    /// Queues that cannot be read on, and why.
    unreadable: BTreeMap<StreamId, String>,
    syncs: u64,
}

impl SpoolHandle {
    /// Hands a batch over; an [`Answer::Appended`] will say. A link hands over one at a time.
    pub fn append(&self, link: LinkAddress, batch: Arc<Batch>) {
        self.mail().appends.push((link, batch));
        self.shared.woken.notify_one();
    }

    /// Asks for records; an [`Answer::Read`] will bring them. A link asks once at a time.
    pub fn read(&self, link: LinkAddress, wanted: Vec<Wanted>) {
        self.mail().reads.push((link, wanted));
        self.shared.woken.notify_one();
    }

    /// Records before `upto` are not wanted any more.
    pub fn acknowledge(&self, streams: impl Iterator<Item = (StreamId, u64)>) {
        // Nobody is woken: it goes with whatever is asked next, or by the clock.
        self.mail().acknowledged.extend(streams);
    }

    /// These messages wait for their hub again: they are set aside no longer.
    pub fn is_again(&self, upstream: u16, ids: impl IntoIterator<Item = u64>) {
        self.mail().again.entry(upstream).or_default().extend(ids);
        self.shared.woken.notify_one();
    }

    /// Has something done with the spool between two groups, and waits for it: not for a thread that serves others. None:
    /// it was not done in time.
    pub fn ask<T: Send + 'static>(&self, work: impl FnOnce(&mut dyn Spool) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        // Who asked may have gone.
        let work = Work(Box::new(move |spool| drop(answer.send(work(spool)))));
        self.mail().asked.push(work);
        self.shared.woken.notify_one();
        answered.recv_timeout(ASK_WITHIN).ok()
    }

    /// Bytes that may still be appended, as of the last answer.
    pub fn free(&self) -> u64 {
        self.shared.free.load(Relaxed)
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        self.seen().fill.clone()
    }

    /// What the disk refused last, or what of it cannot be read, while it lasts.
    pub fn trouble(&self) -> Option<String> {
        let seen = self.seen();
        seen.trouble.as_ref().or_else(|| seen.unreadable.values().next()).cloned()
    }

    /// Claims a message that is set aside for whoever has it wait for its hub again: nobody else does so meanwhile.
    pub fn claim_aside(&self, upstream: u16, id: u64) -> bool {
        self.claimed().insert((upstream, id))
    }

    /// Gives claimed messages back: they stay set aside.
    pub fn unclaim_aside(&self, upstream: u16, ids: impl IntoIterator<Item = u64>) {
        let mut claimed = self.claimed();
        ids.into_iter().for_each(|id| _ = claimed.remove(&(upstream, id)));
    }

    fn claimed(&self) -> MutexGuard<'_, HashSet<(u16, u64)>> {
        self.shared.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often messages were written and synced.
    pub fn syncs(&self) -> u64 {
        self.seen().syncs
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.shared.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The spool before and while its thread runs. Dropped: what was asked is done, acknowledgements are made lasting.
pub struct Keeper {
    spool: Option<Box<dyn Spool>>,
    handle: SpoolHandle,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Keeps a spool; nothing is done before [`start`](Self::start).
    pub fn new(spool: Box<dyn Spool>) -> Self {
        let handle = SpoolHandle { shared: Arc::default() };
        handle.note(&*spool, None);
        Self { spool: Some(spool), handle, thread: None }
    }

    /// What others ask through.
    pub fn handle(&self) -> SpoolHandle {
        self.handle.clone()
    }

    /// Starts the thread; `answer` is called on it.
    ///
    /// # Errors
    /// No thread.
    pub fn start(&mut self, answer: impl Fn(LinkAddress, Answer) + Send + 'static) -> std::io::Result<()> {
        let Some(spool) = self.spool.take() else { return Ok(()) };
        let handle = self.handle.clone();
        let named = std::thread::Builder::new().name("tollgate-spool".into());
        self.thread = Some(named.spawn(move || keep(spool, &handle, &answer))?);
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.handle.mail().ends = true;
        self.handle.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of it has been said where it happened.
            let _ = thread.join();
        }
    }
}

fn keep(mut spool: Box<dyn Spool>, handle: &SpoolHandle, answer: &dyn Fn(LinkAddress, Answer)) {
    let mut flushed = Instant::now();
    // Messages that did not fit are offered again and again: as long as they do not, the trouble lasts, whatever else fits.
    let mut refused = false;
    loop {
        let mail = handle.wait(FLUSH_EVERY.saturating_sub(flushed.elapsed()));
        for (stream, upto) in mail.acknowledged {
            spool.acknowledge(stream, upto);
        }
        if !mail.appends.is_empty() {
            let trouble = append(&mut *spool, mail.appends, handle, answer);
            refused |= trouble.is_some();
            handle.note(&*spool, trouble.map(Some));
        }
        for (link, wanted) in mail.reads {
            answer(link, Answer::Read(read(&mut *spool, &wanted, handle)));
        }
        for (upstream, ids) in mail.again {
            if let Err(error) = discard_aside(&mut *spool, upstream, &Chosen::Each(ids.clone())) {
                tracing::warn!(%error, "messages that wait again stay set aside as well");
            }
            handle.unclaim_aside(upstream, ids);
        }
        for Work(work) in mail.asked {
            work(&mut *spool);
            handle.note(&*spool, None);
        }
        if mail.ends || flushed.elapsed() >= FLUSH_EVERY {
            let flush = spool.flush();
            flushed = Instant::now();
            // That a flush succeeds does not say that messages are taken.
            handle.note(&*spool, flush.err().map(Some));
            if !std::mem::take(&mut refused) && handle.seen().trouble.is_some() {
                // Nobody may have anything to append: the disk is asked, so that the alarm ends with its cause.
                let still = spool.append(&[]).err();
                handle.note(&*spool, Some(still));
            }
        }
        if mail.ends {
            return;
        }
    }
}

/// Everything that waits becomes one group; where that does not fit, each batch is tried on its own. Says what was refused.
fn append(
    spool: &mut dyn Spool,
    appends: Vec<(LinkAddress, Arc<Batch>)>,
    handle: &SpoolHandle,
    answer: &dyn Fn(LinkAddress, Answer),
) -> Option<SpoolError> {
    let batches: Vec<Arc<Batch>> = appends.iter().map(|(_, batch)| batch.clone()).collect();
    let together = spool.append(&batches);
    drop(batches);
    handle.seen().syncs += 1;
    let mut trouble = together.err();
    if matches!(trouble, Some(SpoolError::SizeMax)) && appends.len() > 1 {
        trouble = None;
        for (link, batch) in appends {
            let refused = spool.append(&[batch]).err();
            answer(link, Answer::Appended(told(refused.as_ref())));
            trouble = refused.or(trouble);
        }
    } else {
        appends.iter().for_each(|(link, _)| answer(*link, Answer::Appended(told(trouble.as_ref()))));
    }
    trouble
}

fn told(trouble: Option<&SpoolError>) -> Result<(), &'static str> {
    trouble.map_or(Ok(()), |error| Err(error.tag()))
}

/// Each queue is answered for itself: what is damaged holds up no other.
fn read(spool: &mut dyn Spool, wanted: &[Wanted], handle: &SpoolHandle) -> Vec<Fetched> {
    let fetched = wanted.iter().map(|Wanted { stream, from, bytes }| {
        let read = spool.read(*stream, *from, *bytes);
        handle.note_read(*stream, read.as_ref().err());
        Fetched { queue: stream.queue, run: read.map_err(|error| error.tag()) }
    });
    fetched.collect()
}

impl SpoolHandle {
    /// Waits for mail, and takes all of it.
    fn wait(&self, at_most: Duration) -> Mail {
        let mail = self.mail();
        let idle = |mail: &mut Mail| {
            let asked = mail.asked.is_empty() && mail.again.is_empty();
            asked && mail.appends.is_empty() && mail.reads.is_empty() && !mail.ends
        };
        let waited = self.shared.woken.wait_timeout_while(mail, at_most, idle);
        let (mut mail, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let ends = mail.ends;
        Mail { ends, ..std::mem::take(&mut *mail) }
    }

    /// Shows which queue cannot be read on, or that it can.
    fn note_read(&self, stream: StreamId, error: Option<&SpoolError>) {
        let mut seen = self.seen();
        let Some(error) = error else {
            if !seen.unreadable.is_empty() && seen.unreadable.remove(&stream).is_some() {
                tracing::info!(queue = stream.queue, "a queue of the spool can be read again");
            }
            return;
        };
        let remedy = match error {
            SpoolError::Damaged { .. } => "stop the gateway and run `tollgate spool salvage`, see docs/operations.md",
            _ => "it is tried again",
        };
        let what = format!("{error}; messages behind it wait, all others go on; {remedy}");
        if seen.unreadable.get(&stream) != Some(&what) {
            tracing::error!(queue = stream.queue, error = what, "the spool cannot be read");
            seen.unreadable.insert(stream, what);
        }
    }

    /// Shows how full the spool is and, where there is news of it, what the disk refuses.
    fn note(&self, spool: &dyn Spool, news: Option<Option<SpoolError>>) {
        let fill = spool.fill();
        self.shared.free.store(fill.free, Relaxed);
        let mut seen = self.seen();
        seen.fill = fill;
        let Some(trouble) = news else { return };
        let trouble = trouble.map(|error| error.to_string());
        if trouble != seen.trouble {
            match &trouble {
                Some(what) => tracing::error!(error = what, "the spool takes nothing: devices wait"),
                None => tracing::info!("the spool takes messages again"),
            }
            seen.trouble = trouble;
        }
    }
}

/// Acknowledgements are lasting so long after they came, at the latest: after a crash, what came since is sent again.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// An operator waits for it; the disk may be slow, or may have stopped.
const ASK_WITHIN: Duration = Duration::from_secs(8);
