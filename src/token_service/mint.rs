//! Making tokens: whose key signs, for what, and for how long at most. The service and `tollgate token mint` share it.

use std::{fmt, time::Duration};

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{
    credential::{
        Issuer, JwtClaims, Keyring, Policy, Resource, Rights, SecretKey, SigningKey, VerifyRules, mint_jwt, mint_sas,
        resource_of,
    },
    id::DeviceId,
    time::UnixSeconds,
};

/// The key that signs a SAS token for one device: the primary at this moment.
#[derive(Debug)]
pub struct SasSigner<'k> {
    key: SecretKey,
    policy: Option<&'k Policy>,
    resource: String,
    /// What its tokens may do.
    pub rights: Rights,
    /// The longest life that the gateway takes of them.
    pub lifetime_max: Duration,
}

impl<'k> SasSigner<'k> {
    /// Chooses. A SAS token says nothing of rights: they are those of the policy that signed it, and a device's own key has
    /// all. So without a policy's name the device's key signs where all rights are wanted, and else a policy with just
    /// these rights.
    ///
    /// # Errors
    /// [`NoSigner`]: no key signs such a token.
    pub fn choose(
        keyring: &'k Keyring,
        rules: &VerifyRules,
        device: &DeviceId,
        policy: Option<&str>,
        rights: Option<Rights>,
    ) -> Result<Self, NoSigner> {
        let found = keyring.find(device).ok_or(NoSigner::DeviceUnknown)?;
        let policy = match (policy, rights) {
            (Some(name), _) => {
                let policy = keyring.policy(name).ok_or_else(|| NoSigner::PolicyUnknown(name.into()))?;
                if rights.is_some_and(|rights| rights != policy.rights) {
                    return Err(NoSigner::PolicyRights(name.into()));
                }
                Some(policy)
            }
            (None, None | Some(Rights::ALL)) => None,
            (None, Some(rights)) => Some(policy_with(keyring, rules, device, rights)?),
        };
        let host = policy.map_or_else(|| rules.hosts.first().map_or("", String::as_str), |p| p.resource.host());
        let resource = resource_of(host, device);
        let (key, owner_max) = match policy {
            Some(policy) => {
                if !covers(policy, &resource) {
                    return Err(NoSigner::OutOfPolicy(policy.name.to_string()));
                }
                (policy.keys.primary.clone(), policy.token_lifetime_max)
            }
            None => {
                // A device with keys of its own is not believed by its group's.
                let own = found.device.is_some_and(|device| !device.keys.is_empty());
                let owner_max = found.group.filter(|_| !own).and_then(|group| group.token_lifetime_max);
                (keyring.signing_key(device).map(|(_, key)| key), owner_max)
            }
        };
        Ok(Self {
            key: key.ok_or(NoSigner::NoPrimary)?,
            policy,
            resource,
            rights: policy.map_or(Rights::ALL, |policy| policy.rights),
            lifetime_max: found.lifetime_max(owner_max, rules),
        })
    }

    /// The policy that signs; `None`: the device's own key.
    pub fn policy(&self) -> Option<&'k str> {
        self.policy.map(|policy| &*policy.name)
    }

    /// A token.
    pub fn sign(&self, expires_at: UnixSeconds) -> Zeroizing<String> {
        Zeroizing::new(mint_sas(&self.resource, self.key.bytes(), expires_at, self.policy()))
    }
}

/// What stands in a JWT besides what its issuer sets.
#[derive(Debug)]
pub struct JwtOrder<'a> {
    /// For whom.
    pub device: &'a DeviceId,
    /// `aud`; `None`: the first of the issuer's.
    pub audience: Option<&'a str>,
    /// What it may do.
    pub rights: Rights,
    /// `jti`.
    pub jti: &'a str,
    /// `iat`.
    pub issued_at: UnixSeconds,
    /// `exp`.
    pub expires_at: UnixSeconds,
}

