//! `identities.toml` → [`Identities`]: devices, modules, policies, groups and issuers, with every mistake at once. Paths are
//! relative to the working directory.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    document::{Found, Notes, Section, Table},
    files::{Fault, check_mode, read_secret},
    issuers::read_issuer,
    mistake::Mistake,
    public_keys::read_public_keys,
    rotation::{KeyOwner, Schedule, is_marked},
};
use crate::{
    credential::{
        Device, Group, KeyEncoding, Keyring, KeyringBuilder, NameTaken, Policy, Resource, Rights, ScopeIndex,
        SecretKey, Slots, Thumbprint, Thumbprints,
    },
    feed::KeySetSource,
    gate::{GateConfig, Identities},
    id::DeviceId,
    policy::{FilterTemplate, ScopeTemplate, TokenKind},
    time::format_duration,
};

/// Identities that hold, what an operator should know about them all the same, and the files that were read.
#[derive(Debug)]
pub struct LoadedIdentities {
    /// Who may connect and what they may do.
    pub identities: Identities,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
    /// `identities.toml` and every key file that it names: when one of them changes, all is read anew.
    pub files: Vec<PathBuf>,
    /// Keys that the gateway rotates by itself.
    pub schedules: Vec<Schedule>,
    /// Key sets that are to be fetched.
    pub key_sets: Vec<KeySetSource>,
}

/// Reads `identities.toml` and every key file that it names.
///
/// # Errors
/// Every mistake, in the order of the file.
pub fn load_identities(path: &Path, gate: &GateConfig) -> Result<LoadedIdentities, Vec<Mistake>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => {
            let what = match error.kind() {
                io::ErrorKind::NotFound => "no such file.".to_owned(),
                _ => format!("cannot be read: {error}."),
            };
            return Err(vec![Mistake::of_file(path, what, "Correct `identities` under [gateway], or make the file.")]);
        }
    };
    read_identities(path, &text, gate)
}

