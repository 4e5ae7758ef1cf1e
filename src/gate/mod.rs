//! The gate: whether a CONNECT is admitted, in which order it is checked, and whether a live session still may be.
//!
//! Pure: keys and list are snapshots in memory, `now` is an argument. Until both are loaded, and whenever the gate
//! cannot decide, it refuses with [`Denial::Unavailable`], so that an honest device tries again.

mod backoff;
mod certificate;
mod config;
mod limiter;
mod misses;
mod names;
mod standing;
mod touched;

pub use backoff::{Backoff, BanOf, Judged};
pub use config::{GateConfig, OwnIssuer};
pub use limiter::{ConnectLimiter, site_of};
pub use misses::{Misses, Wake};
pub use names::{check_user_name, client_id_of_user_name, device_of_client_id, is_google_registry};
pub use standing::Standing;
pub use touched::Touched;

pub use crate::policy::Profile;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use crate::{
    credential::{
        Credential, Found, Hit, Identity, Issuer, JwtToken, Keyring, PeerCertificate, Published, Refused,
        RevocationList, ScopeIndex, Terms, Validity, VerifyRules, verify, verify_certificate,
    },
    denial::{CloseReason, Denial},
    id::{DeviceId, TokenId},
    policy::{Grant, Scope, ScopeTemplate, ShownCertificate, TokenKind},
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

    /// What a device may do before its token narrows it, on a listener with this profile; `None`: it is unknown.
    pub fn scope_of(&self, id: &DeviceId, profile: Profile) -> Option<Scope> {
        self.scope_of_found(self.keyring.find(id)?, id, profile)
    }

    /// What whoever signed the token says of the life of its tokens.
    fn lifetime_max_of_signer(&self, grant: &Grant) -> Option<Duration> {
        match (&grant.policy, &grant.issuer) {
            (Some(name), _) => self.keyring.policy(name)?.token_lifetime_max,
            (None, Some(name)) => self.keyring.issuers().find(|issuer| issuer.name == *name)?.token_lifetime_max,
            (None, None) => {
                let prefix = grant.key.owner().strip_prefix("group:")?;
                self.keyring.groups().iter().find(|group| &*group.prefix == prefix)?.token_lifetime_max
            }
        }
    }

    fn scope_of_found(&self, found: Found<'_>, id: &DeviceId, profile: Profile) -> Option<Scope> {
        let ScopeIndex(index) = found.scope();
        self.scopes.get(index as usize).map(|template| template.for_device(id, profile))
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
    /// The client certificate of the connection.
    pub certificate: Option<&'a Arc<PeerCertificate>>,
    /// How client id and user name are read on this listener, and what tokens are held to.
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
    /// By profile, in the order of [`Profile::ALL`].
    rules: [VerifyRules; Profile::ALL.len()],
    identities: ArcSwapOption<Identities>,
    revocations: ArcSwapOption<RevocationList>,
    epoch: AtomicU64,
    misses: Arc<Misses>,
}

impl Gate {
    /// A gate that refuses everybody until identities and list are loaded.
    pub fn new(config: GateConfig) -> Self {
        Self {
            rules: Profile::ALL.map(|profile| config.rules(profile)),
            config,
            identities: ArcSwapOption::empty(),
            revocations: ArcSwapOption::empty(),
            epoch: AtomicU64::new(0),
            misses: Arc::default(),
        }
    }

    /// Puts a new snapshot in force. The caller frees the old one, so that no shard has to.
    pub fn load_identities(&self, identities: Arc<Identities>) -> Option<Arc<Identities>> {
        let old = self.identities.swap(Some(identities));
        self.changed();
        old
    }

    /// Puts a new list in force. The caller frees the old one, so that no shard has to.
    pub fn load_revocations(&self, list: Arc<RevocationList>) -> Option<Arc<RevocationList>> {
        let old = self.revocations.swap(Some(list));
        self.changed();
        old
    }

    /// Authorities of client certificates were replaced: who is being admitted is asked again.
    pub fn authorities_changed(&self) {
        self.changed();
    }

    /// Sessions are looked for after the change is in force, also for other cores: `Registry::regrant` is the other half.
    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Counts changes of identities, list and authorities. A session that was registered before it reads the same epoch as its
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

    /// Rung when a token names a key that its issuer may have published since.
    pub fn misses(&self) -> &Arc<Misses> {
        &self.misses
    }

    /// Whether a token that was refused may be good in a moment: for want of a key, and its issuer's keys are being fetched.
    pub fn awaits_keys(&self, password: &[u8], denial: Denial) -> bool {
        if !matches!(denial, Denial::KeyUnknown | Denial::Unavailable) {
            return false;
        }
        let (identities, credential) = (self.identities.load(), Credential::parse(password).ok());
        let Some((identities, Credential::Jwt(token))) = identities.as_deref().zip(credential) else { return false };
        published_by(&token, identities).is_some_and(|issuer| self.misses.is_underway(&issuer.name))
    }

    /// What tokens are held to besides their signature, on listeners with this profile.
    pub fn rules(&self, profile: Profile) -> &VerifyRules {
        let [strict, azure, google] = &self.rules;
        match profile {
            Profile::Strict => strict,
            Profile::Azure => azure,
            Profile::Google => google,
        }
    }

    /// What it was told by `gateway.toml`.
    pub fn config(&self) -> &GateConfig {
        &self.config
    }

    /// The gateway's profile: that of listeners which name none.
    pub fn profile(&self) -> Profile {
        self.config.profile
    }

    /// Whom a client id means on a listener with this profile; `None`: it can mean nobody.
    pub fn device_named(&self, client_id: &str, profile: Profile) -> Option<DeviceId> {
        device_of_client_id(client_id, profile, &self.config.google_registries).ok()
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
        check_age(list, now)?;
        let rules = self.rules(request.profile);
        let device = device_of_client_id(request.client_id, request.profile, &self.config.google_registries)?;
        let about = |refused: Refused| Refused { device: refused.device.or_else(|| Some(device.clone())), ..refused };
        let credential = read_credential(request).map_err(about)?;
        let shown_as = credential.as_ref().map_or_else(|| certificate_id(request), |token| Some(token.token_id()));
        if let Some(name) = request.user_name {
            check_user_name(name, &device, &rules.hosts, request.profile)
                .map_err(|refused| Refused { token_id: refused.token_id.or(shown_as), ..about(refused) })?;
        }
        let identity = self.identify(request, credential.as_ref(), &device, identities, now).map_err(about)?;
        let shown = (&device, request.certificate, request.profile);
        let grant = self.give(&identity, shown, (identities, list), now)?;
        if let Some(will) = &request.will {
            check_will(will, &grant.scope).map_err(|refused| refused.about(grant.token_id, Some(&device)))?;
        }
        Ok(grant)
    }

    /// Decides about the fresh token of a live session. It has to be the same device's, to come with the certificate that
    /// it needs, and to allow no more than the one before it: who wants more connects again.
    ///
    /// # Errors
    /// [`Refused`], as for CONNECT; [`Denial::RenewalWidens`].
    pub fn renew(&self, old: &Grant, token: &[u8], now: UnixSeconds) -> Result<Grant, Refused> {
        let (identities, list) = (self.identities.load(), self.revocations.load());
        let (Some(identities), Some(list)) = (identities.as_deref(), list.as_deref()) else {
            return Err(Refused::new(Denial::Unavailable, "Identities or the revocation list are not loaded."));
        };
        check_age(list, now)?;
        let device = &old.device;
        let about = |refused: Refused| Refused { device: refused.device.or_else(|| Some(device.clone())), ..refused };
        let credential = Credential::parse(token).map_err(about)?;
        let identity = self.believe(&credential, (device, old.profile), identities, now).map_err(about)?;
        let shown = (device, old.certificate.as_ref().map(|shown| &shown.peer), old.profile);
        let grant = self.give(&identity, shown, (identities, list), now)?;
        if !old.scope.includes(&grant.scope) {
            let refused = Refused::new(Denial::RenewalWidens, "Its scope is not within that of the session.");
            return Err(refused.about(grant.token_id, Some(device)));
        }
        Ok(grant)
    }

    /// What whoever is believed gives to the device that presents it.
    fn give(
        &self,
        identity: &Identity,
        (device, certificate, profile): (&DeviceId, Option<&Arc<PeerCertificate>>, Profile),
        (identities, list): (&Identities, &RevocationList),
        now: UnixSeconds,
    ) -> Result<Grant, Refused> {
        let rules = self.rules(profile);
        let about = |refused: Refused| refused.about(identity.token_id(), Some(identity.device()));
        if identity.device() != device {
            let detail = format!("The token is of {}; the client id is {device}.", identity.device());
            return Err(about(Refused::new(Denial::DeviceMismatch, detail)));
        }
        let homeless =
            || about(Refused::new(Denial::Unavailable, "The device has a scope that the identities do not hold."));
        let found = identities.keyring.find(device).ok_or_else(homeless)?;
        let certificate = certificate::check(certificate, identity, &found, rules, now).map_err(about)?;
        let scope = identities.scope_of_found(found, device, profile).ok_or_else(homeless)?;
        let grant = self.grant(identity, certificate, scope, profile);
        if let Some(hit) = hit(list, &grant, now) {
            return Err(about(Refused::new(Denial::Revoked, hit.to_string())));
        }
        Ok(grant)
    }

    /// Why a session that was admitted with this grant was ended, in one sentence for the operator.
    pub fn why_ended(&self, grant: &Grant, reason: CloseReason, now: UnixSeconds) -> String {
        match reason {
            CloseReason::Expired if grant.closes_at < grant.expires_at.plus(self.rules(grant.profile).clock_skew) => {
                self.why_before_the_token(grant)
            }
            CloseReason::Expired => {
                let skew = format_duration(grant.closes_at.since(grant.expires_at));
                format!("The token expired at {}, and the clock skew of {skew} after it is over.", grant.expires_at)
            }
            CloseReason::Revoked => {
                let list = self.revocations.load();
                let hit = list.as_deref().and_then(|list| hit(list, grant, now));
                hit.map_or_else(|| self.why_certificate_fails(grant, now), |hit| hit.to_string())
            }
            CloseReason::GrantWithdrawn => {
                let identities = self.identities.load();
                let Some(identities) = identities.as_deref() else { return String::new() };
                match self.still_given(grant, identities, now) {
                    true => self.why_certificate_fails(grant, now),
                    false => why_withdrawn(grant, identities, self.rules(grant.profile), now).to_owned(),
                }
            }
            _ => String::new(),
        }
    }

    /// Who a token proves; without one, who the certificate does.
    fn identify(
        &self,
        request: &Admission<'_>,
        credential: Option<&Credential<'_>>,
        device: &DeviceId,
        identities: &Identities,
        now: UnixSeconds,
    ) -> Result<Identity, Refused> {
        match (credential, request.certificate) {
            (Some(credential), _) => self.believe(credential, (device, request.profile), identities, now),
            (None, Some(peer)) => {
                verify_certificate(peer, device, identities.keyring(), self.rules(request.profile), now)
            }
            (None, None) => Err(Refused::new(Denial::CredentialMissing, "CONNECT has no password.")),
        }
    }

    /// [`verify`]; a key that nobody knows may have been published a moment ago.
    fn believe(
        &self,
        credential: &Credential<'_>,
        (device, profile): (&DeviceId, Profile),
        identities: &Identities,
        now: UnixSeconds,
    ) -> Result<Identity, Refused> {
        verify(credential, Some(device), identities.keyring(), self.rules(profile), now).inspect_err(|refused| {
            if let (Credential::Jwt(token), Denial::KeyUnknown | Denial::Unavailable) = (credential, refused.denial)
                && let Some(issuer) = published_by(token, identities)
            {
                self.misses.ring(&issuer.name);
            }
        })
    }

    /// A session ended sooner than its token: with the key that verified it, or with its certificate.
    fn why_before_the_token(&self, grant: &Grant) -> String {
        let identities = self.identities.load();
        let keyring = identities.as_deref().map(Identities::keyring);
        let validity = keyring.and_then(|keyring| keyring.validity(&grant.key, grant.key_fingerprint));
        if validity.is_some_and(|validity| validity.not_after == Some(grant.closes_at)) {
            return format!("The validity of {}, which verified its token, ended at {}.", grant.key, grant.closes_at);
        }
        let ended = UnixSeconds(grant.closes_at.0.saturating_sub(1));
        format!("The client certificate ended at {ended}.")
    }

    fn why_certificate_fails(&self, grant: &Grant, now: UnixSeconds) -> String {
        let identities = self.identities.load();
        let refused = identities.as_deref().and_then(|all| certificate::still_holds(grant, all, now).err());
        refused.map_or_else(String::new, |refused| refused.detail)
    }

    fn grant(
        &self,
        identity: &Identity,
        (kind, certificate): (TokenKind, Option<ShownCertificate>),
        scope: Scope,
        profile: Profile,
    ) -> Grant {
        let mut scope = scope.bounded_by(identity.rights());
        if let Some(narrowing) = identity.narrowing() {
            scope = scope.narrowed_to(narrowing.publish.as_deref(), narrowing.subscribe.as_deref());
        }
        Grant {
            device: identity.device().clone(),
            scope,
            profile,
            expires_at: identity.expires_at(),
            closes_at: closes_at(identity, certificate.as_ref(), self.rules(profile)),
            token_id: identity.token_id(),
            jti: identity.jti().cloned(),
            kind,
            key: identity.key().clone(),
            key_fingerprint: identity.key_fingerprint(),
            issuer: identity.issuer().cloned(),
            policy: identity.policy().cloned(),
            issued_at: identity.issued_at(),
            certificate,
            terms: identity.terms().cloned(),
        }
    }

    fn still_accepts(&self, found: Found<'_>, grant: &Grant) -> bool {
        match grant.kind {
            TokenKind::Certificate => found.accepts_certificate_alone(&self.config.accept),
            kind => {
                let needs_more = kind.token() == Some(kind) && found.needs_certificate(kind, &self.config.accept);
                found.accepts(kind) && kind.is_taken_by(&self.config.accept) && !needs_more
            }
        }
    }

    /// Whether device and key are what they were. What is left of the scope, [`Standing`] says.
    fn still_given(&self, grant: &Grant, identities: &Identities, now: UnixSeconds) -> bool {
        let Some(found) = identities.keyring.find(&grant.device) else { return false };
        found.is_enabled()
            && self.still_accepts(found, grant)
            && key_holds(grant, identities, now)
            && terms_hold(grant, identities, self.rules(grant.profile))
            && lifetime_holds(grant, (identities, found), self.rules(grant.profile), now)
            && own_key_if_it_has_one(found, grant)
    }
}

fn check_age(list: &RevocationList, now: UnixSeconds) -> Result<(), Refused> {
    let Some(stamp) = list.stamp().filter(|_| list.is_stale(now)) else { return Ok(()) };
    let detail = format!("The revocation list was signed {}, and is older than it may be.", stamp.signed_at);
    Err(Refused::new(Denial::Unavailable, detail))
}

/// `None`: there is no token, and a certificate that may do without one.
fn read_credential<'a>(request: &Admission<'a>) -> Result<Option<Credential<'a>>, Refused> {
    match request.password {
        Some(password) if !password.is_empty() || request.certificate.is_none() => {
            Credential::parse(password).map(Some)
        }
        None if request.certificate.is_none() => {
            Err(Refused::new(Denial::CredentialMissing, "CONNECT has no password."))
        }
        _ => Ok(None),
    }
}

