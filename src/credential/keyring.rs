//! All keys, as one immutable snapshot: devices, policies, groups, issuers.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use super::{
    Algorithm, Credential, Refused, Resource, Rights, SecretKey, Slots, Thumbprints, TokenKind, VerifyRules,
    VerifyingKey, memo::SignatureMemo, terms,
};
use crate::{
    denial::Denial,
    id::{DeviceId, KeyName},
    time::UnixSeconds,
};

/// What a device, or the devices of a group, may do: an index into the scopes that stand beside the keyring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScopeIndex(pub u32);

/// A `[[device]]` or a `[[module]]`.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its own SAS keys; none where a group derives them or where it has JWTs alone.
    pub keys: Slots,
    /// Client certificates that are its own, whoever signed them.
    pub thumbprints: Thumbprints,
    /// Public keys of its own: it signs its JWTs itself.
    pub public_keys: Vec<PublicKey>,
    /// Whether it may connect.
    pub enabled: bool,
    /// Kinds of token that are accepted for it; `None`: those of the gateway.
    pub accept: Option<Vec<TokenKind>>,
    /// The longest life of its tokens.
    pub token_lifetime_max: Option<Duration>,
    /// What it may do.
    pub scope: ScopeIndex,
}

impl Default for Device {
    /// Enabled, without any key.
    fn default() -> Self {
        Self {
            keys: Slots::default(),
            thumbprints: Thumbprints::default(),
            public_keys: Vec::new(),
            enabled: true,
            accept: None,
            token_lifetime_max: None,
            scope: ScopeIndex::default(),
        }
    }
}

/// A `[[device.public_key]]`: what the device signs its own JWTs with.
#[derive(Clone, Debug)]
pub struct PublicKey {
    /// What the tokens may name it by.
    pub kid: Option<Box<str>>,
    /// The key.
    pub key: VerifyingKey,
    /// When it may be used.
    pub validity: Validity,
}

impl PublicKey {
    /// What stands behind the `/` in its name: its `kid`, else its fingerprint.
    pub fn slot(&self) -> String {
        self.kid.as_deref().map_or_else(|| format!("{:016x}", self.key.fingerprint()), str::to_owned)
    }
}

/// From when and until when a key may be used; an end that is absent is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Validity {
    /// The first second.
    pub not_before: Option<UnixSeconds>,
    /// The first second in which it may be used no more.
    pub not_after: Option<UnixSeconds>,
}

impl Validity {
    /// Whether it may be used.
    pub fn holds(&self, now: UnixSeconds) -> bool {
        self.not_before.is_none_or(|from| from <= now) && self.not_after.is_none_or(|end| now < end)
    }
}

/// A `[[policy]]`: a SAS key with a name, for any device within its resource.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What `skn` names, exactly.
    pub name: Arc<str>,
    /// The widest `sr` it may sign.
    pub resource: Resource,
    /// Its keys.
    pub keys: Slots,
    /// What the tokens that it signs may do at most.
    pub rights: Rights,
    /// The longest life of the tokens that it signs.
    pub token_lifetime_max: Option<Duration>,
}

/// A `[[group]]`: one key from which those of all devices with a prefix are derived.
#[derive(Clone, Debug)]
pub struct Group {
    /// What the ids of its devices begin with.
    pub prefix: Arc<str>,
    /// Its keys; none of them ever signs a token itself.
    pub keys: Slots,
    /// The longest life of its devices' tokens.
    pub token_lifetime_max: Option<Duration>,
    /// What its devices may do.
    pub scope: ScopeIndex,
}

/// An `[[issuer]]` of JWTs.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// What the operator calls it.
    pub name: Arc<str>,
    /// What `iss` names, exactly.
    pub iss: Box<str>,
    /// `aud` must hold one of them.
    pub audience: Vec<Box<str>>,
    /// Its keys by `kid`; a single key may be without.
    pub keys: Vec<(Option<Box<str>>, VerifyingKey)>,
    /// Whether it publishes its keys, which then come and go without anybody's editing.
    pub published: Published,
    /// The claim that names the device.
    pub device_claim: Box<str>,
    /// The claim that narrows the scope.
    pub scope_claim: Option<Box<str>>,
    /// Claims that must be there; `None`: those of the profile.
    pub require: Option<Vec<Box<str>>>,
    /// The longest life of its tokens, from `iat`.
    pub token_lifetime_max: Option<Duration>,
}

