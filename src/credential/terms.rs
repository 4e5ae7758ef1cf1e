//! What is kept of a believed token so that the rules of whoever signed it can be asked again when they change: the token
//! itself is not kept.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Algorithm, Issuer, JwtToken, Keyring, Resource, VerifyRules, VerifyingKey, key::fingerprint, keyring::KnownIssuer,
};
use crate::id::KeyName;

/// What a token said that a `[[policy]]`, an `[[issuer]]` or a public key may come to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Of a policy's token: its `sr`.
    Sas(Resource),
    /// Of a JWT.
    Jwt(JwtTerms),
}

/// What a JWT said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtTerms {
    algorithm: Algorithm,
    /// Those of `aud` that were ours.
    audience: Box<[Box<str>]>,
    /// Names of its claims, each with a line feed behind it.
    claims: Box<str>,
    /// Who made it and how it is read: see [`reading`]. None of a device that signs itself.
    reading: Option<u64>,
}

impl Terms {
    pub(super) fn of_jwt(token: &JwtToken<'_>, known: Option<&KnownIssuer>) -> Arc<Self> {
        let ours = |named: &&str| known.is_some_and(|known| known.issuer.audience.iter().any(|ours| **ours == **named));
        let (mut claims, mut count) = (String::with_capacity(CLAIMS_BYTES_USUAL), 0);
        // Of more it is not known that they were there, and where they are required the token is asked for again.
        token.each_claim(|name| {
            count += 1;
            if count <= CLAIMS_MAX && !name.contains('\n') {
                claims.push_str(name);
                claims.push('\n');
            }
        });
        Arc::new(Self::Jwt(JwtTerms {
            algorithm: token.algorithm(),
            audience: token.each_audience().filter(ours).map(Box::from).collect(),
            claims: claims.into(),
            reading: known.map(|known| known.reading),
        }))
    }

    /// As it is written down beside a grant that outlives the process.
    pub fn written(&self) -> String {
        let written = match self {
            Self::Sas(resource) => Written::Sas(resource.written()),
            Self::Jwt(said) => Written::Jwt {
                algorithm: said.algorithm.as_str().to_owned(),
                audience: said.audience.to_vec(),
                claims: said.claims.clone(),
                reading: said.reading,
            },
        };
        serde_json::to_string(&written).expect("invariant: text and numbers are JSON")
    }

    /// Reads what [`written`](Self::written) wrote; `None`: it is nothing of the kind.
    pub fn read(text: &str) -> Option<Self> {
        Some(match serde_json::from_str(text).ok()? {
            Written::Sas(resource) => Self::Sas(Resource::parse(&resource).ok()?),
            Written::Jwt { algorithm, audience, claims, reading } => {
                let algorithm = Algorithm::ALL.into_iter().find(|known| known.as_str() == algorithm)?;
                Self::Jwt(JwtTerms { algorithm, audience: audience.into(), claims, reading })
            }
        })
    }

    /// Whether the token would still be believed of this key's owner, as far as its signature and times have no part in
    /// it.
    pub fn hold(&self, key: &KeyName, key_fingerprint: u64, keyring: &Keyring, rules: &VerifyRules) -> bool {
        let Some((kind, owner)) = key.owner().split_once(':') else { return false };
        match self {
            Self::Sas(resource) => keyring.policy(owner).is_some_and(|policy| policy.resource.covers(resource)),
            Self::Jwt(said) if kind == "issuer" => {
                keyring.issuer_called(owner).is_some_and(|known| said.is_taken_by(known, key_fingerprint, rules))
            }
            Self::Jwt(said) => keyring.public_algorithm(owner, key_fingerprint) == Some(said.algorithm),
        }
    }
}

#[derive(Serialize, Deserialize)]
enum Written {
    Sas(String),
    Jwt { algorithm: String, audience: Vec<Box<str>>, claims: Box<str>, reading: Option<u64> },
}

impl JwtTerms {
    fn is_taken_by(&self, known: &KnownIssuer, key_fingerprint: u64, rules: &VerifyRules) -> bool {
        let issuer = &known.issuer;
        let is_it = |key: &VerifyingKey| key.fingerprint() == key_fingerprint && key.algorithm() == self.algorithm;
        let has = |claim: &str| self.claims.split_terminator('\n').any(|name| name == claim);
        self.reading == Some(known.reading)
            && issuer.keys.iter().any(|(_, key)| key.each().any(is_it))
            && self.audience.iter().any(|named| issuer.audience.contains(named))
            && match &issuer.require {
                Some(require) => require.iter().all(|claim| has(claim)),
                None => rules.require.iter().all(|claim| has(claim)),
            }
    }
}

/// What makes another token of the same text: other values of `iss`, `device_claim` or `scope_claim`. How much the claims
/// would say then is not kept, so the session ends and comes back.
pub(super) fn reading(issuer: &Issuer) -> u64 {
    let scope_claim = issuer.scope_claim.as_deref().map_or_else(String::new, |claim| format!("={claim}"));
    let parts = [&*issuer.iss, &*issuer.device_claim, &*scope_claim];
    let text = parts.map(|part| format!("{}:{part}", part.len())).concat();
    fingerprint(text.as_bytes())
}

/// Far more than issuers write.
const CLAIMS_MAX: usize = 64;
/// Names of seven claims or fewer, as a rule.
const CLAIMS_BYTES_USUAL: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_as_they_were_written() {
        let jwt = |reading| {
            Terms::Jwt(JwtTerms {
                algorithm: Algorithm::ES384,
                audience: ["a", "b\n"].map(Box::from).into(),
                claims: "exp\njti\n".into(),
                reading,
            })
        };
        let sas = |text| Terms::Sas(Resource::parse(text).expect("a resource"));
        for terms in [jwt(Some(u64::MAX)), jwt(None), sas("hub.example/devices/d1"), sas("sb://bus.example/\"q\"")] {
            assert_eq!(Terms::read(&terms.written()), Some(terms));
        }
        for text in
            ["", "{}", r#"{"Sas":""}"#, r#"{"Jwt":{"algorithm":"none","audience":[],"claims":"","reading":null}}"#]
        {
            assert_eq!(Terms::read(text), None, "{text}");
        }
    }
}
