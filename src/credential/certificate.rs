//! Client certificates: what one says, who it proves, and the authorities that are believed. Whether a certificate is
//! trusted is asked at admission and again when something changes, never remembered from a handshake: a resumed TLS
//! session has none.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, Error, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
    revocation_list::CertificateRevocationList,
};

use super::{Found, Identity, Keyring, Refused, Rights, TokenKind, VerifyRules, shown};
use crate::{
    denial::Denial,
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
};

/// SHA-256 of a whole certificate (DER), as `openssl x509 -fingerprint -sha256` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thumbprint([u8; 32]);

impl Thumbprint {
    /// That of a certificate.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// All 32 bytes, as `cnf.x5t#S256` of a token holds them (RFC 8705 §3.1).
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What an entry of the revocation list names it by: `{"token": "sha256:…"}`.
    pub fn token_id(&self) -> TokenId {
        let (head, _) = self.0.split_first_chunk::<16>().expect("invariant: 32 bytes hold 16");
        TokenId(*head)
    }

    /// Told apart from others by so much, where keys are.
    pub fn fingerprint(&self) -> u64 {
        let (head, _) = self.0.split_first_chunk::<8>().expect("invariant: 32 bytes hold 8");
        u64::from_be_bytes(*head)
    }
}

impl From<[u8; 32]> for Thumbprint {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Thumbprint {
    type Err = ThumbprintError;

