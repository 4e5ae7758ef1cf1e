//! Tokens minted without the code under test: RFC 2104 and RFC 7515 by hand.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
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
    sas_for(&format!("localhost/devices/{device}"), &device_key(device), &expiry.to_string())
}

/// A SAS token for any resource, signed with any key (base64); what follows the expiry in the token is not signed.
pub fn sas_for(resource: &str, key: &str, expiry_and_more: &str) -> String {
    let resource = utf8_percent_encode(resource, NON_ALPHANUMERIC).to_string();
    let expiry = expiry_and_more.split('&').next().unwrap_or_default();
    let key = BASE64_STANDARD.decode(key).unwrap();
    let signature = BASE64_STANDARD.encode(hmac(&key, format!("{resource}\n{expiry}").as_bytes()));
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry_and_more}")
}

/// A JWT (HS256) of the device with this expiry and id.
pub fn jwt(device: &str, expiry: u64, id: &str) -> String {
    jwt_with(device, json!({"iat": unix_now().min(expiry - 1), "exp": expiry, "jti": id}))
}

/// The same with claims that are added, or that replace what a good token says; null leaves one out.
pub fn jwt_with(device: &str, claims: Value) -> String {
    jwt_of(&json!({"alg": "HS256", "typ": "JWT", "kid": "k1"}), &claims_with(device, claims))
}

/// What a good token of the device says, with such changes.
pub fn claims_with(device: &str, changes: Value) -> Value {
    let now = unix_now();
    let mut claims = json!({"iss": "https://id.example", "aud": "localhost", "sub": device, "iat": now, "exp": now + 600,
        "jti": format!("{device}-{now}")});
    for (name, value) in changes.as_object().expect("claims are an object") {
        claims.as_object_mut().expect("claims are an object").insert(name.clone(), value.clone());
    }
    claims.as_object_mut().expect("claims are an object").retain(|_, value| !value.is_null());
    claims
}

/// A JWT with this header and these claims, signed by HS256 whatever the header says.
pub fn jwt_of(header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
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
