//! `tollgate key list | add | rotate`: files are edited, and a running gateway is asked whom it concerns.

use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::{
    ConfigFile, Outcome,
    arguments::KeyCommand,
    desk::{Desk, DeskError},
    key_plan,
    list::{folded, print_json, session_table, table},
    local::{self, now, print},
    revoke::who,
};
use crate::{
    admin::{KeyList, KeyView, RotationAsked, RotationDone, SlotView},
    config::{self, Config, KeyOwner, KeySite, Lift, Replace, Rotated, Turner},
};

/// `tollgate key …`.
pub(super) fn key(at: &ConfigFile, command: KeyCommand) -> Result<(), Outcome> {
    match command {
        KeyCommand::List { name, last, json } => list(at, name.as_ref(), last, json),
        KeyCommand::Add { name, resource, show, json } => add(at, &name, resource.as_deref(), (show, json)),
        KeyCommand::Rotate { name, both, lift, dry_run: true, json, .. } => {
            would_cut(at, &name, RotationAsked { both, lift }, json)
        }
        KeyCommand::Rotate { name, both, lift, show, json, .. } => {
            rotate(at, &name, RotationAsked { both, lift }, (show, json))
        }
        KeyCommand::Plan { name, json } => key_plan::plan(at, name.as_ref(), json),
    }
}

/// Keys as a running gateway knows them; where none answers, as the files say, with the reason.
pub(super) fn known(
    at: &ConfigFile,
    config: &Config,
    name: Option<&KeyOwner>,
) -> Result<(KeyList, Option<String>), Outcome> {
    let path = match name {
        Some(name) => format!("/v1/keys?name={}", escaped(name)),
        None => format!("/v1/keys?last={}", usize::MAX),
    };
    let why = match Desk::new(at, Some(config)).map(|desk| desk.get(&path)) {
        Ok(Ok(list)) => return Ok((list, None)),
        Ok(Err(DeskError::Away(_))) => "no gateway answers: who uses which key is not known".to_owned(),
        Ok(Err(DeskError::Refused(why))) => return Err(Outcome::Failed(why)),
        Err(_) => "no gateway could be asked who uses which key".to_owned(),
    };
    let site = KeySite::of(config);
    let loaded =
        config::load_identities(&site.identities, &site.gate).map_err(|mistakes| Outcome::mistakes(&mistakes))?;
    let mut keys = config::survey(&site, &loaded.identities, &loaded.schedules).map_err(Outcome::failed)?;
    if let Some(name) = name {
        keys.retain(|key| key.name == name.to_string());
    }
    Ok((KeyList { total: keys.len(), keys, counted_since: None }, Some(why)))
}

fn list(at: &ConfigFile, name: Option<&KeyOwner>, last: usize, json: bool) -> Result<(), Outcome> {
    let config = at.load()?;
    let (mut list, note) = known(at, &config, name)?;
    if let (Some(name), true) = (name, list.keys.is_empty()) {
        return Err(Outcome::Failed(format!("{name} has no keys here: `tollgate key list` shows who has")));
    }
    list.keys.truncate(last);
    if let Some(note) = note {
        local::note(&format!("note: {note}"));
    }
    if json {
        return print_json(&list);
    }
    print(&listing(&list));
    Ok(())
}

fn listing(list: &KeyList) -> String {
    if list.keys.is_empty() {
        return "no keys: `tollgate key add device:ID` gives a device some\n".into();
    }
    let mut rows = vec![["key", "slot", "fingerprint", "sessions", "last used"].map(String::from)];
    for key in &list.keys {
        let is_public = key.kind.ends_with("public");
        let slots = [("primary", &key.primary), ("secondary", &key.secondary)];
        for (slot, view) in slots.into_iter().filter_map(|(slot, view)| Some((slot, view.as_ref()?))) {
            let slot = if is_public { "public" } else { slot };
            rows.push(row(&full_name(key), slot, view, list.counted_since.as_deref()));
        }
    }
    let mut text = key_table(rows);
    for key in list.keys.iter().filter(|key| key.rotated_at.is_some() || key.next_rotation.is_some()) {
        text.push_str(&folded(&turns(key), ""));
    }
    for key in &list.keys {
        text.push_str(&folded(&validity(key).unwrap_or_default(), ""));
    }
    if let Some(since) = &list.counted_since {
        text.push_str(&format!("uses are told since {since}\n"));
    }
    if list.total > list.keys.len() {
        text.push_str(&format!("… and {} more: --last {}\n", list.total - list.keys.len(), list.total));
    }
    text
}

