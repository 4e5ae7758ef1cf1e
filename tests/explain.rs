//! `tollgate token explain`, as an operator asks it: each of the usual mistakes is made, by hand, and named.

mod support;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use support::{claims_with, device_key, folder, jwt_of, jwt_with, sas, sas_until, unix_now};

/// Tries it until a token of it says what the mistake needs, such as a plus in the signature.
fn expiry_where(says: impl Fn(&str) -> bool, made: impl Fn(u64) -> String) -> String {
    (0..).map(|n| made(unix_now() + 1000 + n)).find(|token| says(token)).expect("one of them does")
}

#[test]
fn each_usual_mistake_with_a_sas_token_is_named() {
    let room = room();
    let (upper, lower, plain) =
        ("localhost%2Fdevices%2Fpump-17", "localhost%2fdevices%2fpump-17", "localhost/devices/pump-17");
    let key = decoded(&device_key("pump-17"));
    let soon = unix_now() + 600;
    let made = |sr: &str, signed: &str, key: &[u8]| token(sr, signed, &soon.to_string(), key, escaped);
    let good = made(upper, upper, &key);
    let module = "localhost/devices/pump-17/modules/camera";
    for (what, token, device, denial, named) in [
        (
            "a key that was not decoded",
            made(upper, upper, device_key("pump-17").as_bytes()),
            "pump-17",
            "signature_invalid",
            "the key was taken as UTF-8 instead of base64",
        ),
        (
            "a key that was decoded, and must not be",
            format!("{}&skn=bus", made(upper, upper, &decoded(&device_key("bus")))),
            "pump-17",
            "signature_invalid",
            "was base64-decoded, and this policy takes it as UTF-8",
        ),
        (
            "milliseconds",
            sas_until("pump-17", soon * 1000),
            "pump-17",
            "credential_malformed",
            "`se` is in milliseconds",
        ),
        (
            "`sr` signed as it is decoded",
            made(upper, plain, &key),
            "pump-17",
            "signature_invalid",
            "`sr` was signed in its decoded form",
        ),
        (
            "`sr` signed in lower case",
            made(plain, lower, &key),
            "pump-17",
            "signature_invalid",
            "(lower case), and sent in another form",
        ),
        (
            "encoded twice",
            made("localhost%252Fdevices%252Fpump-17", "x", &key),
            "pump-17",
            "credential_malformed",
            "`sr` is percent-encoded twice",
        ),
        (
            "`sig` encoded twice",
            token(upper, upper, &soon.to_string(), &key, |sig| escaped(&escaped(sig))),
            "pump-17",
            "credential_malformed",
            "`sig` is percent-encoded twice",
        ),
        (
            "a plus that became a space",
            expiry_where(
                |token| token.contains(' ') && token.matches(' ').count() > 1,
                |at| token(upper, upper, &at.to_string(), &key, |sig| sig.replace('+', " ")),
            ),
            "pump-17",
            "credential_malformed",
            "its `+` became a space",
        ),
        (
            "of another device",
            good.clone(),
            "fan-2",
            "device_mismatch",
            "`sr` names another device: have it made for localhost/devices/fan-2",
        ),
        (
            "a device's, for its module",
            good.clone(),
            "pump-17/camera",
            "device_mismatch",
            "for the module `sr` is localhost/devices/pump-17/modules/camera",
        ),
        (
            "a module's, for its device",
            made(module, module, &decoded(&device_key("camera"))),
            "pump-17",
            "device_mismatch",
            "names the module camera",
        ),
        (
            "wider than one device",
            made("localhost", "localhost", &key),
            "pump-17",
            "hub_wide_token",
            "`sr` is wider than one device: have it made for localhost/devices/pump-17",
        ),
        ("`Bearer`", format!("Bearer {good}"), "pump-17", "credential_malformed", "`Bearer ` stands before the token"),
        (
            "quotes",
            format!("\"{good}\""),
            "pump-17",
            "credential_malformed",
            "stands in quotes; without that it is good",
        ),
        (
            "another host",
            made("hub.example/devices/pump-17", "hub.example/devices/pump-17", &key),
            "pump-17",
            "host_mismatch",
            "add it to `aliases`",
        ),
        (
            "a slash at the end",
            made("localhost/devices/pump-17/", "localhost/devices/pump-17/", &key),
            "pump-17",
            "credential_malformed",
            "`sr` ends with a slash",
        ),
        (
            "a clock that is late",
            sas_until("pump-17", unix_now() - 900),
            "pump-17",
            "expired",
            "its clock is at least 9",
        ),
        (
            "the key of another",
            made(upper, upper, &decoded(&device_key("fan-2"))),
            "pump-17",
            "signature_invalid",
            "under a key of device:fan-2",
        ),
        (
            "the key of a group",
            made("localhost/devices/line7-a", "localhost/devices/line7-a", &decoded(&device_key("line7"))),
            "line7-a",
            "signature_invalid",
            "not with the one derived from it",
        ),
        (
            "no `skn`",
            made(upper, upper, &decoded(&device_key("policy"))),
            "pump-17",
            "signature_invalid",
            "policy:site (the token lacks its `skn`)",
        ),
        (
            "a connection string",
            format!("HostName=localhost;DeviceId=pump-17;SharedAccessKey={}", device_key("pump-17")),
            "pump-17",
            "credential_malformed",
            "a connection string with the key in it",
        ),
    ] {
        check(&room, what, &token, device, denial, named);
    }
}