/// The issuer of a token, where its keys are fetched from an address.
fn published_by<'i>(token: &JwtToken<'_>, identities: &'i Identities) -> Option<&'i Issuer> {
    let issuer = token.iss().and_then(|iss| identities.keyring.issuer(iss));
    issuer.filter(|issuer| issuer.published == Published::Yes)
}

fn certificate_id(request: &Admission<'_>) -> Option<TokenId> {
    request.certificate.map(|peer| peer.thumbprint().token_id())
}

/// A token is good for the clock skew longer; a certificate to its last second, and what hangs on it no longer.
fn closes_at(identity: &Identity, certificate: Option<&ShownCertificate>, rules: &VerifyRules) -> UnixSeconds {
    let ends = certificate.and_then(ShownCertificate::ends).into_iter().chain(identity.key_ends_at()).min();
    match (identity.kind(), ends) {
        (TokenKind::Certificate, Some(ends)) => ends,
        (_, ends) => {
            let closes_at = identity.expires_at().plus(rules.clock_skew);
            ends.map_or(closes_at, |ends| ends.min(closes_at))
        }
    }
}

fn hit(list: &RevocationList, grant: &Grant, now: UnixSeconds) -> Option<Hit> {
    grant.all_facts().find_map(|facts| list.matches(&facts, now))
}

