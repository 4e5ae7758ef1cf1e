//! What proves who a device is: SAS tokens and JSON Web Tokens, the keys that verify them, and the list of what is
//! revoked. Pure: keys are in memory, `now` is an argument.
//!
//! A [`Credential`] is well-formed, not yet believed; [`verify`] alone makes an [`Identity`] of it.

mod certificate;
mod explain;
mod json;
mod jwk;
mod jwt;
mod key;
mod keyring;
mod memo;
mod mint;
mod near_miss;
mod nobody;
mod prepared;
mod revocation;
mod sas;
mod server_names;
mod terms;

pub use certificate::{
    Authorities, ClientAuth, ClientAuthorities, PeerCertificate, Replaced, StaleList, Thumbprint, ThumbprintError,
    Thumbprints, certificate_end, certificate_key, prove, verify_certificate, vouch,
};
pub use explain::{Explanation, Step, explain, inspect};
pub use jwk::{JwkSetError, SkippedKey, parse_jwk, parse_jwk_set};
pub use jwt::{JTI_BYTES_MAX, JwtToken, is_kid};
pub use key::{Algorithm, KeyEncoding, KeyError, SecretKey, Slots, VerifyingKey, check_printed};
pub use keyring::{
    Device, Found, Group, Issuer, Keyring, KeyringBuilder, NameTaken, Policy, PublicKey, Published, ScopeIndex,
    Validity,
};
pub use mint::{JwtClaims, MintError, SigningKey, mint_jwt, mint_sas, resource_of, self_test};
pub use revocation::{
    Added, BadLine, Facts, Highest, Hit, JtiHash, Lifted, ListDigest, ListEntry, ListKey, ListReader, ListRules,
    ListSigner, ListStamp, ReadList, RevocationList, SignedHeader, SignedLine, WhenStale, Whose,
};
pub use sas::{Resource, SasToken};
pub use server_names::{certificate_dns_names, names_cover, wildcard_of};
pub use terms::{JwtTerms, Terms};

use std::{fmt, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};

use crate::{
    denial::Denial,
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
    topic::TopicFilter,
};

/// A token that is well-formed, not yet believed. Its `Debug` shows no part that could be used.
#[derive(Debug)]
pub enum Credential<'t> {
    /// A shared access signature.
    Sas(SasToken<'t>),
    /// A JSON Web Token.
    Jwt(JwtToken<'t>),
}

impl<'t> Credential<'t> {
    /// Reads the bytes of a password.
    ///
    /// # Errors
    /// [`Denial::CredentialMalformed`], [`Denial::AlgorithmMismatch`] (`alg` is none that any key could have) or
    /// [`Denial::ClaimInvalid`].
    pub fn parse(password: &'t [u8]) -> Result<Self, Refused> {
        let malformed = |what: &str| Refused::new(Denial::CredentialMalformed, what);
        if password.is_empty() {
            return Err(Refused::new(Denial::CredentialMissing, "The password is empty."));
        }
        if password.len() > TOKEN_BYTES_MAX {
            return Err(malformed("The password is longer than any token may be (16 KiB)."));
        }
        let text = std::str::from_utf8(password).map_err(|_| malformed("The password is not UTF-8."))?;
        if let Some(fields) = text.strip_prefix(sas::PREFIX) {
            return SasToken::parse(fields).map(Self::Sas);
        }
        match text.bytes().filter(|byte| *byte == b'.').count() {
            2 => JwtToken::parse(text).map(Self::Jwt),
            4 => Err(malformed(
                "The password has the five parts of an encrypted token (JWE); only signed tokens are taken.",
            )),
            _ => Err(malformed(
                "The password begins with no \"SharedAccessSignature \" and has not the three parts of a JWT.",
            )),
        }
    }

    /// Which kind of token this would be, were it well formed; `None`: it is like neither.
    pub fn kind_meant(password: &[u8]) -> Option<TokenKind> {
        if password.starts_with(sas::PREFIX.as_bytes()) {
            return Some(TokenKind::Sas);
        }
        (password.iter().filter(|byte| **byte == b'.').count() == 2).then_some(TokenKind::Jwt)
    }

    /// Which kind of token it is.
    pub fn kind(&self) -> TokenKind {
        match self {
            Self::Sas(_) => TokenKind::Sas,
            Self::Jwt(_) => TokenKind::Jwt,
        }
    }

    /// The name of what the token means.
    pub fn token_id(&self) -> TokenId {
        match self {
            Self::Sas(token) => token.token_id(),
            Self::Jwt(token) => token.token_id(),
        }
    }
}

/// How a device proved who it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum TokenKind {
    /// A shared access signature.
    Sas,
    /// A JSON Web Token.
    Jwt,
    /// A client certificate, and no token.
    Certificate,
    /// A shared access signature, over a connection with the device's client certificate.
    CertificateAndSas,
    /// A JSON Web Token, over a connection with the device's client certificate.
    CertificateAndJwt,
}

