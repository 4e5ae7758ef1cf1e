//! What reaches a shard from outside: connections that live here, sessions to be closed, the end.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Shard,
    accept::Handed,
    connection,
    drain::{self, Drain},
    kept,
    moved::{self, Passed},
    spooling, wills,
};
use crate::{
    delivery::{
        SessionRef, Ticket,
        spool::{Answer, AsideMessage, LinkAddress, queue_of},
    },
    denial::CloseReason,
    id::DeviceId,
    pools::place_of,
    registry::Live,
};

/// One message to a shard.
#[derive(Debug)]
pub enum Inbox {
    /// A connection whose CONNECT was admitted elsewhere and whose device is at home here.
    Home(Box<Handed>),
    /// Sessions that were made deaf, which are to close, or that were granted less: they look before they go on.
    Look(Vec<SessionRef>),
    /// The gateway ends.
    Drain(Drain),
    /// The spool answers one of the shard's links: hub, member, answer.
    Spool(usize, usize, Answer),
    /// The disk answers for what was written of sessions.
    Written(Answer),
    /// The session of a device ends, if it is away.
    End(DeviceId),
    /// Messages that were set aside are to wait again: hub, member, messages.
    Again(usize, usize, Vec<AsideMessage>, SyncSender<Again>),
    /// A message of a connection of another shard, for a device that is at home here.
    Passed(Box<Passed>),
    /// Another shard is done with a message of this connection.
    Taken(LinkAddress, Ticket),
    /// Hubs are told that the gateway ends.
    Leave,
}

/// What became of messages that were to wait for their hub again.
#[derive(Debug)]
pub struct Again {
    /// How many wait.
    pub(super) done: usize,
    /// For which there is no room now.
    pub(super) stay: Vec<u64>,
}

/// The inboxes of all shards. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shards {
    inboxes: Arc<[mpsc::Sender<Inbox>]>,
    beats: Arc<[AtomicU64]>,
}

impl Shards {
    pub(super) fn new(inboxes: Vec<mpsc::Sender<Inbox>>) -> Self {
        let beats = inboxes.iter().map(|_| AtomicU64::default()).collect();
        Self { inboxes: inboxes.into(), beats }
    }

    /// How often the loop of each shard has turned: a number that stands still is a shard that does.
    pub fn beats(&self) -> impl Iterator<Item = u64> {
        self.beats.iter().map(|beats| beats.load(Ordering::Relaxed))
    }

    /// The loop of this shard turns.
    pub(super) fn beat(&self, shard: usize) {
        self.beats[shard].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inboxes.len()
    }

    /// Never: a gateway has a shard or more.
    pub fn is_empty(&self) -> bool {
        self.inboxes.is_empty()
    }

    /// Ends sessions. All are deaf before the first is closed; `applied` is when the change that ends them had been
    /// applied. Says how many were alive.
    pub fn cut(&self, sessions: &[(Arc<Live>, CloseReason)], applied: Instant) -> usize {
        let mut by_shard = vec![Vec::new(); self.len()];
        for (live, reason) in sessions {
            if live.deafen(*reason, applied)
                && let Some(of_shard) = by_shard.get_mut(live.shard)
            {
                of_shard.push(SessionRef { slot: live.slot, generation: live.generation });
            }
        }
        let count = by_shard.iter().map(Vec::len).sum();
        self.look(by_shard);
        count
    }

    /// Has sessions look at what was decided about them.
    pub fn wake(&self, sessions: &[Arc<Live>]) {
        let mut by_shard = vec![Vec::new(); self.len()];
        for live in sessions {
            if let Some(of_shard) = by_shard.get_mut(live.shard) {
                of_shard.push(SessionRef { slot: live.slot, generation: live.generation });
            }
        }
        self.look(by_shard);
    }

    fn look(&self, by_shard: Vec<Vec<SessionRef>>) {
        for (inbox, sessions) in self.inboxes.iter().zip(by_shard) {
            if !sessions.is_empty() {
                post(inbox, Inbox::Look(sessions));
            }
        }
    }

    /// Has every shard take no more connections, and close its sessions.
    pub fn drain(&self, how: Drain) {
        self.inboxes.iter().for_each(|inbox| post(inbox, Inbox::Drain(how)));
    }

    /// Has every member of every pool say good-bye to its hub.
    pub fn leave(&self) {
        self.inboxes.iter().for_each(|inbox| post(inbox, Inbox::Leave));
    }

    /// Tells a link what became of what it asked of the spool. For the spool's own thread: it waits for a full inbox.
    pub fn answer(&self, link: LinkAddress, answer: Answer) {
        if let Some(inbox) = self.inboxes.get(link.shard) {
            // A shard that is gone asks no more.
            let _ = inbox.blocking_send(Inbox::Spool(link.upstream, link.member, answer));
        }
    }

    /// Tells a shard what became of what it wrote of sessions. For the thread that writes, as [`answer`](Self::answer).
    pub fn written(&self, shard: usize, answer: Answer) {
        if let Some(inbox) = self.inboxes.get(shard) {
            let _ = inbox.blocking_send(Inbox::Written(answer));
        }
    }

