//! `tollgate clock`: what time the gateway decides by.

use super::{ConfigFile, Outcome, desk::Desk, list::print_json, local::print};
use crate::admin::{ClockReset, ClockView};

/// `tollgate clock show`.
pub(super) fn show(at: &ConfigFile, json: bool) -> Result<(), Outcome> {
    let clock: ClockView = Desk::new(at, None)?.get("/v1/clock")?;
    if json {
        return print_json(&clock);
    }
    print(&format!("the gateway decides by  {}\nthe machine's clock is  {}\n", clock.now, clock.wall));
    if let Some(fault) = clock.fault {
        print(&format!("{fault}\nSet it right; if it is right: tollgate clock reset\n"));
    }
    Ok(())
}

/// `tollgate clock reset`.
pub(super) fn reset(at: &ConfigFile) -> Result<(), Outcome> {
    let ClockReset { before, after } = Desk::new(at, None)?.post("/v1/clock/reset", &serde_json::json!({}))?;
    print(&format!("the gateway decides by {after} from here on; it was {before}\n"));
    Ok(())
}
