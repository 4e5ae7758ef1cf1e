//! `tollgate key plan`: what a rotation would do, and from when on it would do nobody any harm.

use std::time::Duration;

use serde::Serialize;

use super::{
    ConfigFile, Outcome, key,
    list::{folded, print_json},
    local::{self, now, print},
};
use crate::{
    admin::{KeyList, KeyView, SlotView},
    config::KeyOwner,
    time::{UnixSeconds, format_duration},
};

/// `tollgate key plan`. Fails where tokens outlive the keys that a schedule turns.
pub(super) fn plan(at: &ConfigFile, name: Option<&KeyOwner>, json: bool) -> Result<(), Outcome> {
    let (list, note) = key::known(at, &at.load()?, name)?;
    if let (Some(name), true) = (name, list.keys.is_empty()) {
        return Err(Outcome::Failed(format!("{name} has no keys here: `tollgate key list` shows who has")));
    }
    if let Some(note) = note {
        local::note(&format!("note: {note}"));
    }
    let plans = plans(&list, name.is_some(), now());
    if json {
        print_json(&plans)?;
    } else {
        plans.iter().for_each(|plan| print(&plan.text()));
        print(&folded(&unplanned(&list, &plans, name), ""));
    }
    if plans.iter().any(|plan| plan.tokens_outlive_keys) { Err(Outcome::Refused) } else { Ok(()) }
}

/// What is to be known before the keys of one owner are rotated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Plan {
    name: String,
    token_lifetime_max_seconds: u64,
    rotate_every_seconds: Option<u64>,
    rotated_at: Option<String>,
    next_rotation: Option<String>,
    /// A token may live longer than two turns of its key leave it.
    tokens_outlive_keys: bool,
    /// Live sessions by each key; `None`: no gateway was asked.
    primary_sessions: Option<usize>,
    secondary_sessions: Option<usize>,
    /// How many live sessions a rotation would cut now: those of the secondary.
    cuts_now: Option<usize>,
    /// Whom: the first of them by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cuts_devices: Vec<String>,
    /// When the last token of the secondary that was seen is dead: its end, and the clock skew.
    secondary_tokens_seen_end: Option<String>,
    /// When every token of the secondary is dead, if nobody signed with it since the last rotation.
    secondary_tokens_end: Option<String>,
    /// When every token that the primary signed until now is dead.
    primary_tokens_end: String,
    advice: Vec<String>,
}

/// Of all that sign for many; of devices where there is something to be said, or that were asked for.
fn plans(list: &KeyList, is_named: bool, now: UnixSeconds) -> Vec<Plan> {
    let rotates = list.keys.iter().filter(|key| !is_public(key));
    let plans = rotates.map(|key| Plan::of(key, now));
    plans
        .filter(|plan| is_named || !plan.name.starts_with("device:") || plan.cuts_now.is_some_and(|cuts| cuts > 0))
        .collect()
}

/// What is not planned, and why.
fn unplanned(list: &KeyList, plans: &[Plan], name: Option<&KeyOwner>) -> String {
    let (public, pairs): (Vec<&KeyView>, Vec<&KeyView>) = list.keys.iter().partition(|key| is_public(key));
    let left = pairs.len() - plans.len();
    match (name, left, public.len()) {
        (Some(name), _, 1..) if plans.is_empty() => {
            format!("{name} has public keys alone: who holds their private half rotates them")
        }
        (Some(_), ..) => String::new(),
        (None, 0, 0) if plans.is_empty() => "there are no keys yet".into(),
        (None, 0, _) if plans.is_empty() => {
            "no keys that could be rotated here: those that there are are public, and rotated where their private half is"
                .into()
        }
        (None, 0, _) => String::new(),
        (None, ..) => {
            let devices = match left {
                1 => "1 device has keys of its own".to_owned(),
                many => format!("{many} devices have keys of their own"),
            };
            let known = pairs.iter().all(|key| key.secondary.as_ref().is_none_or(|slot| slot.sessions.is_some()));
            let by = if known { "nobody is connected by a secondary" } else { "who uses which is not known" };
            format!("{devices}, and {by}: `tollgate key plan device:ID` plans them")
        }
    }
}

fn is_public(key: &KeyView) -> bool {
    key.kind.ends_with("public")
}

