//! Whether a running gateway has put the revocation list in force as it stands on the disk.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    ConfigFile, Outcome,
    desk::{Desk, DeskError},
    list::folded,
    local::print,
};
use crate::{admin::ListState, config::Config, file::FileVersion};

/// What was done to the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Entries were added, or those that revoke nothing were taken out.
    Adds,
    /// An entry was taken out, and what it revoked is to be let in again.
    Lifts,
}

/// Waits until a running gateway has read the list, as it should within a second, and says that it is in force. That no
/// gateway runs is no failure: it is read when one starts.
pub(super) fn told_in_force(at: &ConfigFile, config: &Config, change: Change) -> Result<(), Outcome> {
    let Ok(desk) = Desk::new(at, Some(config)) else {
        print("no gateway could be asked whether it is in force\n");
        return Ok(());
    };
    let path = config.gateway.revocations.display();
    match read_by(&desk, config) {
        Ok(Read::Done(state)) => judged(&state, change),
        Ok(Read::NotYet(state)) => {
            let (file, seconds) = (&state.file, READ_WITHIN.as_secs());
            Err(Outcome::Failed(format!(
                "NOT in force: the running gateway has not read what was written to {path} within {seconds} s; its list is \
                 {file}\n    Look at its log, and run: tollgate check"
            )))
        }
        Err(DeskError::Away(_)) => {
            print("no gateway answers: it is in force when one starts\n");
            Ok(())
        }
        Err(DeskError::Refused(why)) => {
            print(&folded(&format!("whether it is in force could not be asked: {why}"), ""));
            Ok(())
        }
    }
}

/// Whether the gateway has read the file as it is.
enum Read {
    Done(ListState),
    NotYet(ListState),
}

fn read_by(desk: &Desk, config: &Config) -> Result<Read, DeskError> {
    let until = Instant::now() + READ_WITHIN;
    loop {
        // In this order: what is written in between is read later.
        let written = FileVersion::of(&config.gateway.revocations).ok();
        let state: ListState = desk.get("/v1/revocations/state")?;
        if state.read == written {
            return Ok(Read::Done(state));
        }
        if Instant::now() >= until {
            return Ok(Read::NotYet(state));
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn judged(state: &ListState, change: Change) -> Result<(), Outcome> {
    if let Some(why) = &state.refused {
        return Err(Outcome::Failed(format!(
            "NOT in force: the running gateway refuses the list, and keeps what it had\n{why}"
        )));
    }
    let lines = match state.bad_lines {
        1 => "a bad line".to_owned(),
        many => format!("{many} bad lines"),
    };
    match (state.bad_lines, change) {
        (0, _) => print("in force on the running gateway\n"),
        (_, Change::Adds) => print(&folded(
            &format!(
                "in force on the running gateway; the list has {lines}, and lifts nothing until that is mended: tollgate check"
            ),
            "",
        )),
        (_, Change::Lifts) => {
            return Err(Outcome::Failed(format!(
                "NOT lifted: the list has {lines}, and the running gateway lifts nothing until that is mended\n    \
                 Run: tollgate check"
            )));
        }
    }
    Ok(())
}

/// A gateway looks at its files twice a second, and reads a list of millions in some seconds.
const READ_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);