/// A name that is too long for the others' column stands in a line of its own, before what is said about it.
fn key_table(mut rows: Vec<[String; 5]>) -> String {
    let long: Vec<Option<String>> =
        rows.iter_mut().map(|[name, ..]| (name.chars().count() > NAME_COLUMNS).then(|| std::mem::take(name))).collect();
    let text = table(&rows);
    let lines = text.lines().zip(long);
    lines.map(|(line, name)| name.map_or(String::new(), |name| format!("{name}\n")) + line + "\n").collect()
}

fn row(name: &str, slot: &str, view: &SlotView, counted_since: Option<&str>) -> [String; 5] {
    let sessions = view.sessions.map_or("?".into(), |sessions| sessions.to_string());
    let unseen = if counted_since.is_some() { "not seen" } else { "?" };
    let last_used = view.last_used.clone().unwrap_or_else(|| unseen.into());
    [name.to_owned(), slot.to_owned(), view.fingerprint.clone(), sessions, last_used]
}

fn turns(key: &KeyView) -> String {
    let by = key.rotated_by.as_deref().map_or(String::new(), |by| format!(" by {by}"));
    let last = key.rotated_at.as_ref().map(|at| format!("rotated {at}{by}"));
    let next = key.next_rotation.as_ref().map(|at| format!("next {at}"));
    let told: Vec<String> = last.into_iter().chain(next).collect();
    format!("{}: {}", key.name, told.join(", "))
}

/// Of a device's public key, the name by which it is revoked.
fn full_name(key: &KeyView) -> String {
    key.kid.as_ref().map_or_else(|| key.name.clone(), |kid| format!("{}/{kid}", key.name))
}

fn validity(key: &KeyView) -> Option<String> {
    let from = key.not_before.as_ref().map(|at| format!(" from {at}"));
    let until = key.not_after.as_ref().map(|at| format!(" until {at}"));
    let times: String = from.into_iter().chain(until).collect();
    (!times.is_empty()).then(|| format!("{}: good{times}", full_name(key)))
}

fn add(at: &ConfigFile, name: &KeyOwner, resource: Option<&str>, (show, json): (bool, bool)) -> Result<(), Outcome> {
    let config = at.load()?;
    let site = KeySite::of(&config);
    let is_policy = matches!(name, KeyOwner::Policy(_));
    if resource.is_some() && !is_policy {
        return Err(Outcome::Usage("--resource is of a policy: the widest `sr` that it may sign".into()));
    }
    let resource = is_policy.then(|| resource.unwrap_or(&config.gate.hostname));
    let more: Vec<(&str, &str)> = resource.map(|resource| ("resource", resource)).into_iter().collect();
    let added = config::add(&site, name, &more, &who(), now()).map_err(Outcome::failed)?;
    let in_force = in_force(at, &config, name, &added);
    if json {
        print_json(&as_json(name, &added, &in_force.told, show))?;
        return in_force.outcome();
    }
    print(&format!("{name} has keys: primary {}, secondary {}\n", shown(added.after[0]), shown(added.after[1])));
    print(&written(&added));
    print(&format!("{}\n", in_force.told));
    reveal(&added, show);
    in_force.outcome()
}