    /// 64 hexadecimal digits; colons between bytes and a leading `sha256:` are allowed.
    fn from_str(text: &str) -> Result<Self, ThumbprintError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut nibbles = digits.chars().filter(|c| *c != ':').map(|c| c.to_digit(16));
        let mut bytes = [0; 32];
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (nibbles.next(), nibbles.next()) else {
                return Err(ThumbprintError);
            };
            *byte = u8::try_from(high << 4 | low).map_err(|_| ThumbprintError)?;
        }
        if nibbles.next().is_some() { Err(ThumbprintError) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text is no [`Thumbprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThumbprintError;

impl fmt::Display for ThumbprintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a thumbprint is SHA-256 in 64 hexadecimal digits, as openssl x509 -fingerprint -sha256 prints it")
    }
}

impl std::error::Error for ThumbprintError {}

/// Certificates of one device that are believed without an authority: two, so that one can follow the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thumbprints {
    /// The one that the device should show.
    pub primary: Option<Thumbprint>,
    /// The one before, or the next.
    pub secondary: Option<Thumbprint>,
}

impl Thumbprints {
    /// In which slot a certificate stands.
    pub fn slot_of(&self, thumbprint: &Thumbprint) -> Option<&'static str> {
        let holds = |slot: &Option<Thumbprint>| slot.as_ref() == Some(thumbprint);
        if holds(&self.primary) {
            return Some("primary");
        }
        holds(&self.secondary).then_some("secondary")
    }

    /// Whether one of them is told apart by so much.
    pub fn hold(&self, fingerprint: u64) -> bool {
        [self.primary, self.secondary].iter().flatten().any(|thumbprint| thumbprint.fingerprint() == fingerprint)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.primary.is_none() && self.secondary.is_none()
    }
}

/// Whom the listener that a certificate came through believes. Its content is replaced while sessions live.
pub struct ClientAuthorities {
    current: ArcSwap<InForce>,
    demand: ClientAuth,
}

/// Authorities, and which change of them it is, from 1.
struct InForce {
    authorities: Authorities,
    change: u64,
}

/// Whether a change was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// What came is what was in force.
    Same,
    /// Something else is in force.
    Changed,
}

/// Whether a listener asks for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Who shows none may come with a token.
    Optional,
    /// Nobody comes without one that is trusted.
    Required,
}

impl ClientAuthorities {
    /// Authorities of one listener.
    pub fn new(authorities: Authorities, demand: ClientAuth) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(InForce { authorities, change: 1 }), demand })
    }

    /// Puts others in force. Who was admitted by those before is asked again by whoever calls this.
    pub fn replace(&self, authorities: Authorities) -> Replaced {
        let old = self.current.load();
        if old.authorities.digest == authorities.digest {
            return Replaced::Same;
        }
        self.current.store(Arc::new(InForce { authorities, change: old.change + 1 }));
        Replaced::Changed
    }

    /// When the first revocation list of the authorities is to be followed by a newer one.
    pub fn lists_end(&self) -> Option<UnixSeconds> {
        self.current.load().authorities.lists_end
    }

    /// Whether a certificate must be shown.
    pub fn demand(&self) -> ClientAuth {
        self.demand
    }
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuthorities").field("demand", &self.demand).finish_non_exhaustive()
    }
}

/// Certification authorities, and what they have taken back.
#[derive(Clone, Default)]
pub struct Authorities {
    /// `None`: none is believed, certificates are known by their thumbprints alone.
    verifiers: Option<Verifiers>,
    lists_end: Option<UnixSeconds>,
    /// Of all that was read.
    digest: [u8; 32],
}

#[derive(Clone)]
struct Verifiers {
    admitting: Arc<dyn ClientCertVerifier>,
    /// For who is connected already: a list that grew old ends no session that it does not name.
    holding: Arc<dyn ClientCertVerifier>,
}

/// What happens when the authorities' own revocation list is older than it says it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleList {
    /// Certificates prove nothing until a new list is there (threat T35).
    #[default]
    Refuse,
    /// It counts as it is.
    Use,
}

impl Authorities {
    /// Believes these roots. Where there are lists, there must be one for every authority of a chain.
    ///
    /// # Errors
    /// Half a sentence: which of them cannot be used.
    pub fn new(
        roots: &[CertificateDer<'static>],
        lists: &[CertificateRevocationListDer<'static>],
        stale: StaleList,
    ) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).map_err(|error| format!("it holds a bad certificate: {error}"))?;
        }
        let lists_end = lists.iter().map(|list| list_end(list)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten();
        let lists_end = lists_end.min();
        let (store, provider) = (Arc::new(store), provider());
        let build = |stale: StaleList| {
            let builder = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone());
            let builder = builder.with_crls(lists.iter().cloned());
            match stale {
                StaleList::Refuse => builder.enforce_revocation_expiration().build(),
                StaleList::Use => builder.build(),
            }
            .map_err(|error| format!("it cannot be used: {error}"))
        };
        let verifiers = Verifiers { admitting: build(stale)?, holding: build(StaleList::Use)? };
        let parts = roots.iter().map(|root| &**root).chain(lists.iter().map(|list| &**list));
        Ok(Self { verifiers: Some(verifiers), lists_end, digest: digest_of(parts) })
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("any", &self.verifiers.is_some()).finish_non_exhaustive()
    }
}

/// The certificate that a peer has shown, and the key of which it holds (the TLS handshake has proved that, and nothing
/// else). Its `Debug` is the thumbprint.
pub struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    thumbprint: Thumbprint,
    /// Common name, and the DNS and URI names of the subject.
    names: Vec<Box<str>>,
    not_before: UnixSeconds,
    not_after: UnixSeconds,
    authorities: Arc<ClientAuthorities>,
    /// The change of the authorities after which they vouched for it; 0: they have not been asked.
    vouched_at: AtomicU64,
}

impl PeerCertificate {
    /// Reads what a TLS peer has shown, its own certificate first.
    ///
    /// # Errors
    /// [`Denial::CertificateUntrusted`]: it is no certificate that we can read.
    pub fn parse(
        chain: Vec<CertificateDer<'static>>,
        authorities: Arc<ClientAuthorities>,
    ) -> Result<Arc<Self>, Refused> {
        let unreadable =
            |what: &str| Refused::new(Denial::CertificateUntrusted, format!("The client certificate {what}."));
        let leaf = chain.first().ok_or_else(|| unreadable("is missing"))?;
        let thumbprint = Thumbprint::of(leaf);
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| unreadable("cannot be read"))?;
        let validity = parsed.validity();
        let (not_before, not_after) =
            (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
        let names = subject_names(&parsed);
        let vouched_at = AtomicU64::new(0);
        Ok(Arc::new(Self { thumbprint, names, not_before, not_after, authorities, vouched_at, chain }))
    }

    /// SHA-256 of the certificate.
    pub fn thumbprint(&self) -> &Thumbprint {
        &self.thumbprint
    }

    /// The last second in which it is valid (RFC 5280 §4.1.2.5).
    pub fn not_after(&self) -> UnixSeconds {
        self.not_after
    }

    /// Whom its listener believes.
    pub fn authorities(&self) -> &ClientAuthorities {
        &self.authorities
    }

    /// Whether an authority of its listener vouches for it.
    ///
    /// # Errors
    /// [`Refused`] with what is wrong: dates, issuer, or its place on the authority's revocation list.
    pub fn check_authority(&self, now: UnixSeconds) -> Result<(), Refused> {
        self.verify_with(|verifiers| &verifiers.admitting, now)
    }

    /// The same for who is connected already: not asked is whether the authority's revocation list is fresh, and
    /// nothing at all while the authorities are the same.
    ///
    /// # Errors
    /// As [`check_authority`](Self::check_authority).
    pub fn check_authority_still(&self, now: UnixSeconds) -> Result<(), Refused> {
        if self.vouched_at.load(Ordering::Relaxed) == self.authorities.current.load().change {
            return Ok(());
        }
        self.verify_with(|verifiers| &verifiers.holding, now)
    }

    /// Whether it is within its dates, to the second.
    ///
    /// # Errors
    /// [`Denial::Expired`], [`Denial::NotYetValid`].
    pub fn check_dates(&self, now: UnixSeconds) -> Result<(), Refused> {
        if now > self.not_after {
            let detail = format!("The client certificate {} ended at {}.", self.shown(), self.not_after);
            return Err(self.refused(Denial::Expired, detail));
        }
        if now < self.not_before {
            let detail = format!("The client certificate {} begins at {}.", self.shown(), self.not_before);
            return Err(self.refused(Denial::NotYetValid, detail));
        }
        Ok(())
    }

    /// Whether its subject is this device: by common name, or by a DNS or URI name.
    pub fn is_of(&self, device: &DeviceId) -> bool {
        self.names.iter().any(|name| **name == *device.as_str())
    }

    /// Thumbprint as logs show it.
    pub fn shown(&self) -> String {
        format!("sha256:{}", self.thumbprint.token_id())
    }

    fn verify_with(
        &self,
        which: impl Fn(&Verifiers) -> &Arc<dyn ClientCertVerifier>,
        now: UnixSeconds,
    ) -> Result<(), Refused> {
        self.check_dates(now)?;
        let in_force = self.authorities.current.load();
        let Some(verifiers) = &in_force.authorities.verifiers else {
            let detail = format!(
                "The client certificate {} is pinned to no device, and the listener believes no authority.",
                self.shown()
            );
            return Err(self.refused(Denial::CertificateUntrusted, detail));
        };
        let Some((leaf, rest)) = self.chain.split_first() else { return Ok(()) };
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now.0));
        which(verifiers).verify_client_cert(leaf, rest, at).map_err(|error| self.why_not(&error))?;
        self.vouched_at.store(in_force.change, Ordering::Relaxed);
        Ok(())
    }

    fn why_not(&self, error: &Error) -> Refused {
        let certificate = self.shown();
        let (denial, why) = match error {
            Error::InvalidCertificate(CertificateError::Revoked) => {
                (Denial::Revoked, "is on its authority's revocation list".to_owned())
            }
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                (Denial::CertificateUntrusted, "was signed by nobody in `client_ca`".to_owned())
            }
            // Our own trouble, which no device can mend: it is to try again (threat T35).
            Error::InvalidCertificate(CertificateError::UnknownRevocationStatus) => {
                (Denial::Unavailable, "has an authority without a list in `client_crl`".to_owned())
            }
            Error::InvalidCertificate(
                CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. },
            ) => (Denial::Unavailable, "cannot be looked up: a list in `client_crl` is out of date".to_owned()),
            Error::InvalidCertificate(error) => (Denial::CertificateUntrusted, format!("is not believed: {error}")),
            other => (Denial::CertificateUntrusted, format!("is not believed: {other}")),
        };
        self.refused(denial, format!("The client certificate {certificate} {why}."))
    }

    fn refused(&self, denial: Denial, detail: String) -> Refused {
        Refused::new(denial, detail).about(self.thumbprint.token_id(), None)
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerCertificate({})", self.thumbprint)
    }
}

impl PartialEq for PeerCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.thumbprint == other.thumbprint
    }
}

impl Eq for PeerCertificate {}

/// Decides whether a certificate alone proves that its peer is `device`. What is told about a device comes after it.
///
/// # Errors
/// [`Refused`] with the first rule that it breaks.
pub fn verify_certificate(
    peer: &PeerCertificate,
    device: &DeviceId,
    keyring: &Keyring,
    rules: &VerifyRules,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    let found = keyring.find(device);
    let slot = prove(peer, device, found.as_ref(), now)?;
    let about = |refused: Refused| refused.about(peer.thumbprint.token_id(), Some(device));
    let found = found.ok_or_else(|| {
        let detail = format!("There is no [[device]] {device} and no [[group]] whose prefix it has.");
        about(Refused::new(Denial::DeviceUnknown, detail))
    })?;
    found.check_enabled(device).map_err(about)?;
    if !found.accepts_certificate_alone(&rules.accept) {
        let detail = format!(
            "The device {device} came with a certificate and no token; its `accept` does not hold \"certificate\"."
        );
        return Err(about(Refused::new(Denial::CredentialKindNotAccepted, detail)));
    }
    Ok(Identity {
        device: device.clone(),
        kind: TokenKind::Certificate,
        key: certificate_key(device, slot),
        key_fingerprint: peer.thumbprint.fingerprint(),
        token_id: peer.thumbprint.token_id(),
        expires_at: peer.not_after,
        issued_at: Some(peer.not_before),
        jti: None,
        issuer: None,
        policy: None,
        rights: Rights::ALL,
        narrowing: None,
        key_ends_at: None,
        certificate_binding: None,
        terms: None,
    })
}

/// Whether a certificate proves that its peer is `device`, and by what: its `primary` or `secondary` thumbprint, or
/// an authority (`ca`).
///
/// # Errors
/// [`Refused`]: it is another's, or believed by nobody.
pub fn prove(
    peer: &PeerCertificate,
    device: &DeviceId,
    found: Option<&Found<'_>>,
    now: UnixSeconds,
) -> Result<&'static str, Refused> {
    let slot = vouch(peer, found, now)?;
    if slot != BY_AUTHORITY || peer.is_of(device) {
        return Ok(slot);
    }
    // A common name stands among the DNS names, too, as a rule.
    let each_once = peer.names.iter().enumerate().filter(|(at, name)| !peer.names.iter().take(*at).any(|n| n == *name));
    let names = each_once.take(NAMES_SHOWN_MAX).map(|(_, name)| shown(name)).collect::<Vec<_>>().join(", ");
    let of = if names.is_empty() { "nobody by name".to_owned() } else { names };
    let detail = format!("The client certificate {} is of {of}; the client id is {device}.", peer.shown());
    Err(peer.refused(Denial::DeviceMismatch, detail))
}

/// By what a certificate is believed, whoever it names: the `primary` or `secondary` thumbprint of the device that was
/// found, or an authority (`ca`).
///
/// # Errors
/// [`Refused`]: nobody vouches for it, or its time is over.
pub fn vouch(peer: &PeerCertificate, found: Option<&Found<'_>>, now: UnixSeconds) -> Result<&'static str, Refused> {
    match found.and_then(|found| found.device).and_then(|held| held.thumbprints.slot_of(&peer.thumbprint)) {
        Some(slot) => peer.check_dates(now).map(|()| slot),
        None => peer.check_authority(now).map(|()| BY_AUTHORITY),
    }
}

/// How a certificate stands where keys are named: `certificate:pump-17/primary`.
pub fn certificate_key(device: &DeviceId, slot: &str) -> KeyName {
    KeyName::new(&format!("certificate:{device}"), slot)
}

fn subject_names(certificate: &X509Certificate<'_>) -> Vec<Box<str>> {
    let mut common = certificate.subject().iter_common_name();
    // A subject with two common names is nobody's.
    let common = match (common.next(), common.next()) {
        (Some(name), None) => name.as_str().ok(),
        _ => None,
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    common.into_iter().chain(alternative).take(NAMES_MAX).map(Box::from).collect()
}

/// The last second in which a certificate is valid; `None`: it cannot be read.
pub fn certificate_end(der: &[u8]) -> Option<UnixSeconds> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some(seconds(parsed.validity().not_after.timestamp()))
}

fn digest_of<'d>(parts: impl Iterator<Item = &'d [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.for_each(|part| hash.update(Sha256::digest(part)));
    hash.finalize().into()
}

fn list_end(list: &[u8]) -> Result<Option<UnixSeconds>, String> {
    let (_, parsed) = CertificateRevocationList::from_der(list)
        .map_err(|_| "it holds no revocation list that can be read".to_owned())?;
    Ok(parsed.next_update().map(|at| seconds(at.timestamp())))
}

/// Before 1970 is 1970.
fn seconds(timestamp: i64) -> UnixSeconds {
    UnixSeconds(u64::try_from(timestamp).unwrap_or(0))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The slot of a certificate that an authority vouches for.
const BY_AUTHORITY: &str = "ca";
/// Far above what a device needs.
const NAMES_MAX: usize = 32;
/// Enough for one line.
const NAMES_SHOWN_MAX: usize = 3;

#[cfg(test)]
mod tests;
