//! The desk over real sockets, spoken to byte by byte, with a gateway that is made up.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use zeroize::Zeroizing;

use super::*;
use crate::{
    audit::Audit,
    credential::{Keyring, RevocationList},
    denial::Denial,
    gate::{Gate, GateConfig, Identities},
    id::{DeviceId, KeyName, TokenId},
    journal::{Journal, Who},
    meter::Meters,
    packet::ProtocolVersion,
    policy::{Grant, Profile, Scope, TokenKind},
    registry::{Live, Registry},
    roster::Away,
    time::UnixSeconds,
};

/// One device that can be closed, one hub, and what is missing.
#[derive(Default)]
struct Pretended {
    closed: Mutex<Vec<String>>,
    missing: Vec<String>,
}

impl Control for Pretended {
    fn close_session(&self, device: &DeviceId) -> bool {
        self.closed.lock().expect("not poisoned").push(device.to_string());
        device.as_str() == "pump-17"
    }

    fn away(&self, device: Option<&str>) -> Vec<AwayView> {
        let away = Away {
            since: UnixSeconds(1_000),
            expires_at: UnixSeconds(4_600),
            shard: 1,
            messages: AtomicUsize::new(7),
            subscriptions: 2,
        };
        let known = DeviceId::try_from("pump-18").expect("an id");
        device.is_none_or(|asked| asked == known.as_str()).then(|| AwayView::of(&known, &away)).into_iter().collect()
    }

    fn set_gauges(&self) {}

    fn upstreams(&self) -> Vec<UpstreamStatus> {
        vec![UpstreamStatus {
            name: "hub".into(),
            kind: "mqtt".into(),
            address: "hub.example:1883".into(),
            state: UpstreamState::of(1, 2),
            connected: 1,
            connections: 2,
            window: 2000,
            inflight: 3,
            messages_per_second: 5,
            backlog: 4,
            spooling: false,
            spooled: 0,
            oldest_seconds: None,
            set_aside: 0,
            spool_error: None,
            last_error: None,
        }]
    }

    fn aside(&self, hub: &str, count_max: usize) -> Result<AsideList, AsideError> {
        let view = AsideView { id: "00000000000000a1".into(), hub: hub.into(), ..AsideView::default() };
        match hub {
            "hub" => Ok(AsideList { messages: vec![view; count_max.min(1)], total: 1 }),
            _ => Err(AsideError::Unknown("there is no such upstream".into())),
        }
    }

