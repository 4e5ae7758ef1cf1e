//! What happened to a session, for whoever stores it.

use super::Change;

/// Changes that the driver has not taken.
#[derive(Debug)]
pub(super) struct Changes {
    list: Vec<Change>,
    recorded: Recorded,
}

/// Which changes are of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recorded {
    /// Of a session that outlives its connection.
    All,
    /// What somebody asks for, and what is counted.
    Receipts,
}

impl Changes {
    pub(super) fn new(recorded: Recorded) -> Self {
        Self { list: Vec::new(), recorded }
    }

    #[inline]
    pub(super) fn push(&mut self, change: Change) {
        let asked_for = match change {
            Change::Sent { .. } | Change::Received(_) | Change::Finished(_) => false,
            Change::Released { receipt, .. } | Change::Done { receipt, .. } => receipt.is_some(),
            Change::Dropped { .. } => true,
        };
        if asked_for || self.recorded == Recorded::All {
            self.list.push(change);
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.list)
    }
}
