//! What a client certificate adds to a token, or stands for alone.

use std::sync::Arc;

use super::Identities;
use crate::{
    credential::{
        ClientAuth, Found, Identity, PeerCertificate, Refused, TokenKind, VerifyRules, certificate_key, prove, vouch,
    },
    denial::Denial,
    id::{DeviceId, KeyName},
    policy::{CertificateRole, Grant, ShownCertificate},
    time::UnixSeconds,
};

/// Holds a believed token to the certificate that it needs: its own `cnf` (RFC 8705 §3), the `accept` of device or
/// gateway, the listener. Answers with the kind that the whole is, and with what the certificate was needed for. To be
/// asked for every token of a connection, a renewal's too.
///
/// # Errors
/// [`Denial::CertificateRequired`], [`Denial::CertificateMismatch`], or what is wrong with the certificate.
pub(super) fn check(
    shown: Option<&Arc<PeerCertificate>>,
    identity: &Identity,
    found: &Found<'_>,
    rules: &VerifyRules,
    now: UnixSeconds,
) -> Result<(TokenKind, Option<ShownCertificate>), Refused> {
    let kind = identity.kind();
    if kind == TokenKind::Certificate {
        return Ok((kind, shown.map(|peer| as_role(peer, CertificateRole::Trusted, None))));
    }
    let needed = found.needs_certificate(kind, &rules.accept);
    let Some(peer) = shown else {
        return match (identity.certificate_binding(), needed) {
            (Some(_), _) => {
                Err(mismatch("The token is bound to a client certificate (`cnf`), and the connection has none.".into()))
            }
            (None, true) => {
                let detail =
                    format!("`accept` takes a token of the kind {:?} beside a client certificate only.", kind.as_str());
                Err(Refused::new(Denial::CertificateRequired, detail))
            }
            (None, false) => Ok((kind, None)),
        };
    };
    let bound = identity.certificate_binding();
    if bound.is_some_and(|digest| digest != peer.thumbprint().bytes()) {
        let detail = format!("The token is bound to another client certificate (`cnf`) than {}.", peer.shown());
        return Err(mismatch(detail));
    }
    let trusted = |slot| as_role(peer, CertificateRole::Trusted, Some(certificate_key(identity.device(), slot)));
    let role = if needed {
        let slot = prove(peer, identity.device(), Some(found), now)?;
        return Ok((kind.with_certificate(), Some(trusted(slot))));
    } else if peer.authorities().demand() == ClientAuth::Required {
        // Nobody comes in by one that nobody vouches for. Whose it is does not matter where a token says who comes: a site
        // may give one certificate to all of its devices.
        return Ok((kind, Some(trusted(vouch(peer, Some(found), now)?))));
    } else if bound.is_some() {
        peer.check_dates(now)?;
        CertificateRole::Bound
    } else {
        CertificateRole::Shown
    };
    Ok((kind, Some(as_role(peer, role, None))))
}

/// Whether what a session's certificate was needed for still holds. Dates are its timer's business.
pub(super) fn still_holds(grant: &Grant, identities: &Identities, now: UnixSeconds) -> Result<(), Refused> {
    let Some(ShownCertificate { peer, role: CertificateRole::Trusted, .. }) = &grant.certificate else { return Ok(()) };
    if pinned_slot(peer, identities, &grant.device).is_some() {
        return Ok(());
    }
    peer.check_authority_still(now)
}

fn pinned_slot(peer: &PeerCertificate, identities: &Identities, device: &DeviceId) -> Option<&'static str> {
    let found = identities.keyring().find(device)?;
    found.device?.thumbprints.slot_of(peer.thumbprint())
}

fn as_role(peer: &Arc<PeerCertificate>, role: CertificateRole, key: Option<KeyName>) -> ShownCertificate {
    ShownCertificate { peer: peer.clone(), role, key }
}

fn mismatch(detail: String) -> Refused {
    Refused::new(Denial::CertificateMismatch, detail)
}
