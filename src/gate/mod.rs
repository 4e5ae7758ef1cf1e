//! The gate: whether a CONNECT is admitted, in which order it is checked, and whether a live session still may be.
//!
//! Pure: keys and list are snapshots in memory, `now` is an argument. Until both are loaded, and whenever the gate
//! cannot decide, it refuses with [`Denial::Unavailable`], so that an honest device tries again.

mod backoff;
mod config;
mod limiter;
mod names;

pub use backoff::{Backoff, Judged};
pub use config::{GateConfig, Profile};
pub use limiter::ConnectLimiter;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;

use crate::{
    credential::{
        Credential, Facts, Found, Identity, Keyring, Refused, RevocationList, Rights, ScopeIndex, VerifyRules, verify,
    },
    denial::{CloseReason, Denial},
    id::DeviceId,
    policy::{Grant, Scope, ScopeTemplate, TokenKind},
    time::{UnixSeconds, format_duration},
    topic::TopicName,
};

/// Who may connect and what they may do, as one snapshot: replaced as a whole, never half.
#[derive(Debug, Default)]
pub struct Identities {
    keyring: Keyring,
    scopes: Vec<ScopeTemplate>,
}

impl Identities {
    /// `scopes` are what the [`ScopeIndex`]es of the keyring's devices and groups count in.
    pub fn new(keyring: Keyring, scopes: Vec<ScopeTemplate>) -> Self {
        Self { keyring, scopes }
    }

    /// All keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// What a device may do before its token narrows it; `None`: it is unknown.
    pub fn scope_of(&self, id: &DeviceId) -> Option<Scope> {
        self.scope_of_found(self.keyring.find(id)?, id)
    }

    fn scope_of_found(&self, found: Found<'_>, id: &DeviceId) -> Option<Scope> {
        let ScopeIndex(index) = found.scope();
        self.scopes.get(index as usize).map(|template| template.for_device(id))
    }
}

/// What a CONNECT asks with.
#[derive(Clone, Copy)]
pub struct Admission<'a> {
    /// Client id.
    pub client_id: &'a str,
    /// User name.
    pub user_name: Option<&'a str>,
    /// The token.
    pub password: Option<&'a [u8]>,
    /// How client id and user name are read on this listener.
    pub profile: Profile,
    /// The will, where there is one.
    pub will: Option<WillTopic<'a>>,
}

/// What is authorized of a will.
#[derive(Clone, Copy, Debug)]
pub struct WillTopic<'a> {
    /// Where it is to be published.
    pub topic: &'a str,
    /// With which QoS.
    pub qos: u8,
    /// With RETAIN or without.
    pub retain: bool,
}

/// Decides.
#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    rules: VerifyRules,
    identities: ArcSwapOption<Identities>,
    revocations: ArcSwapOption<RevocationList>,
    epoch: AtomicU64,
}

impl Gate {
    /// A gate that refuses everybody until identities and list are loaded.
    pub fn new(config: GateConfig) -> Self {
        let mut hosts = vec![config.hostname.clone()];
        hosts.extend(config.aliases.iter().cloned());
        let rules = VerifyRules {
            accept: config.accept.clone(),
            hosts,
            clock_skew: config.clock_skew,
            token_lifetime_max: config.token_lifetime_max,
            hub_wide_tokens: config.hub_wide_tokens,
        };
        Self {
            config,
            rules,
            identities: ArcSwapOption::empty(),
            revocations: ArcSwapOption::empty(),
            epoch: AtomicU64::new(0),
        }
    }

    /// Puts a new snapshot in force. The caller frees the old one, so that no shard has to.
    pub fn load_identities(&self, identities: Arc<Identities>) -> Option<Arc<Identities>> {
        let old = self.identities.swap(Some(identities));
        self.epoch.fetch_add(1, Ordering::AcqRel);
        old
    }

    /// Puts a new list in force. The caller frees the old one, so that no shard has to.
    pub fn load_revocations(&self, list: Arc<RevocationList>) -> Option<Arc<RevocationList>> {
        let old = self.revocations.swap(Some(list));
        self.epoch.fetch_add(1, Ordering::AcqRel);
        old
    }

    /// Counts changes of identities and list. A session that was registered before it reads the same epoch as its
    /// admission did has missed no change; else it is asked again ([`recheck`](Self::recheck)).
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The identities in force.
    pub fn identities(&self) -> Option<Arc<Identities>> {
        self.identities.load_full()
    }

