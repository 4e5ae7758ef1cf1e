//! Finds out, beside the connection path, which mistake a refused token has, for `tollgate refusals`.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::{admin::Explained, audit::Audit, gate::Wake, journal::Unexplained, shard::Site};

/// Wakes the task of [`explain`].
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Explains refusals for as long as it runs, so many a second at most.
pub(super) async fn explain(site: Arc<Site>, audit: Audit) {
    let bell = Arc::new(Bell(Notify::new()));
    site.journal.explained_by(bell.clone());
    loop {
        bell.0.notified().await;
        while let Some(refused) = site.journal.unexplained() {
            let (site, audit) = (site.clone(), audit.clone());
            let found = move || {
                let near_misses = near_misses(&site, &refused, &audit);
                site.journal.explained(&refused, near_misses);
            };
            // A panic was logged; that entry goes without.
            let _ = tokio::task::spawn_blocking(found).await;
            tokio::time::sleep(ONE_EVERY).await;
        }
    }
}

fn near_misses(site: &Site, refused: &Unexplained, audit: &Audit) -> Vec<String> {
    let Site { gate, clock, .. } = site;
    let Ok(text) = str::from_utf8(&refused.token) else { return Vec::new() };
    let (Some(identities), Some(list)) = (gate.identities(), gate.revocations()) else { return Vec::new() };
    let device = gate.device_named(&refused.client_id, refused.profile);
    let rules = (identities.keyring(), gate.rules(refused.profile), &*list);
    let explained = Explained::of(text, device.as_ref(), rules, clock.now());
    // What was changed meanwhile may let it in.
    if explained.admitted {
        return Vec::new();
    }
    explained.with_rotations(text, identities.keyring(), audit).near_misses
}

/// Each takes some signatures: a hundredth of one core.
const ONE_EVERY: Duration = Duration::from_millis(100);
