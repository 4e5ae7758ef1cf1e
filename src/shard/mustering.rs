//! A member of the pool of the hub inside, and the others: it publishes while all of them have their filters there. That
//! hub forgets filters with every connection, and what is published meanwhile is missed by sessions that were told that
//! they are subscribed, among them all that a start found.

use std::{cell::Cell, num::NonZeroU64, sync::Arc, time::Duration};

use crate::{delivery::Link, time::Tick, upstream::Muster};

/// What one member knows of it.
pub(super) struct Mustering {
    /// Its number there; none: its hub keeps filters, or is others' as well.
    of: Option<(Arc<Muster>, usize)>,
    /// The start of the hub that it is connected to.
    start: Cell<Option<NonZeroU64>>,
    /// Its filters are there.
    is_there: Cell<bool>,
    /// Since when it could publish and others are not there.
    waits_since: Cell<Option<Tick>>,
    has_waited: Cell<bool>,
    is_left_behind: Cell<bool>,
}

impl Mustering {
    pub(super) fn new(of: Option<(Arc<Muster>, usize)>) -> Self {
        let (start, is_there, waits_since, has_waited, is_left_behind) = Default::default();
        Self { of, start, is_there, waits_since, has_waited, is_left_behind }
    }

    /// A connection begins, to the hub of this start.
    pub(super) fn begins(&self, start: NonZeroU64, link: &mut Link) {
        self.start.set(Some(start));
        self.waits_since.set(None);
        self.has_waited.set(false);
        self.is_left_behind.set(false);
        link.hold();
    }

    /// The connection is over.
    pub(super) fn ends(&self) {
        self.start.set(None);
        if let (Some((muster, number)), true) = (&self.of, self.is_there.take()) {
            muster.leaves(*number);
        }
    }

    /// Holds what would be published, or lets it go.
    #[inline]
    pub(super) fn look(&self, upstream: &str, link: &mut Link, now: Tick) {
        let (Some((muster, number)), Some(start)) = (&self.of, self.start.get()) else { return };
        if !link.is_up() {
            return;
        }
        if !self.is_there.get() && link.has_placed() {
            self.is_there.set(true);
            muster.comes(*number, start);
        }
        if muster.is_complete(start) {
            self.waits_since.set(None);
            self.has_waited.set(false);
            link.go_on(now);
        } else if !self.has_waited.get() {
            let since = self.waits_since.get().unwrap_or(now);
            self.waits_since.set(Some(since));
            if now.since(since) < WAITS_MAX {
                link.hold();
            } else {
                self.has_waited.set(true);
                tracing::warn!(
                    upstream,
                    "sessions of another shard may miss messages: it has not placed their filters"
                );
                link.go_on(now);
            }
        }
    }

    /// Notices that the hub it is connected to is not the one that was started last; says whether that is so.
    pub(super) fn compare(&self, last: NonZeroU64) -> bool {
        self.is_left_behind.set(self.start.get().is_some_and(|start| start != last));
        self.is_left_behind.get()
    }

    /// Whether there is nothing more to be had from the hub that it is connected to.
    #[inline]
    pub(super) fn is_left_behind(&self) -> bool {
        self.is_left_behind.get()
    }
}

/// Twice as long as a member pauses at most before it connects again. A shard that does not come for so long has failed,
/// and is not to stop the others.
const WAITS_MAX: Duration = Duration::from_secs(20);