    /// Ends the session of a device that is away.
    pub fn end(&self, shard: usize, device: DeviceId) {
        if let Some(inbox) = self.inboxes.get(shard) {
            post(inbox, Inbox::End(device));
        }
    }

    /// Has messages that were set aside wait for their hub again, each with the link of its device, and waits for the
    /// shards' decision: not for a thread that serves others. `members` of the hub belong to each shard. How many wait
    /// again, and which stay set aside, since there is no room for them now. A shard that does not answer in time may still
    /// take its own.
    pub fn try_again(&self, upstream: usize, members: usize, messages: Vec<AsideMessage>) -> (usize, Vec<u64>) {
        let (answer, answers) = sync_channel(self.len() * members);
        let (mut asked, mut taken, mut left) = (0, 0, Vec::new());
        let mut by_link: BTreeMap<(usize, usize), Vec<AsideMessage>> = BTreeMap::new();
        for message in messages {
            let Some(queue) = message.record().map(|record| queue_of(record.device)) else { continue };
            let link = place_of(queue, self.len(), members);
            by_link.entry(link).or_default().push(message);
        }
        for ((shard, member), messages) in by_link {
            if let Some(inbox) = self.inboxes.get(shard) {
                post(inbox, Inbox::Again(upstream, member, messages, answer.clone()));
                asked += 1;
            }
        }
        drop(answer);
        let until = Instant::now() + DECIDED_WITHIN;
        for _ in 0..asked {
            let Ok(Again { done, stay }) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) else {
                break;
            };
            taken += done;
            left.extend(stay);
        }
        (taken, left)
    }

    /// Passes a message to a shard; a full inbox gives it back.
    pub(super) fn pass(&self, shard: usize, message: Inbox) -> Result<(), Inbox> {
        match self.inboxes.get(shard).map(|inbox| inbox.try_send(message)) {
            Some(Err(mpsc::error::TrySendError::Full(message))) => Err(message),
            // A shard that is gone has no sessions.
            _ => Ok(()),
        }
    }

    /// Tells a shard that what its connection brought is taken.
    pub(super) fn taken(&self, from: LinkAddress, ticket: Ticket) {
        if let Some(inbox) = self.inboxes.get(from.shard) {
            post(inbox, Inbox::Taken(from, ticket));
        }
    }

    /// Hands an admitted connection to the shard where its device is at home.
    pub(super) async fn hand(&self, home: usize, handed: Box<Handed>) {
        // A shard that is gone takes its connections with it: the socket is closed.
        let _ = self.inboxes[home].send(Inbox::Home(handed)).await;
    }
}

/// From threads that are no shard's. A full inbox is waited for: what is posted here is never dropped.
fn post(inbox: &mpsc::Sender<Inbox>, message: Inbox) {
    match inbox.try_send(message) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        Err(mpsc::error::TrySendError::Full(message)) => {
            let inbox = inbox.clone();
            std::thread::spawn(move || inbox.blocking_send(message));
        }
    }
}

pub(super) async fn run(shard: Rc<Shard>, mut inbox: mpsc::Receiver<Inbox>) {
    while let Some(message) = inbox.recv().await {
        match message {
            Inbox::Home(handed) => connection::adopt(&shard, *handed),
            Inbox::Look(sessions) => wake(&shard, &sessions).await,
            Inbox::Spool(upstream, member, answer) => spooling::answered(&shard, upstream, member, answer),
            Inbox::Written(answer) => kept::answered(&shard, answer),
            Inbox::End(device) => {
                wills::forget(&shard, &device);
                kept::end(&shard, &device, "an operator closed it");
            }
            Inbox::Drain(Drain::InWaves(within)) => drain::begin(&shard, within),
            Inbox::Drain(Drain::AtOnce) => wake(&shard, &drain::deafen_all(&shard)).await,
            Inbox::Again(upstream, member, messages, answer) => {
                // Who asked may have gone.
                drop(answer.try_send(spooling::again(&shard, upstream, member, messages)));
            }
            Inbox::Passed(passed) => moved::arrives(&shard, &passed),
            Inbox::Taken(from, ticket) => moved::taken(&shard, from, ticket),
            Inbox::Leave => shard.all_members().for_each(|member| member.leave()),
        }
    }
}

/// In chunks, so that the traffic of others goes on.
async fn wake(shard: &Rc<Shard>, sessions: &[SessionRef]) {
    for chunk in sessions.chunks(WOKEN_A_POLL) {
        for who in chunk {
            if let Some(cell) = shard.session(*who) {
                cell.wake();
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Hand-offs that may wait. A full inbox holds up those who hand over, not those who live here.
pub(super) const INBOX_MAX: usize = 4096;
/// An operator waits for it.
const DECIDED_WITHIN: Duration = Duration::from_secs(8);
/// Sessions closed, as a rule, before others have their turn.
const WOKEN_A_POLL: usize = 64;
