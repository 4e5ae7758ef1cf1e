use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::atomic::AtomicUsize,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, pem::PemObject},
};

use super::*;

const SET: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","alg":"ES256","use":"sig","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const PATIENCE: Duration = Duration::from_secs(10);

/// What the server says to a request.
#[derive(Clone)]
enum Say {
    Set(&'static str),
    Status(&'static str),
    Redirect(String),
    /// A length, and so many bytes.
    Bytes(usize),
    /// A head, and then nothing.
    Half,
    /// Not even a handshake.
    Nothing,
}

/// An issuer's web server on loopback, with a certificate of a CA of its own.
struct Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    said: Arc<Mutex<Say>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start(say: Say) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let tls = server_config(&folder.path().join("ca.pem"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let (said, asked) = (Arc::new(Mutex::new(say)), Arc::new(AtomicUsize::new(0)));
        let (what, count) = (said.clone(), asked.clone());
        // It ends with the process: nobody waits for who never asks again.
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let (say, tls) = (lock(&what).clone(), tls.clone());
                // A client that gives up is what some of these tests are about.
                thread::spawn(move || answer(socket, tls, &say).ok());
            }
        });
        Self { address, folder, said, asked }
    }

    fn source(&self, path: &str) -> KeySetSource {
        let url = KeySetUrl::parse(&format!("https://localhost:{}{path}", self.address.port())).expect("an address");
        KeySetSource {
            issuer: "factory".into(),
            file: KeySetSource::file_in(&self.folder.path().join("jwks"), "factory", &url),
            url,
            refresh: Duration::from_hours(1),
            ca: Some(self.folder.path().join("ca.pem")),
            private: vec!["127.0.0.1".parse().expect("an address"), "::1".parse().expect("an address")],
            algorithms: vec![Algorithm::ES256],
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn server_config(ca_file: &Path) -> Arc<ServerConfig> {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("no name");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(ca_file, ca.self_signed(&ca_key).expect("signed").pem()).expect("written");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("signed");
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("they fit");
    Arc::new(config)
}

fn answer(socket: TcpStream, tls: Arc<ServerConfig>, say: &Say) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    if matches!(say, Say::Nothing) {
        // Until the client gives up.
        return (&socket).read_to_end(&mut Vec::new()).map(|_| ());
    }
    let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let mut line = String::new();
    let mut reader = BufReader::new(&mut stream);
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    while reader.read_line(&mut line)? > 2 {}
    let ok = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    match say {
        Say::Set(set) => stream.write_all(format!("{}{set}", ok(set.len())).as_bytes())?,
        Say::Redirect(to) if path == "/jwks" => {
            let head =
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes())?;
        }
        Say::Redirect(_) => stream.write_all(format!("{}{SET}", ok(SET.len())).as_bytes())?,
        Say::Status(status) => {
            stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?
        }
        Say::Bytes(count) => {
            stream.write_all(ok(*count).as_bytes())?;
            stream.write_all(&vec![b' '; *count])?;
        }
        Say::Half => {
            stream.write_all(ok(SET.len()).as_bytes())?;
            stream.flush()?;
            stream.read_to_end(&mut Vec::new())?;
        }
        Say::Nothing => {}
    }
    stream.conn.send_close_notify();
    stream.flush()
}