#[test]
fn each_usual_mistake_with_a_jwt_is_named() {
    let room = room();
    let now = unix_now();
    let with = |changes: Value| jwt_with("pump-17", changes);
    let headed = |header: Value| jwt_of(&header, &claims_with("pump-17", json!({})));
    for (what, token, denial, named) in [
        ("another audience", with(json!({"aud": "other"})), "audience_mismatch", "add it to its `audience`"),
        (
            "nearly the audience",
            with(json!({"aud": "Localhost"})),
            "audience_mismatch",
            "`aud` is nearly \"localhost\"",
        ),
        (
            "another issuer",
            with(json!({"iss": "https://other.example"})),
            "issuer_unknown",
            "under a key of the issuer \"factory\"",
        ),
        (
            "a slash behind the issuer",
            with(json!({"iss": "https://id.example/"})),
            "issuer_unknown",
            "`iss` is nearly that of the issuer",
        ),
        (
            "another kid",
            headed(json!({"alg": "HS256", "kid": "k9"})),
            "key_unknown",
            "under the issuer's key k1 (HS256): the token names another",
        ),
        (
            "the algorithm of another key",
            headed(json!({"alg": "HS512", "kid": "k1"})),
            "algorithm_mismatch",
            "`alg` is HS512; the key issuer:factory/k1 is for HS256",
        ),
        (
            "issued in the future",
            with(json!({"iat": now + 300, "exp": now + 600})),
            "issued_in_future",
            "s ahead of ours",
        ),
        ("not valid yet", with(json!({"nbf": now + 300})), "not_yet_valid", "s ahead of ours"),
        (
            "milliseconds",
            with(json!({"iat": now * 1000, "exp": (now + 600) * 1000})),
            "issued_in_future",
            "`iat` is in milliseconds",
        ),
        (
            "an expiry in milliseconds",
            with(json!({"exp": (now + 600) * 1000})),
            "lifetime_too_long",
            "`exp` is in milliseconds",
        ),
        (
            "an encrypted token",
            format!("{}.AAAA.AAAA", with(json!({}))),
            "credential_malformed",
            "an encrypted token (JWE)",
        ),
        ("padding", format!("{}=", with(json!({}))), "credential_malformed", "base64url without padding"),
        (
            "`Bearer`",
            format!("Bearer {}", with(json!({}))),
            "credential_malformed",
            "`Bearer ` stands before the token",
        ),
    ] {
        check(&room, what, &token, "pump-17", denial, named);
    }
}

#[test]
fn a_token_whose_key_left_at_a_rotation_is_told_when_that_was() {
    let room = room();
    let token = sas("pump-17");
    let rotated = tollgate(&room, "", &["key", "rotate", "device:pump-17", "--both"]);
    assert!(rotated.status.success(), "{rotated:?}");
    check(
        &room,
        "a key that left",
        &token,
        "pump-17",
        "signature_invalid",
        "The keys of device:pump-17 were replaced last at 2",
    );
}