/// Whether an issuer publishes its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// At an address (`jwks_url`); until they were fetched it has none.
    Yes,
    /// They stand in files.
    No,
}

impl Issuer {
    /// Whether its keys are yet to be fetched.
    pub fn is_without_keys(&self) -> bool {
        self.published == Published::Yes && self.keys.is_empty()
    }

    /// The key that a token names; without a `kid`, the single one.
    pub(super) fn key(&self, kid: Option<&str>) -> Option<(&str, &VerifyingKey)> {
        match (kid, self.keys.as_slice()) {
            (None, [(name, key)]) => Some((name.as_deref().unwrap_or(UNNAMED), key)),
            (None, _) => None,
            (Some(kid), keys) => {
                keys.iter().find_map(|(name, key)| name.as_deref().filter(|name| *name == kid).map(|name| (name, key)))
            }
        }
    }

    /// Its name as the owner of a key: `issuer:NAME/KID`.
    pub(super) fn key_name(&self, kid: &str) -> KeyName {
        KeyName::of("issuer", &self.name, kid)
    }
}

/// An issuer, and what is worked out of it once and not for each of its tokens.
#[derive(Debug)]
pub(super) struct KnownIssuer {
    pub(super) issuer: Issuer,
    /// How its tokens are read: see [`terms::reading`].
    pub(super) reading: u64,
}

/// Every key, by whom it belongs to. Never changed: a new one replaces it as a whole.
#[derive(Debug, Default)]
pub struct Keyring {
    devices: HashMap<DeviceId, Device>,
    policies: HashMap<Arc<str>, Policy>,
    /// The longest prefix first.
    groups: Vec<Group>,
    /// Devices whose id has the prefix of a group, but for case, by their id in lower case (threat T10).
    folded: HashMap<Box<str>, DeviceId>,
    issuers: HashMap<Box<str>, KnownIssuer>,
    memo: SignatureMemo,
}

impl Keyring {
    /// A keyring to be filled.
    pub fn builder() -> KeyringBuilder {
        KeyringBuilder::default()
    }

