//! Client certificates over real sockets: alone, beside a token, as what a token is bound to; and files that change while
//! the gateway runs.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{fs, path::Path, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use support::{Answer, ClientIdentity, Gateway, Hub, Login, Plan, Version, jwt_with, sas, until};

#[test]
fn a_device_comes_with_its_certificate_and_no_token() {
    let site = Site::new("optional", |site| {
        site.pin("pinned", "")
            + "[[device]]\nid = \"tokens-only\"\naccept = [\"sas\", \"jwt\"]\n"
            + "[[device]]\nid = \"off\"\nenabled = false\n"
    });
    let stranger = Ca::new("devices");
    for version in [Version::V4, Version::V5] {
        let refused = |code| Answer::Connack(if version == Version::V4 { 5 } else { code });
        let named_otherwise = Answer::Connack(if version == Version::V4 { 2 } else { 0x85 });
        let mut session = site.open(version, "d0").admitted(&without_token(version, "d0"));
        session.publish_acknowledged("devices/d0/messages/events/", b"by certificate");
        site.open_as(version, &site.pinned).admitted(&without_token(version, "pinned"));
        for (shown, client_id, expected) in [
            (Some(site.ca.sign("d0", 1)), "d1", named_otherwise.clone()),
            (Some(self_made("d0")), "d0", refused(0x87)),
            (Some(stranger.sign("d0", 1)), "d0", refused(0x87)),
            (Some(self_made("pinned")), "pinned", refused(0x87)),
            (Some(site.ca.sign("tokens-only", 1)), "tokens-only", refused(0x87)),
            (Some(site.ca.sign("off", 1)), "off", refused(0x87)),
            (Some(site.ca.sign("nobody", 1)), "nobody", refused(0x87)),
            (None, "d0", refused(0x86)),
        ] {
            let mut device = match &shown {
                Some(identity) => site.open_as(version, identity),
                None => site.gateway.open_tls(version),
            };
            assert_eq!(device.log_in(&without_token(version, client_id)), expected, "{client_id}");
        }
        // A token that is sent is held to, whatever certificate comes with it.
        let bad = Login::new(version, "d0", &sas("d1"));
        assert_eq!(site.open(version, "d0").log_in(&bad), named_otherwise);
        site.open_as(version, &self_made("d0")).admitted(&Login::new(version, "d0", &sas("d0")));
    }
    for denial in ["device_mismatch", "certificate_untrusted", "credential_kind_not_accepted", "device_disabled"] {
        assert!(site.gateway.get("/v1/refusals").unwrap().1.contains(denial), "{denial}");
    }
    let verified = |slot: &str| site.gateway.metric("tollgate_tokens_verified_total", &["kind=\"certificate\"", slot]);
    assert_eq!((verified("key_slot=\"ca\""), verified("key_slot=\"primary\"")), (2.0, 2.0));
}

