//! Tokens minted without the code under test: RFC 2104 and RFC 7515 by hand.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

/// The primary key of a device in these tests: its own, the same in every run, in base64.
pub fn device_key(device: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(format!("primary key of {device}")))
}

/// A SAS token of the device that is good for an hour.
pub fn sas(device: &str) -> String {
    sas_until(device, unix_now() + 3600)
}

/// A SAS token of the device with this expiry.
pub fn sas_until(device: &str, expiry: u64) -> String {
    let resource = utf8_percent_encode(&format!("localhost/devices/{device}"), NON_ALPHANUMERIC).to_string();
    let key = BASE64_STANDARD.decode(device_key(device)).unwrap();
    let signature = BASE64_STANDARD.encode(hmac(&key, format!("{resource}\n{expiry}").as_bytes()));
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}")
}

/// A JWT (HS256) of the device with this expiry and id.
pub fn jwt(device: &str, expiry: u64, id: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT","kid":"k1"}"#);
    let issued = unix_now().min(expiry - 1);
    let claims = format!(
        r#"{{"iss":"https://id.example","aud":"localhost","sub":"{device}","iat":{issued},"exp":{expiry},"jti":"{id}"}}"#
    );
    let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(hmac(ISSUER_SECRET.as_bytes(), signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    hmac.update(text);
    hmac.finalize().into_bytes().to_vec()
}

/// What the issuer of these tests signs with.
pub const ISSUER_SECRET: &str = "an issuer's secret of sixty-four bytes, made for these tests 0001";
