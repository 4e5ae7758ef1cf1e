//! Keys of a running gateway: who uses them, rotation on an operator's word, and rotation on a schedule.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use super::changes::Changes;
use crate::{
    admin::{DryRun, KeyList, RotationAsked, RotationDone, RotationRefused, SessionView, SlotView},
    audit::{Action, Audit},
    config::{self, Config, KeyOwner, KeySite, Lift, Replace, RotateError, Rotated, Schedule, Turner},
    meter::{self, Alarm, AlarmState},
    registry::Live,
    shard::Site,
    time::{UnixSeconds, format_duration},
};

/// Rotates keys, and knows who uses them.
pub(super) struct Keys {
    files: KeySite,
    site: Arc<Site>,
    changes: Arc<Changes>,
    audit: Audit,
    timetable: Mutex<Timetable>,
}

/// When the schedule is to be looked at next.
#[derive(Default)]
struct Timetable {
    schedules: Arc<Vec<Schedule>>,
    next_look: Option<UnixSeconds>,
    /// Whose rotation was due and could not be done.
    failed: Vec<KeyOwner>,
}

impl Timetable {
    fn look_at(&mut self, at: UnixSeconds) {
        self.next_look = Some(at);
    }

    fn sooner(&mut self, at: UnixSeconds) {
        self.next_look = Some(self.next_look.map_or(at, |next| next.min(at)));
    }
}

impl Keys {
    pub(super) fn new(config: &Config, site: &Arc<Site>, changes: &Arc<Changes>) -> Arc<Self> {
        let (files, audit) = (KeySite::of(config), Audit::open(&config.gateway.state_dir));
        if let Err(error) = config::finish(&files, site.clock.now()) {
            tracing::error!(%error, "a rotation that was broken off cannot be looked at");
        }
        let timetable = Mutex::default();
        Arc::new(Self { files, site: site.clone(), changes: changes.clone(), audit, timetable })
    }

    /// Every key in force, with its use.
    pub(super) fn list(&self) -> Result<KeyList, String> {
        let identities = self.site.gate.identities().ok_or("identities are not loaded")?;
        let schedules = self.changes.schedules();
        let mut keys = config::survey(&self.files, &identities, &schedules).map_err(|error| error.to_string())?;
        let parse = |slot: &SlotView| u64::from_str_radix(&slot.fingerprint, 16).ok();
        let secondaries: HashSet<u64> = keys.iter().filter_map(|key| key.secondary.as_ref().and_then(parse)).collect();
        let mut sessions = HashMap::<u64, (usize, BTreeSet<String>)>::new();
        self.site.registry.for_each(|live| {
            let key = live.grant().key_fingerprint;
            let (count, devices) = sessions.entry(key).or_default();
            *count += 1;
            // A rotation would cut these: the first by name are told.
            if secondaries.contains(&key) {
                devices.insert(live.device().to_string());
                if devices.len() > DEVICES_TOLD {
                    devices.pop_last();
                }
            }
        });
        for slot in keys.iter_mut().filter_map(|key| key.secondary.as_mut()) {
            let devices = parse(slot).and_then(|key| sessions.get(&key)).map(|(_, devices)| devices);
            slot.devices = devices.into_iter().flatten().cloned().collect();
        }
        let skew = self.files.gate.clock_skew_anywhere();
        for slot in keys.iter_mut().flat_map(|key| [&mut key.primary, &mut key.secondary]).flatten() {
            let Some(fingerprint) = parse(slot) else { continue };
            let seen = self.site.key_uses.of(fingerprint);
            slot.sessions = Some(sessions.get(&fingerprint).map_or(0, |(count, _)| *count));
            slot.last_used = seen.map(|seen| seen.last.to_string());
            slot.tokens_end = seen.map(|seen| seen.ends.plus(skew).to_string());
        }
        let counted_since = Some(self.site.key_uses.since().to_string());
        Ok(KeyList { total: keys.len(), keys, counted_since })
    }