impl Plan {
    fn of(key: &KeyView, now: UnixSeconds) -> Self {
        // A token is admitted for the clock skew longer than it says.
        let lifetime = Duration::from_secs(key.token_lifetime_max_seconds.saturating_add(key.clock_skew_seconds));
        let rotated_at = key.rotated_at.as_deref().and_then(|at| UnixSeconds::parse_rfc3339(at).ok());
        let sessions = |slot: &Option<SlotView>| slot.as_ref().map_or(Some(0), |slot| slot.sessions);
        let (primary_sessions, secondary_sessions) = (sessions(&key.primary), sessions(&key.secondary));
        let ends = key.secondary.as_ref().and(rotated_at).map(|at| at.plus(lifetime));
        let mut plan = Self {
            name: key.name.clone(),
            token_lifetime_max_seconds: key.token_lifetime_max_seconds,
            rotate_every_seconds: key.rotate_every_seconds,
            rotated_at: key.rotated_at.clone(),
            next_rotation: key.next_rotation.clone(),
            tokens_outlive_keys: key.rotate_every_seconds.is_some_and(|every| key.token_lifetime_max_seconds > every),
            primary_sessions,
            secondary_sessions,
            cuts_now: secondary_sessions,
            cuts_devices: key.secondary.as_ref().map(|slot| slot.devices.clone()).unwrap_or_default(),
            secondary_tokens_seen_end: key.secondary.as_ref().and_then(|slot| slot.tokens_end.clone()),
            secondary_tokens_end: ends.map(|at| at.to_string()),
            primary_tokens_end: now.plus(lifetime).to_string(),
            advice: Vec::new(),
        };
        plan.advise(key, ends, now);
        plan
    }

    fn advise(&mut self, key: &KeyView, ends: Option<UnixSeconds>, now: UnixSeconds) {
        let lives = format_duration(Duration::from_secs(self.token_lifetime_max_seconds));
        let dead_after = self.token_lifetime_max_seconds.saturating_add(key.clock_skew_seconds);
        let dead_after = format_duration(Duration::from_secs(dead_after));
        if let (true, Some(every)) = (self.tokens_outlive_keys, self.rotate_every_seconds) {
            let (every, over) = (Duration::from_secs(every), self.token_lifetime_max_seconds - every);
            let (every, over) = (format_duration(every), format_duration(Duration::from_secs(over)));
            self.advice.push(format!(
                "Tokens may live for {lives}, and a key is gone {every} after it was replaced: they can be refused up to \
                 {over} before they expire. Set `token_lifetime_max` to {every} at most, or rotate less often."
            ));
        }
        if key.secondary.is_none() {
            self.advice.push("There is no secondary key: a rotation cuts nobody.".into());
        } else if let Some(cuts) = self.cuts_now.filter(|cuts| *cuts > 0) {
            let seen = self.secondary_tokens_seen_end.clone();
            let until = seen
                .map_or_else(String::new, |end| format!(" The last of their tokens that was seen is dead at {end}."));
            self.advice.push(format!(
                "A rotation now cuts {cuts} live session{}, whose token the secondary key signed.{until} \
                 `tollgate key rotate {} --dry-run` shows all of them.",
                if cuts == 1 { "" } else { "s" },
                self.name
            ));
        } else if let Some(end) = ends.filter(|end| *end > now) {
            self.advice.push(format!(
                "Until {end} a device that is away may hold a token of the secondary key; a rotation before that refuses it."
            ));
        } else if ends.is_some() {
            self.advice.push("Every token of the secondary key is dead: a rotation now refuses nobody's token.".into());
        } else {
            self.advice.push(format!(
                "When the secondary key last signed is not known: {dead_after} after nobody signs with it any more a rotation \
                 refuses nobody's token."
            ));
        }
    }

    fn text(&self) -> String {
        let lives = format_duration(Duration::from_secs(self.token_lifetime_max_seconds));
        let every = self.rotate_every_seconds.map(|every| format_duration(Duration::from_secs(every)));
        let turns = every.map_or_else(|| "rotated by hand".into(), |every| format!("rotated every {every}"));
        let last = self.rotated_at.as_ref().map_or_else(|| "never here".to_owned(), Clone::clone);
        let next = self.next_rotation.as_ref().map_or_else(String::new, |at| format!(", next {at}"));
        let count = |sessions: Option<usize>| sessions.map_or("?".into(), |sessions| sessions.to_string());
        let (primary, secondary) = (count(self.primary_sessions), count(self.secondary_sessions));
        let mark = if self.tokens_outlive_keys { "✗" } else { "✓" };
        let mut text = format!("{mark} {}\n", self.name);
        text.push_str(&folded(&format!("tokens live for {lives} at most; {turns}, last {last}{next}"), INDENT));
        text.push_str(&folded(
            &format!("live sessions: {primary} by the primary key, {secondary} by the secondary"),
            INDENT,
        ));
        if !self.cuts_devices.is_empty() {
            let more = self.cuts_now.unwrap_or_default().saturating_sub(self.cuts_devices.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text.push_str(&folded(&format!("by the secondary: {}{more}", self.cuts_devices.join(", ")), INDENT));
        }
        if let Some(end) = self.secondary_tokens_end.as_ref() {
            let seen = self.secondary_tokens_seen_end.as_ref();
            let seen = seen.map_or_else(String::new, |end| format!("; the last that was seen is dead at {end}"));
            text.push_str(&folded(
                &format!("tokens that the secondary signed while it was primary are all dead at {end}{seen}"),
                INDENT,
            ));
        }
        text.push_str(&folded(
            &format!("tokens that the primary has signed until now are all dead at {}", self.primary_tokens_end),
            INDENT,
        ));
        self.advice.iter().for_each(|advice| text.push_str(&folded(&format!("→ {advice}"), INDENT)));
        text
    }
}

const INDENT: &str = "    ";

#[cfg(test)]
mod tests {
    use super::*;

