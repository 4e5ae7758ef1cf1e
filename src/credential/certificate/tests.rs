use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

use super::*;

const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
const HOUR: u64 = 3600;
const SERIAL: u64 = 7;

struct Ca {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).expect("signed").der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        params.signed_by(&key, &self.issuer).expect("signed").der().clone()
    }

    fn list(&self, revoked: &[u64], next_update: u64) -> CertificateRevocationListDer<'static> {
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: at(NOW.0 - HOUR).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: at(NOW.0 - HOUR).into(),
            next_update: at(next_update).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed").der().clone()
    }

    fn believed(&self, lists: &[CertificateRevocationListDer<'static>], stale: StaleList) -> Authorities {
        Authorities::new(std::slice::from_ref(&self.der), lists, stale).expect("usable")
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Valid for an hour before and after `NOW`.
fn leaf(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (at(NOW.0 - HOUR).into(), at(NOW.0 + HOUR).into());
    params.serial_number = Some(SerialNumber::from(SERIAL));
    params
}

fn shown_to(authorities: Authorities, der: CertificateDer<'static>) -> Arc<PeerCertificate> {
    let authorities = ClientAuthorities::new(authorities, ClientAuth::Optional);
    PeerCertificate::parse(vec![der], authorities).expect("a certificate")
}

fn by_authority(peer: &PeerCertificate, now: u64) -> Result<(), Denial> {
    peer.check_authority(UnixSeconds(now)).map_err(|refused| refused.denial)
}

fn id(text: &str) -> DeviceId {
    DeviceId::try_from(text).expect(text)
}

#[test]
fn a_certificate_of_the_authority_is_good_from_its_first_to_its_last_second() {
    let ca = Ca::new("devices");
    let peer = shown_to(ca.believed(&[], StaleList::Refuse), ca.sign(&leaf("pump-17")));
    let (first, last) = (NOW.0 - HOUR, NOW.0 + HOUR);
    for (now, expected) in [
        (first - 1, Err(Denial::NotYetValid)),
        (first, Ok(())),
        (first + 1, Ok(())),
        (last - 1, Ok(())),
        (last, Ok(())),
        (last + 1, Err(Denial::Expired)),
    ] {
        assert_eq!(by_authority(&peer, now), expected, "{now}");
        assert_eq!(peer.check_dates(UnixSeconds(now)).map_err(|refused| refused.denial), expected, "{now}");
    }
    assert_eq!(peer.not_after(), UnixSeconds(last));
}

#[test]
fn who_is_not_signed_by_the_authority_is_not_believed() {
    let (ca, other) = (Ca::new("devices"), Ca::new("devices"));
    let of_other = other.sign(&leaf("pump-17"));
    let self_made = {
        let key = KeyPair::generate().expect("a key");
        leaf("pump-17").self_signed(&key).expect("signed").der().clone()
    };
    let mut for_servers = leaf("pump-17");
    for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let for_servers = ca.sign(&for_servers);
    for der in [of_other, self_made, for_servers] {
        let peer = shown_to(ca.believed(&[], StaleList::Refuse), der.clone());
        assert_eq!(by_authority(&peer, NOW.0), Err(Denial::CertificateUntrusted));
        let peer = shown_to(Authorities::default(), der);
        assert_eq!(by_authority(&peer, NOW.0), Err(Denial::CertificateUntrusted), "no authority is believed");
    }
}

#[test]
fn the_authoritys_own_list_is_heeded_and_fails_closed_when_it_is_old() {
    let ca = Ca::new("devices");
    let good = ca.sign(&leaf("pump-17"));
    let fresh = NOW.0 + HOUR;
    let on = |list, stale| by_authority(&shown_to(ca.believed(&[list], stale), good.clone()), NOW.0);
    assert_eq!(on(ca.list(&[], fresh), StaleList::Refuse), Ok(()));
    assert_eq!(on(ca.list(&[SERIAL - 1, SERIAL + 1], fresh), StaleList::Refuse), Ok(()));
    assert_eq!(on(ca.list(&[SERIAL], fresh), StaleList::Refuse), Err(Denial::Revoked));
    assert_eq!(on(ca.list(&[], NOW.0 - 1), StaleList::Refuse), Err(Denial::Unavailable));
    assert_eq!(on(ca.list(&[], NOW.0 - 1), StaleList::Use), Ok(()));
    assert_eq!(on(ca.list(&[SERIAL], NOW.0 - 1), StaleList::Use), Err(Denial::Revoked));
    let of_another = Ca::new("others").list(&[], fresh);
    assert_eq!(on(of_another, StaleList::Refuse), Err(Denial::Unavailable), "no list of its authority");
}

#[test]
fn a_change_of_the_authorities_reaches_who_was_let_in_before() {
    let (ca, other) = (Ca::new("devices"), Ca::new("others"));
    let authorities = ClientAuthorities::new(ca.believed(&[], StaleList::Refuse), ClientAuth::Optional);
    let peer = PeerCertificate::parse(vec![ca.sign(&leaf("pump-17"))], authorities.clone()).expect("a certificate");
    let still = || peer.check_authority_still(NOW).map_err(|refused| refused.denial);
    assert_eq!((by_authority(&peer, NOW.0), still()), (Ok(()), Ok(())));
    assert_eq!(authorities.replace(ca.believed(&[], StaleList::Refuse)), Replaced::Same);
    assert_eq!(authorities.replace(ca.believed(&[ca.list(&[], NOW.0 - 1)], StaleList::Refuse)), Replaced::Changed);
    assert_eq!(still(), Ok(()), "a list that grew old ends no session");
    assert_eq!(by_authority(&peer, NOW.0), Err(Denial::Unavailable), "and lets nobody in");
    authorities.replace(ca.believed(&[ca.list(&[SERIAL], NOW.0 + HOUR)], StaleList::Refuse));
    assert_eq!(still(), Err(Denial::Revoked));
    authorities.replace(other.believed(&[], StaleList::Refuse));
    assert_eq!(still(), Err(Denial::CertificateUntrusted));
    authorities.replace(ca.believed(&[], StaleList::Refuse));
    assert_eq!(still(), Ok(()));
}

#[test]
fn a_certificate_names_its_device_exactly() {
    let ca = Ca::new("devices");
    let mut params = leaf("pump-17");
    params.subject_alt_names = vec![
        SanType::DnsName("dns-name".try_into().expect("a name")),
        SanType::URI("urn:pump:18".try_into().expect("a name")),
        SanType::Rfc822Name("mail@example.net".try_into().expect("a name")),
    ];
    let peer = shown_to(ca.believed(&[], StaleList::Refuse), ca.sign(&params));
    for good in ["pump-17", "dns-name", "urn:pump:18"] {
        assert!(peer.is_of(&id(good)), "{good}");
        assert_eq!(prove(&peer, &id(good), None, NOW), Ok("ca"));
    }
    for bad in ["pump-1", "pump-170", "Pump-17", "DNS-NAME", "mail@example.net", "devices"] {
        assert!(!peer.is_of(&id(bad)), "{bad}");
        assert_eq!(prove(&peer, &id(bad), None, NOW).map_err(|refused| refused.denial), Err(Denial::DeviceMismatch));
    }
    let mut both = leaf("pump-17");
    both.subject_alt_names =
        ["pump-17", "other", "pump-17"].map(|name| SanType::DnsName(name.try_into().expect("a name"))).to_vec();
    let peer = shown_to(ca.believed(&[], StaleList::Refuse), ca.sign(&both));
    let refused = prove(&peer, &id("pump-18"), None, NOW).expect_err("another's");
    assert!(refused.detail.contains("is of \"pump-17\", \"other\"; the client id is pump-18"), "{}", refused.detail);
    let mut twice = leaf("pump-17");
    twice.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "pump-18");
    let peer = shown_to(ca.believed(&[], StaleList::Refuse), ca.sign(&twice));
    assert!(!peer.is_of(&id("pump-17")) && !peer.is_of(&id("pump-18")), "two common names are none");
}

#[test]
fn a_thumbprint_is_read_as_openssl_prints_it() {
    let der = Ca::new("devices").der;
    let thumbprint = Thumbprint::of(&der);
    let plain = thumbprint.to_string();
    let pairs: Vec<String> = thumbprint.bytes().iter().map(|byte| format!("{byte:02X}")).collect();
    for text in [plain.clone(), plain.to_uppercase(), pairs.join(":"), format!("sha256:{plain}")] {
        assert_eq!(text.parse(), Ok(thumbprint), "{text}");
    }
    let (short, _) = plain.split_at(62);
    for bad in ["", short, &format!("{plain}0"), &plain.replace(|c: char| c.is_ascii_digit(), "g"), "sha1:00"] {
        assert_eq!(bad.parse::<Thumbprint>(), Err(ThumbprintError), "{bad:?}");
    }
    assert!(plain.starts_with(&thumbprint.token_id().to_string()));
}

#[test]
fn what_is_no_certificate_is_refused_and_what_is_no_authority_too() {
    let authorities = ClientAuthorities::new(Authorities::default(), ClientAuth::Required);
    for der in [vec![], vec![0x30], b"no certificate".to_vec()] {
        let parsed = PeerCertificate::parse(vec![der.into()], authorities.clone());
        assert_eq!(parsed.map_err(|refused| refused.denial), Err(Denial::CertificateUntrusted));
    }
    assert!(PeerCertificate::parse(Vec::new(), authorities).is_err());
    assert!(Authorities::new(&[b"none".to_vec().into()], &[], StaleList::Refuse).is_err());
    let ca = Ca::new("devices");
    assert!(Authorities::new(&[ca.der], &[b"none".to_vec().into()], StaleList::Refuse).is_err());
}
