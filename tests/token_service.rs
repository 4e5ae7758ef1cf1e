//! The token service over real TLS sockets: who gets which token, what refuses it, and what happens to a refresh token that
//! somebody else has, too.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};

use support::{Answer, Gateway, HttpAnswer, Https, Hub, Login, Plan, Version, free_port, sas, unix_now, until};

/// A gateway with a token service, and a client of it.
struct Place {
    gateway: Gateway,
    https: Https,
}

impl Place {
    /// With the callers `site` (all rights, devices that begin with `d`) and `narrow` (`d1` alone, publishing, JWTs of a
    /// minute), and what else the test wants under `[token_service]`.
    fn with(more: &str) -> Self {
        Self::launched(more, |_| {})
    }

    fn launched(more: &str, change: impl FnOnce(&Path)) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let hash = Sha256::digest(NARROW).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let section = format!(
            r#"[token_service]
bind = "{address}"
certificate = "server.pem"
private_key = "server.key"
{more}
[[token_service.caller]]
name = "site"
key_file = "site.key"
prefix = "d"
[[token_service.caller]]
name = "narrow"
key_sha256 = "{hash}"
devices = ["d1"]
rights = ["publish"]
kinds = ["jwt"]
token_lifetime_max = "1m"
refresh = false
"#
        );
        let plan = Plan::new(Hub::Embedded).devices(20).limit(&section).identities_and(IDENTITIES);
        let mut gateway = plan.launch(|folder| {
            write_secret(&folder.join("site.key"), SITE);
            write_secret(&folder.join("writers.key"), "d3JpdGVycyBtYXkgb25seSB3cml0ZSwgbm90aGluZyE=");
            change(folder);
        });
        gateway.until_ready();
        let https = Https::new(address, gateway.ca_pem());
        Self { gateway, https }
    }

    fn ask(&self, key: &str, body: Value) -> HttpAnswer {
        self.https.post("/v1/tokens", &[("Authorization", &format!("Bearer {key}"))], &body)
    }

    /// A token of a device with a refresh token; answers both.
    #[track_caller]
    fn begin(&self, device: &str, kind: &str) -> (String, String) {
        let answer = self.ask(SITE, json!({"device": device, "kind": kind, "refresh": true}));
        assert_eq!(answer.status, 200, "{answer:?}");
        (answer.text("token"), answer.text("refresh_token"))
    }

    fn refresh(&self, token: &str) -> HttpAnswer {
        self.https.post("/v1/tokens", &[], &json!({"refresh_token": token}))
    }

    /// The next token and refresh token.
    #[track_caller]
    fn refreshed(&self, token: &str) -> (String, String) {
        let answer = self.refresh(token);
        assert_eq!(answer.status, 200, "{answer:?}");
        (answer.text("token"), answer.text("refresh_token"))
    }

    fn list(&self) -> String {
        fs::read_to_string(self.gateway.folder.join("revocations.jsonl")).unwrap()
    }

    fn log_in(&self, device: &str, token: &str) -> Answer {
        self.gateway.open(Version::V5).log_in(&Login::new(Version::V5, device, token))
    }
}