/// A key whose end was moved to before that of the session has it end at once: it may come back, and then ends in time.
fn key_holds(grant: &Grant, identities: &Identities, now: UnixSeconds) -> bool {
    let validity = identities.keyring.validity(&grant.key, grant.key_fingerprint);
    let has_begun = |validity: &Validity| validity.not_before.is_none_or(|from| from <= now);
    let lasts = |validity: &Validity| validity.not_after.is_none_or(|end| grant.closes_at <= end);
    validity.is_some_and(|validity| has_begun(&validity) && lasts(&validity))
}

fn terms_hold(grant: &Grant, identities: &Identities, rules: &VerifyRules) -> bool {
    let hold = |terms: &Arc<Terms>| terms.hold(&grant.key, grant.key_fingerprint, &identities.keyring, rules);
    grant.terms.as_ref().is_none_or(hold)
}

/// As for a token that comes now: of SAS what is left of its life counts, of a JWT its life from `iat`, if it has one.
fn lifetime_holds(
    grant: &Grant,
    (identities, found): (&Identities, Found<'_>),
    rules: &VerifyRules,
    now: UnixSeconds,
) -> bool {
    let limit = found.lifetime_max(identities.lifetime_max_of_signer(grant), rules);
    match grant.kind.token() {
        Some(TokenKind::Sas) => grant.expires_at.since(now) <= limit,
        Some(_) => grant.expires_at.since(grant.issued_at.unwrap_or(now)) <= limit.saturating_add(rules.clock_skew),
        None => true,
    }
}

fn why_withdrawn(grant: &Grant, identities: &Identities, rules: &VerifyRules, now: UnixSeconds) -> &'static str {
    match identities.keyring.find(&grant.device) {
        None => "The device is no longer in the identities.",
        Some(found) if !found.is_enabled() => "The device was switched off.",
        Some(found) if !found.accepts(grant.kind) => "The device no longer accepts this kind of token.",
        Some(_) if !identities.keyring.holds(&grant.key, grant.key_fingerprint) => {
            "The key that verified its token was removed or replaced."
        }
        Some(_) if !key_holds(grant, identities, now) => {
            "The validity of the key that verified its token was changed, and no longer holds the session."
        }
        Some(_) if !terms_hold(grant, identities, rules) => {
            "The policy or the issuer that made its token no longer makes tokens of this kind: `resource`, `iss`, `audience`, \
             claims or algorithm were changed."
        }
        Some(found) if !lifetime_holds(grant, (identities, found), rules, now) => {
            "Its token lives for longer than `token_lifetime_max` allows."
        }
        Some(_) => "The device's scope no longer holds what it was granted.",
    }
}

/// A device that was given keys of its own no longer connects with the one that its group derives.
fn own_key_if_it_has_one(found: Found<'_>, grant: &Grant) -> bool {
    let by_group = grant.kind.token() == Some(TokenKind::Sas) && grant.key.as_str().starts_with("group:");
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

#[cfg(test)]
mod tests;