    /// The list in force.
    pub fn revocations(&self) -> Option<Arc<RevocationList>> {
        self.revocations.load_full()
    }

    /// What tokens are held to besides their signature.
    pub fn rules(&self) -> &VerifyRules {
        &self.rules
    }

    /// Whether deciding about this password takes the check of a public key that was not made before.
    pub fn is_costly(&self, password: &[u8]) -> bool {
        let identities = self.identities.load();
        let credential = Credential::parse(password).ok();
        identities.as_deref().zip(credential).is_some_and(|(known, credential)| known.keyring.is_costly(&credential))
    }

    /// Decides about a CONNECT. In this order: can we decide at all · client id · a token, well formed · user name · the
    /// token ([`verify`]: an accepted kind, signature, resource or audience, device, times) · whose token it is ·
    /// revocations · the will. What costs a signature comes after what costs nothing, and what is told about a device
    /// comes after its signature.
    ///
    /// # Errors
    /// [`Refused`] with the first that fails.
    pub fn admit(&self, request: &Admission<'_>, now: UnixSeconds) -> Result<Grant, Refused> {
        let (identities, list) = (self.identities.load(), self.revocations.load());
        let (Some(identities), Some(list)) = (identities.as_deref(), list.as_deref()) else {
            return Err(Refused::new(Denial::Unavailable, "Identities or the revocation list are not loaded."));
        };
        let device = names::device_of_client_id(request.client_id, request.profile)?;
        let about = |refused: Refused| Refused { device: refused.device.or_else(|| Some(device.clone())), ..refused };
        let credential = read_credential(request).map_err(about)?;
        if let Some(name) = request.user_name {
            names::check_user_name(name, &device, &self.rules.hosts, request.profile)
                .map_err(|refused| refused.about(credential.token_id(), Some(&device)))?;
        }
        let identity = verify(&credential, Some(&device), identities.keyring(), &self.rules, now).map_err(about)?;
        let about = |refused: Refused| refused.about(identity.token_id(), Some(identity.device()));
        if *identity.device() != device {
            let detail = format!("The token is of {}; the client id is {device}.", identity.device());
            return Err(about(Refused::new(Denial::DeviceMismatch, detail)));
        }
        if let Some(hit) = list.matches(&facts_of_identity(&identity), now) {
            return Err(about(Refused::new(Denial::Revoked, hit.to_string())));
        }
        let grant = self.grant(&identity, identities).ok_or_else(|| {
            about(Refused::new(Denial::Unavailable, "The device has a scope that the identities do not hold."))
        })?;
        if let Some(will) = &request.will {
            check_will(will, &grant.scope).map_err(about)?;
        }
        Ok(grant)
    }

    /// Whether a session that was admitted with this grant must end. Asked after it was registered, and whenever
    /// identities or list change.
    pub fn recheck(&self, grant: &Grant, now: UnixSeconds) -> Option<CloseReason> {
        let (identities, list) = (self.identities.load(), self.revocations.load());
        let (Some(identities), Some(list)) = (identities.as_deref(), list.as_deref()) else {
            return Some(CloseReason::InternalError);
        };
        if list.matches(&grant.facts(), now).is_some() {
            return Some(CloseReason::Revoked);
        }
        if !self.still_given(grant, identities) {
            return Some(CloseReason::GrantWithdrawn);
        }
        (now >= grant.closes_at).then_some(CloseReason::Expired)
    }

    /// Why a session that was admitted with this grant was ended, in one sentence for the operator.
    pub fn why_ended(&self, grant: &Grant, reason: CloseReason, now: UnixSeconds) -> String {
        match reason {
            CloseReason::Expired => {
                let skew = format_duration(self.config.clock_skew);
                format!("The token expired at {}, and the clock skew of {skew} after it is over.", grant.expires_at)
            }
            CloseReason::Revoked => {
                let list = self.revocations.load();
                let hit = list.as_deref().and_then(|list| list.matches(&grant.facts(), now));
                hit.map_or_else(String::new, |hit| hit.to_string())
            }
            CloseReason::GrantWithdrawn => {
                let identities = self.identities.load();
                identities.as_deref().map_or_else(String::new, |identities| why_withdrawn(grant, identities).to_owned())
            }
            _ => String::new(),
        }
    }

