//! What is usually wrong with JWTs.

use super::{
    super::{Issuer, JwtToken, Keyring, PublicKey, Refused, VerifyingKey, shown},
    Asked, nearly,
};
use crate::{denial::Denial, id::DeviceId};

pub(super) fn of_jwt(token: &JwtToken<'_>, refused: &Refused, asked: &Asked<'_>, found: &mut Vec<String>) {
    let issuer = token.iss().and_then(|iss| asked.keyring.issuer(iss));
    match (refused.denial, issuer) {
        (Denial::IssuerUnknown, _) => of_unknown_issuer(token, asked, found),
        (Denial::AudienceMismatch, issuer) => of_audience(token, issuer, asked, found),
        (Denial::SignatureInvalid | Denial::KeyUnknown | Denial::AlgorithmMismatch, Some(issuer)) => {
            of_signature(token, issuer, asked, found);
        }
        (Denial::SignatureInvalid | Denial::KeyUnknown | Denial::AlgorithmMismatch, None) => {
            let own = refused.device.as_ref().or(asked.device).and_then(|id| asked.keyring.find(id));
            let keys = own.and_then(|own| own.device).map_or(&[] as &[PublicKey], |device| &device.public_keys);
            if let Some(public) = keys.iter().find(|public| token.is_signed_by(&public.key)) {
                found.push(format!(
                    "The signature verifies under the device's key {} ({}): `kid` or `alg` of the token name another.",
                    public.slot(),
                    public.key.algorithm()
                ));
            } else if !of_form(token, keys.iter().map(|public| &public.key), found) {
                of_other_makers(token, asked.keyring, found);
            }
        }
        (Denial::DeviceMismatch, _) => {
            if let Some(device) = asked.device {
                found.push(format!("It was made for another device: have it made for {device}."));
            }
        }
        _ => {}
    }
}

fn of_unknown_issuer(token: &JwtToken<'_>, asked: &Asked<'_>, found: &mut Vec<String>) {
    let iss = token.iss().unwrap_or_default();
    if let Some(near) = asked.keyring.issuers().find(|issuer| !iss.is_empty() && nearly(&issuer.iss, iss)) {
        found.push(format!(
            "`iss` is nearly that of the issuer {:?}, which is {}: it must be the same to the last slash.",
            near.name,
            shown(&near.iss)
        ));
        return;
    }
    if token.iss().is_none() && token.text("sub").is_none() && asked.device.is_none() {
        found.push("Nothing in it says whose it is: ask with --device about the device that presents it.".into());
    }
    of_other_makers(token, asked.keyring, found);
}

fn of_audience(token: &JwtToken<'_>, issuer: Option<&Issuer>, asked: &Asked<'_>, found: &mut Vec<String>) {
    let audience = token.audience();
    let ours: Vec<&str> = match issuer {
        Some(issuer) => issuer.audience.iter().map(|name| &**name).collect(),
        None => asked.rules.device_audience.iter().map(String::as_str).collect(),
    };
    if let Some(near) = ours.iter().find(|ours| audience.iter().any(|aud| nearly(ours, aud))) {
        found.push(format!(
            "`aud` is nearly {}: it must be the same, in upper and lower case and to the last slash.",
            shown(near)
        ));
        return;
    }
    match issuer {
        Some(issuer) => found.push(format!(
            "The signature is right: if {:?} makes tokens for this gateway under that name, add it to its `audience`.",
            issuer.name
        )),
        None => found.push(format!("The signature is right: have the device write {} as `aud`.", ours.join(" or "))),
    }
}

fn of_signature(token: &JwtToken<'_>, issuer: &Issuer, asked: &Asked<'_>, found: &mut Vec<String>) {
    let keys = || issuer.keys.iter().map(|(_, key)| key);
    if let Some((kid, key)) = issuer.keys.iter().find(|(_, key)| token.is_signed_by(key)) {
        let kid = kid.as_deref().unwrap_or("without `kid`");
        found.push(format!(
            "The signature verifies under the issuer's key {kid} ({}): the token names another.",
            key.algorithm()
        ));
    } else if !of_form(token, keys(), found) {
        of_other_makers(token, asked.keyring, found);
    }
}

/// A key that is right and was used in a wrong way; says whether one was found.
fn of_form<'k>(
    token: &JwtToken<'_>,
    keys: impl Iterator<Item = &'k VerifyingKey> + Clone,
    found: &mut Vec<String>,
) -> bool {
    for (text_as_bytes, bytes_as_text) in keys.clone().filter(|key| key.algorithm().is_hmac()).map(other_encodings) {
        if text_as_bytes.is_some_and(|key| token.is_signed_by(&key)) {
            found.push(
                "The signature verifies if the printed base64 text is the secret: whoever made it did not decode it. \
                 Have it decoded, or set `key_encoding = \"utf8\"` at [[issuer.key]]."
                    .into(),
            );
            return true;
        }
        if bytes_as_text.is_some_and(|key| token.is_signed_by(&key)) {
            found.push(
                "The signature verifies if the secret is base64-decoded, and here it is taken as it is printed: see \
                 `key_encoding` at [[issuer.key]]."
                    .into(),
            );
            return true;
        }
    }
    if keys.clone().any(|key| token.is_signed_with_text_of(key)) {
        found.push(
            "It is an HS256 token whose secret is the text of the public key, which everybody may have: whoever made it \
             tries to forge, or signs with the wrong file. Sign with the private key."
                .into(),
        );
        return true;
    }
    if let Some(raw) = token.signature_out_of_der()
        && keys.clone().any(|key| token.would_be_signed_by(key, &raw))
    {
        found.push("The signature verifies, but it is in DER (ASN.1): a JWT has the two numbers side by side.".into());
        return true;
    }
    false
}

/// Whether somebody else's key made it.
fn of_other_makers(token: &JwtToken<'_>, keyring: &Keyring, found: &mut Vec<String>) {
    let by_issuer = |issuer: &&Issuer| issuer.keys.iter().any(|(_, key)| token.is_signed_by(key));
    if let Some(other) = keyring.issuers().find(by_issuer) {
        found.push(format!(
            "The signature verifies under a key of the issuer {:?}, and `iss` names another.",
            other.name
        ));
        return;
    }
    let with_keys =
        keyring.devices().flat_map(|(id, device)| device.public_keys.iter().map(move |public| (id, public)));
    let mut tried = with_keys.filter(|(_, public)| public.key.algorithm() == token.algorithm()).take(KEYS_TRIED_MAX);
    let by_device: Option<(&DeviceId, &PublicKey)> = tried.find(|(_, public)| token.is_signed_by(&public.key));
    if let Some((id, _)) = by_device {
        found.push(format!(
            "The signature verifies under a public key of the device {id}: leave `iss` out, or write the device's id there."
        ));
    }
}

/// The same secret, had its printed form been read in the other encoding.
fn other_encodings(key: &VerifyingKey) -> (Option<VerifyingKey>, Option<VerifyingKey>) {
    (key.of_its_text(), key.of_what_it_decodes_to())
}

/// Below a second on the operator's time.
const KEYS_TRIED_MAX: usize = 5_000;