    /// The device or the group that it belongs to; `None`: it is unknown.
    pub fn find(&self, id: &DeviceId) -> Option<Found<'_>> {
        let device = self.devices.get(id);
        if id.module().is_some() {
            // A module is known by its own entry, and is of a device that is known.
            let parent = self.devices.get(id.device());
            let is_known = device.is_some() && (parent.is_some() || self.group_of(id.device()).is_some());
            return is_known.then_some(Found { device, group: None, parent });
        }
        let group = self.group_of(id.as_str());
        (device.is_some() || group.is_some()).then_some(Found { device, group, parent: None })
    }

    /// None, where a `[[device]]` has this id but for case: nobody may pass for it by another spelling.
    fn group_of(&self, device: &str) -> Option<&Group> {
        let group = self.groups.iter().find(|group| device.starts_with(&*group.prefix))?;
        let is_other = |held: &DeviceId| held.as_str() != device;
        let namesake = || self.folded.get(&*device.to_ascii_lowercase()).is_some_and(is_other);
        (self.folded.is_empty() || !namesake()).then_some(group)
    }

    /// What signs a SAS token of this device or module itself: its own primary key, else the one that its group derives.
    pub fn signing_key(&self, id: &DeviceId) -> Option<(KeyName, SecretKey)> {
        let found = self.find(id)?;
        match (found.device.filter(|device| !device.keys.is_empty()), found.group) {
            (Some(device), _) => Some((KeyName::of("device", id.as_str(), PRIMARY), device.keys.primary.clone()?)),
            (None, Some(group)) => {
                let key = group.keys.primary.as_ref()?.derive(id);
                Some((KeyName::of("group", &group.prefix, PRIMARY), key))
            }
            (None, None) => None,
        }
    }

    /// What signs a SAS token with this `skn`: the policy's primary key.
    pub fn policy_signing_key(&self, name: &str) -> Option<(KeyName, SecretKey)> {
        let key = self.policy(name)?.keys.primary.clone()?;
        Some((KeyName::of("policy", name, PRIMARY), key))
    }

    /// A `[[policy]]` by its name, exactly.
    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// An `[[issuer]]` by `iss`, exactly.
    pub fn issuer(&self, iss: &str) -> Option<&Issuer> {
        self.known_issuer(iss).map(|known| &known.issuer)
    }

    pub(super) fn known_issuer(&self, iss: &str) -> Option<&KnownIssuer> {
        self.issuers.get(iss)
    }

    /// By the operator's name for it.
    pub(super) fn issuer_called(&self, name: &str) -> Option<&KnownIssuer> {
        self.issuers.values().find(|known| &*known.issuer.name == name)
    }

    /// Every `[[device]]` and `[[module]]`, in no order.
    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &Device)> {
        self.devices.iter()
    }

    /// A `[[device]]` or `[[module]]` of its own.
    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// What a device's own public key with this fingerprint is for.
    pub(super) fn public_algorithm(&self, device: &str, fingerprint: u64) -> Option<Algorithm> {
        let public =
            self.devices.get(device)?.public_keys.iter().find(|public| public.key.fingerprint() == fingerprint)?;
        Some(public.key.algorithm())
    }

    /// Every `[[policy]]`, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// Every `[[group]]`, the longest prefix first.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Every `[[issuer]]`, in no order.
    pub fn issuers(&self) -> impl Iterator<Item = &Issuer> {
        self.issuers.values().map(|known| &known.issuer)
    }

    /// Whether looking at the token takes the check of a public key, which costs what a hundred of HMAC cost.
    pub fn is_costly(&self, credential: &Credential<'_>) -> bool {
        match credential {
            Credential::Sas(_) => false,
            Credential::Jwt(token) => !token.algorithm().is_hmac() && !self.memo.knows(token),
        }
    }

    pub(super) fn memo(&self) -> &SignatureMemo {
        &self.memo
    }

    /// Fingerprints of all keys, in whichever slot.
    pub fn fingerprints(&self) -> HashSet<u64> {
        let devices = self.devices.values().map(|device| &device.keys);
        let slots = devices.chain(self.policies.values().map(|policy| &policy.keys));
        let slots = slots.chain(self.groups.iter().map(|group| &group.keys));
        let shared = slots.flat_map(Slots::each).filter_map(|(_, key)| key.map(SecretKey::fingerprint));
        let issuers = self.issuers().flat_map(|issuer| &issuer.keys);
        let issuers = issuers.flat_map(|(_, key)| key.each()).map(VerifyingKey::fingerprint);
        let own = self.devices.values().flat_map(|device| &device.public_keys);
        shared.chain(issuers).chain(own.map(|public| public.key.fingerprint())).collect()
    }

    /// Whether the owner of the key `name` still holds one with this fingerprint, in whichever slot.
    pub fn holds(&self, name: &KeyName, fingerprint: u64) -> bool {
        self.validity(name, fingerprint).is_some()
    }

    /// When the key `name` with this fingerprint may be used; `None`: its owner holds it no more, in whichever slot.
    pub fn validity(&self, name: &KeyName, fingerprint: u64) -> Option<Validity> {
        let (kind, owner) = name.as_str().rsplit_once('/').and_then(|(owner, _)| owner.split_once(':'))?;
        let held = match kind {
            "device" => {
                let device = self.devices.get(owner)?;
                let public = device.public_keys.iter().find(|public| public.key.fingerprint() == fingerprint);
                if let Some(public) = public {
                    return Some(public.validity);
                }
                device.keys.hold(fingerprint)
            }
            // By an authority: whether it still vouches is asked apart from the keys.
            "certificate" if name.slot() == "ca" => true,
            "certificate" => self.devices.get(owner).is_some_and(|device| device.thumbprints.hold(fingerprint)),
            "policy" => self.policies.get(owner).is_some_and(|policy| policy.keys.hold(fingerprint)),
            "group" => self.groups.iter().any(|group| &*group.prefix == owner && group.keys.hold(fingerprint)),
            "issuer" => self.issuer_called(owner).is_some_and(|KnownIssuer { issuer, .. }| {
                issuer.keys.iter().any(|(_, key)| key.each().any(|key| key.fingerprint() == fingerprint))
            }),
            _ => false,
        };
        held.then(Validity::default)
    }
}

