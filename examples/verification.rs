//! What deciding about a token costs beside the bare check of its signature, kind by kind, in one alternated run:
//! `cargo run --release --example verification [TOKENS [ROUNDS]]`. Part of the bench (bench/README.md); it stands here
//! because it calls the library, which bench/ does not build.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use std::{
    env,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use jsonwebtoken::{DecodingKey, crypto};
use rcgen::{KeyPair, RsaKeySize};
use sha2::Sha256;
use tollgate::{
    credential::{
        Algorithm, Credential, Device, Group, Issuer, JwtClaims, Keyring, Policy, Resource, RevocationList, Rights,
        SecretKey, SigningKey, Slots, VerifyingKey, mint_jwt, mint_sas, verify,
    },
    gate::{Admission, Gate, GateConfig, Identities, Profile},
    id::DeviceId,
    policy::ScopeTemplate,
    time::UnixSeconds,
};

fn main() {
    let numbers: Vec<usize> = env::args().skip(1).map(|text| text.parse().expect("a number")).collect();
    let tokens = numbers.first().copied().unwrap_or(2_000);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    println!("µs a token, median of {rounds} rounds of {tokens} tokens: bare signature, verify (and above bare),");
    println!("the whole of Gate::admit, and admit again with the same tokens");
    for kind in kinds(tokens) {
        kind.measure(rounds);
    }
}

/// One kind of token with what checks it alone.
struct Kind {
    name: &'static str,
    device: &'static str,
    tokens: Vec<String>,
    ring: Box<dyn Fn() -> Keyring>,
    bare: Box<dyn Fn(&str) -> bool>,
}

impl Kind {
    fn measure(&self, rounds: usize) {
        let mut columns: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            // A keyring of its own each round: nothing is remembered from the one before.
            let gate = Gate::new(GateConfig::default());
            let ring = (self.ring)();
            gate.load_identities(Arc::new(Identities::new((self.ring)(), vec![ScopeTemplate::default()])));
            gate.load_revocations(Arc::new(RevocationList::default()));
            let id = DeviceId::try_from(self.device).unwrap();
            let admit = |token: &str| {
                let request = Admission {
                    client_id: self.device,
                    user_name: Some(self.device),
                    password: Some(token.as_bytes()),
                    certificate: None,
                    profile: Profile::Strict,
                    will: None,
                };
                gate.admit(&request, NOW).is_ok()
            };
            let decide = |token: &str| {
                let credential = Credential::parse(token.as_bytes()).unwrap();
                verify(&credential, Some(&id), &ring, gate.rules(Profile::Strict), NOW).is_ok()
            };
            let runs: [&dyn Fn(&str) -> bool; 4] = [&self.bare, &decide, &admit, &admit];
            for (column, run) in columns.iter_mut().zip(runs) {
                column.push(self.time(run));
            }
        }
        let [bare, decided, admitted, again] = columns.map(|mut column| {
            column.sort_by(f64::total_cmp);
            column[column.len() / 2]
        });
        let name = self.name;
        let above = decided - bare;
        println!(
            "{name:<22} bare {bare:7.2}  verify {decided:7.2} ({above:+.2})  admit {admitted:7.2}  again {again:7.2}"
        );
    }

    fn time(&self, run: &dyn Fn(&str) -> bool) -> f64 {
        let started = Instant::now();
        for token in &self.tokens {
            assert!(black_box(run(black_box(token))), "{}: {token}", self.name);
        }
        started.elapsed().as_secs_f64() * 1e6 / self.tokens.len() as f64
    }
}

fn kinds(count: usize) -> Vec<Kind> {
    let secret = |name: &str| SecretKey::from_bytes(format!("32 bytes or more of a key: {name}").as_bytes()).unwrap();
    let (device, policy, group) = (secret("device"), secret("policy"), secret("group"));
    let derived = group.derive(&DeviceId::try_from("line7-1").unwrap());
    let mut kinds = Vec::new();
    for (name, id, key, skn) in [
        ("SAS, device key", "pump-17", device.clone(), None),
        ("SAS, policy", "pump-17", policy.clone(), Some("device")),
        ("SAS, key of a group", "line7-1", derived, None),
    ] {
        let sr = format!("localhost/devices/{id}");
        let tokens = (0..count).map(|n| mint_sas(&sr, key.bytes(), at(n), skn)).collect();
        let (device, policy, group) = (device.clone(), policy.clone(), group.clone());
        let ring = move || ring(&[&device, &policy, &group], None);
        kinds.push(Kind {
            name,
            device: id,
            tokens,
            ring: Box::new(ring),
            bare: Box::new(move |t| bare_hmac(&key, t)),
        });
    }
    for (algorithm, signing, verifying, decoding) in jwt_keys() {
        let tokens = (0..count).map(|n| mint_jwt(&claims(n), &signing).unwrap()).collect();
        let library = algorithm.as_str().parse().unwrap();
        let bare = move |token: &str| {
            let (message, signature) = token.rsplit_once('.').unwrap();
            crypto::verify(signature, message.as_bytes(), &decoding, library).unwrap()
        };
        let device = device.clone();
        let ring = move || ring(&[&device, &device, &device], Some(verifying.clone()));
        let name = algorithm.as_str();
        kinds.push(Kind { name, device: "pump-17", tokens, ring: Box::new(ring), bare: Box::new(bare) });
    }
    kinds
}