    fn decide_aside(&self, hub: &str, asked: &AsideAsked, deed: AsideDeed) -> Result<AsideDone, AsideError> {
        assert_eq!(hub, "hub");
        match (deed, asked.all) {
            (AsideDeed::Discard, true) => Err(AsideError::Asked("not all of them".into())),
            (AsideDeed::Retry, true) => Err(AsideError::Spool("the disk".into())),
            _ => Ok(AsideDone { messages: asked.ids.len(), left: 0 }),
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness { missing: self.missing.clone() }
    }

    fn list_state(&self) -> ListState {
        ListState { file: "revocations.jsonl".into(), refused: Some("it is not signed".into()), ..ListState::default() }
    }

    fn reload(&self) -> Result<Reloaded, Vec<String>> {
        Err(vec!["config/identities.toml:3: no".into()])
    }

    fn keys(&self) -> Result<KeyList, String> {
        let of = |name: &str| KeyView { name: name.into(), primary: Some(SlotView::of(7)), ..KeyView::default() };
        Ok(KeyList { keys: vec![of("policy:site"), of("device:pump-17")], total: 2, counted_since: None })
    }

    fn rotate(
        &self,
        name: &str,
        asked: RotationAsked,
        dry_run: DryRun,
        by: &str,
    ) -> Result<RotationDone, RotationRefused> {
        assert_eq!((by, asked.lift), ("admin API", false));
        match name {
            "issuer:factory/k1" => Err(RotationRefused::Refused("it is public".into())),
            "policy:site" => {
                Ok(RotationDone { name: name.into(), rotated: dry_run == DryRun::No, ..RotationDone::default() })
            }
            _ => Err(RotationRefused::Unknown(format!("no {name}"))),
        }
    }
}

/// The desk on a port of its own.
struct Desk {
    address: SocketAddr,
    control: Arc<Pretended>,
    gate: Arc<Gate>,
    running: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
    room: Room,
}

/// A directory of its own, removed at the end.
struct Room(PathBuf);

impl Room {
    fn new() -> Self {
        static ROOMS: AtomicUsize = AtomicUsize::new(0);
        let number = ROOMS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tollgate-desk-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Desk {
    async fn open(missing: &[&str]) -> Self {
        let room = Room::new();
        let control =
            Arc::new(Pretended { missing: missing.iter().map(|m| (*m).into()).collect(), ..Pretended::default() });
        let registry = Arc::new(Registry::default());
        for device in ["pump-17", "fan-2"] {
            registry.register(&live(device));
        }
        let journal = Arc::new(Journal::default());
        for device in ["pump-17", "fan-2", "pump-17"] {
            let who = Who { device, peer: "10.0.0.9:4242".parse().expect("an address"), token_id: None };
            journal.connect_refused(&who, Denial::Expired, "se is 10 s past");
        }
        let gate = Arc::new(Gate::new(GateConfig::default()));
        let backend = Backend {
            clock: Arc::new(crate::clock::Clock::of_machine()),
            gateway: "edge-1".into(),
            token: Arc::new(Zeroizing::new(TOKEN.into())),
            gate: gate.clone(),
            registry,
            journal,
            meters: Meters::apart(),
            audit: Audit::open(&room.0),
            revocations: room.0.join("revocations.jsonl"),
            local_revocations: room.0.join("revocations.local.jsonl"),
            control: control.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (running, ended) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, backend, async { drop(ended.await) }));
        Self { address, control, gate, running, served, room }
    }

    /// Status and body of one request; `head` is what follows the request line.
    async fn ask(&self, line: &str, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let length = body.len();
        let request = format!("{line} HTTP/1.1\r\n{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        (status, body.to_owned())
    }

    async fn as_operator(&self, line: &str, body: &str) -> (u16, Value) {
        let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
        let (status, body) = self.ask(line, &head, body).await;
        (status, serde_json::from_str(&body).expect(&body))
    }
}

fn live(device: &str) -> Arc<Live> {
    let grant = Grant {
        device: DeviceId::try_from(device).expect("an id"),
        scope: Scope::new(vec![], vec![], false, 0),
        profile: Profile::Strict,
        expires_at: UnixSeconds(1_795_251_600),
        closes_at: UnixSeconds(1_795_251_630),
        token_id: TokenId([7; 16]),
        jti: None,
        kind: TokenKind::Sas,
        key: KeyName::new(&format!("device:{device}"), "primary"),
        key_fingerprint: 0,
        issuer: None,
        policy: None,
        issued_at: None,
        certificate: None,
        terms: None,
    };
    let peer = "10.0.0.9:4242".parse().expect("an address");
    Arc::new(Live::new(grant, (peer, ProtocolVersion::V3_1_1), (1, 0, 0), UnixSeconds(1_795_250_000)))
}

#[tokio::test]
async fn health_and_metrics_need_no_token_and_show_no_device() {
    let desk = Desk::open(&[]).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        let (status, body) = desk.ask(&format!("GET {path}"), "Host: localhost\r\n", "").await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(!body.contains("pump-17"), "{body}");
    }
}

#[tokio::test]
async fn not_ready_says_what_is_missing() {
    let desk = Desk::open(&["the revocation list cannot be read"]).await;
    let (status, body) = desk.ask("GET /readyz", "Host: localhost\r\n", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("the revocation list cannot be read"), "{body}");
    assert_eq!(desk.ask("GET /healthz", "Host: localhost\r\n", "").await.0, 200);
}

#[tokio::test]
async fn everything_else_asks_for_the_token() {
    let desk = Desk::open(&[]).await;
    let wrong =
        ["", "Authorization: Bearer \r\n", "Authorization: Bearer wrong\r\n", "Authorization: Basic c2VjcmV0\r\n"];
    for line in ["GET /v1/sessions", "DELETE /v1/sessions/pump-17", "GET /v1/refusals", "POST /v1/reload"] {
        for head in wrong {
            let (status, body) = desk.ask(line, &format!("Host: localhost\r\n{head}"), "").await;
            assert_eq!(status, 401, "{line} {head}: {body}");
        }
    }
    assert!(desk.control.closed.lock().expect("not poisoned").is_empty());
}

#[tokio::test]
async fn a_foreign_host_name_is_refused_before_the_token_is_looked_at() {
    let desk = Desk::open(&[]).await;
    for host in ["Host: evil.example\r\n", "", "Host: localhost\r\nHost: evil.example\r\n"] {
        let head = format!("{host}Authorization: Bearer {TOKEN}\r\n");
        let (status, body) = desk.ask("GET /v1/sessions", &head, "").await;
        assert!(matches!(status, 400 | 421), "{host}: {status} {body}");
        assert!(!body.contains("pump-17"), "{body}");
    }
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(desk.ask("GET http://evil.example/v1/sessions", &head, "").await.0, 421);
}

#[tokio::test]
async fn a_write_is_json() {
    let desk = Desk::open(&[]).await;
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\n");
    assert_eq!(desk.ask("POST /v1/reload", &head, "{}").await.0, 415);
    let (status, body) = desk.as_operator("POST /v1/reload", "{}").await;
    assert_eq!((status, &body["mistakes"][0]), (422, &Value::from("config/identities.toml:3: no")));
}

#[tokio::test]
async fn sessions_are_listed_and_closed() {
    let desk = Desk::open(&[]).await;
    let (status, body) = desk.as_operator("GET /v1/sessions", "").await;
    let list: SessionList = serde_json::from_value(body).expect("a list");
    let devices: Vec<_> = list.sessions.iter().map(|s| &*s.device).collect();
    assert_eq!((status, devices, list.total), (200, vec!["fan-2", "pump-17"], 2));
    assert_eq!(list.sessions[0].expires_at, "2026-11-21T09:00:00Z");
    let (_, body) = desk.as_operator("GET /v1/sessions?device=pump-17", "").await;
    assert_eq!((&body["total"], &body["sessions"][0]["mqtt"]), (&Value::from(1), &Value::from("3.1.1")));
    assert_eq!(desk.as_operator("DELETE /v1/sessions/pump-17", "").await.0, 200);
    assert_eq!(desk.as_operator("DELETE /v1/sessions/ghost", "").await.0, 404);
    assert_eq!(desk.as_operator("DELETE /v1/sessions/..%2F%23", "").await.0, 400);
    assert_eq!(*desk.control.closed.lock().expect("not poisoned"), ["pump-17", "ghost"]);
}

#[tokio::test]
async fn refusals_are_found_by_device() {
    let desk = Desk::open(&[]).await;
    let (_, body) = desk.as_operator("GET /v1/refusals?device=pump-17&last=1", "").await;
    let list: RefusalList = serde_json::from_value(body).expect("a list");
    assert_eq!(list.refusals.len(), 1);
    assert_eq!((list.refusals[0].number, &*list.refusals[0].detail), (300, "se is 10 s past"));
    assert_eq!(desk.as_operator("GET /v1/refusals?last=many", "").await.0, 400);
    assert_eq!(desk.as_operator("GET /v1/refusals?devise=x", "").await.0, 400);
}

#[tokio::test]
async fn a_revocation_says_whom_it_cuts_and_is_written_when_it_is_meant() {
    let desk = Desk::open(&[]).await;
    let file = desk.room.0.join("revocations.jsonl");
    std::fs::write(&file, "# by hand\n").expect("written");
    let entry = r#"{"device": "pump-17", "reason": "scrapped", "by": "test"}"#;
    let (status, body) = desk.as_operator("POST /v1/revocations?dry_run=true", entry).await;
    let asked: RevocationAdded = serde_json::from_value(body).expect("an answer");
    assert_eq!((status, asked.written, asked.cuts.len(), &*asked.cuts[0].device), (200, false, 1, "pump-17"));
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "# by hand\n");
    let (_, body) = desk.as_operator("POST /v1/revocations", entry).await;
    let added: RevocationAdded = serde_json::from_value(body).expect("an answer");
    assert_eq!((added.written, &added.id, &added.cuts), (true, &asked.id, &asked.cuts));
    let (_, body) = desk.as_operator("GET /v1/revocations", "").await;
    let listing: RevocationListing = serde_json::from_value(body).expect("a list");
    assert_eq!((listing.total, listing.revocations[0]["id"].as_str()), (1, Some(&*asked.id)));
    assert!(listing.revocations[0].contains_key("at"), "{listing:?}");
    let (status, body) = desk.as_operator("GET /v1/revocations/state", "").await;
    assert_eq!((status, serde_json::from_value::<ListState>(body).expect("a state")), (200, desk.control.list_state()));
}

#[tokio::test]
async fn every_write_is_in_the_audit_log_and_no_reading_is() {
    let desk = Desk::open(&[]).await;
    for (line, body) in [
        ("GET /v1/sessions", ""),
        ("DELETE /v1/sessions/ghost", ""),
        ("POST /v1/revocations?dry_run=true", r#"{"device": "pump-17"}"#),
        ("DELETE /v1/sessions/pump-17", ""),
        ("POST /v1/revocations", r#"{"device": "pump-17", "reason": "scrapped"}"#),
        ("POST /v1/reload", "{}"),
    ] {
        desk.as_operator(line, body).await;
    }
    let text = std::fs::read_to_string(desk.room.0.join("audit.jsonl")).expect("a log");
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect();
    let said =
        |entry: &Value| format!("{} by {} to {}", entry["action"], entry["by"], entry["object"]).replace('"', "");
    let said: Vec<String> = entries.iter().map(said).collect();
    assert_eq!(said[0], "session_closed by admin API to device:pump-17");
    assert!(said[1].starts_with("revocation_added by admin API to revocation:"), "{said:?}");
    assert_eq!((said.len(), &*said[2]), (3, "reloaded by admin API to files"));
    assert!(entries[1]["detail"].as_str().is_some_and(|detail| detail.contains("scrapped")), "{text}");
}

#[tokio::test]
async fn an_entry_that_does_not_hold_is_not_written() {
    let desk = Desk::open(&[]).await;
    for (body, expected) in [
        (r#"{"device": "+"}"#, 422),
        ("{}", 422),
        (r#"{"device": "a", "jti": "b"}"#, 422),
        (r#"{"devise": "a"}"#, 422),
        ("no", 400),
    ] {
        assert_eq!(desk.as_operator("POST /v1/revocations", body).await.0, expected, "{body}");
    }
    let long = format!(r#"{{"device": "a", "reason": "{}"}}"#, "x".repeat(BODY_BYTES_MAX));
    assert_eq!(desk.as_operator("POST /v1/revocations", &long).await.0, 413);
    assert!(!desk.room.0.join("revocations.jsonl").exists());
}

#[tokio::test]
async fn a_token_is_explained_when_identities_and_list_are_loaded() {
    let desk = Desk::open(&[]).await;
    let question = r#"{"token": "Bearer x", "device": "pump-17"}"#;
    assert_eq!(desk.as_operator("POST /v1/tokens/explain", question).await.0, 503);
    let identities = Identities::new(Keyring::builder().build(), vec![]);
    desk.gate.load_identities(Arc::new(identities));
    desk.gate.load_revocations(Arc::new(RevocationList::default()));
    let (status, body) = desk.as_operator("POST /v1/tokens/explain", question).await;
    let explained: Explained = serde_json::from_value(body).expect("an explanation");
    assert_eq!((status, explained.admitted, explained.number), (200, false, Some(101)));
    assert!(explained.steps.last().is_some_and(|step| !step.ok), "{explained:?}");
    assert_eq!(desk.as_operator("POST /v1/tokens/explain", r#"{"token": "x", "device": "+"}"#).await.0, 400);
}

#[tokio::test]
async fn keys_are_listed_and_rotated_and_a_refusal_says_why() {
    let desk = Desk::open(&[]).await;
    let (status, body) = desk.as_operator("GET /v1/keys", "").await;
    let list: KeyList = serde_json::from_value(body).expect("a list");
    assert_eq!((status, list.total, list.keys.len()), (200, 2, 2));
    let (_, body) = desk.as_operator("GET /v1/keys?name=device%3Apump-17", "").await;
    assert_eq!((&body["total"], &body["keys"][0]["name"]), (&Value::from(1), &Value::from("device:pump-17")));
    for (line, body, expected) in [
        ("POST /v1/keys/policy:site/rotate?dry_run=true", "{}", (200, Some(false))),
        ("POST /v1/keys/policy%3Asite/rotate", r#"{"both": true}"#, (200, Some(true))),
        ("POST /v1/keys/issuer:factory%2Fk1/rotate", "{}", (409, None)),
        ("POST /v1/keys/policy:ghost/rotate", "{}", (404, None)),
        ("POST /v1/keys/policy:site/rotate", r#"{"bosh": true}"#, (422, None)),
    ] {
        let (status, answer) = desk.as_operator(line, body).await;
        assert_eq!((status, answer["rotated"].as_bool()), expected, "{line}: {answer}");
    }
}

#[tokio::test]
async fn hubs_are_shown() {
    let desk = Desk::open(&[]).await;
    let (status, body) = desk.as_operator("GET /v1/upstreams", "").await;
    assert_eq!((status, &body["upstreams"][0]["state"]), (200, &Value::from("partial")));
}

#[tokio::test]
async fn the_desk_ends_although_a_request_never_does() {
    let desk = Desk::open(&[]).await;
    let mut half = TcpStream::connect(desk.address).await.expect("connected");
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc").await.expect("written");
    assert_eq!(desk.ask("GET /healthz", "Host: localhost\r\n", "").await.0, 200, "the half request was accepted, too");
    drop(desk.running);
    let ended = tokio::time::timeout(DRAIN_TIMEOUT * 2, desk.served).await.expect("in time");
    ended.expect("no panic").expect("no error");
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
