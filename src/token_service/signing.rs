//! The service's own keys: what signs its JWTs, what it publishes, and what the gateway believes.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::credential::{Algorithm, Issuer, Published, SigningKey, parse_jwk_set};

/// Keys that sign the service's JWTs, and their public halves.
pub struct Signing {
    key: SigningKey,
    issuer: Issuer,
    jwk_set: String,
}

impl Signing {
    /// Reads private keys in PEM (PKCS #8; P-256, P-384 or Ed25519). The first signs; the others are published and believed,
    /// so that a new one can be put in front without ending the tokens of the old one.
    ///
    /// # Errors
    /// Half a sentence: what is wrong with the text.
    pub fn from_pem(text: &str, iss: &str, audience: &[String], lifetime_max: Duration) -> Result<Self, String> {
        let keys = text.split_inclusive("-----END PRIVATE KEY-----").map(str::trim).filter(|block| !block.is_empty());
        let keys: Vec<SigningKey> = keys.map(read_key).collect::<Result<_, _>>()?;
        let published = keys.iter().map(SigningKey::public_jwk).collect::<Result<Vec<_>, _>>();
        let published = published.map_err(|_| "it holds a key without a public half".to_owned())?;
        let jwk_set = json!({ "keys": published.into_iter().map(Value::Object).collect::<Vec<_>>() }).to_string();
        let (believed, _) = parse_jwk_set(&jwk_set, &ALGORITHMS).map_err(|error| error.to_string())?;
        let key = keys.into_iter().next().ok_or_else(|| "it holds no private key".to_owned())?;
        let issuer = Issuer {
            name: OWN_ISSUER.into(),
            iss: iss.into(),
            audience: audience.iter().map(|name| name.as_str().into()).collect(),
            published: Published::No,
            keys: believed,
            device_claim: "sub".into(),
            scope_claim: Some("acl".into()),
            require: Some(["exp", "iat", "jti"].map(Into::into).into()),
            token_lifetime_max: Some(lifetime_max),
        };
        Ok(Self { key, issuer, jwk_set })
    }

    /// What signs.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// What the gateway is told of it.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// All public keys, as `/.well-known/jwks.json` has them.
    pub fn jwk_set(&self) -> &str {
        &self.jwk_set
    }
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signing({:?} of {})", self.key, self.issuer.iss)
    }
}

fn read_key(pem: &str) -> Result<SigningKey, String> {
    let read = |algorithm| SigningKey::from_pem_by_thumbprint(algorithm, pem).ok().filter(is_sound);
    ALGORITHMS
        .into_iter()
        .find_map(read)
        .ok_or_else(|| "it holds what is no private key in PEM (PKCS #8) for ES256, ES384 or EdDSA".to_owned())
}

/// Whether its public half is one for its algorithm: a key of another curve is found out before it signs.
fn is_sound(key: &SigningKey) -> bool {
    let set = |public| json!({ "keys": [Value::Object(public)] }).to_string();
    key.public_jwk().is_ok_and(|public| parse_jwk_set(&set(public), &[key.algorithm()]).is_ok())
}

/// The name of the issuer that the service is, in keys, revocations and `tollgate token mint --issuer`.
pub const OWN_ISSUER: &str = "token-service";
const ALGORITHMS: [Algorithm; 3] = [Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

#[cfg(test)]
mod tests {
    use super::*;

    fn pem() -> String {
        rcgen::KeyPair::generate().expect("a key").serialize_pem()
    }

    /// The key of RFC 8037 §A.1, in PKCS #8.
    fn ed25519() -> String {
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n".into()
    }

    fn signing(text: &str) -> Result<Signing, String> {
        Signing::from_pem(text, "https://localhost:8443", &["localhost".into()], Duration::from_secs(3600))
    }

    #[test]
    fn each_key_is_named_by_its_thumbprint_and_the_first_signs() {
        let (first, second) = (pem(), ed25519());
        let both = signing(&format!("{first}{second}")).expect("two keys");
        assert_eq!(both.key().kid(), signing(&first).expect("a key").key().kid());
        let set: Value = serde_json::from_str(both.jwk_set()).expect("JSON");
        let keys = set["keys"].as_array().expect("a list");
        assert_eq!(keys.len(), 2);
        assert_eq!(both.issuer().keys.len(), 2);
        assert_eq!((&keys[1]["crv"], &keys[1]["alg"]), (&json!("Ed25519"), &json!("EdDSA")));
        // RFC 8037 §A.2 and §A.3: its public half and its thumbprint.
        assert_eq!(keys[1]["x"], json!("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"));
        assert_eq!(keys[1]["kid"], json!("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"));
        assert!(!both.jwk_set().contains("\"d\""), "no private half");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in ["", "no key", &pem().replace("PRIVATE", "PUBLIC"), &format!("{}rest", pem())] {
            assert!(signing(bad).is_err(), "{bad}");
        }
    }
}