#[test]
fn a_service_key_gets_good_tokens_within_its_bounds_and_nothing_beyond() {
    let place = Place::with("");
    for kind in ["sas", "jwt"] {
        let answer = place.ask(SITE, json!({"device": "d0", "kind": kind, "ttl": 600}));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!((answer.text("device"), answer.text("kind")), ("d0".into(), kind.into()));
        let (lives, renew) = (answer.body["expires_in"].as_u64().unwrap(), answer.body["renew_in"].as_u64().unwrap());
        assert!((540..=600).contains(&lives) && renew == lives * 8 / 10, "{answer:?}");
        assert!(answer.body.get("refresh_token").is_none() && answer.head.contains("cache-control: no-store"));
        let token = answer.text("token");
        place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &token));
        assert_eq!(place.log_in("d1", &token), Answer::Connack(0x85), "it is d0's alone");
    }
    let refused = |key: &str, body: Value| {
        let answer = place.ask(key, body);
        assert!(answer.head.contains("content-type: application/problem+json"), "{answer:?}");
        assert!(answer.body.get("token").is_none());
        (answer.status, answer.code().to_owned())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    // The whole id counts, not how it begins.
    assert_eq!(refused(NARROW, json!({"device": "d10"})), is(403, "device_not_allowed"));
    assert_eq!(refused(NARROW, json!({"device": "D1"})), is(403, "device_not_allowed"));
    assert_eq!(refused(SITE, json!({"device": "service"})), is(403, "device_not_allowed"));
    // What there is beyond the bounds is not told: neither of a device that is there nor of one that is not.
    assert_eq!(refused(SITE, json!({"device": "x"})), is(403, "device_not_allowed"));
    assert_eq!(refused(SITE, json!({"device": "d99"})), is(403, "device_not_served"));
    assert_eq!(refused(SITE, json!({"device": "d-off"})), is(403, "device_not_served"));
    assert_eq!(refused(NARROW, json!({"device": "d1", "rights": ["subscribe"]})), is(403, "rights_not_allowed"));
    assert_eq!(refused(NARROW, json!({"device": "d1", "kind": "sas"})), is(403, "kind_not_allowed"));
    assert_eq!(refused(NARROW, json!({"device": "d1", "ttl": 61})), is(422, "lifetime_too_long"));
    assert_eq!(refused(NARROW, json!({"device": "d1", "refresh": true})), is(403, "refresh_not_allowed"));
    assert_eq!(refused(SITE, json!({"device": "d0", "ttl": 86_401})), is(422, "lifetime_too_long"));
    assert_eq!(refused(SITE, json!({"device": "d0", "kind": "jwt", "audience": "x"})), is(400, "request_malformed"));
    assert_eq!(refused(SITE, json!({"device": "d0", "rights": []})), is(400, "request_malformed"));
    assert_eq!(refused(SITE, json!({"device": "d0", "expires": 5})), is(400, "request_malformed"));
    assert_eq!(refused(SITE, json!({"device": "d0/../d1"})), is(400, "request_malformed"));
    assert_eq!(refused(SITE, json!({})), is(400, "request_malformed"));
    for wrong in ["", "x", &SITE.to_lowercase(), &format!("{SITE}x")] {
        assert_eq!(refused(wrong, json!({"device": "d0"})), is(401, "caller_unknown"));
    }
    let nobody = place.https.post("/v1/tokens", &[], &json!({"device": "d0"}));
    assert_eq!((nobody.status, nobody.code()), (401, "caller_unknown"));
    assert_eq!(place.ask(NARROW, json!({"device": "d1", "ttl": 60})).status, 200);
}

#[test]
fn fewer_rights_are_a_claim_of_a_jwt_and_a_policy_of_a_sas_token() {
    let place = Place::with("");
    for kind in ["jwt", "sas"] {
        let answer = place.ask(SITE, json!({"device": "d2", "kind": kind, "rights": ["publish"]}));
        assert_eq!((answer.status, &answer.body["rights"]), (200, &json!(["publish"])), "{answer:?}");
        let mut device =
            place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d2", &answer.text("token")));
        device.publish_acknowledged("devices/d2/messages/events/", b"may write");
        assert_eq!(device.subscribe("devices/d2/messages/devicebound/#", 1), 0x87, "{kind}: may not read");
    }
    let none = place.ask(SITE, json!({"device": "d2", "kind": "sas", "rights": ["subscribe"]}));
    assert_eq!((none.status, none.code()), (422, "cannot_sign"), "no policy has just these");
    let line = place.ask(SITE, json!({"device": "d2", "kind": "jwt", "rights": ["publish"], "refresh": true}));
    let wider = json!({"refresh_token": line.text("refresh_token"), "rights": ["publish", "subscribe"]});
    let wider = place.https.post("/v1/tokens", &[], &wider);
    assert_eq!((wider.status, wider.code()), (403, "rights_not_allowed"), "a line never widens");
    let next = place.refresh(&line.text("refresh_token"));
    assert_eq!((next.status, &next.body["rights"]), (200, &json!(["publish"])), "and a refusal uses nothing up");
}

#[test]
fn a_refresh_token_that_is_used_twice_ends_its_line_and_its_sessions() {
    for kind in ["jwt", "sas"] {
        let place = Place::with("");
        let (_, stolen) = place.begin("d3", kind);
        let (_, second) = place.refreshed(&stolen);
        let (token, third) = place.refreshed(&second);
        let mut session = place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d3", &token));
        let (others, other_line) = place.begin("d4", kind);
        let mut other = place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d4", &others));

        let reused = place.refresh(&stolen);
        assert_eq!((reused.status, reused.code()), (401, "refresh_token_invalid"));
        assert_eq!(session.closed(Duration::from_secs(5)), Some(0x98), "{kind}: the live session is cut");
        assert_eq!(place.log_in("d3", &token), Answer::Connack(0x87), "{kind}: its token is revoked");
        for dead in [&third, &second, &stolen] {
            assert_eq!(place.refresh(dead).status, 401, "{kind}: the whole line");
        }
        let list = place.list();
        assert!(list.contains("a token was used twice") && list.contains("of d3"), "{list}");
        assert!(!list.contains(&token) && !list.contains(&stolen), "no token in the list");

        other.ping();
        assert_eq!(other.next(Duration::from_secs(5)), Answer::Pingresp, "nobody else is touched");
        place.refreshed(&other_line);
        let (fresh, _) = place.begin("d3", kind);
        place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d3", &fresh));
    }
}

