//! What an operator decides about messages that are set aside, on the running gateway.

use super::desk::Desk;
use crate::{
    admin::{AsideAsked, AsideDeed, AsideDone, AsideError, AsideList, AsideView},
    delivery::spool::{Chosen, SpoolError, SpoolHandle, discard_aside, list_aside},
};

impl Desk {
    /// What is set aside for a hub.
    pub(super) fn aside_of(&self, hub: &str, count_max: usize) -> Result<AsideList, AsideError> {
        let (spool, upstream) = self.spool_of(hub)?;
        let number = upstream as u16;
        let listed = spool.ask(move |spool| list_aside(spool, number, &Chosen::All, count_max));
        let (messages, total) = answered(listed)?;
        Ok(AsideList { messages: messages.iter().filter_map(|message| AsideView::of(hub, message)).collect(), total })
    }

    /// Sends them again, or throws them away.
    pub(super) fn decide(&self, hub: &str, asked: &AsideAsked, deed: AsideDeed) -> Result<AsideDone, AsideError> {
        let (spool, upstream) = self.spool_of(hub)?;
        let (number, chosen) = (upstream as u16, asked.chosen()?);
        let messages = match deed {
            AsideDeed::Discard => answered(spool.ask(move |spool| discard_aside(spool, number, &chosen)))?,
            AsideDeed::Retry => {
                let (mut messages, _) =
                    answered(spool.ask(move |spool| list_aside(spool, number, &chosen, usize::MAX)))?;
                let meant = messages.len();
                // Those that are on their way already stay where they are.
                messages.retain(|message| spool.claim_aside(number, message.id));
                let members = self.site.upstreams[upstream].members_a_shard;
                let (done, left) = self.shards.try_again(upstream, members, messages);
                spool.unclaim_aside(number, left);
                return Ok(AsideDone { messages: done, left: meant - done });
            }
        };
        Ok(AsideDone { messages, left: 0 })
    }

    fn spool_of(&self, hub: &str) -> Result<(&SpoolHandle, usize), AsideError> {
        let upstream = self.site.upstreams.iter().position(|upstream| upstream.name == hub);
        let upstream = upstream.ok_or_else(|| AsideError::Unknown(format!("there is no upstream {hub:?}")))?;
        let spool = self.site.spool.as_ref();
        Ok((spool.ok_or_else(|| AsideError::Unknown("this gateway has no spool".into()))?, upstream))
    }
}

fn answered<T>(answer: Option<Result<T, SpoolError>>) -> Result<T, AsideError> {
    let answer = answer.ok_or_else(|| AsideError::Spool("the spool's disk did not answer in time".into()))?;
    answer.map_err(|error| AsideError::Spool(error.to_string()))
}