type JwtKey = (Algorithm, SigningKey, VerifyingKey, DecodingKey);

fn jwt_keys() -> Vec<JwtKey> {
    let secret = b"a shared secret of sixty-four bytes, as an issuer has one, 00001";
    let hs256 = (
        Algorithm::HS256,
        SigningKey::from_secret(Algorithm::HS256, secret, None).unwrap(),
        VerifyingKey::from_secret(Algorithm::HS256, secret).unwrap(),
        DecodingKey::from_secret(secret),
    );
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let public = [
        (Algorithm::RS256, &rsa),
        (Algorithm::PS256, &rsa),
        (Algorithm::ES256, &p256),
        (Algorithm::ES384, &p384),
        (Algorithm::EdDSA, &ed25519),
    ];
    let read = |(algorithm, pair): (Algorithm, &KeyPair)| {
        let pem = pair.public_key_pem();
        let decoding = match algorithm {
            Algorithm::RS256 | Algorithm::PS256 => DecodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::EdDSA => DecodingKey::from_ed_pem(pem.as_bytes()),
            _ => DecodingKey::from_ec_pem(pem.as_bytes()),
        };
        let signing = SigningKey::from_pem(algorithm, &pair.serialize_pem(), None).unwrap();
        (algorithm, signing, VerifyingKey::from_pem(algorithm, &pem).unwrap(), decoding.unwrap())
    };
    [hs256].into_iter().chain(public.into_iter().map(read)).collect()
}

fn ring([device, policy, group]: &[&SecretKey; 3], key: Option<VerifyingKey>) -> Keyring {
    let slots = |key: &SecretKey| Slots { primary: Some(key.clone()), secondary: None };
    let mut ring = Keyring::builder();
    let pump = Device { keys: slots(device), ..Device::default() };
    ring.add_device(DeviceId::try_from("pump-17").unwrap(), pump).unwrap();
    ring.add_policy(Policy {
        name: "device".into(),
        resource: Resource::parse("localhost").unwrap(),
        keys: slots(policy),
        rights: Rights::ALL,
        token_lifetime_max: None,
    })
    .unwrap();
    let (prefix, keys) = ("line7-".into(), slots(group));
    ring.add_group(Group { prefix, keys, token_lifetime_max: None, scope: Default::default() }).unwrap();
    if let Some(key) = key {
        ring.add_issuer(Issuer {
            name: "factory".into(),
            iss: "https://id.example".into(),
            audience: vec!["localhost".into()],
            published: tollgate::credential::Published::No,
            keys: vec![(None, key)],
            device_claim: "sub".into(),
            scope_claim: None,
            require: None,
            token_lifetime_max: None,
        })
        .unwrap();
    }
    ring.build()
}

fn claims(n: usize) -> JwtClaims {
    JwtClaims::default()
        .with("iss", "https://id.example")
        .with("aud", "localhost")
        .with("sub", "pump-17")
        .with("iat", NOW.0)
        .with("exp", at(n).0)
        .with("jti", format!("2f1c9e1c-{n:08}"))
}

/// One HMAC over what is signed, with the signature at hand.
fn bare_hmac(key: &SecretKey, token: &str) -> bool {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.bytes()).unwrap();
    mac.update(token.as_bytes().get(..SIGNED_BYTES).unwrap());
    black_box(mac.finalize());
    true
}

fn at(n: usize) -> UnixSeconds {
    NOW.plus(Duration::from_secs(600 + n as u64))
}

const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
/// `localhost%2Fdevices%2Fpump-17`, a line break and ten digits.
const SIGNED_BYTES: usize = 40;