#[test]
fn a_refresh_token_that_is_used_twice_is_revoked_where_the_list_is_signed_elsewhere() {
    for kind in ["jwt", "sas"] {
        let mut place = Place::launched("", sign_the_list);
        let list = place.list();
        let (_, stolen) = place.begin("d3", kind);
        let (token, third) = place.refreshed(&stolen);
        let mut session = place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d3", &token));
        place.refreshed(&third);

        assert_eq!(place.refresh(&stolen).status, 401);
        assert_eq!(session.closed(Duration::from_secs(5)), Some(0x98), "{kind}: the live session is cut");
        assert_eq!(place.log_in("d3", &token), Answer::Connack(0x87), "{kind}: its token is revoked");
        assert_eq!(place.list(), list, "the signed list is as it was");
        let shown = run(&place.gateway.folder, &["revocations", "list"]);
        // Lines are folded at 100 columns.
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.contains("a token was used twice") && shown.contains("origin this gateway"), "{shown}");
        let audit = fs::read_to_string(place.gateway.folder.join("var/audit.jsonl")).unwrap();
        assert!(audit.contains("refresh_reused") && audit.contains("revocations.local.jsonl"), "{audit}");

        // Neither a newer list nor a restart lifts it.
        let signed = run(&place.gateway.folder, &["revoke", "device", "d7", "--key-file", "list.key"]);
        assert!(signed.contains("is written to"), "{signed}");
        until("the newer list", Duration::from_secs(30), || place.log_in("d7", &sas("d7")) == Answer::Connack(0x87));
        assert_eq!(place.log_in("d3", &token), Answer::Connack(0x87), "{kind}: after a newer list");
        place.gateway.kill_and_restart();
        assert_eq!(place.log_in("d3", &token), Answer::Connack(0x87), "{kind}: after a restart");
    }
}

#[test]
fn of_two_who_use_one_refresh_token_at_the_same_time_neither_keeps_it() {
    let place = Place::with("");
    let (_, token) = place.begin("d5", "jwt");
    let answers: Vec<HttpAnswer> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| place.refresh(&token))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let good: Vec<&HttpAnswer> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(good.len(), 1, "{answers:?}");
    assert_eq!(place.refresh(&good[0].text("refresh_token")).status, 401, "the line is dead");
}

#[test]
fn what_was_used_is_used_and_what_was_not_goes_on_after_kill_9() {
    let mut place = Place::with("");
    let (_, first) = place.begin("d6", "jwt");
    let (_, second) = place.refreshed(&first);
    let (_, first_of_other) = place.begin("d7", "sas");
    place.gateway.kill_and_restart();
    let (token, third) = place.refreshed(&second);
    place.refreshed(&first_of_other);
    let mut session = place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d6", &token));
    place.gateway.kill_and_restart();
    session.closed(Duration::from_secs(5));
    assert_eq!(place.refresh(&first).status, 401, "used before both ends");
    assert_eq!(place.refresh(&third).status, 401);
    assert_eq!(place.log_in("d6", &token), Answer::Connack(0x87), "revoked with its line");
}

#[test]
fn an_answer_that_got_lost_is_given_again_to_the_same_attempt() {
    let place = Place::with("");
    let (_, first) = place.begin("d8", "jwt");
    let ask = |attempt: &str, token: &str| {
        let header = [("Idempotency-Key", attempt)];
        place.https.post("/v1/tokens", &header, &json!({"refresh_token": token}))
    };
    let attempt = "4f8a3c0b-this-attempt-alone";
    assert_eq!(ask(attempt, &first).status, 200);
    let again = ask(attempt, &first);
    assert_eq!(again.status, 200, "the device did not read the first answer");
    assert_eq!(ask("too short", &first).status, 400);
    let (_, third) = place.refreshed(&again.text("refresh_token"));
    assert_eq!(ask(attempt, &first).status, 401, "its successor was used");
    assert_eq!(place.refresh(&third).status, 401);
}