#[test]
fn what_a_good_token_needs_besides_itself_is_said() {
    let room = room();
    let accept = |kind: &str| format!("[[device]]\nid = \"with-{kind}\"\naccept = [\"certificate+{kind}\"]\n");
    let mut identities = fs::read_to_string(room.join("config/identities.toml")).expect("read");
    identities.push_str(&format!("{}primary_key = \"{}\"\n", accept("sas"), device_key("with-sas")));
    identities.push_str(&accept("jwt"));
    fs::write(room.join("config/identities.toml"), identities).expect("written");
    let digest = [0xA5; 32];
    let bound = json!({"cnf": {"x5t#S256": BASE64_URL_SAFE_NO_PAD.encode(digest)}});
    let (beside, binding) = ("beside a client certificate only", "bound to one client certificate (`cnf`)");
    for (device, token, said, unsaid) in [
        ("pump-17", sas("pump-17"), vec![], vec![beside, binding]),
        ("pump-17", jwt_with("pump-17", json!({})), vec![], vec![beside, binding]),
        ("with-sas", sas("with-sas"), vec![beside, "\"sas\"", "the certificate of with-sas"], vec![binding]),
        ("with-jwt", jwt_with("with-jwt", json!({})), vec![beside, "\"jwt\""], vec![binding]),
        ("pump-17", jwt_with("pump-17", bound.clone()), vec![binding, THUMBPRINT], vec![beside]),
        ("with-jwt", jwt_with("with-jwt", bound), vec![beside, binding, THUMBPRINT], vec![]),
    ] {
        let ran = tollgate(&room, &token, &["token", "explain", "-", "--device", device, "--json"]);
        let answer: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        assert_eq!((&answer["admitted"], ran.status.code()), (&json!(true), Some(0)), "{device}: {answer}");
        let notes = answer["near_misses"].to_string().replace("\\\"", "\"");
        assert!(said.iter().all(|what| notes.contains(what)), "{device}: {said:?} in {notes}");
        assert!(!unsaid.iter().any(|what| notes.contains(what)), "{device}: none of {unsaid:?} in {notes}");
    }
    let ran = tollgate(&room, &sas("with-sas"), &["token", "explain", "-", "--device", "with-sas"]);
    let text = String::from_utf8_lossy(&ran.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("admitted as with-sas ! `accept` takes a token of the kind \"sas\" beside"), "{text}");
}

#[track_caller]
fn check(room: &Path, what: &str, token: &str, device: &str, denial: &str, named: &str) {
    let ran = tollgate(room, token, &["token", "explain", "-", "--device", device, "--json"]);
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{what}: {error}: {ran:?}"));
    assert_eq!((said["admitted"].as_bool(), said["denial"].as_str()), (Some(false), Some(denial)), "{what}: {said}");
    let text = [&said["near_misses"], &said["steps"]].map(Value::to_string).join(" ").replace("\\\"", "\"");
    assert!(text.contains(named), "{what}: {named:?} is not in {text}");
    assert_eq!(ran.status.code(), Some(1), "{what}");
}

fn tollgate(room: &Path, input: &str, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(room).env_remove("TOLLGATE_TOKEN").env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    // A command that does not read its input closes it.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("ended")
}

/// A token that says `sr`, over a signature of `signed`.
fn token(sr: &str, signed: &str, se: &str, key: &[u8], escape: impl Fn(&str) -> String) -> String {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    hmac.update(format!("{signed}\n{se}").as_bytes());
    format!(
        "SharedAccessSignature sr={sr}&sig={}&se={se}",
        escape(&BASE64_STANDARD.encode(hmac.finalize().into_bytes()))
    )
}

fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

fn decoded(key: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(key).expect("base64")
}

/// A folder with files of a gateway that does not run.
fn room() -> PathBuf {
    let folder = folder("explain");
    ["config", "var"].iter().for_each(|name| fs::create_dir(folder.join(name)).expect("made"));
    fs::write(folder.join("config/gateway.toml"), GATEWAY).expect("written");
    fs::write(folder.join("config/revocations.jsonl"), "").expect("written");
    let keys = ["pump-17", "camera", "fan-2", "line7", "policy", "bus"];
    let identities = keys
        .iter()
        .fold(IDENTITIES.to_owned(), |text, whose| text.replace(&format!("key of {whose}"), &device_key(whose)));
    private(&folder.join("config/identities.toml"), &identities);
    private(&folder.join("issuer.secret"), support::ISSUER_SECRET);
    folder
}

fn private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).expect("made");
    file.write_all(text.as_bytes()).expect("written");
}

const GATEWAY: &str = "[[listener]]\nbind = \"127.0.0.1:1883\"\ntransport = \"tcp\"\n";

/// Of 32 bytes `A5`.
const THUMBPRINT: &str = "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5";

const IDENTITIES: &str = r#"
[[device]]
id = "pump-17"
primary_key = "key of pump-17"
[[module]]
id = "pump-17/camera"
primary_key = "key of camera"
[[device]]
id = "fan-2"
primary_key = "key of fan-2"
[[group]]
prefix = "line7-"
primary_key = "key of line7"
[[policy]]
name = "site"
resource = "localhost"
primary_key = "key of policy"
[[policy]]
name = "bus"
resource = "localhost"
key_encoding = "utf8"
primary_key = "key of bus"
[[issuer]]
name = "factory"
iss = "https://id.example"
audience = ["localhost"]
algorithms = ["HS256"]
[[issuer.key]]
kid = "k1"
secret_file = "issuer.secret"
key_encoding = "utf8"
"#;