/// A JWT of an issuer.
///
/// # Errors
/// [`NoSigner`]: the key cannot sign, or the issuer has no claim to narrow rights with.
pub fn sign_jwt(issuer: &Issuer, key: &SigningKey, order: &JwtOrder<'_>) -> Result<Zeroizing<String>, NoSigner> {
    let first = || issuer.audience.first().map_or("", |audience| audience);
    let mut claims = JwtClaims::default()
        .with("iss", &*issuer.iss)
        .with("aud", order.audience.unwrap_or_else(first))
        .with(&issuer.device_claim, order.device.as_str())
        .with("iat", order.issued_at.0)
        .with("exp", order.expires_at.0)
        .with("jti", order.jti);
    if order.rights != Rights::ALL {
        let claim = issuer.scope_claim.as_deref().ok_or_else(|| NoSigner::NoScopeClaim(issuer.name.to_string()))?;
        claims = claims.with(claim, narrowing(order.rights));
    }
    mint_jwt(&claims, key).map(Zeroizing::new).map_err(|_| NoSigner::KeyDamaged)
}

/// 128 random bits in hexadecimal digits.
///
/// # Errors
/// [`NoSigner::NoRandomness`].
pub fn random_jti() -> Result<String, NoSigner> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| NoSigner::NoRandomness)?;
    Ok(super::hex(&bytes))
}

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSigner {
    /// There is no such device.
    DeviceUnknown,
    /// There is no such policy.
    PolicyUnknown(String),
    /// The policy has other rights than those wanted.
    PolicyRights(String),
    /// The policy's resource does not hold the device.
    OutOfPolicy(String),
    /// Rights are to be narrowed, and no policy has just these.
    NoPolicyWithRights,
    /// There is no primary key.
    NoPrimary,
    /// The issuer has no `scope_claim`.
    NoScopeClaim(String),
    /// The key does not sign.
    KeyDamaged,
    /// The system gives no random bytes.
    NoRandomness,
}

impl fmt::Display for NoSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceUnknown => f.write_str("there is no such device, and no group that it is in"),
            Self::PolicyUnknown(name) => write!(f, "there is no [[policy]] {name:?}"),
            Self::PolicyRights(name) => write!(f, "the policy {name:?} has other `rights` than these"),
            Self::OutOfPolicy(name) => write!(f, "the `resource` of the policy {name:?} does not hold the device"),
            Self::NoPolicyWithRights => f.write_str(
                "a SAS token has the rights of the [[policy]] that signs it, no policy for this device has just these, \
                 and a device's own key has all",
            ),
            Self::NoPrimary => f.write_str("there is no primary key to sign a SAS token for this device with"),
            Self::NoScopeClaim(name) => {
                write!(f, "the issuer {name:?} has no `scope_claim`: its tokens give all rights")
            }
            Self::KeyDamaged => f.write_str("the key cannot sign: it is damaged or for another algorithm"),
            Self::NoRandomness => f.write_str("the system gives no random bytes"),
        }
    }
}

impl std::error::Error for NoSigner {}

/// The first by name, so that the same request has the same answer.
fn policy_with<'k>(
    keyring: &'k Keyring,
    rules: &VerifyRules,
    device: &DeviceId,
    rights: Rights,
) -> Result<&'k Policy, NoSigner> {
    let is_ours = |host: &str| rules.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host));
    let fits = |policy: &&Policy| {
        policy.rights == rights
            && policy.keys.primary.is_some()
            && is_ours(policy.resource.host())
            && covers(policy, &resource_of(policy.resource.host(), device))
    };
    keyring.policies().filter(fits).min_by_key(|policy| policy.name.clone()).ok_or(NoSigner::NoPolicyWithRights)
}

fn covers(policy: &Policy, resource: &str) -> bool {
    Resource::parse(resource).is_ok_and(|resource| policy.resource.covers(&resource))
}

/// `scope_claim` without what the rights do not hold; the other side stays as the device has it.
fn narrowing(rights: Rights) -> Value {
    let held = [("pub", rights.publish), ("sub", rights.subscribe)];
    let none = held.into_iter().filter(|(_, held)| !held);
    none.map(|(side, _)| (side.to_owned(), Value::Array(Vec::new()))).collect::<Map<String, Value>>().into()
}