    fn key(lifetime: u64, every: Option<u64>) -> KeyView {
        let slot = |sessions| Some(SlotView { sessions: Some(sessions), ..SlotView::of(7) });
        KeyView {
            name: "policy:site".into(),
            kind: "sas".into(),
            primary: slot(3),
            secondary: slot(0),
            token_lifetime_max_seconds: lifetime,
            rotate_every_seconds: every,
            rotated_at: Some("2026-11-21T09:00:00Z".into()),
            ..KeyView::default()
        }
    }

    #[test]
    fn tokens_that_outlive_their_key_are_the_plans_mistake_to_the_second() {
        for (lifetime, outlives) in [(3599, false), (3600, false), (3601, true)] {
            let plan = Plan::of(&key(lifetime, Some(3600)), NOW);
            assert_eq!(plan.tokens_outlive_keys, outlives, "{lifetime}");
            assert_eq!(plan.advice.join(" ").contains("up to 1s before they expire"), outlives, "{plan:?}");
        }
        assert!(!Plan::of(&key(1 << 30, None), NOW).tokens_outlive_keys, "nothing turns by itself");
    }

    #[test]
    fn a_plan_says_when_tokens_of_the_secondary_are_dead_and_whom_it_cuts() {
        let advice = |key: &KeyView, now| Plan::of(key, now).advice.join("\n");
        let an_hour = key(3600, None);
        assert!(advice(&an_hour, UnixSeconds(NOW.0 + 3599)).contains("Until 2026-11-21T10:00:00Z"));
        assert!(advice(&an_hour, UnixSeconds(NOW.0 + 3600)).contains("refuses nobody's token"));
        let skewed = KeyView { clock_skew_seconds: 30, ..an_hour.clone() };
        assert!(advice(&skewed, UnixSeconds(NOW.0 + 3629)).contains("Until 2026-11-21T10:00:30Z"));
        assert!(advice(&skewed, UnixSeconds(NOW.0 + 3630)).contains("refuses nobody's token"));
        assert_eq!(Plan::of(&skewed, NOW).primary_tokens_end, "2026-11-21T10:00:30Z");
        let mut used = an_hour.clone();
        used.secondary = Some(SlotView { sessions: Some(2), tokens_end: Some("soon".into()), ..SlotView::of(8) });
        assert!(advice(&used, NOW).contains("cuts 2 live sessions") && advice(&used, NOW).contains("is dead at soon"));
        let unknown = KeyView { rotated_at: None, ..an_hour.clone() };
        assert!(advice(&unknown, NOW).contains("is not known"));
        let alone = KeyView { secondary: None, ..an_hour };
        assert!(advice(&alone, NOW).contains("cuts nobody"));
    }

    #[test]
    fn devices_are_planned_when_there_is_something_to_say_and_public_keys_never() {
        let named = |name: &str, sessions| KeyView {
            name: name.into(),
            secondary: Some(SlotView { sessions: Some(sessions), ..SlotView::of(9) }),
            ..key(60, None)
        };
        let public = KeyView { kind: "jwt, public".into(), ..named("issuer:a/b", 5) };
        let keys = vec![named("policy:p", 0), named("device:a", 0), named("device:b", 1), public];
        let list = KeyList { total: keys.len(), keys, counted_since: None };
        let names = |is_named| plans(&list, is_named, NOW).into_iter().map(|plan| plan.name).collect::<Vec<_>>();
        assert_eq!(names(false), ["policy:p", "device:b"]);
        assert_eq!(names(true), ["policy:p", "device:a", "device:b"]);
        let all: String = plans(&list, true, NOW).iter().map(Plan::text).collect();
        assert!(all.lines().all(|line| line.chars().count() <= 100), "{all}");
    }

    const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
}