impl TokenKind {
    /// All of them, under the words that `accept` has for them.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("sas", Self::Sas),
        ("jwt", Self::Jwt),
        ("certificate", Self::Certificate),
        ("certificate+sas", Self::CertificateAndSas),
        ("certificate+jwt", Self::CertificateAndJwt),
    ];

    /// Its word in `accept`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sas => "sas",
            Self::Jwt => "jwt",
            Self::Certificate => "certificate",
            Self::CertificateAndSas => "certificate+sas",
            Self::CertificateAndJwt => "certificate+jwt",
        }
    }

    /// The kind of its token; `None`: it has none.
    pub fn token(self) -> Option<Self> {
        match self {
            Self::Sas | Self::CertificateAndSas => Some(Self::Sas),
            Self::Jwt | Self::CertificateAndJwt => Some(Self::Jwt),
            Self::Certificate => None,
        }
    }

    /// The same token, and a certificate with it.
    #[must_use]
    pub fn with_certificate(self) -> Self {
        match self {
            Self::Sas | Self::CertificateAndSas => Self::CertificateAndSas,
            Self::Jwt | Self::CertificateAndJwt => Self::CertificateAndJwt,
            Self::Certificate => Self::Certificate,
        }
    }

    /// Whether a list of accepted kinds takes this one: as it is, with a certificate that may still have to be asked
    /// for, or by its token alone.
    pub fn is_taken_by(self, accept: &[Self]) -> bool {
        accept.iter().any(|kind| *kind == self || self.token().is_some() && kind.token() == self.token())
    }
}

/// Rights of a token: `["publish", "subscribe"]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// May publish.
    pub publish: bool,
    /// May subscribe.
    pub subscribe: bool,
}

impl Rights {
    /// Both.
    pub const ALL: Self = Self { publish: true, subscribe: true };
}

/// What a token is held to besides its signature.
#[derive(Clone, Debug)]
pub struct VerifyRules {
    /// Kinds of token that are accepted at all.
    pub accept: Vec<TokenKind>,
    /// Names that `sr` may name as host: `hostname` and the aliases; compared without regard to ASCII case.
    pub hosts: Vec<String>,
    /// How far clocks may be apart.
    pub clock_skew: Duration,
    /// The longest life, where the key's owner sets none.
    pub token_lifetime_max: Duration,
    /// Whether a token that is not scoped to one device is accepted.
    pub hub_wide_tokens: bool,
    /// Claims that a JWT must have, where its issuer does not say.
    pub require: &'static [&'static str],
    /// What `aud` of a JWT must hold that a device signed itself: one of them.
    pub device_audience: Vec<String>,
}

/// A believed token: only [`verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    device: DeviceId,
    kind: TokenKind,
    key: KeyName,
    key_fingerprint: u64,
    token_id: TokenId,
    expires_at: UnixSeconds,
    issued_at: Option<UnixSeconds>,
    jti: Option<Arc<str>>,
    issuer: Option<Arc<str>>,
    policy: Option<Arc<str>>,
    rights: Rights,
    narrowing: Option<Narrowing>,
    key_ends_at: Option<UnixSeconds>,
    certificate_binding: Option<[u8; 32]>,
    terms: Option<Arc<Terms>>,
}

impl Identity {
    /// Who.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// How it was proved.
    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    /// Which key verified it.
    pub fn key(&self) -> &KeyName {
        &self.key
    }

    /// Fingerprint of that key's bytes.
    pub fn key_fingerprint(&self) -> u64 {
        self.key_fingerprint
    }

    /// Which token.
    pub fn token_id(&self) -> TokenId {
        self.token_id
    }

    /// `exp` or `se`.
    pub fn expires_at(&self) -> UnixSeconds {
        self.expires_at
    }

    /// `iat` of a JWT; for SAS the earliest second in which its key's owner may have made it.
    pub fn issued_at(&self) -> Option<UnixSeconds> {
        self.issued_at
    }

    /// `jti` of a JWT.
    pub fn jti(&self) -> Option<&Arc<str>> {
        self.jti.as_ref()
    }

    /// Name of the `[[issuer]]` (JWT).
    pub fn issuer(&self) -> Option<&Arc<str>> {
        self.issuer.as_ref()
    }

    /// Name of the `[[policy]]` (`skn` of a SAS token).
    pub fn policy(&self) -> Option<&Arc<str>> {
        self.policy.as_ref()
    }

    /// What the policy that signed it may hand out; all, where none did.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// What the token itself narrows the device's scope to.
    pub fn narrowing(&self) -> Option<&Narrowing> {
        self.narrowing.as_ref()
    }

    /// The first second in which the key that verified it may be used no more, where its validity has an end.
    pub fn key_ends_at(&self) -> Option<UnixSeconds> {
        self.key_ends_at
    }

    /// What it said that may come to be refused; `None`: nothing but its key and its times.
    pub fn terms(&self) -> Option<&Arc<Terms>> {
        self.terms.as_ref()
    }