fn rotate(at: &ConfigFile, name: &KeyOwner, asked: RotationAsked, (show, json): (bool, bool)) -> Result<(), Outcome> {
    if at.admin.is_some() {
        return rotate_over_there(at, name, asked, (show, json));
    }
    let config = at.load()?;
    let site = KeySite::of(&config);
    let what = if asked.both { Replace::Both } else { Replace::Primary };
    // What stands in its way is said once, and not by the gateway before that.
    config::leaving(&site, name, what).map_err(Outcome::failed)?;
    if !json {
        print(&format!("{}\n", preview(at, &config, name, asked)));
    }
    let lift = if asked.lift { Lift::Entries } else { Lift::Nothing };
    let turner = Turner { by: &who(), now: &now, written: &|| {} };
    let rotated = config::rotate(&site, name, (what, lift), &turner).map_err(Outcome::failed)?;
    let in_force = in_force(at, &config, name, &rotated);
    if json {
        print_json(&as_json(name, &rotated, &in_force.told, show))?;
        return in_force.outcome();
    }
    let (new, old) = (shown(rotated.after[0]), shown(rotated.after[1]));
    let was = if asked.both { "new, too" } else { "the primary until now" };
    print(&format!("{name} is rotated\n  primary    {new}  new\n"));
    print(&format!("  secondary  {old}  {}\n", if rotated.after[1].is_some() { was } else { "there is none" }));
    for left in rotated.before.iter().flatten().filter(|key| !rotated.after.contains(&Some(**key))) {
        print(&format!("  left       {}  its tokens are refused\n", shown(Some(*left))));
    }
    print(&written(&rotated));
    print(&format!("{}\n", in_force.told));
    if matches!(name, KeyOwner::Device(_) | KeyOwner::Group(_)) {
        let advice = "Give each device its new key before the next rotation: a key that a device holds is not replaced by itself.";
        print(&folded(&format!("→ {advice}"), ""));
    }
    reveal(&rotated, show);
    in_force.outcome()
}

/// Whom a rotation would cut: only a running gateway knows.
fn would_cut(at: &ConfigFile, name: &KeyOwner, asked: RotationAsked, json: bool) -> Result<(), Outcome> {
    let desk = Desk::new(at, None)?;
    let done: RotationDone = desk.post(&format!("/v1/keys/{}/rotate?dry_run=true", escaped(name)), &asked)?;
    if json {
        return print_json(&done);
    }
    let text = match done.cuts.as_slice() {
        [] => "no live session would be cut by it".to_owned(),
        cuts => format!("live sessions that it would cut: {}\n{}", cuts.len(), session_table(cuts)),
    };
    print(&format!("{}\nnothing was rotated\n", text.trim_end()));
    Ok(())
}

/// By the admin API of a gateway that was named: its files may be on another machine.
fn rotate_over_there(
    at: &ConfigFile,
    name: &KeyOwner,
    asked: RotationAsked,
    (show, json): (bool, bool),
) -> Result<(), Outcome> {
    if show {
        return Err(Outcome::Usage("--show and --admin do not go together: the admin API never tells a key".into()));
    }
    let desk = Desk::new(at, None)?;
    let path = format!("/v1/keys/{}/rotate", escaped(name));
    let done: RotationDone = desk.post(&path, &asked)?;
    if json {
        return print_json(&done);
    }
    print(&format!("{}\n", cuts(&done)));
    let (primary, secondary) = (done.primary.as_deref().unwrap_or("none"), done.secondary.as_deref().unwrap_or("none"));
    print(&format!("{name} is rotated\n  primary    {primary}  new\n  secondary  {secondary}\n"));
    print(&format!("written by the gateway: {}\n", done.files.join(", ")));
    Ok(())
}

/// Which live sessions it cuts, as far as a running gateway can be asked.
fn preview(at: &ConfigFile, config: &Config, name: &KeyOwner, asked: RotationAsked) -> String {
    let Ok(desk) = Desk::new(at, Some(config)) else {
        return "no gateway could be asked which live sessions this cuts".into();
    };
    let path = format!("/v1/keys/{}/rotate?dry_run=true", escaped(name));
    match desk.post::<RotationDone>(&path, &asked) {
        Ok(done) => cuts(&done),
        Err(DeskError::Away(_)) => "no gateway answers: the keys will be read when one starts".into(),
        Err(DeskError::Refused(why)) => format!("which live sessions it cuts could not be asked: {why}"),
    }
}

