//! Client certificates: whether one proves that a device asks.

use super::problem::{Code, Problem};
use crate::{
    credential::{Facts, Keyring, PeerCertificate, RevocationList, certificate_key, prove},
    id::DeviceId,
    time::UnixSeconds,
};

/// Whether the certificate is that device's, by its thumbprint or by the word of an authority of this listener, and is not
/// revoked. Whose it is instead, only the operator is told.
pub(super) fn check(
    peer: &PeerCertificate,
    device: &DeviceId,
    keyring: &Keyring,
    list: &RevocationList,
    now: UnixSeconds,
) -> Result<(), Problem> {
    let not_proved = |why: String| {
        let what = "The client certificate does not prove that this device asks.";
        Problem::new(Code::CallerUnknown, what).because(why)
    };
    let slot = prove(peer, device, keyring.find(device).as_ref(), now).map_err(|refused| not_proved(refused.detail))?;
    let key = certificate_key(device, slot);
    let facts = Facts {
        token_id: peer.thumbprint().token_id(),
        jti: None,
        issuer: None,
        policy: None,
        device,
        key: &key,
        // What was issued before a time are tokens; the device is asked about below.
        issued_at: Some(now),
        expires_at: peer.not_after(),
    };
    match list.matches(&facts, now) {
        Some(hit) => Err(not_proved(hit.to_string())),
        None => Ok(()),
    }
}