/// As [`load_identities`], of a text that is in this file or is about to be.
pub(super) fn read_identities(path: &Path, text: &str, gate: &GateConfig) -> Result<LoadedIdentities, Vec<Mistake>> {
    let notes = Notes::new(path, text);
    let document = notes.parse();
    let file = Table::new(&notes, &FILE, document.get_ref(), 1);
    let mut reader = Reader::new(&notes, gate);
    reader.read(&file);
    let Reader { ring, scopes, mut files, has_inline_keys, schedules, key_sets, .. } = reader;
    let (mut mistakes, warnings) = notes.into_parts();
    if let Some(Err(Fault { what, remedy })) = has_inline_keys.then(|| check_mode(path)) {
        mistakes.push(Mistake::of_file(path, what, remedy));
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    files.insert(0, path.to_owned());
    Ok(LoadedIdentities { identities: Identities::new(ring.build(), scopes), warnings, files, schedules, key_sets })
}

/// What is collected while the file is read.
pub(super) struct Reader<'n, 'd> {
    pub(super) notes: &'n Notes<'d>,
    pub(super) gate: &'n GateConfig,
    pub(super) ring: KeyringBuilder,
    /// The first is that of [defaults.scope], the second that of [defaults.module_scope].
    scopes: Vec<ScopeTemplate>,
    pub(super) files: Vec<PathBuf>,
    pub(super) key_sets: Vec<KeySetSource>,
    has_inline_keys: bool,
    schedules: Vec<Schedule>,
    /// Whose a key is, by fingerprint: one key for two is a mistake.
    owners: HashMap<u64, String>,
    /// Whose a certificate is: one for two is a mistake.
    pinned: HashMap<Thumbprint, String>,
}

impl<'n, 'd> Reader<'n, 'd> {
    fn new(notes: &'n Notes<'d>, gate: &'n GateConfig) -> Self {
        Self {
            notes,
            gate,
            ring: Keyring::builder(),
            scopes: vec![ScopeTemplate::default(); 2],
            files: Vec::new(),
            key_sets: Vec::new(),
            has_inline_keys: false,
            schedules: Vec::new(),
            owners: HashMap::new(),
            pinned: HashMap::new(),
        }
    }

    fn read(&mut self, file: &Table<'_>) {
        if let Some(defaults) = file.table("defaults", &DEFAULTS) {
            for (key, who) in [("scope", Who::Device), ("module_scope", Who::Module)] {
                let Some(table) = defaults.table(key, &SCOPE) else { continue };
                self.scopes[who as usize] = self.read_scope(&table, who);
            }
        }
        let tables = |key, section| file.tables(key, section).unwrap_or_default();
        for table in tables("group", &GROUP) {
            self.read_group(&table);
        }
        for table in tables("policy", &POLICY) {
            self.read_policy(&table);
        }
        for table in tables("issuer", &ISSUER) {
            read_issuer(self, &table);
        }
        if let Some(own) = &self.gate.own_issuer {
            let taken = self.ring.add_issuer(own.issuer().clone());
            self.note_taken(
                1,
                taken,
                "The gateway's token service has its name and its `iss` for itself: rename the issuer.",
            );
        }
        for table in tables("device", &DEVICE) {
            self.read_device(&table, Who::Device);
        }
        for table in tables("module", &MODULE) {
            self.read_device(&table, Who::Module);
        }
    }

    fn read_device(&mut self, table: &Table<'_>, who: Who) {
        table.require("id", who.id_remedy());
        let id = table.parsed("id", |text| who.read_id(text));
        let owner = id.as_ref().map_or("a device".to_owned(), |id| format!("device:{}", id.value));
        let keys = self.read_slots(table, &owner, KeyEncoding::Base64);
        let accept = table.words("accept", &TokenKind::WORDS);
        if let Some(found) = accept.as_ref().filter(|found| found.value.is_empty()) {
            self.notes.mistake(
                found.line,
                "`accept` is empty: the device could not connect.",
                "Write \"sas\", \"jwt\", \"certificate\"; or `enabled = false`.",
            );
        }
        let device = Device {
            keys,
            thumbprints: self.read_thumbprints(table, &owner),
            public_keys: read_public_keys(self, table, &owner),
            enabled: table.flag("enabled").is_none_or(|found| found.value),
            accept: accept.map(|found| found.value),
            token_lifetime_max: self.lifetime_max(table),
            scope: self.scope_index(table, who),
        };
        self.refuse_schedule(table);
        let Some(id) = id else { return };
        if who == Who::Module && !self.ring.has_device(id.value.device()) {
            let what = format!("{} is a module of {}, and there is no such device.", id.value, id.value.device());
            self.notes.mistake(id.line, what, "Add a [[device]] with this id, or a [[group]] that it is in.");
        }
        self.warn_of_a_device_without_proof(&id, &device);
        let taken = self.ring.add_device(id.value, device);
        self.note_taken(id.line, taken, "Device ids may not be equal, nor differ in case alone: rename one of them.");
    }

    fn read_policy(&mut self, table: &Table<'_>) {
        for (key, remedy) in
            [("name", "Write the name that `skn` has."), ("resource", "Write the widest `sr` that it may sign.")]
        {
            table.require(key, remedy);
        }
        let name = table.parsed("name", plain_name);
        let encoding = table.one_of("key_encoding", &ENCODINGS).map_or(KeyEncoding::Base64, |found| found.value);
        let owner = name.as_ref().map_or("a policy".to_owned(), |name| format!("policy:{}", name.value));
        let keys = self.read_slots(table, &owner, encoding);
        self.require_key(table, &keys);
        let resource = table.parsed("resource", |text| Resource::parse(text).map_err(|error| without_stop(&error)));
        if let Some(found) = &resource {
            self.warn_of_a_foreign_host(found);
        }
        let rights = table.words("rights", &[("publish", true), ("subscribe", false)]).map_or(Rights::ALL, |found| {
            Rights { publish: found.value.contains(&true), subscribe: found.value.contains(&false) }
        });
        let token_lifetime_max = self.lifetime_max(table);
        self.read_schedule(table, name.as_ref().map(|name| KeyOwner::Policy(name.value.as_ref().into())));
        let (Some(name), Some(resource)) = (name, resource) else { return };
        let policy = Policy { name: name.value, resource: resource.value, keys, rights, token_lifetime_max };
        let taken = self.ring.add_policy(policy);
        self.note_taken(name.line, taken, "Rename one of the two policies.");
    }

    fn read_group(&mut self, table: &Table<'_>) {
        table.require("prefix", "Write what the ids of the group's devices begin with.");
        let prefix = table.parsed("prefix", |text| Who::Device.read_id(text));
        let owner = prefix.as_ref().map_or("a group".to_owned(), |prefix| format!("group:{}", prefix.value));
        let keys = self.read_slots(table, &owner, KeyEncoding::Base64);
        self.require_key(table, &keys);
        let (token_lifetime_max, scope) = (self.lifetime_max(table), self.scope_index(table, Who::Device));
        self.refuse_schedule(table);
        let Some(prefix) = prefix else { return };
        let group = Group { prefix: prefix.value.as_str().into(), keys, token_lifetime_max, scope };
        let taken = self.ring.add_group(group);
        self.note_taken(prefix.line, taken, "Rename one of the two groups.");
    }

    /// `certificate_sha256` and the one that stands beside it while a certificate follows another.
    fn read_thumbprints(&mut self, table: &Table<'_>, owner: &str) -> Thumbprints {
        let [primary, secondary] = ["certificate_sha256", "secondary_certificate_sha256"].map(|key| {
            let found = table.parsed(key, |text| text.parse::<Thumbprint>().map_err(|error| error.to_string()))?;
            if let Some(other) = self.pinned.insert(found.value, owner.to_owned()) {
                let what = match other == owner {
                    true => format!("both certificates of {owner} are the same."),
                    false => format!("{owner} has the same certificate as {other}."),
                };
                self.notes.mistake(found.line, what, "Make each device a key and a certificate of its own.");
            }
            Some(found.value)
        });
        Thumbprints { primary, secondary }
    }

    /// `primary_key`, `secondary_key`, or each in a file.
    fn read_slots(&mut self, table: &Table<'_>, owner: &str, encoding: KeyEncoding) -> Slots {
        let primary = self.read_slot(table, ["primary_key", "primary_key_file"], encoding);
        let secondary = self.read_slot(table, ["secondary_key", "secondary_key_file"], encoding);
        let secondary_in = table.text("secondary_key_file").map_or(self.notes.file(), |found| Path::new(found.value));
        let secondary = self.unless_rotating(&primary, secondary, secondary_in, owner);
        for key in [&primary, &secondary].into_iter().flatten() {
            self.note_shared_key(owner, Found { value: key.value.fingerprint(), line: key.line }, KEY_REMEDY);
        }
        Slots { primary: primary.map(|found| found.value), secondary: secondary.map(|found| found.value) }
    }

    /// Between two writes of a rotation both keys are the same: the secondary then says nothing, and is no mistake.
    fn unless_rotating(
        &self,
        primary: &Option<Found<SecretKey>>,
        secondary: Option<Found<SecretKey>>,
        secondary_in: &Path,
        owner: &str,
    ) -> Option<Found<SecretKey>> {
        let same = primary.as_ref().zip(secondary.as_ref());
        let same = same.filter(|(one, other)| one.value.fingerprint() == other.value.fingerprint());
        if same.is_none() {
            return secondary;
        }
        self.note_same_keys(secondary.map_or(0, |found| found.line), secondary_in, owner);
        None
    }

    pub(super) fn note_same_keys(&self, line: usize, secondary_in: &Path, owner: &str) {
        if !is_marked(secondary_in, owner) {
            return self.notes.mistake(line, format!("both keys of {owner} are the same."), KEY_REMEDY);
        }
        let what = format!("a rotation of {owner} is under way, or was broken off: both keys are the same.");
        self.notes.warn(line, what, format!("Where nobody rotates at this moment: tollgate key rotate {owner}"));
    }

    fn read_slot(
        &mut self,
        table: &Table<'_>,
        names: [&'static str; 2],
        encoding: KeyEncoding,
    ) -> Option<Found<SecretKey>> {
        let [inline, in_file] = names;
        let line = table.line_of(if table.has(inline) { inline } else { in_file });
        if table.has(inline) && table.has(in_file) {
            self.notes.mistake(line, format!("`{inline}` and `{in_file}` stand side by side."), "Keep one of the two.");
            return None;
        }
        let secret = match table.text(inline) {
            Some(found) => {
                self.has_inline_keys = true;
                Zeroizing::new(found.value.to_owned())
            }
            None => self.read_secret_file(table.text(in_file)?)?,
        };
        match SecretKey::parse(&secret, encoding) {
            Ok(key) => Some(Found { value: key, line }),
            Err(error) => {
                let name = if table.has(inline) { inline } else { in_file };
                self.notes.mistake(line, format!("`{name}` is no key that we take: {error}."), KEY_REMEDY);
                None
            }
        }
    }

    /// A secret out of a file that its owner alone may read.
    pub(super) fn read_secret_file(&mut self, path: Found<&str>) -> Option<Zeroizing<String>> {
        self.files.push(path.value.into());
        match read_secret(Path::new(path.value)) {
            Ok(secret) => Some(secret),
            Err(Fault { what, remedy }) => {
                self.notes.mistake(path.line, what, remedy);
                None
            }
        }
    }

    /// One key for two is a mistake: whoever has it is either (threat T31).
    pub(super) fn note_shared_key(&mut self, owner: &str, key: Found<u64>, remedy: &str) {
        match self.owners.entry(key.value) {
            Entry::Vacant(free) => drop(free.insert(owner.to_owned())),
            Entry::Occupied(taken) if taken.get() == owner => {
                self.notes.mistake(key.line, format!("both keys of {owner} are the same."), remedy);
            }
            Entry::Occupied(taken) => {
                self.notes.mistake(key.line, format!("{owner} has the same key as {}.", taken.get()), remedy);
            }
        }
    }

    /// Whose key it is, of those that were read.
    pub(super) fn owner_of(&self, fingerprint: u64) -> Option<&str> {
        self.owners.get(&fingerprint).map(String::as_str)
    }

    fn require_key(&self, table: &Table<'_>, keys: &Slots) {
        let any =
            ["primary_key", "primary_key_file", "secondary_key", "secondary_key_file"].iter().any(|key| table.has(key));
        if keys.is_empty() && !any {
            self.notes.mistake(
                table.line(),
                "there is no key here.",
                "Write `primary_key_file = \"…\"` (or `primary_key`).",
            );
        }
    }

    pub(super) fn lifetime_max(&self, table: &Table<'_>) -> Option<std::time::Duration> {
        table.duration("token_lifetime_max", TOKEN_LIFETIME_MIN..=TOKEN_LIFETIME_MAX).map(|found| found.value)
    }

    /// The index of the table's own scope, or that of the defaults.
    fn scope_index(&mut self, table: &Table<'_>, who: Who) -> ScopeIndex {
        let Some(scope) = table.table("scope", &SCOPE) else { return ScopeIndex(who as u32) };
        let scope = self.read_scope(&scope, who);
        self.scopes.push(scope);
        ScopeIndex(u32::try_from(self.scopes.len() - 1).expect("invariant: a file of 4 GiB is not read"))
    }

    /// What is not written is as in the defaults.
    fn read_scope(&self, table: &Table<'_>, who: Who) -> ScopeTemplate {
        let mut scope = self.scopes.get(who as usize).cloned().expect("invariant: the defaults are always there");
        for (key, side) in [("publish", &mut scope.publish), ("subscribe", &mut scope.subscribe)] {
            let Some(found) = table.texts(key) else { continue };
            let side = side.insert(Vec::new());
            for text in found.value {
                match FilterTemplate::new(text.value) {
                    Ok(filter) if who == Who::Device && filter.names_module() => {
                        let what = format!("`{key}` holds {:?}, and a device is no module.", text.value);
                        self.notes.mistake(text.line, what, "`{module}` stands in the scope of a [[module]] alone.");
                    }
                    Ok(_) if text.value.starts_with("$share/") => {
                        let what = format!("`{key}` holds {:?}: a shared subscription is no filter.", text.value);
                        self.notes.mistake(text.line, what, "Write the filter behind $share/…/ alone.");
                    }
                    Ok(filter) => side.push(filter),
                    Err(error) => {
                        let what = format!("`{key}` holds {:?}, which is no topic filter: {error}.", text.value);
                        self.notes.mistake(text.line, what, "`+` and `#` stand alone in their level, `#` last.");
                    }
                }
            }
        }
        if let Some(found) = table.flag("retain") {
            scope.retain = found.value;
        }
        if let Some(found) = table.number("qos_max", 0..=2_u8) {
            scope.qos_max = found.value;
        }
        scope
    }

    /// `rotate_every`: when the gateway turns these keys by itself. A token that lives longer than two keys do in turn
    /// dies before its time.
    pub(super) fn read_schedule(&mut self, table: &Table<'_>, owners: impl IntoIterator<Item = KeyOwner>) {
        let Some(found) = table.duration("rotate_every", ROTATION_MIN..=ROTATION_MAX) else { return };
        let own = table.has("token_lifetime_max").then(|| self.lifetime_max(table)).flatten();
        let lifetime = own.unwrap_or_else(|| self.gate.token_lifetime_max_anywhere());
        if lifetime > found.value {
            let (lives, every) = (format_duration(lifetime), format_duration(found.value));
            let what = format!(
                "`rotate_every` is {every}, and tokens may live for {lives}: those that live longer than {every} can be \
                 refused before they expire."
            );
            self.notes.warn(found.line, what, "Write `token_lifetime_max` of at most `rotate_every` beside it.");
        }
        if table.has("primary_key") {
            let what = "`rotate_every` beside `primary_key`: the gateway edits this file when the keys are due.";
            self.notes.warn(found.line, what, "Where it may not, write `primary_key_file` and `secondary_key_file`.");
        }
        let every = found.value;
        self.schedules.extend(owners.into_iter().map(|owner| Schedule { owner, every }));
    }

    fn refuse_schedule(&self, table: &Table<'_>) {
        if table.has("rotate_every") {
            let what = "`rotate_every` stands where devices hold the key: they cannot follow, and would be locked out after \
                        two turns.";
            let remedy = "Take it out; rotate with `tollgate key rotate`, and give each device its new key.";
            self.notes.mistake(table.line_of("rotate_every"), what, remedy);
        }
    }

    fn warn_of_a_device_without_proof(&self, id: &Found<DeviceId>, device: &Device) {
        let kinds = device.accept.as_deref().unwrap_or(&self.gate.accept);
        let by_certificate = !device.thumbprints.is_empty() || kinds.contains(&TokenKind::Certificate);
        let in_group = id.value.module().is_none() && self.ring.has_group_of(&id.value);
        let by_sas =
            TokenKind::Sas.is_taken_by(kinds) && (!device.keys.is_empty() || in_group || self.ring.has_policies());
        let by_jwt = TokenKind::Jwt.is_taken_by(kinds) && (!device.public_keys.is_empty() || self.ring.has_issuers());
        if device.enabled && !by_sas && !by_jwt && !by_certificate {
            let what = format!("{} has no key, and nobody else signs tokens for it: it cannot connect.", id.value);
            self.notes.warn(id.line, what, "Give it a `primary_key`, or an [[issuer]], [[policy]] or [[group]].");
        }
    }

    fn warn_of_a_foreign_host(&self, resource: &Found<Resource>) {
        let host = resource.value.host();
        if !std::iter::once(&self.gate.hostname).chain(&self.gate.aliases).any(|ours| ours.eq_ignore_ascii_case(host)) {
            let what = format!(
                "`resource` names the host {host:?}, which is not this gateway's: none of its tokens is accepted."
            );
            self.notes.warn(resource.line, what, "Add the host to `aliases` under [gateway], or write `hostname`.");
        }
    }

    pub(super) fn note_taken(&self, line: usize, taken: Result<(), NameTaken>, remedy: &str) {
        if let Err(taken) = taken {
            self.notes.mistake(line, format!("{taken}."), remedy);
        }
    }
}

/// Whom an entry is about; also the index of its default scope.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Device = 0,
    Module = 1,
}

impl Who {
    fn id_remedy(self) -> &'static str {
        match self {
            Self::Device => "Write the device's id: `id = \"pump-17\"`.",
            Self::Module => "Write the device's id and the module's: `id = \"pump-17/camera\"`.",
        }
    }

    fn read_id(self, text: &str) -> Result<DeviceId, String> {
        let id = DeviceId::try_from(text).map_err(|error| error.to_string())?;
        match (self, id.module()) {
            (Self::Device, Some(_)) => Err(format!("{text:?} is a module; modules stand at [[module]]")),
            (Self::Module, None) => Err(format!("{text:?} is no module: it is named as {{device}}/{{module}}")),
            _ => Ok(id),
        }
    }
}