    /// Rotates on an operator's word, or says what that would do.
    pub(super) fn rotate(
        &self,
        name: &str,
        asked: RotationAsked,
        dry_run: DryRun,
        by: &str,
    ) -> Result<RotationDone, RotationRefused> {
        let owner: KeyOwner = name.parse().map_err(RotationRefused::Unknown)?;
        let what = if asked.both { Replace::Both } else { Replace::Primary };
        let leaving = config::leaving(&self.files, &owner, what).map_err(refused)?;
        let cuts = self.sessions_by(&leaving);
        let done = RotationDone { name: owner.to_string(), cuts, ..RotationDone::default() };
        if dry_run == DryRun::Yes {
            return Ok(done);
        }
        let lift = if asked.lift { Lift::Entries } else { Lift::Nothing };
        let rotated = self.rotate_files(&owner, (what, lift), by).map_err(refused)?;
        let [primary, secondary] = rotated.after.map(|key| key.map(|key| SlotView::of(key).fingerprint));
        let files = rotated.files.iter().map(|file| file.display().to_string()).collect();
        Ok(RotationDone { rotated: true, primary, secondary, files, ..done })
    }

    /// Rotates what is due. A period that passed while the gateway was away is made up for once, not twice.
    pub(super) fn turn(&self) {
        let now = self.site.clock.now();
        let mut timetable = self.timetable.lock().unwrap_or_else(PoisonError::into_inner);
        let schedules = self.changes.schedules();
        if timetable.schedules != schedules {
            *timetable = Timetable { schedules: schedules.clone(), ..Timetable::default() };
        }
        if schedules.is_empty() {
            meter::alarm(Alarm::Keys, AlarmState::Off);
            return;
        }
        if timetable.next_look.is_some_and(|at| now < at) {
            return;
        }
        timetable.look_at(now.plus(LOOK_EVERY));
        let due = match config::due(&self.files, &schedules, now) {
            Ok(due) => due,
            Err(error) => {
                meter::alarm(Alarm::Keys, AlarmState::On);
                return tracing::error!(%error, "it is not known which keys are due");
            }
        };
        timetable.look_at(due.next.min(now.plus(LOOK_EVERY)));
        for schedule in due.owners {
            self.turn_one(&schedule, &mut timetable);
        }
        let state = if timetable.failed.is_empty() { AlarmState::Off } else { AlarmState::On };
        meter::alarm(Alarm::Keys, state);
    }

    fn turn_one(&self, schedule: &Schedule, timetable: &mut Timetable) {
        let Schedule { owner, every } = schedule;
        let now = || self.site.clock.now();
        match self.rotate_files(owner, (Replace::Primary, Lift::Nothing), BY_SCHEDULE) {
            Ok(_) => {
                tracing::info!(key = %owner, every = format_duration(*every), "keys rotated by schedule");
                timetable.failed.retain(|failed| failed != owner);
                timetable.sooner(now().plus(*every));
            }
            Err(error) => {
                tracing::error!(%error, key = %owner, "keys are due and cannot be rotated: it is tried again");
                timetable.sooner(now().plus(RETRY_EVERY));
                if !timetable.failed.contains(owner) {
                    timetable.failed.push(owner.clone());
                    self.audit.note(Action::RotationFailed, BY_SCHEDULE, &owner.to_string(), &error.to_string(), now());
                }
            }
        }
    }

    fn rotate_files(&self, owner: &KeyOwner, what: (Replace, Lift), by: &str) -> Result<Rotated, RotateError> {
        let (now, written) = (|| self.site.clock.now(), || self.changes.identities_changed());
        config::rotate(&self.files, owner, what, &Turner { by, now: &now, written: &written })
    }

    fn sessions_by(&self, keys: &[u64]) -> Vec<SessionView> {
        let mut found: Vec<Arc<Live>> = Vec::new();
        self.site.registry.for_each(|live| {
            if keys.contains(&live.grant().key_fingerprint) {
                found.push(live.clone());
            }
        });
        found.sort_by(|a, b| a.device().cmp(b.device()));
        found.iter().map(|live| SessionView::of(live)).collect()
    }
}

fn refused(error: RotateError) -> RotationRefused {
    match error {
        RotateError::Unknown { .. } => RotationRefused::Unknown(error.to_string()),
        RotateError::Io { .. } | RotateError::NoRandomness(_) | RotateError::BadState { .. } => {
            RotationRefused::Failed(error.to_string())
        }
        _ => RotationRefused::Refused(error.to_string()),
    }
}

/// A screen.
const DEVICES_TOLD: usize = 20;
/// As the audit log has it.
const BY_SCHEDULE: &str = "schedule";
/// The state may have been edited, or put back.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_mins(1);
/// A disk that is full, a directory that is not ours: somebody must look.
const RETRY_EVERY: std::time::Duration = std::time::Duration::from_secs(30);