#[test]
fn a_line_has_an_end_that_no_use_moves() {
    let place = Place::with("refresh_lifetime = \"4s\"\ntoken_lifetime = \"1h\"");
    let began = unix_now();
    let (_, mut token) = place.begin("d9", "jwt");
    until("the line to end", Duration::from_secs(20), || {
        let answer = place.refresh(&token);
        if answer.status == 200 {
            assert!(answer.body["expires_in"].as_u64().unwrap() <= 4, "no token outlives its line: {answer:?}");
            token = answer.text("refresh_token");
            return false;
        }
        // A line that is used as fast as it goes holds so many tokens that it has to wait.
        if answer.status == 429 {
            return false;
        }
        assert_eq!((answer.status, answer.code()), (401, "refresh_token_invalid"));
        true
    });
    assert!(unix_now() >= began + 4, "not before its end");
    assert!(place.list().is_empty(), "an end is no theft: nothing is revoked");
}

#[test]
fn who_is_revoked_or_switched_off_gets_nothing_and_a_theft_ends_older_lines() {
    let place = Place::with("");
    let (_, line) = place.begin("d11", "jwt");
    place.gateway.revoke(r#"{"device": "d11", "reason": "stolen"}"#);
    until("the list to be in force", Duration::from_secs(10), || {
        place.ask(SITE, json!({"device": "d11"})).code() == "device_not_served"
    });
    assert_eq!(place.refresh(&line).code(), "device_not_served");
    fs::write(place.gateway.folder.join("revocations.jsonl"), "").unwrap();
    let mut line = line;
    until("the entry to be lifted", Duration::from_secs(10), || {
        let answer = place.refresh(&line);
        if answer.status == 200 {
            line = answer.text("refresh_token");
        }
        answer.status == 200
    });
    // Who has the refresh token would else have a new token at once.
    let soon = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(unix_now() + 1));
    place.gateway.revoke(&format!(r#"{{"issued_before": "{soon}", "device": "d11"}}"#));
    until("the line to be dead", Duration::from_secs(10), || {
        let answer = place.refresh(&line);
        if answer.status == 200 {
            line = answer.text("refresh_token");
        }
        answer.code() == "device_not_served"
    });
    until("a new line", Duration::from_secs(10), || {
        place.ask(SITE, json!({"device": "d11", "kind": "jwt", "refresh": true})).status == 200
    });
    assert_eq!(place.refresh(&line).code(), "device_not_served", "the old one stays dead");
}

#[test]
fn every_token_has_a_name_of_128_random_bits_and_they_do_not_expire_together() {
    let place = Place::with("");
    let (mut names, mut ends) = (BTreeSet::new(), BTreeSet::new());
    let set: JwkSet = serde_json::from_value(place.https.get("/.well-known/jwks.json").body).expect("a key set");
    let mut bits = 0;
    for n in 0..100 {
        let answer = place.ask(SITE, json!({"device": format!("d{}", n % 10), "kind": "jwt", "ttl": 3600}));
        let token = answer.text("token");
        let header = jsonwebtoken::decode_header(&token).unwrap();
        let key = set.find(header.kid.as_deref().expect("a kid")).expect("it is published");
        let mut rules = Validation::new(header.alg);
        rules.set_audience(&["localhost"]);
        rules.set_issuer(&[format!("https://localhost:{}", place.port())]);
        let claims =
            jsonwebtoken::decode::<Value>(&token, &DecodingKey::from_jwk(key).unwrap(), &rules).unwrap().claims;
        assert_eq!(claims["sub"], json!(format!("d{}", n % 10)));
        let name = claims["jti"].as_str().unwrap().to_owned();
        assert_eq!(name.len(), 32, "{name}");
        bits += u128::from_str_radix(&name, 16).expect("hexadecimal").count_ones();
        names.insert(name);
        ends.insert(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap());
    }
    assert_eq!(names.len(), 100);
    // 12,800 fair coins: six standard deviations are 340.
    assert!((6060..=6740).contains(&bits), "{bits} of 12800");
    assert!(ends.len() > 20 && ends.iter().all(|life| (3240..=3600).contains(life)), "{ends:?}");
}

impl Place {
    fn port(&self) -> u16 {
        let text = fs::read_to_string(self.gateway.folder.join("gateway.toml")).unwrap();
        let rest = text.split("[token_service]\nbind = \"127.0.0.1:").nth(1).expect("its port");
        rest.split('"').next().expect("a number").parse().unwrap()
    }
}

#[test]
fn who_asks_too_often_is_told_when_to_come_again() {
    let place = Place::with("requests_per_minute_per_device = 3\nrequests_per_second_per_ip = 2");
    let asked: Vec<HttpAnswer> = (0..4).map(|_| place.ask(SITE, json!({"device": "d0"}))).collect();
    assert_eq!(asked.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 200, 429]);
    let last = asked.last().expect("four");
    assert_eq!(last.code(), "rate_limited");
    assert!(last.head.contains("retry-after: 20"), "{last:?}");
    assert_eq!(place.ask(SITE, json!({"device": "d1"})).status, 200, "another device has its own");
    // Ten seconds' worth of the address: some are used, and 2 a second come back while the test asks.
    let refused =
        (0..60).map(|_| place.ask("wrong", json!({"device": "d2"}))).filter(|answer| answer.status == 429).count();
    assert!(refused > 20, "an address that guesses is slowed down: {refused}");
}

#[test]
fn a_caller_that_is_taken_out_takes_its_lines_with_it() {
    let place = Place::with("");
    let (_, line) = place.begin("d12", "jwt");
    let file = place.gateway.folder.join("gateway.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("name = \"site\"", "name = \"other-site\"").replace("site.key", "other.key"))
        .unwrap();
    write_secret(&place.gateway.folder.join("other.key"), "another key of a site, with 32 characters");
    let pid = rustix::process::Pid::from_raw(i32::try_from(place.gateway.process.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    until("the callers to be read again", Duration::from_secs(10), || {
        place.ask(SITE, json!({"device": "d12"})).code() == "caller_unknown"
    });
    assert_eq!(place.refresh(&line).code(), "refresh_token_invalid");
    assert_eq!(place.ask("another key of a site, with 32 characters", json!({"device": "d12"})).status, 200);
}

#[test]
fn what_is_no_request_is_told_so_and_nobody_holds_the_door() {
    let place = Place::with("");
    let with_head = |head: &str, body: &str| {
        place.https.send(&format!("{head}\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    let json = "Content-Type: application/json";
    assert_eq!(with_head(&format!("POST /v1/tokens HTTP/1.1\r\n{json}"), "not json").code(), "request_malformed");
    assert_eq!(with_head(&format!("POST /v1/tokens HTTP/1.1\r\n{json}"), &"x".repeat(9000)).code(), "too_large");
    let form = with_head("POST /v1/tokens HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded", "device=d0");
    assert_eq!((form.status, form.code()), (415, "not_json"));
    assert_eq!((place.https.get("/v1/tokens").status, place.https.get("/").status), (405, 404));
    let twice =
        format!("POST /v1/tokens HTTP/1.1\r\n{json}\r\nAuthorization: Bearer {SITE}\r\nAuthorization: Bearer x");
    assert_eq!(with_head(&twice, r#"{"device": "d0"}"#).code(), "request_malformed");
    let both = json!({"device": "d0", "refresh_token": "tgr_x"});
    assert_eq!(place.ask(SITE, both).code(), "request_malformed");
    assert_eq!(place.refresh("tgr_AAAA").code(), "refresh_token_invalid");
    let flood = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(64 << 10));
    assert!(place.https.try_send(&flood).is_none_or(|answer| answer.status >= 400), "a head without end");

    // No plain HTTP, on loopback neither.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port()));
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
    // Who says nothing does not keep others out.
    let _silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(place.ask(SITE, json!({"device": "d0"})).status, 200);
}

#[test]
fn no_token_and_no_key_is_written_anywhere() {
    let place = Place::with("");
    let (token, refresh) = place.begin("d13", "sas");
    let (next, successor) = place.refreshed(&refresh);
    place.refresh(&refresh);
    let mut files = vec![place.gateway.process.log()];
    for name in ["refresh.jsonl", "audit.jsonl"] {
        files.push(fs::read_to_string(place.gateway.folder.join("var").join(name)).unwrap());
    }
    assert!(files[2].contains("token_issued") && files[2].contains("refresh_reused"), "{}", files[2]);
    let signature = token.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).expect("a signature").to_owned();
    for secret in
        [SITE, &token, &refresh, &next, &successor, &signature, refresh.strip_prefix("tgr_").expect("a refresh token")]
    {
        for text in &files {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(place.gateway.folder.join("var").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("refresh.jsonl"), mode("token-service.key")), (0o600, 0o600));
}

#[test]
fn a_certificate_gets_tokens_for_its_own_device_alone() {
    let site = Authority::new();
    let stranger = Authority::new();
    let place = Place::launched("client_ca = \"devices-ca.pem\"", |folder| {
        fs::write(folder.join("devices-ca.pem"), &site.pem).unwrap();
    });
    let ask = |(certificate, key): &(String, String), body: Value| {
        place.https.clone().showing(certificate, key).try_post("/v1/tokens", &[], &body)
    };
    let mine = site.issue("d1");
    for kind in ["sas", "jwt"] {
        let answer = ask(&mine, json!({"device": "d1", "kind": kind})).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        place.gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d1", &answer.text("token")));
    }
    let refused = |identity: &(String, String), body: Value| ask(identity, body).map(|answer| answer.code().to_owned());
    let unknown = Some("caller_unknown".to_owned());
    assert_eq!(refused(&mine, json!({"device": "d10"})), unknown, "whose it is not");
    assert_eq!(refused(&mine, json!({"device": "d"})), unknown);
    assert_eq!(refused(&mine, json!({"kind": "sas"})), Some("request_malformed".into()));
    assert_eq!(refused(&site.issue("d-off"), json!({"device": "d-off"})), Some("device_not_served".into()));
    assert_eq!(refused(&site.issue("d99"), json!({"device": "d99"})), Some("device_not_served".into()));
    assert_eq!(refused(&stranger.issue("d1"), json!({"device": "d1"})), unknown, "of another authority");
    assert_eq!(refused(&mine, json!({"device": "d1", "ttl": 86_401})), Some("lifetime_too_long".into()));

    // What a certificate began is of no use without it.
    let begun = ask(&mine, json!({"device": "d1", "refresh": true})).expect("an answer").text("refresh_token");
    assert_eq!(place.refresh(&begun).code(), "caller_unknown");
    assert_eq!(refused(&site.issue("d2"), json!({"refresh_token": begun})), unknown);
    let next = ask(&mine, json!({"refresh_token": begun})).expect("an answer");
    assert_eq!(next.status, 200, "{next:?}");
    assert_eq!(ask(&mine, json!({"refresh_token": begun})).expect("an answer").code(), "refresh_token_invalid");

    // A certificate that is revoked by its thumbprint gets nothing.
    let der = CertificateDer::from_pem_slice(mine.0.as_bytes()).unwrap();
    let hash = Sha256::digest(&der).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    place.gateway.revoke(&format!(r#"{{"token": "sha256:{hash}"}}"#));
    until("the list to be in force", Duration::from_secs(10), || refused(&mine, json!({"device": "d1"})) == unknown);
    assert_eq!(place.ask(SITE, json!({"device": "d1"})).status, 200, "the device itself is not");
}

/// Who signs certificates of devices.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// A certificate and its key.
    fn issue(&self, device: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, device);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A list that only its signer may change, with its key beside it.
fn sign_the_list(folder: &Path) {
    run(folder, &["revocations", "keygen", "list.key"]);
    let toml = fs::read_to_string(folder.join("gateway.toml")).unwrap();
    let asked = "[credentials]\nrevocation_keys = [\"list.key.pub\"]\n";
    fs::write(folder.join("gateway.toml"), toml.replace("[credentials]\n", asked)).unwrap();
    fs::write(folder.join("revocations.jsonl"), "{\"device\": \"d0\"}\n").unwrap();
    run(folder, &["revocations", "sign", "revocations.jsonl", "--key-file", "list.key"]);
}

/// A command beside the gateway's files; what it says.
#[track_caller]
fn run(folder: &Path, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).args(["--config", "gateway.toml"]).current_dir(folder);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

const SITE: &str = "V2hvZXZlciBob2xkcyB0aGlzIGtleSBpcyB0aGUgc2l0ZQ";
const NARROW: &str = "QSBzZXJ2aWNlIGZvciBvbmUgZGV2aWNlIGFuZCBubyBvdGhlcg";
const IDENTITIES: &str = r#"
[[device]]
id = "d-off"
primary_key = "ZC1vZmYgaXMgc3dpdGNoZWQgb2ZmIGZvciB0aGVzZSE="
enabled = false
[[policy]]
name = "writers"
resource = "localhost"
primary_key_file = "writers.key"
rights = ["publish"]
"#;