/// A name that stands in key names, logs and commands.
pub(super) fn plain_name(text: &str) -> Result<Arc<str>, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match text.len() {
        1..=NAME_BYTES_MAX if text.bytes().all(allowed) => Ok(text.into()),
        _ => Err(format!("{text:?} is no name: 1 to {NAME_BYTES_MAX} letters, digits and ._- may stand in it")),
    }
}

fn without_stop(sentence: &str) -> String {
    sentence.trim_end_matches('.').to_owned()
}

pub(super) const ENCODINGS: [(&str, KeyEncoding); 2] = [("base64", KeyEncoding::Base64), ("utf8", KeyEncoding::Utf8)];
pub(super) const KEY_REMEDY: &str = "Make a new one: head -c 32 /dev/urandom | base64";
const NAME_BYTES_MAX: usize = 64;
/// A token must outlive the clock skew of a connect.
const TOKEN_LIFETIME_MIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Ten years: whoever writes more has no limit in mind, and should say so with a key of its own.
const TOKEN_LIFETIME_MAX: std::time::Duration = std::time::Duration::from_hours(10 * 366 * 24);
/// Shorter, and a device could not follow: times of tokens are whole seconds.
const ROTATION_MIN: std::time::Duration = std::time::Duration::from_secs(1);
/// As with lifetimes.
const ROTATION_MAX: std::time::Duration = TOKEN_LIFETIME_MAX;