    fn grant(&self, identity: &Identity, identities: &Identities) -> Option<Grant> {
        let mut scope = identities.scope_of(identity.device())?.bounded_by(identity.rights());
        if let Some(narrowing) = identity.narrowing() {
            scope = scope.narrowed_to(narrowing.publish.as_deref(), narrowing.subscribe.as_deref());
        }
        Some(Grant {
            device: identity.device().clone(),
            scope,
            expires_at: identity.expires_at(),
            closes_at: identity.expires_at().plus(self.rules.clock_skew),
            token_id: identity.token_id(),
            jti: identity.jti().cloned(),
            kind: identity.kind(),
            key: identity.key().clone(),
            key_fingerprint: identity.key_fingerprint(),
            issuer: identity.issuer().cloned(),
            policy: identity.policy().cloned(),
            issued_at: identity.issued_at(),
        })
    }

    /// Whether device, key and scope are what they were, or wider.
    fn still_given(&self, grant: &Grant, identities: &Identities) -> bool {
        let Some(found) = identities.keyring.find(&grant.device) else { return false };
        let rights = match &grant.policy {
            Some(name) => identities.keyring.policy(name).map(|policy| policy.rights),
            None => Some(Rights::ALL),
        };
        let scope = identities.scope_of_found(found, &grant.device).zip(rights);
        found.is_enabled()
            && found.accepts(grant.kind)
            && self.rules.accept.contains(&grant.kind)
            && identities.keyring.holds(&grant.key, grant.key_fingerprint)
            && own_key_if_it_has_one(found, grant)
            && scope.is_some_and(|(scope, rights)| scope.bounded_by(rights).includes(&grant.scope))
    }
}

fn read_credential<'a>(request: &Admission<'a>) -> Result<Credential<'a>, Refused> {
    let missing = || Refused::new(Denial::CredentialMissing, "CONNECT has no password.");
    Credential::parse(request.password.ok_or_else(missing)?)
}

fn why_withdrawn(grant: &Grant, identities: &Identities) -> &'static str {
    match identities.keyring.find(&grant.device) {
        None => "The device is no longer in the identities.",
        Some(found) if !found.is_enabled() => "The device was switched off.",
        Some(found) if !found.accepts(grant.kind) => "The device no longer accepts this kind of token.",
        Some(_) if !identities.keyring.holds(&grant.key, grant.key_fingerprint) => {
            "The key that verified its token was removed or replaced."
        }
        Some(_) => "The device's scope no longer holds what it was granted.",
    }
}

/// A device that was given keys of its own no longer connects with the one that its group derives.
fn own_key_if_it_has_one(found: Found<'_>, grant: &Grant) -> bool {
    let by_group = grant.kind == TokenKind::Sas && grant.key.as_str().starts_with("group:");
    !by_group || found.device.is_none_or(|device| device.keys.is_empty())
}

fn check_will(will: &WillTopic<'_>, scope: &Scope) -> Result<(), Refused> {
    let refused = |why: String| Refused::new(Denial::WillOutOfScope, why);
    let topic =
        TopicName::new(will.topic.as_bytes()).map_err(|error| refused(format!("The will's topic: {error}.")))?;
    match scope.authorize_publish(topic, will.qos, will.retain) {
        Ok(_permit) => Ok(()),
        Err(Denial::RetainNotOffered) => {
            Err(refused("The will has RETAIN set, which the device's scope does not allow.".into()))
        }
        Err(Denial::QosNotOffered) => {
            Err(refused(format!("The will has QoS {}; the device's scope allows {}.", will.qos, scope.qos_max())))
        }
        // No full topic above DEBUG.
        Err(_) => Err(refused("The will's topic is in no filter of the device's `publish`.".into())),
    }
}

fn facts_of_identity(identity: &Identity) -> Facts<'_> {
    Facts {
        token_id: identity.token_id(),
        jti: identity.jti().map(|jti| &**jti),
        issuer: identity.issuer().map(|name| &**name),
        policy: identity.policy().map(|name| &**name),
        device: identity.device(),
        key: identity.key(),
        issued_at: identity.issued_at(),
        expires_at: identity.expires_at(),
    }
}

#[cfg(test)]
mod tests;
