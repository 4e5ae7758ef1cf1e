//! What deciding about a token costs beside the bare check of its signature, kind by kind, in one alternated run:
//! `cargo run --release --example verification [TOKENS [ROUNDS [KIND]]]`. Part of the bench (bench/README.md); it stands
//! here because it calls the library, which bench/ does not build.
//!
//! Bare is the least that the same library can do: the key is read and the signature decoded beforehand, and nothing is
//! parsed, remembered or decided. For SAS that is one HMAC of `hmac` and `sha2`, key set-up included, since each device has
//! a key of its own; for a JWT the check by a key of aws-lc-rs that was read before.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use std::{
    env,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    hmac as aws,
    signature::{self, ParsedPublicKey, VerificationAlgorithm},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rcgen::{KeyPair, PublicKeyData as _, RsaKeySize};
use rustix::time::{ClockId, clock_gettime};
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
    let mut arguments = env::args().skip(1);
    let mut number = |else_it: usize| arguments.next().map_or(else_it, |text| text.parse().expect("a number"));
    let (tokens, rounds) = (number(2_000), number(5));
    let asked = arguments.next().unwrap_or_default();
    println!(
        "µs a token, medians of {rounds} rounds of {tokens} tokens: bare signature and, one by one in alternation, parsing"
    );
    println!(
        "and verify (and above bare); in turns of {TURN}, the whole of Gate::admit, and admit again with the same token;"
    );
    println!("parsing alone, after the sums of another token / after parsing another");
    for kind in kinds(tokens).into_iter().filter(|kind| kind.name.starts_with(&asked)) {
        kind.measure(rounds);
    }
}

/// One kind of token with what checks it alone.
struct Kind {
    name: &'static str,
    device: &'static str,
    tokens: Vec<Minted>,
    ring: Box<dyn Fn() -> Keyring>,
    bare: Box<dyn Fn(&Minted) -> bool>,
}

/// A token, and of a JWT its signature.
struct Minted {
    text: String,
    signature: Vec<u8>,
}

impl Kind {
    fn measure(&self, rounds: usize) {
        let mut columns: [Vec<f64>; 6] = Default::default();
        for _ in 0..rounds {
            // A keyring of its own each round: nothing is remembered from the one before.
            let gate = Gate::new(GateConfig::default());
            let ring = (self.ring)();
            gate.load_identities(Arc::new(Identities::new((self.ring)(), vec![ScopeTemplate::default()])));
            gate.load_revocations(Arc::new(RevocationList::default()));
            let id = DeviceId::try_from(self.device).unwrap();
            let admit = |token: &Minted| {
                let request = Admission {
                    client_id: self.device,
                    user_name: Some(self.device),
                    password: Some(token.text.as_bytes()),
                    certificate: None,
                    profile: Profile::Strict,
                    will: None,
                };
                gate.admit(&request, NOW).is_ok()
            };
            let decide = |token: &Minted| {
                let credential = Credential::parse(token.text.as_bytes()).unwrap();
                verify(&credential, Some(&id), &ring, gate.rules(Profile::Strict), NOW).is_ok()
            };
            for (turn, apart) in self.tokens.chunks(TURN).zip(self.tokens.chunks(TURN).rev()) {
                // One and then the other, so that each finds the processor's caches as the other left them; of different
                // tokens, since the second look at the same bytes is a quicker one.
                for (token, other) in turn.iter().zip(apart) {
                    columns[0].push(self.wall(other, &*self.bare));
                    columns[1].push(self.wall(token, decide));
                }
                for column in &mut columns[2..4] {
                    column.push(self.time(turn, admit));
                }
                // The same work on caches that the sums have used, and on caches that it left itself.
                let parse = |token: &Minted| Credential::parse(token.text.as_bytes()).is_ok();
                for (token, other) in turn.iter().zip(apart) {
                    black_box((self.bare)(other));
                    columns[4].push(self.wall(token, parse));
                    columns[5].push(self.wall(other, parse));
                }
            }
        }
        let [bare, decided, admitted, again, parsed_cold, parsed] = columns.map(|mut column| {
            column.sort_by(f64::total_cmp);
            column[column.len() / 2]
        });
        let name = self.name;
        let above = decided - bare;
        println!(
            "{name:<22} bare {bare:7.2}  verify {decided:7.2} ({above:+.2})  admit {admitted:7.2}  again {again:7.2}  \
             parse {parsed_cold:5.2} / {parsed:5.2}"
        );
    }