const FILE: Section =
    Section { name: "the file", keys: &["defaults", "device", "module", "policy", "group", "issuer"], later: &[] };
const DEFAULTS: Section = Section { name: "[defaults]", keys: &["scope", "module_scope"], later: &[] };
const SCOPE: Section = Section { name: "scope", keys: &["publish", "subscribe", "retain", "qos_max"], later: &[] };
const DEVICE: Section = Section {
    name: "[[device]]",
    keys: &[
        "id",
        "primary_key",
        "primary_key_file",
        "secondary_key",
        "secondary_key_file",
        "public_key",
        "enabled",
        "accept",
        "certificate_sha256",
        "secondary_certificate_sha256",
        "token_lifetime_max",
        "rotate_every",
        "scope",
    ],
    later: &[],
};
const MODULE: Section = Section { name: "[[module]]", ..DEVICE };
const POLICY: Section = Section {
    name: "[[policy]]",
    keys: &[
        "name",
        "resource",
        "key_encoding",
        "primary_key",
        "primary_key_file",
        "secondary_key",
        "secondary_key_file",
        "rights",
        "token_lifetime_max",
        "rotate_every",
    ],
    later: &[],
};
const GROUP: Section = Section {
    name: "[[group]]",
    keys: &[
        "prefix",
        "primary_key",
        "primary_key_file",
        "secondary_key",
        "secondary_key_file",
        "token_lifetime_max",
        "rotate_every",
        "scope",
    ],
    later: &[],
};
const ISSUER: Section = Section {
    name: "[[issuer]]",
    keys: &[
        "name",
        "iss",
        "audience",
        "algorithms",
        "jwks_url",
        "jwks_refresh",
        "jwks_ca",
        "jwks_private_addresses",
        "jwks_file",
        "key",
        "device_claim",
        "scope_claim",
        "require",
        "token_lifetime_max",
        "rotate_every",
    ],
    later: &[],
};
pub(super) const ISSUER_KEY: Section = Section {
    name: "[[issuer.key]]",
    keys: &["kid", "file", "secret_file", "secondary_secret_file", "key_encoding", "algorithm"],
    later: &[],
};

#[cfg(test)]
mod tests;
