//! Connections of one shard that have not said who they are, the oldest first. They hold a part of all places, and those
//! of one address half of that part at most; whoever is one too many costs the oldest its place, of the same address
//! first. So the silent never keep an honest device out, neither one that comes from elsewhere nor one that shares their
//! address: the newest is always heard.

use std::{collections::VecDeque, net::IpAddr};

use tokio::task::AbortHandle;

use crate::gate::site_of;

/// Tasks that wait for a CONNECT.
#[derive(Debug, Default)]
pub(super) struct Pending(VecDeque<(Option<IpAddr>, AbortHandle)>);

impl Pending {
    /// Takes in the newest, of which it is perhaps not known where it comes from; gives the task that has to go, if one
    /// has. `max` is what all may hold.
    pub(super) fn enter(&mut self, address: Option<IpAddr>, newest: AbortHandle, max: usize) -> Option<AbortHandle> {
        let site = address.map(site_of);
        self.0.push_back((site, newest));
        let own_max = max.div_ceil(2);
        if self.0.len() <= own_max {
            return None;
        }
        self.tidy();
        let of_site = || self.0.iter().enumerate().filter(|(_, (other, _))| *other == site).map(|(at, _)| at);
        let goes = match site.is_some() && of_site().count() > own_max {
            true => of_site().next(),
            false => (self.0.len() > max).then_some(0),
        };
        goes.and_then(|at| self.0.remove(at)).map(|(_, task)| task)
    }

    /// Lets go of tasks that have ended.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|(_, task)| !task.is_finished());
        if self.0.is_empty() {
            self.0.shrink_to(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_holds_half_and_gives_up_its_own_oldest() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let task = || runtime.spawn(std::future::pending::<()>()).abort_handle();
        let mut pending = Pending::default();
        let (one, other): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let tasks: Vec<AbortHandle> = (0..7).map(|_| task()).collect();
        let mut enter = |address, n: usize| pending.enter(Some(address), tasks[n].clone(), 4).map(|goes| goes.id());
        assert_eq!((enter(one, 0), enter(one, 1)), (None, None));
        assert_eq!(enter(one, 2), Some(tasks[0].id()), "a third of the same address");
        assert_eq!((enter(other, 3), enter(other, 4)), (None, None));
        assert_eq!(enter([192, 0, 2, 3].into(), 5), Some(tasks[1].id()), "all places are taken: the oldest of all");
        assert_eq!(enter(other, 6), Some(tasks[3].id()));
    }
}