    /// Of one token. The reading of this clock is no call of the kernel; where the thread had to wait, the median leaves it
    /// out.
    fn wall(&self, token: &Minted, run: impl Fn(&Minted) -> bool) -> f64 {
        let started = Instant::now();
        let is_good = black_box(run(black_box(token)));
        let elapsed = started.elapsed();
        assert!(is_good, "{}: {}", self.name, token.text);
        elapsed.as_secs_f64() * 1e6
    }

    /// Processor time of some tokens, for each.
    fn time(&self, turn: &[Minted], run: impl Fn(&Minted) -> bool) -> f64 {
        let started = processor_time();
        for token in turn {
            assert!(black_box(run(black_box(token))), "{}: {}", self.name, token.text);
        }
        (processor_time() - started).as_secs_f64() * 1e6 / turn.len() as f64
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
        let mint = |n| Minted { text: mint_sas(&sr, key.bytes(), at(n), skn), signature: vec![] };
        let tokens = (0..count).map(mint).collect();
        let (device, policy, group) = (device.clone(), policy.clone(), group.clone());
        let ring = move || ring(&[&device, &policy, &group], None);
        kinds.push(Kind {
            name,
            device: id,
            tokens,
            ring: Box::new(ring),
            bare: Box::new(move |token| bare_hmac(&key, &token.text)),
        });
    }
    for (algorithm, signing, verifying, check) in jwt_keys() {
        let mint = |n| {
            let text = mint_jwt(&claims(n), &signing).unwrap();
            let signature = URL_SAFE_NO_PAD.decode(text.rsplit_once('.').unwrap().1).unwrap();
            Minted { text, signature }
        };
        let tokens = (0..count).map(mint).collect();
        let bare = move |token: &Minted| check(token.text.rsplit_once('.').unwrap().0.as_bytes(), &token.signature);
        let device = device.clone();
        let ring = move || ring(&[&device, &device, &device], Some(verifying.clone()));
        let name = algorithm.as_str();
        kinds.push(Kind { name, device: "pump-17", tokens, ring: Box::new(ring), bare: Box::new(bare) });
    }
    kinds
}

type JwtKey = (Algorithm, SigningKey, VerifyingKey, Check);
type Check = Box<dyn Fn(&[u8], &[u8]) -> bool>;

fn jwt_keys() -> Vec<JwtKey> {
    let secret = b"a shared secret of sixty-four bytes, as an issuer has one, 00001";
    let key = aws::Key::new(aws::HMAC_SHA256, secret);
    let hs256: JwtKey = (
        Algorithm::HS256,
        SigningKey::from_secret(Algorithm::HS256, secret, None).unwrap(),
        VerifyingKey::from_secret(Algorithm::HS256, secret).unwrap(),
        Box::new(move |message, signature| aws::verify(&key, message, signature).is_ok()),
    );
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let public: [(Algorithm, &KeyPair, &'static dyn VerificationAlgorithm); 5] = [
        (Algorithm::RS256, &rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
        (Algorithm::PS256, &rsa, &signature::RSA_PSS_2048_8192_SHA256),
        (Algorithm::ES256, &p256, &signature::ECDSA_P256_SHA256_FIXED),
        (Algorithm::ES384, &p384, &signature::ECDSA_P384_SHA384_FIXED),
        (Algorithm::EdDSA, &ed25519, &signature::ED25519),
    ];
    let read = |(algorithm, pair, check): (Algorithm, &KeyPair, &'static dyn VerificationAlgorithm)| -> JwtKey {
        let signing = SigningKey::from_pem(algorithm, &pair.serialize_pem(), None).unwrap();
        let verifying = VerifyingKey::from_pem(algorithm, &pair.public_key_pem()).unwrap();
        let key = ParsedPublicKey::new(check, pair.der_bytes()).unwrap();
        (algorithm, signing, verifying, Box::new(move |message, signature| key.verify_sig(message, signature).is_ok()))
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

/// Of this thread: what else the machine does is not counted.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

fn at(n: usize) -> UnixSeconds {
    NOW.plus(Duration::from_secs(600 + n as u64))
}

/// Tokens of one kind that are timed together: short enough that whatever else the machine does meets all columns alike.
const TURN: usize = 50;
const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
/// `localhost%2Fdevices%2Fpump-17`, a line break and ten digits.
const SIGNED_BYTES: usize = 40;