fn cuts(done: &RotationDone) -> String {
    if done.cuts.is_empty() {
        return "no live session is cut by it".into();
    }
    let shown = done.cuts.get(..SHOWN).unwrap_or(&done.cuts);
    let mut text = format!("live sessions that it cuts: {}\n{}", done.cuts.len(), session_table(shown));
    if done.cuts.len() > SHOWN {
        text.push_str(&format!("… and {} more\n", done.cuts.len() - SHOWN));
    }
    text.trim_end().to_owned()
}

/// Whether a running gateway has what was written, in a sentence.
struct InForce {
    told: String,
    /// One runs, and goes on with the old keys.
    is_refused: bool,
}

impl InForce {
    /// What was written is not undone by it, but whoever asked has to know.
    fn outcome(&self) -> Result<(), Outcome> {
        if self.is_refused { Err(Outcome::Refused) } else { Ok(()) }
    }
}

/// Waits until a running gateway has what was written, as it should within a second.
fn in_force(at: &ConfigFile, config: &Config, name: &KeyOwner, rotated: &Rotated) -> InForce {
    let known = |told: &str| InForce { told: told.into(), is_refused: false };
    let wanted = rotated.after.map(|key| key.map(|key| SlotView::of(key).fingerprint));
    let path = format!("/v1/keys?name={}", escaped(name));
    let Ok(desk) = Desk::new(at, Some(config)) else {
        return known("no gateway could be asked whether it is in force");
    };
    let until = Instant::now() + IN_FORCE_WITHIN;
    loop {
        match desk.get::<KeyList>(&path) {
            Ok(list) => {
                let slots = list.keys.first().map(|key| [&key.primary, &key.secondary]);
                let have = slots.map(|slots| slots.map(|slot| slot.as_ref().map(|slot| slot.fingerprint.clone())));
                if have.as_ref() == Some(&wanted) {
                    return known("in force on the running gateway");
                }
            }
            Err(DeskError::Away(_)) => return known("no gateway answers: it is in force when one starts"),
            Err(DeskError::Refused(why)) => return known(&format!("whether it is in force could not be asked: {why}")),
        }
        if Instant::now() >= until {
            let told = "NOT in force: the running gateway has not taken it: look at its log, and run `tollgate check`";
            return InForce { told: told.into(), is_refused: true };
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn as_json(name: &KeyOwner, rotated: &Rotated, in_force: &str, show: bool) -> serde_json::Value {
    let left: Vec<String> = rotated
        .before
        .iter()
        .flatten()
        .filter(|key| !rotated.after.contains(&Some(**key)))
        .map(|key| shown(Some(*key)))
        .collect();
    let mut value = json!({
        "name": name.to_string(),
        "primary": rotated.after[0].map(|key| shown(Some(key))),
        "secondary": rotated.after[1].map(|key| shown(Some(key))),
        "left": left,
        "files": rotated.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
        "gateway": in_force,
    });
    if show && let Some(fields) = value.as_object_mut() {
        fields.insert("primary_key".into(), rotated.primary.as_str().into());
    }
    value
}

fn written(rotated: &Rotated) -> String {
    let files: Vec<String> = rotated.files.iter().map(|file| file.display().to_string()).collect();
    folded(&format!("written: {}", files.join(", ")), "")
}

fn reveal(rotated: &Rotated, show: bool) {
    if show && !rotated.primary.is_empty() {
        print(&format!("primary_key = \"{}\"\n", *rotated.primary));
    }
}

fn shown(fingerprint: Option<u64>) -> String {
    fingerprint.map_or_else(|| "none".into(), |key| SlotView::of(key).fingerprint)
}

fn escaped(name: &KeyOwner) -> String {
    utf8_percent_encode(&name.to_string(), NON_ALPHANUMERIC).to_string()
}

/// A screen.
const SHOWN: usize = 20;
/// A gateway looks at its files twice a second; one that is busy takes longer.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Of the names in a listing, so that 100 columns hold a row.
const NAME_COLUMNS: usize = 38;
