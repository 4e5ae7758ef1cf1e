//! Keys that nobody has: where a token's device has none, checking it against one of these costs what checking it against
//! its own would (threat T11). The private halves were never kept.

use std::sync::OnceLock;

use super::{Algorithm, VerifyingKey};

/// A key of nobody's for this algorithm; `None`: it is one of shared secrets, which no device's own key is for.
pub(super) fn key(algorithm: Algorithm) -> Option<&'static VerifyingKey> {
    static KEYS: OnceLock<Vec<VerifyingKey>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let public = Algorithm::ALL.into_iter().filter_map(|algorithm| Some((algorithm, pem(algorithm)?)));
        public.filter_map(|(algorithm, pem)| VerifyingKey::from_pem(algorithm, pem).ok()).collect()
    });
    keys.iter().find(|key| key.algorithm() == algorithm)
}

fn pem(algorithm: Algorithm) -> Option<&'static str> {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => None,
        Algorithm::ES256 => Some(P256),
        Algorithm::ES384 => Some(P384),
        Algorithm::EdDSA => Some(ED25519),
        _ => Some(RSA),
    }
}

const RSA: &str = "-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAufOpda8Oqrs2xfvTPtXq\n\
kcSL5ilRhzYKSXcYPiYOUJvmXp9OyvgAyZOZbpvO/AR61+ywx0yFVkPxILNlvCCI\n\
aSTuFBLyyWmSNoDgWXkl1Kkxm6BtbFSTtj431ITObiHlBgkf7VZuQtNj3PF2cUAc\n\
9bodKFfUNzrLyQwL44DEC0gV4vjxm2y4sLtXzifWJs+ewhtNAGTDGfKEJ0gnj5a9\n\
MwJ/aAymaoHk0k/jn72Q80oLu75U4Fv7G0+rD+5mL5QpAbSD++OBUrvvIhxlkA9F\n\
l2Fd8+XW/wAkiBvC7mdHZDWkY27WL2d6ZNdT0ndbkgPgNEvG05v/1dIr40xsomzD\n\
WwIDAQAB\n\
-----END PUBLIC KEY-----";
const P256: &str = "-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEhyuJXUQu9BGcQtwD2mINPgr8h4yY\n\
1U/8d/8ZO/UW8yL4xAAX6UbyWdxbXhAtLWbGDbqm8rEGZHLHUbjdsLResA==\n\
-----END PUBLIC KEY-----";
const P384: &str = "-----BEGIN PUBLIC KEY-----\n\
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEMH7hyGfmUn1fbKR71cKgIeoNX1Z8iQVC\n\
oZd8Q4nMJTVN6Y5kdkXgTx+hnWNIlThwJycU1pPY7i5M0DKwxgHuSzcIsYurNd+o\n\
SwhN+EzjIiowIXzpCVIVTQwshRIDhl4k\n\
-----END PUBLIC KEY-----";
const ED25519: &str = "-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VwAyEAfhELqCEb4wQ5EiaNRoHHTRiuO4aGvZ6UFhVEy/LeUuM=\n\
-----END PUBLIC KEY-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_for_every_algorithm_of_public_keys() {
        for algorithm in Algorithm::ALL {
            assert_eq!(key(algorithm).is_some(), !algorithm.is_hmac(), "{algorithm}");
        }
    }
}
