//! Between the links of a shard and the spool's thread: what they have for it is handed over when all sessions that are
//! ready have offered what they hold, so that it becomes one group; its answers come through the inbox.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Poll, Waker},
};

use super::{Shard, inbox::Again, kept, pump};
use crate::delivery::spool::{Answer, AsideMessage};

/// That a link may have something for the disk.
#[derive(Default)]
pub(super) struct Hint {
    work: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Hint {
    /// The links are looked at after everything that is ready now.
    #[inline]
    pub(super) fn work(&self) {
        if !self.work.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }
}

/// Hands over, for as long as the shard lives.
pub(super) async fn run(shard: Rc<Shard>) {
    std::future::poll_fn(|cx| {
        *shard.spooling.waker.borrow_mut() = Some(cx.waker().clone());
        while shard.spooling.work.take() {
            shard.members.iter().flatten().for_each(|member| hand_over(&shard, member));
            kept::hand_over(&shard);
        }
        Poll::<()>::Pending
    })
    .await;
}

/// The spool answers a link.
pub(super) fn answered(shard: &Rc<Shard>, upstream: usize, member: usize, answer: Answer) {
    let Some(member) = shard.members.get(upstream).and_then(|members| members.get(member)) else { return };
    let now = shard.site.now();
    {
        let (mut link, mut output) = (member.link.borrow_mut(), member.output.borrow_mut());
        match answer {
            Answer::Appended(result) => link.spool_stored(result, &mut output, now),
            Answer::Read(fetched) => link.spool_read(fetched, &mut output, now),
        }
    }
    pump::settle(shard, member);
    pump::grant(shard, member, &mut member.link.borrow_mut(), now);
    member.wake();
    hand_over(shard, member);
}

/// Messages that were set aside are to wait for their hub again.
pub(super) fn again(shard: &Rc<Shard>, upstream: usize, member: usize, messages: Vec<AsideMessage>) -> Again {
    let ids = |messages: Vec<AsideMessage>| messages.into_iter().map(|message| message.id).collect();
    let Some(member) = shard.members.get(upstream).and_then(|members| members.get(member)) else {
        return Again { done: 0, stay: ids(messages) };
    };
    let (now, of) = (shard.site.now(), messages.len());
    let (taken, left): (Vec<_>, Vec<_>) = messages.into_iter().partition(|message| {
        let record = message.record();
        record.is_some_and(|record| member.link.borrow_mut().try_again(&record, message.id, now))
    });
    tracing::info!(taken = taken.len(), of, "messages that were set aside are to be sent again");
    member.wake();
    hand_over(shard, member);
    Again { done: taken.len(), stay: ids(left) }
}

fn hand_over(shard: &Shard, member: &pump::Member) {
    let Some(spool) = &shard.site.spool else { return };
    let now = shard.site.now();
    let mut link = member.link.borrow_mut();
    if link.has_spool_work() {
        spool.acknowledge(link.spool_acknowledgements());
    }
    if let Some((upstream, ids)) = link.spool_again() {
        spool.is_again(upstream, ids);
    }
    if let Some(batch) = link.spool_batch(now) {
        spool.append(member.address, batch);
    }
    if let Some(wanted) = link.spool_wanted(now) {
        spool.read(member.address, wanted);
    }
}
