//! A key that is ready to check signatures. To read a public key costs as much as several messages do, so it is read once,
//! by the library that also does the sums for `jsonwebtoken`.

use aws_lc_rs::{
    hmac,
    signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm},
};

use super::Algorithm;

/// What checks the signatures of one algorithm.
pub(super) enum PreparedKey {
    /// Of a shared secret.
    Secret(Box<hmac::Key>),
    /// Of a public key.
    Public(ParsedPublicKey),
}

impl PreparedKey {
    /// A shared secret; `None`: the algorithm is for public keys.
    pub(super) fn of_secret(algorithm: Algorithm, secret: &[u8]) -> Option<Self> {
        let hash = match algorithm {
            Algorithm::HS256 => hmac::HMAC_SHA256,
            Algorithm::HS384 => hmac::HMAC_SHA384,
            Algorithm::HS512 => hmac::HMAC_SHA512,
            _ => return None,
        };
        Some(Self::Secret(Box::new(hmac::Key::new(hash, secret))))
    }

    /// A point as SEC 1 §2.3.3 writes it, or the 32 bytes of RFC 8032 §5.1.2; `None`: it is none of that curve.
    pub(super) fn of_point(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        let check: &'static dyn VerificationAlgorithm = match algorithm {
            // RFC 7518 §3.4: the two numbers side by side.
            Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDSA => &signature::ED25519,
            _ => return None,
        };
        ParsedPublicKey::new(check, bytes).ok().map(Self::Public)
    }

    /// Modulus and exponent without leading zeros; `None`: the algorithm is none of RSA, or they are out of its bounds.
    pub(super) fn of_rsa(algorithm: Algorithm, modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let check: &'static RsaParameters = match algorithm {
            Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        };
        let numbers = RsaPublicKeyComponents { n: modulus, e: exponent };
        numbers.to_parsed_public_key(check).ok().map(Self::Public)
    }

    /// Whether `signature` is this key's over `message`; of a shared secret in constant time.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Self::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use jsonwebtoken::{DecodingKey, crypto};
    use rcgen::{KeyPair, RsaKeySize};

    use super::super::{JwtClaims, SigningKey, VerifyingKey, mint_jwt};
    use super::*;

    /// The library reads the key anew for each check: whatever it says of a signature, a prepared key says too.
    #[test]
    fn a_prepared_key_says_what_jsonwebtoken_says() {
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
        let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let secret = b"a shared secret of sixty-four bytes, as an issuer has one, 00001";
        for algorithm in Algorithm::ALL {
            let (signing, ours, theirs) = match algorithm {
                Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => (
                    SigningKey::from_secret(algorithm, secret, None).expect("a key"),
                    VerifyingKey::from_secret(algorithm, secret).expect("a key"),
                    DecodingKey::from_secret(secret),
                ),
                _ => {
                    let (pair, read): (_, fn(&[u8]) -> _) = match algorithm {
                        Algorithm::ES256 => (&p256, DecodingKey::from_ec_pem),
                        Algorithm::ES384 => (&p384, DecodingKey::from_ec_pem),
                        Algorithm::EdDSA => (&ed25519, DecodingKey::from_ed_pem),
                        _ => (&rsa, DecodingKey::from_rsa_pem),
                    };
                    let pem = pair.public_key_pem();
                    (
                        SigningKey::from_pem(algorithm, &pair.serialize_pem(), None).expect("a key"),
                        VerifyingKey::from_pem(algorithm, &pem).expect("a key"),
                        read(pem.as_bytes()).expect("a key"),
                    )
                }
            };
            let token = mint_jwt(&JwtClaims::default().with("sub", "pump-17"), &signing).expect("a token");
            let (message, signature) = token.rsplit_once('.').expect("three parts");
            let good = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
            let mut tried = vec![good.clone(), vec![], vec![0], [good.as_slice(), &[0]].concat()];
            tried.push(good.split_last().expect("not empty").1.to_vec());
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                tried.push(bad);
            }
            for signature in tried {
                let text = URL_SAFE_NO_PAD.encode(&signature);
                let said = crypto::verify(&text, message.as_bytes(), &theirs, algorithm.of_library()).unwrap_or(false);
                assert_eq!(ours.verifies(message.as_bytes(), &signature), said, "{algorithm}: {text}");
                assert_eq!(said, signature == good, "{algorithm}: {text}");
                assert!(!ours.verifies(format!("{message}x").as_bytes(), &signature), "{algorithm}: {text}");
            }
        }
    }
}