#[test]
fn a_device_may_need_both_a_token_and_its_certificate() {
    let site = Site::new("optional", |site| site.pin("pinned", "accept = [\"certificate+sas\"]\n"));
    let login = Login::new(Version::V5, "pinned", &sas("pinned"));
    let mut both = site.open_as(Version::V5, &site.pinned).admitted(&login);
    assert_eq!(site.gateway.open_tls(Version::V5).log_in(&login), Answer::Connack(0x87));
    assert_eq!(site.gateway.open(Version::V5).log_in(&login), Answer::Connack(0x87), "over plain TCP");
    assert_eq!(site.open(Version::V5, "d0").log_in(&login), Answer::Connack(0x85), "another's certificate");
    assert_eq!(site.open_as(Version::V5, &self_made("pinned")).log_in(&login), Answer::Connack(0x87));
    let alone = without_token(Version::V5, "pinned");
    assert_eq!(site.open_as(Version::V5, &site.pinned).log_in(&alone), Answer::Connack(0x87), "no token");
    assert!(site.gateway.get("/v1/refusals").unwrap().1.contains("certificate_required"));
    // One of its own authority will do as well.
    let mut by_authority = site.open(Version::V5, "pinned").admitted(&login);
    assert_eq!(both.closed(PATIENCE), Some(0x8E));
    // Each is what the session hangs on, also by its name in the list.
    site.gateway.revoke(r#"{"key": "certificate:pinned/ca"}"#);
    assert_eq!(by_authority.closed(PATIENCE), Some(0x98));
    assert_eq!(site.open(Version::V5, "pinned").log_in(&login), Answer::Connack(0x87));
    let mut by_thumbprint = site.open_as(Version::V5, &site.pinned).admitted(&login);
    site.gateway.revoke(r#"{"key": "certificate:pinned/primary"}"#);
    assert_eq!(by_thumbprint.closed(PATIENCE), Some(0x98));
    assert_eq!(site.open_as(Version::V5, &site.pinned).log_in(&login), Answer::Connack(0x87));
}

#[test]
fn a_bound_token_is_good_with_its_certificate_alone() {
    let site = Site::new("optional", |_| String::new());
    let (own, other) = (self_made("whoever"), self_made("whoever"));
    let bound = |to: &ClientIdentity| {
        let digest = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&to.chain[0]));
        Login::new(Version::V5, "d0", &jwt_with("d0", json!({"cnf": {"x5t#S256": digest}})))
    };
    let mut session = site.open_as(Version::V5, &own).admitted(&bound(&own));
    session.publish_acknowledged("devices/d0/messages/events/", b"bound");
    for (version, shown) in [(Version::V5, Some(&other)), (Version::V5, None)] {
        let mut device = shown.map_or_else(|| site.gateway.open_tls(version), |shown| site.open_as(version, shown));
        assert_eq!(device.log_in(&bound(&own)), Answer::Connack(0x87));
    }
    assert_eq!(site.gateway.open(Version::V5).log_in(&bound(&own)), Answer::Connack(0x87), "over plain TCP");
    let refusals = site.gateway.get("/v1/refusals").unwrap().1;
    assert_eq!(refusals.matches("certificate_mismatch").count(), 3, "{refusals}");
    // The certificate's fingerprint names what hangs on it.
    site.gateway.revoke(&format!(r#"{{"token": "sha256:{}"}}"#, thumbprint(&own)));
    assert_eq!(session.closed(PATIENCE), Some(0x98));
    assert_eq!(site.open_as(Version::V5, &own).log_in(&bound(&own)), Answer::Connack(0x87));
    site.open_as(Version::V5, &other).admitted(&bound(&other));
}

#[test]
fn a_listener_that_requires_certificates_lets_nobody_in_without_a_good_one() {
    let site = Site::new("required", |site| site.pin("pinned", ""));
    let login = Login::new(Version::V5, "d0", &sas("d0"));
    site.open(Version::V5, "d0").admitted(&login);
    site.open(Version::V5, "fleet").admitted(&login);
    site.open_as(Version::V5, &site.pinned).admitted(&without_token(Version::V5, "pinned"));
    for bad in [self_made("d0"), Ca::new("devices").sign("d0", 1), site.pinned.clone()] {
        assert_eq!(site.open_as(Version::V5, &bad).log_in(&login), Answer::Connack(0x87));
    }
    let mut bare = site.gateway.open_tls(Version::V5);
    let sent = bare.try_send(&login.packet());
    assert!(sent.is_err() || bare.next(PATIENCE) == Answer::Closed, "the handshake fails");
    until("the refusal to be noted", PATIENCE, || {
        site.gateway.get("/v1/refusals").is_some_and(|(_, text)| text.contains("certificate_required"))
    });
}

#[test]
fn what_withdraws_a_certificate_ends_its_session_and_a_resumed_one_is_asked_again() {
    let site = Site::new("optional", |site| site.pin("pinned", ""));
    let login = |device| without_token(Version::V5, device);
    // The thumbprint is taken out.
    let mut pinned = site.open_as(Version::V5, &site.pinned).admitted(&login("pinned"));
    let mut other = site.open(Version::V5, "d9").admitted(&login("d9"));
    let identities = site.gateway.folder.join("identities.toml");
    let text = fs::read_to_string(&identities).unwrap();
    fs::write(&identities, text.replace(&thumbprint(&site.pinned), &thumbprint(&self_made("next")))).unwrap();
    assert_eq!(pinned.closed(PATIENCE), Some(0x87));
    assert_eq!(site.open_as(Version::V5, &site.pinned).log_in(&login("pinned")), Answer::Connack(0x87));

    // Its authority takes it back: the live session ends, and a TLS session that is resumed is no way around.
    let identity = site.ca.sign("d1", 77);
    let config = site.gateway.tls_client(&identity);
    let mut revoked = site.gateway.open_tls_with(Version::V5, &config).admitted(&login("d1"));
    site.write_list(&[77]);
    assert_eq!(revoked.closed(PATIENCE), Some(0x98));
    let mut resumed = site.gateway.open_tls_with(Version::V5, &config);
    assert_eq!(resumed.log_in(&login("d1")), Answer::Connack(0x87));
    assert!(resumed.was_resumed(), "the test is about a resumed session");
    site.open(Version::V5, "d2").admitted(&login("d2"));

    // Its thumbprint is on our own list.
    let identity = site.ca.sign("d3", 3);
    let mut listed = site.open_as(Version::V5, &identity).admitted(&login("d3"));
    site.gateway.revoke(&format!(r#"{{"token": "sha256:{}", "reason": "stolen"}}"#, thumbprint(&identity)));
    assert_eq!(listed.closed(PATIENCE), Some(0x98));
    assert_eq!(site.open_as(Version::V5, &identity).log_in(&login("d3")), Answer::Connack(0x87));

    // Nobody else was touched, until the authority itself is another.
    other.ping();
    assert_eq!(other.next(PATIENCE), Answer::Pingresp);
    let next = Ca::new("devices");
    fs::write(site.gateway.folder.join("devices.crl"), next.list(&[])).unwrap();
    fs::write(site.gateway.folder.join("devices.pem"), &next.pem).unwrap();
    assert_eq!(other.closed(PATIENCE), Some(0x87));
    site.open_as(Version::V5, &next.sign("d9", 1)).admitted(&login("d9"));
}

#[test]
fn a_certificate_ends_its_session_with_its_last_second() {
    let site = Site::new("optional", |_| String::new());
    let now = std::time::SystemTime::now();
    let mut params = leaf("d0", 9);
    params.not_after = (now + Duration::from_secs(3)).into();
    let identity = site.ca.sign_params(params);
    let mut session = site.open_as(Version::V5, &identity).admitted(&without_token(Version::V5, "d0"));
    session.publish_acknowledged("devices/d0/messages/events/", b"in time");
    assert_eq!(session.closed(PATIENCE), Some(0xA0));
    let lived = now.elapsed().unwrap();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&lived), "closed after {lived:?}");
    assert_eq!(site.open_as(Version::V5, &identity).log_in(&without_token(Version::V5, "d0")), Answer::Connack(0x87));
}

#[test]
fn a_new_server_certificate_is_shown_as_soon_as_it_fits_its_key() {
    let site = Site::new("optional", |_| String::new());
    let gateway = &site.gateway;
    let mut session = gateway.connect_tls(Version::V5, "d0");
    let old = gateway.open_tls(Version::V5).handshake().server_certificate();
    let (certificate, key) = gateway.issue_server();
    let alarm = || gateway.metric("tollgate_alarm", &["kind=\"certificate\""]);

    // Half of the change: the key is not the certificate's.
    fs::write(gateway.folder.join("server.pem"), &certificate).unwrap();
    until("the alarm", PATIENCE, || alarm() == 1.0);
    assert_eq!(gateway.open_tls(Version::V5).handshake().server_certificate(), old);
    let (status, answer) = gateway.post("/v1/reload", "{}").unwrap();
    assert!(status != 200 && answer.contains("do not fit together"), "{status} {answer}");

    fs::write(gateway.folder.join("server.key"), &key).unwrap();
    until("the new certificate", PATIENCE, || {
        gateway.open_tls(Version::V5).handshake().server_certificate() != old && alarm() == 0.0
    });
    session.publish_acknowledged("devices/d0/messages/events/", b"undisturbed");
    let shown_end = gateway.metric("tollgate_certificate_not_after_seconds", &["server.pem"]);
    assert!(shown_end > 1.7e9, "{shown_end}");

    // What is no certificate at all, and a key that others may read.
    fs::write(gateway.folder.join("server.pem"), "nothing").unwrap();
    until("the alarm", PATIENCE, || alarm() == 1.0);
    gateway.connect_tls(Version::V5, "d1");
    fs::write(gateway.folder.join("server.pem"), &certificate).unwrap();
    until("all to be well", PATIENCE, || alarm() == 0.0);
}

/// A gateway whose TLS listener asks for certificates of an authority, with a list of what that took back.
struct Site {
    gateway: Gateway,
    ca: Ca,
    /// A certificate that no authority signed.
    pinned: ClientIdentity,
}

impl Site {
    fn new(client_auth: &str, identities: impl FnOnce(&Draft) -> String) -> Self {
        let draft = Draft { ca: Ca::new("devices"), pinned: self_made("pinned") };
        let plan = Plan::new(Hub::Embedded).identities_and(&identities(&draft));
        let Draft { ca, pinned } = draft;
        let mut gateway = plan.launch(|folder| {
            fs::write(folder.join("devices.pem"), &ca.pem).unwrap();
            fs::write(folder.join("devices.crl"), ca.list(&[])).unwrap();
            change(&folder.join("gateway.toml"), |text| {
                let more = format!(
                    "transport = \"tls\"\nclient_auth = \"{client_auth}\"\nclient_ca = \"devices.pem\"\nclient_crl = \"devices.crl\"\n"
                );
                text.replacen("transport = \"tls\"\n", &more, 1)
            });
        });
        gateway.until_ready();
        Self { gateway, ca, pinned }
    }

    /// With a certificate of the authority for this device.
    fn open(&self, version: Version, device: &str) -> support::Device {
        self.open_as(version, &self.ca.sign(device, 1))
    }

    fn open_as(&self, version: Version, identity: &ClientIdentity) -> support::Device {
        self.gateway.open_tls_with(version, &self.gateway.tls_client(identity))
    }

    fn write_list(&self, revoked: &[u64]) {
        fs::write(self.gateway.folder.join("devices.crl"), self.ca.list(revoked)).unwrap();
    }
}

struct Draft {
    ca: Ca,
    pinned: ClientIdentity,
}

impl Draft {
    /// A device that is known by its thumbprint, and has a key as well.
    fn pin(&self, id: &str, more: &str) -> String {
        let (digest, key) = (thumbprint(&self.pinned), support::device_key(id));
        format!("[[device]]\nid = \"{id}\"\nprimary_key = \"{key}\"\ncertificate_sha256 = \"{digest}\"\n{more}")
    }
}

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, common_name: &str, serial: u64) -> ClientIdentity {
        self.sign_params(leaf(common_name, serial))
    }

    fn sign_params(&self, params: CertificateParams) -> ClientIdentity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        ClientIdentity { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
    }

    fn list(&self, revoked: &[u64]) -> String {
        let now = std::time::SystemTime::now();
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_hours(1)).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn leaf(common_name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

fn self_made(common_name: &str) -> ClientIdentity {
    let key = KeyPair::generate().unwrap();
    let certificate = leaf(common_name, 1).self_signed(&key).unwrap();
    ClientIdentity { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
}

fn thumbprint(identity: &ClientIdentity) -> String {
    Sha256::digest(&identity.chain[0]).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn without_token(version: Version, device: &str) -> Login {
    Login { user_name: None, password: None, ..Login::new(version, device, "") }
}

fn change(file: &Path, change: impl FnOnce(String) -> String) {
    fs::write(file, change(fs::read_to_string(file).unwrap())).unwrap();
}

const PATIENCE: Duration = Duration::from_secs(10);
