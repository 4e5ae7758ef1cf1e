//! Why a token is believed or refused, for the operator: every step of the decision, and which of the usual mistakes it
//! is. Never on the connection path: it tries what the gate must not try.

use super::{
    Credential, Facts, Identity, Keyring, Refused, RevocationList, Thumbprint, Trace, VerifyRules,
    near_miss::{Asked, near_misses},
    verify_traced,
};
use crate::{denial::Denial, id::DeviceId, time::UnixSeconds};

/// The decision about one token, with its reasons.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What was checked, in the order of the gate; the last one is the first that failed.
    pub steps: Vec<Step>,
    /// What the gate would say.
    pub verdict: Result<Identity, Refused>,
    /// Which mistake it is: each was tried and found true. Of a good token: what else its device should know.
    pub near_misses: Vec<String>,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What was checked.
    pub what: &'static str,
    /// Whether the token passed.
    pub ok: bool,
    /// The values that were compared.
    pub detail: String,
}

/// Decides as the gate would, for a CONNECT of `device` (`None`: of whomever the token names), and tells why.
pub fn explain(
    text: &str,
    device: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    list: &RevocationList,
    now: UnixSeconds,
) -> Explanation {
    let mut steps = Steps::default();
    let verdict = decide(text, device, keyring, rules, list, &mut steps, now);
    let near_misses = match &verdict {
        Ok(identity) => notes(identity, keyring, rules),
        Err(refused) => {
            steps.0.push(Step { what: failed_step(refused.denial), ok: false, detail: refused.detail.clone() });
            near_misses(text, refused, &Asked { device, keyring, rules }, now)
        }
    };
    Explanation { steps: steps.0, verdict, near_misses }
}

/// What stands in a token, without any secret: names and values, in a fixed order. The signature is left out.
///
/// # Errors
/// [`Refused`]: it is not well formed.
pub fn inspect(text: &str) -> Result<Vec<(String, String)>, Refused> {
    let credential = Credential::parse(text.as_bytes())?;
    let mut fields = vec![
        ("kind".to_owned(), credential.kind().as_str().to_owned()),
        ("token".to_owned(), format!("sha256:{}", credential.token_id())),
    ];
    let mut field = |name: &str, value: String| fields.push((name.to_owned(), value));
    match &credential {
        Credential::Sas(token) => {
            field("sr", token.resource_as_sent().to_owned());
            field("resource", token.resource().to_string());
            if let Some(id) = token.resource().identity() {
                field(if id.contains('/') { "module" } else { "device" }, id.into_owned());
            }
            if let Some(name) = token.policy() {
                field("skn", name.to_owned());
            }
            field("se", format!("{} ({})", token.expires_at().0, token.expires_at()));
        }
        Credential::Jwt(token) => {
            field("alg", token.algorithm().to_string());
            if let Some(kid) = token.kid() {
                field("kid", kid.to_owned());
            }
            for (name, value) in token.claims() {
                let date = [("exp", Some(token.expires_at())), ("nbf", token.not_before()), ("iat", token.issued_at())];
                match date.into_iter().find_map(|(known, at)| at.filter(|_| known == name)) {
                    Some(at) => field(name, format!("{value} ({at})")),
                    None => field(name, value),
                }
            }
        }
    }
    Ok(fields)
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Trace for Steps {
    fn passed(&mut self, what: &'static str, detail: impl FnOnce() -> String) {
        self.0.push(Step { what, ok: true, detail: detail() });
    }
}

fn decide(
    text: &str,
    device: Option<&DeviceId>,
    keyring: &Keyring,
    rules: &VerifyRules,
    list: &RevocationList,
    steps: &mut Steps,
    now: UnixSeconds,
) -> Result<Identity, Refused> {
    let credential = Credential::parse(text.as_bytes())?;
    steps.passed("form", || {
        format!(
            "a well-formed {} token, sha256:{}",
            credential.kind().as_str().to_ascii_uppercase(),
            credential.token_id()
        )
    });
    let identity = verify_traced(&credential, device, keyring, rules, steps, now)?;
    let about = |refused: Refused| refused.about(identity.token_id, Some(&identity.device));
    if let Some(device) = device {
        if identity.device != *device {
            let detail = format!("The token is of {}; it was asked about {device}.", identity.device);
            return Err(about(Refused::new(Denial::DeviceMismatch, detail)));
        }
        steps.passed("owner", || format!("it is of {device}"));
    }
    let facts = Facts {
        token_id: identity.token_id,
        jti: identity.jti.as_deref(),
        issuer: identity.issuer.as_deref(),
        policy: identity.policy.as_deref(),
        device: &identity.device,
        key: &identity.key,
        issued_at: identity.issued_at,
        expires_at: identity.expires_at,
    };
    match list.matches(&facts, now) {
        Some(hit) => Err(about(Refused::new(Denial::Revoked, hit.to_string()))),
        None => {
            steps.passed("revocations", || format!("none of {} entries names it", list.len()));
            Ok(identity)
        }
    }
}

fn notes(identity: &Identity, keyring: &Keyring, rules: &VerifyRules) -> Vec<String> {
    [needed_note(identity, keyring, rules), binding_note(identity), slot_note(identity)].into_iter().flatten().collect()
}

/// A token alone is believed; the gate asks the connection for the rest.
fn needed_note(identity: &Identity, keyring: &Keyring, rules: &VerifyRules) -> Option<String> {
    let found = keyring.find(&identity.device)?;
    found.needs_certificate(identity.kind, &rules.accept).then(|| {
        let (kind, device) = (identity.kind.as_str(), &identity.device);
        format!(
            "`accept` takes a token of the kind {kind:?} beside a client certificate only: the connection must show the \
             certificate of {device}, too."
        )
    })
}

/// RFC 8705 §3.
fn binding_note(identity: &Identity) -> Option<String> {
    identity.certificate_binding.map(|digest| {
        format!(
            "The token is bound to one client certificate (`cnf`): the connection must show that with the SHA-256 {}.",
            Thumbprint::from(digest)
        )
    })
}

fn slot_note(identity: &Identity) -> Option<String> {
    (identity.key.slot() == "secondary" && identity.issuer.is_none()).then(|| {
        format!(
            "It was made with {}: after the next rotation that key is gone, and the device needs the primary.",
            identity.key
        )
    })
}

/// The check that a denial comes from.
fn failed_step(denial: Denial) -> &'static str {
    match denial {
        Denial::CredentialMissing | Denial::CredentialMalformed => "form",
        Denial::ClaimInvalid => "claims",
        Denial::IssuerUnknown => "issuer",
        Denial::SignatureInvalid | Denial::KeyUnknown | Denial::AlgorithmMismatch => "signature",
        Denial::AudienceMismatch => "audience",
        Denial::HostMismatch | Denial::HubWideToken | Denial::ResourceOutOfPolicy => "resource",
        Denial::DeviceMismatch => "owner",
        Denial::DeviceUnknown | Denial::DeviceDisabled | Denial::CredentialKindNotAccepted => "device",
        Denial::Revoked => "revocations",
        _ => "times",
    }
}

#[cfg(test)]
mod tests;
