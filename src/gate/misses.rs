//! Tokens that name a key nobody knows: heard by whoever can fetch the issuer's keys.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Whom to wake, by name of the issuer. Rung for refused tokens alone.
#[derive(Default)]
pub struct Misses {
    by_issuer: Mutex<HashMap<Arc<str>, Arc<dyn Wake>>>,
}

/// Somebody who can be woken; to be woken twice is to be woken once.
pub trait Wake: Send + Sync {
    /// Must not wait.
    fn wake(&self);

    /// Whether what it was woken for is under way, or to be begun at once, and is not in force yet.
    fn is_underway(&self) -> bool {
        false
    }
}

impl Misses {
    /// From here on these hear, and nobody else.
    pub fn heard_by(&self, all: impl IntoIterator<Item = (Arc<str>, Arc<dyn Wake>)>) {
        *self.lock() = all.into_iter().collect();
    }

    pub(super) fn ring(&self, issuer: &str) {
        if let Some(hearer) = self.lock().get(issuer) {
            hearer.wake();
        }
    }

    pub(super) fn is_underway(&self, issuer: &str) -> bool {
        self.lock().get(issuer).is_some_and(|hearer| hearer.is_underway())
    }

    /// A map is whole whatever happened to who held it.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<dyn Wake>>> {
        self.by_issuer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Misses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}