/// What the keyring knows of one device.
#[derive(Clone, Copy, Debug)]
pub struct Found<'k> {
    /// Its own entry.
    pub device: Option<&'k Device>,
    /// The group whose prefix it has; a module has none.
    pub group: Option<&'k Group>,
    /// Of a module the entry of its device, where that has one and is not of a group alone.
    pub parent: Option<&'k Device>,
}

impl Found<'_> {
    /// What the device may do.
    pub fn scope(&self) -> ScopeIndex {
        match (self.device, self.group) {
            (Some(device), _) => device.scope,
            (None, Some(group)) => group.scope,
            (None, None) => ScopeIndex::default(),
        }
    }

    /// Whether it may connect. A module of a device that is switched off may not.
    pub fn is_enabled(&self) -> bool {
        self.device.is_none_or(|device| device.enabled) && self.parent.is_none_or(|device| device.enabled)
    }

    /// Kinds that are accepted for it. What a module does not say its device says.
    fn accept(&self) -> Option<&[TokenKind]> {
        [self.device, self.parent].into_iter().flatten().find_map(|device| device.accept.as_deref())
    }

    /// Whether it may connect with this kind of token, alone or with a certificate.
    pub fn accepts(&self, kind: TokenKind) -> bool {
        self.accept().is_none_or(|kinds| kind.is_taken_by(kinds))
    }

    /// Whether a token of this kind needs the device's client certificate beside it: the device's own list or the
    /// gateway's takes it with one only.
    pub fn needs_certificate(&self, kind: TokenKind, accept: &[TokenKind]) -> bool {
        [Some(accept), self.accept()]
            .into_iter()
            .flatten()
            .any(|kinds| kind.token().is_none_or(|token| !kinds.contains(&token)))
    }

    /// Whether a certificate is enough: the device's own list says so; or it has none, and its thumbprint or the
    /// gateway's list does.
    pub fn accepts_certificate_alone(&self, accept: &[TokenKind]) -> bool {
        match self.accept() {
            Some(kinds) => kinds.contains(&TokenKind::Certificate),
            None => {
                accept.contains(&TokenKind::Certificate)
                    || self.device.is_some_and(|device| !device.thumbprints.is_empty())
            }
        }
    }

    pub(super) fn check_enabled(&self, id: &DeviceId) -> Result<(), Refused> {
        if !self.is_enabled() {
            let whose = if self.device.is_none_or(|device| device.enabled) { id.device() } else { id.as_str() };
            return Err(Refused::new(Denial::DeviceDisabled, format!("The device {whose} has `enabled = false`.")));
        }
        Ok(())
    }

    pub(super) fn check(&self, id: &DeviceId, kind: TokenKind) -> Result<(), Refused> {
        self.check_enabled(id)?;
        if !self.accepts(kind) {
            let detail = format!("`accept` of the device {id} does not hold {:?}.", kind.as_str());
            return Err(Refused::new(Denial::CredentialKindNotAccepted, detail));
        }
        Ok(())
    }

    /// The limit of the key's owner, else the gateway's; the device's own, and for a module that of its device, bound
    /// either.
    pub fn lifetime_max(&self, owner: Option<Duration>, rules: &VerifyRules) -> Duration {
        let own = [self.device, self.parent].into_iter().flatten().filter_map(|device| device.token_lifetime_max);
        own.chain(owner).min().unwrap_or(rules.token_lifetime_max)
    }
}

