//! A CONNECT whose token names a key that its issuer may have published a moment ago is held while the set is fetched, and
//! then decided: the first token of a new key is no wrong token.

use std::time::Duration;

use super::Shard;
use crate::{credential::Refused, policy::Grant};

/// What was decided, and the gate's epoch before that.
pub(super) type Decided = (u64, Result<Grant, Refused>);

/// Asks again whenever something changed, for as long as the key may still come.
pub(super) async fn until_keys_came(
    shard: &Shard,
    password: &[u8],
    mut decided: Decided,
    ask: impl Fn() -> Decided,
) -> Decided {
    let site = &shard.site;
    let until = site.now().plus(HELD_MAX);
    loop {
        let (epoch, Err(refused)) = &decided else { return decided };
        let is_over = site.now() >= until || site.is_draining() || !site.gate.awaits_keys(password, refused.denial);
        if site.gate.epoch() != *epoch {
            decided = ask();
            continue;
        }
        if is_over {
            return decided;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// As long as a fetch may take. A device that is less patient comes again.
const HELD_MAX: Duration = Duration::from_secs(10);
/// A flood of unknown keys may have a thousand held: each look costs a microsecond or two.
const LOOK_EVERY: Duration = Duration::from_millis(100);