    /// SHA-256 of the client certificate (DER) that the token is bound to: `cnf` with `x5t#S256` (RFC 8705 §3.1). Whoever
    /// lets the device in must see that certificate.
    pub fn certificate_binding(&self) -> Option<&[u8; 32]> {
        self.certificate_binding.as_ref()
    }
}

/// `{"pub": [filters], "sub": [filters]}` of a JWT: an absent side stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowing {
    /// Filters of topics that may be published to.
    pub publish: Option<Vec<TopicFilter>>,
    /// Filters that cover what may be subscribed to.
    pub subscribe: Option<Vec<TopicFilter>>,
}

/// A refusal with what the operator needs to know. The peer is told the denial alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Why.
    pub denial: Denial,
    /// Which token, once it could be read.
    pub token_id: Option<TokenId>,
    /// Whose token it says it is, or who presented it.
    pub device: Option<DeviceId>,
    /// One sentence with the values that were compared. Never a key, a signature or a whole token.
    pub detail: String,
}

impl Refused {
    /// A refusal before anything is known of the token.
    pub fn new(denial: Denial, detail: impl Into<String>) -> Self {
        Self { denial, token_id: None, device: None, detail: detail.into() }
    }

    /// With the token and its device, where they are not named yet.
    pub fn about(mut self, token_id: TokenId, device: Option<&DeviceId>) -> Self {
        self.token_id.get_or_insert(token_id);
        if self.device.is_none() {
            self.device = device.cloned();
        }
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.denial, self.detail)
    }
}

impl std::error::Error for Refused {}

/// Decides whether a token is believed. `presented_by` is the device or module that CONNECT names: a hub-wide token is its
/// own, one that a policy signed for a device is that of its modules, too, and a JWT that says nothing of a device is
/// verified with that device's public keys. That the token of one device is presented by another is for the caller to see.
///
/// The order is the same for both kinds: the kind itself, whose key, signature, resource or audience, device, times. Nothing that the
/// token says of itself is told before its signature verified, except which key it names.
///
/// # Errors
/// [`Refused`] with the first rule that the token breaks.
pub fn verify(
    credential: &Credential<'_>,
    presented_by: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    verify_traced(credential, presented_by, keyring, rules, &mut NoTrace, now)
}

fn verify_traced(
    credential: &Credential<'_>,
    presented_by: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    trace: &mut impl Trace,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    if !credential.kind().is_taken_by(&rules.accept) {
        let detail = format!("`accept` under [credentials] does not hold {:?}.", credential.kind().as_str());
        return Err(Refused::new(Denial::CredentialKindNotAccepted, detail).about(credential.token_id(), None));
    }
    match credential {
        Credential::Sas(token) => sas::verify(token, presented_by, keyring, rules, trace, now),
        Credential::Jwt(token) => jwt::verify(token, presented_by, keyring, rules, trace, now),
    }
    .map_err(|refused| refused.about(credential.token_id(), None))
}

/// Hears of every step that a token passed, for the operator's explanation. Costs nothing where nobody listens.
trait Trace {
    fn passed(&mut self, what: &'static str, detail: impl FnOnce() -> String);
}

struct NoTrace;

impl Trace for NoTrace {
    #[inline]
    fn passed(&mut self, _: &'static str, _: impl FnOnce() -> String) {}
}

/// Times are compared alike for both kinds of token: valid while `now` < `expires_at` + skew.
fn check_not_expired(
    name: &str,
    expires_at: UnixSeconds,
    rules: &VerifyRules,
    now: UnixSeconds,
) -> Result<(), Refused> {
    if now < expires_at.plus(rules.clock_skew) {
        return Ok(());
    }
    Err(Refused::new(
        Denial::Expired,
        format!(
            "`{name}` is {expires_at}, which is {} s ago; {} s of clock skew are allowed.",
            now.since(expires_at).as_secs(),
            rules.clock_skew.as_secs()
        ),
    ))
}

fn token_id_of(hash: Sha256) -> TokenId {
    let digest: [u8; 32] = hash.finalize().into();
    let (head, _) = digest.split_first_chunk::<16>().expect("invariant: 32 bytes hold 16");
    TokenId(*head)
}

/// `str::split_once` at an ASCII character: for texts as short as those of a token the library's search takes longer.
#[inline]
fn split_once(text: &str, at: u8) -> Option<(&str, &str)> {
    let (before, after) = text.split_at_checked(text.bytes().position(|byte| byte == at)?)?;
    Some((before, after.get(1..)?))
}

/// A peer's text as it may stand in a log: quoted, escaped, at most 128 bytes of it.
fn shown(text: &str) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= SHOWN_BYTES_MAX).last();
    match text.split_at_checked(end.unwrap_or(0)) {
        Some((head, rest)) if !rest.is_empty() => format!("{head:?}…"),
        _ => format!("{text:?}"),
    }
}

/// Far above what any issuer makes, far below what a CONNECT may carry.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Enough for any name that we accept.
const SHOWN_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
