//! What devices subscribe to on a NATS hub: core subscriptions, at most once.

use std::{collections::HashMap, pin::Pin};

use async_nats::{Client, Message, Subscriber};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{AbortHandle, Abortable},
    stream::SelectAll,
};

use super::subject::subjects_of;
use crate::topic::TopicFilter;

/// The filters that are placed on the hub, and their messages.
#[derive(Default)]
pub(super) struct Commands {
    messages: SelectAll<Tagged>,
    placed: HashMap<TopicFilter, Vec<AbortHandle>>,
}

type Tagged = Pin<Box<dyn Stream<Item = Command> + Send>>;

/// A message of the hub for a filter.
pub(super) struct Command {
    /// As the link calls the filter.
    pub(super) subscription_id: Option<u32>,
    pub(super) message: Message,
}

impl Commands {
    /// Asks the hub for what a filter matches. Whether it may, the server says later, if at all.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) async fn place(
        &mut self,
        client: &Client,
        filter: &TopicFilter,
        subscription_id: Option<u32>,
    ) -> Result<(), String> {
        self.take_back(filter);
        let mut handles = Vec::new();
        for subject in subjects_of(filter) {
            let subscriber: Subscriber = client.subscribe(subject).await.map_err(|error| error.to_string())?;
            let (handle, registration) = AbortHandle::new_pair();
            let tagged = subscriber.map(move |message| Command { subscription_id, message });
            self.messages.push(Box::pin(Abortable::new(tagged, registration)));
            handles.push(handle);
        }
        self.placed.insert(filter.clone(), handles);
        Ok(())
    }

    /// Gives a filter back. Its subscribers end, and tell the server so.
    pub(super) fn take_back(&mut self, filter: &TopicFilter) {
        for handle in self.placed.remove(filter).into_iter().flatten() {
            handle.abort();
        }
    }

    /// Waits for the next message; for ever, while nothing is placed.
    pub(super) async fn next(&mut self) -> Command {
        match self.messages.next().await {
            Some(command) => command,
            None => std::future::pending().await,
        }
    }

    /// The next message that is there by now.
    pub(super) fn next_ready(&mut self) -> Option<Command> {
        self.messages.next().now_or_never().flatten()
    }
}