fn fetched(source: &KeySetSource) -> Result<String, String> {
    fetch::fetch_within(source, PATIENCE)
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

#[test]
fn a_key_set_is_fetched_from_a_server_that_its_authority_vouches_for() {
    let server = Server::start(Say::Set(SET));
    assert_eq!(fetched(&server.source("/jwks")), Ok(SET.to_owned()));
    let other = Server::start(Say::Set(SET));
    let source = KeySetSource { ca: other.source("/").ca, ..server.source("/jwks") };
    let refused = fetched(&source).expect_err("another CA");
    assert!(refused.contains("certificate"), "{refused}");
    let by_address =
        KeySetUrl::parse(&format!("https://127.0.0.1:{}/jwks", server.address.port())).expect("an address");
    assert!(fetched(&KeySetSource { url: by_address, ..server.source("/jwks") }).is_err(), "its name is not on it");
}

#[test]
fn a_private_address_is_not_asked_unless_it_is_listed() {
    let server = Server::start(Say::Set(SET));
    let elsewhere = vec!["10.0.0.0/8".parse().expect("a network")];
    for private in [Vec::new(), elsewhere] {
        let refused = fetched(&KeySetSource { private, ..server.source("/jwks") }).expect_err("not asked");
        assert!(refused.contains("not public"), "{refused}");
    }
    assert_eq!(server.asked(), 0, "not even a connection");
}

#[test]
fn a_redirect_is_followed_on_its_own_host_alone() {
    let server = Server::start(Say::Nothing);
    let port = server.address.port();
    let to = |location: &str| {
        *lock(&server.said) = Say::Redirect(location.to_owned());
        fetched(&server.source("/jwks"))
    };
    assert_eq!(to("/moved"), Ok(SET.to_owned()));
    assert_eq!(to(&format!("https://LOCALHOST:{port}/moved")), Ok(SET.to_owned()));
    let before = server.asked();
    let away = [
        "https://127.0.0.1/jwks".to_owned(),
        format!("https://127.0.0.1:{port}/moved"),
        format!("https://localhost:{}/moved", port.wrapping_add(1)),
        format!("http://localhost:{port}/moved"),
        format!("//127.0.0.1:{port}/moved"),
        format!("https://localhost:{port}@169.254.169.254/"),
        "moved".to_owned(),
        String::new(),
    ];
    for location in &away {
        assert!(to(location).is_err_and(|error| error.contains("another host")), "{location}");
    }
    assert_eq!(server.asked(), before + away.len(), "one question each");
    assert!(to("/jwks").is_err_and(|error| error.contains("from one address to the next")));
}

#[test]
fn what_is_too_large_or_too_late_or_no_answer_is_given_up() {
    let server = Server::start(Say::Bytes(256 << 10));
    assert_eq!(fetched(&server.source("/jwks")).map(|text| text.len()), Ok(256 << 10));
    *lock(&server.said) = Say::Bytes((256 << 10) + 1);
    assert_eq!(fetched(&server.source("/jwks")), Err("it is larger than 256 KiB".to_owned()));
    for late in [Say::Half, Say::Nothing] {
        *lock(&server.said) = late;
        let begun = Instant::now();
        let late = fetch::fetch_within(&server.source("/jwks"), Duration::from_millis(300));
        assert_eq!(late, Err("the server does not answer in time".to_owned()));
        assert!(begun.elapsed() < PATIENCE);
    }
    for status in ["404 Not Found", "500 Oh", "204 No Content"] {
        *lock(&server.said) = Say::Status(status);
        assert!(
            fetched(&server.source("/jwks")).is_err_and(|error| error.starts_with("the server answers")),
            "{status}"
        );
    }
}

#[test]
fn a_good_set_is_kept_and_a_bad_one_never_replaces_it() {
    let server = Server::start(Say::Set(SET));
    let source = server.source("/jwks");
    let fetcher = Fetcher {
        source: source.clone(),
        thread: Mutex::default(),
        missed: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
        course: Mutex::default(),
        error: Mutex::default(),
    };
    assert!(matches!(fetcher.fetch(), Ok(Fetched::Anew { keys: 1 })));
    let kept = || fs::read_to_string(&source.file).expect("kept");
    assert_eq!(kept(), format!("{SET}\n"));
    for path in [source.file.as_path(), source.file.parent().expect("a folder")] {
        assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o077, 0, "{}", path.display());
    }
    assert!(matches!(fetcher.fetch(), Ok(Fetched::Same)));
    let (secret, none) = (r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#, r#"{"keys":[]}"#);
    for bad in [secret, none, "{}", "<html>"] {
        *lock(&server.said) = Say::Set(bad);
        assert!(fetcher.fetch().is_err_and(|error| error.contains("cannot be used")), "{bad}");
        assert_eq!(kept(), format!("{SET}\n"));
    }
}

#[test]
fn sets_are_fetched_while_they_are_followed() {
    let server = Server::start(Say::Set(SET));
    let misses = Arc::new(Misses::default());
    let sets = KeySets::new(misses);
    let source = server.source("/jwks");
    sets.follow(vec![source.clone()], Instant::now()).expect("a thread");
    until("the set is kept", || source.file.exists());
    until("the fetch has ended well", || sets.states().iter().all(|state| state.error.is_none()));
    sets.follow(vec![source.clone()], Instant::now()).expect("no thread");
    assert_eq!(server.asked(), 1, "it goes on as it was");
    let away = KeySetSource { issuer: "away".into(), private: Vec::new(), ..source };
    sets.follow(vec![away], Instant::now()).expect("a thread");
    until("the error shows", || sets.states().iter().any(|state| state.error.is_some()));
    sets.follow(Vec::new(), Instant::now()).expect("no thread");
    assert!(sets.states().is_empty());
}

#[test]
fn a_fetch_is_under_way_until_what_it_wrote_was_read_and_again_when_another_may_begin() {
    let at = |course: Course, missed: bool| Fetcher {
        source: Server::start(Say::Set(SET)).source("/jwks"),
        thread: Mutex::default(),
        missed: AtomicBool::new(missed),
        stopped: AtomicBool::new(false),
        course: Mutex::new(course),
        error: Mutex::default(),
    };
    let now = Instant::now();
    let ago = |seconds| now.checked_sub(Duration::from_secs(seconds));
    let ended = |seconds| Course { began: ago(seconds), ..Course::default() };
    for (course, missed, expected) in [
        (Course::default(), false, true),
        (Course { is_fetching: true, ..ended(1) }, false, true),
        (ended(1), true, false),
        (ended(29), true, false),
        (ended(31), true, true),
        (ended(31), false, false),
        (Course { is_asked: true, ..ended(31) }, false, true),
        (Course { written: Some(now), ..ended(1) }, false, true),
        (Course { written: ago(6), ..ended(7) }, false, false),
    ] {
        let told = format!("{course:?}, {missed}");
        assert_eq!(at(course, missed).is_underway(), expected, "{told}");
    }
    let fetcher = at(Course { written: Some(now), ..ended(1) }, false);
    fetcher.read_at(now.checked_sub(Duration::from_millis(1)).expect("a while after the start"));
    assert!(fetcher.is_underway(), "what was read is older");
    fetcher.read_at(now);
    assert!(!fetcher.is_underway());
}

#[test]
fn an_address_is_https_with_a_host_and_without_a_user() {
    for good in ["https://id.example/jwks", "https://id.example:8443/.well-known/jwks.json?a=b", "https://[::1]/"] {
        assert_eq!(KeySetUrl::parse(good).map(|url| url.as_str().to_owned()), Ok(good.to_owned()));
    }
    for bad in [
        "",
        "id.example",
        "http://id.example/",
        "file:///etc/passwd",
        "https:///x",
        "https://u:p@id.example/",
        "https://id.example/#x",
        "ftp://id.example/",
        "https://id example/",
    ] {
        assert!(KeySetUrl::parse(bad).is_err(), "{bad}");
    }
    let (a, b) = (KeySetUrl::parse("https://a/").expect("good"), KeySetUrl::parse("https://b/").expect("good"));
    let directory = Path::new("var/jwks");
    assert_ne!(KeySetSource::file_in(directory, "x", &a), KeySetSource::file_in(directory, "x", &b));
}