/// Collects keys; refuses names that could be taken for one another.
#[derive(Debug, Default)]
pub struct KeyringBuilder {
    ring: Keyring,
    folded: HashMap<String, DeviceId>,
}

impl KeyringBuilder {
    /// Adds a device.
    ///
    /// # Errors
    /// [`NameTaken`]: there is a device with this id, or with one that differs in case alone.
    pub fn add_device(&mut self, id: DeviceId, device: Device) -> Result<(), NameTaken> {
        let folded = id.as_str().to_ascii_lowercase();
        if let Some(other) = self.folded.get(&folded) {
            return Err(NameTaken { by: other.to_string() });
        }
        self.folded.insert(folded, id.clone());
        self.ring.devices.insert(id, device);
        Ok(())
    }

    /// Adds a policy.
    ///
    /// # Errors
    /// [`NameTaken`]: there is a policy with this name.
    pub fn add_policy(&mut self, policy: Policy) -> Result<(), NameTaken> {
        if self.ring.policies.contains_key(&policy.name) {
            return Err(NameTaken { by: policy.name.to_string() });
        }
        self.ring.policies.insert(policy.name.clone(), policy);
        Ok(())
    }

    /// Adds a group.
    ///
    /// # Errors
    /// [`NameTaken`]: there is a group with this prefix, or with one that differs in case alone.
    pub fn add_group(&mut self, group: Group) -> Result<(), NameTaken> {
        let is_same = |other: &&Group| other.prefix.eq_ignore_ascii_case(&group.prefix);
        if let Some(other) = self.ring.groups.iter().find(is_same) {
            return Err(NameTaken { by: other.prefix.to_string() });
        }
        self.ring.groups.push(group);
        Ok(())
    }

    /// Adds an issuer.
    ///
    /// # Errors
    /// [`NameTaken`]: there is an issuer with this name or this `iss`.
    pub fn add_issuer(&mut self, issuer: Issuer) -> Result<(), NameTaken> {
        if let Some(other) = self.ring.issuers().find(|other| other.name == issuer.name || other.iss == issuer.iss) {
            return Err(NameTaken { by: other.name.to_string() });
        }
        let reading = terms::reading(&issuer);
        self.ring.issuers.insert(issuer.iss.clone(), KnownIssuer { issuer, reading });
        Ok(())
    }

    /// Whether a device with this id was added, or a group that it belongs to.
    pub fn has_device(&self, id: &str) -> bool {
        self.ring.devices.contains_key(id) || self.ring.group_of(id).is_some()
    }

    /// Whether a group was added that this device belongs to.
    pub fn has_group_of(&self, id: &DeviceId) -> bool {
        self.ring.groups.iter().any(|group| id.as_str().starts_with(&*group.prefix))
    }

    /// Whether a policy was added.
    pub fn has_policies(&self) -> bool {
        !self.ring.policies.is_empty()
    }

    /// Whether an issuer was added.
    pub fn has_issuers(&self) -> bool {
        !self.ring.issuers.is_empty()
    }

    /// The whole keyring.
    pub fn build(self) -> Keyring {
        let mut ring = self.ring;
        ring.groups.sort_by_key(|group| Reverse(group.prefix.len()));
        let prefixes: Vec<String> = ring.groups.iter().map(|group| group.prefix.to_ascii_lowercase()).collect();
        let in_group = |folded: &String| prefixes.iter().any(|prefix| folded.starts_with(prefix));
        let alike = self.folded.into_iter().filter(|(folded, _)| in_group(folded));
        ring.folded = alike.map(|(folded, id)| (folded.into(), id)).collect();
        ring
    }
}

/// A name is taken already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameTaken {
    /// By whom.
    pub by: String,
}

impl fmt::Display for NameTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} has this name already", self.by)
    }
}

impl std::error::Error for NameTaken {}

const PRIMARY: &str = "primary";
/// The slot of a single key that has no `kid`.
const UNNAMED: &str = "key";
