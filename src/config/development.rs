//! Development certificates: a CA of this machine's own, and a server certificate under it, both P-256.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use zeroize::Zeroizing;

/// A certificate and its key, in PEM.
pub(super) struct Pem {
    pub(super) certificate: String,
    pub(super) private_key: Zeroizing<String>,
}

/// A certification authority that signs for this machine alone.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub(super) fn create(now: SystemTime) -> Result<(Self, Pem), rcgen::Error> {
        let key = KeyPair::generate()?;
        let params = authority_params(now);
        let pem =
            Pem { certificate: params.self_signed(&key)?.pem(), private_key: Zeroizing::new(key.serialize_pem()) };
        Ok((Self { issuer: Issuer::new(params, key) }, pem))
    }

    /// The one that [`Authority::create`] made before; `None` when the key is not the certificate's, or the
    /// certificate is not one of these.
    pub(super) fn again(certificate_der: &[u8], private_key_pem: &str, now: SystemTime) -> Option<Self> {
        let key = KeyPair::from_pem(private_key_pem).ok()?;
        let holds = |part: &[u8]| certificate_der.windows(part.len()).any(|window| window == part);
        let is_ours = holds(key.public_key_raw()) && holds(AUTHORITY_NAME.as_bytes());
        is_ours.then(|| Self { issuer: Issuer::new(authority_params(now), key) })
    }

    /// A server certificate for this machine and for `names`.
    pub(super) fn issue_server(&self, names: &[String], now: SystemTime) -> Result<Pem, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("localhost", String::as_str));
        params.subject_alt_names = alternative_names(names)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // RFC 5280 §4.2.1.1; Python refuses a certificate without it.
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = ((now - MARGIN).into(), (now + SERVER_LIFETIME).into());
        Ok(Pem {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            private_key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn authority_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = ((now - MARGIN).into(), (now + AUTHORITY_LIFETIME).into());
    params
}

fn alternative_names(names: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    let mut all = vec![
        SanType::DnsName("localhost".try_into()?),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    for name in names {
        let name = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        };
        if !all.contains(&name) {
            all.push(name);
        }
    }
    Ok(all)
}

const AUTHORITY_NAME: &str = "Tollgate development CA";
/// A device whose clock is a little behind can connect at once.
const MARGIN: Duration = Duration::from_hours(24);
/// Under 825 days, the most that Apple's platforms take.
const SERVER_LIFETIME: Duration = Duration::from_hours(730 * 24);
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(3_652 * 24);
