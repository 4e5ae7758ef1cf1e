//! Certificates by the name that a client asks for, and who is refused for the name that it asks for.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use support::{Gateway, Hub, Login, Plan, Version, dial, sas, until};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};

#[test]
fn each_name_is_shown_its_certificate_and_a_name_of_nobody_is_refused() {
    let site = Site::start();
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let client = site.client(versions);
        let [first, line7, line8] = ["server.pem", "line7.pem", "line8.pem"].map(|file| site.leaf(file));
        for (name, expected) in [
            ("localhost", Some(&first)),
            // An address is no name that can be asked for.
            ("127.0.0.1", Some(&first)),
            ("line7.example", Some(&line7)),
            ("LINE7.example", Some(&line7)),
            ("a.line8.example", Some(&line8)),
            ("line8.example", None),
            ("a.b.line8.example", None),
            ("unknown.example", None),
        ] {
            assert_eq!(site.shown(&client, name).as_ref(), expected, "{name}");
        }
    }
    // What is behind it is the same.
    let client = site.client(&[&TLS13]);
    let tls = ClientConnection::new(client, ServerName::try_from("line7.example").unwrap()).unwrap();
    let mut stream = StreamOwned::new(tls, dial(site.gateway.tls));
    stream.write_all(&Login::new(Version::V5, "d0", &sas("d0")).packet()).unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).unwrap();
    assert_eq!((connack[0], connack[3]), (0x20, 0));
}

#[test]
fn each_certificate_is_replaced_by_itself_and_a_bad_one_replaces_nothing() {
    let site = Site::start();
    let client = site.client(&[&TLS13]);
    let alarm = || site.gateway.metric("tollgate_alarm", &["kind=\"certificate\""]);
    let ends = |file: &str| site.gateway.metric("tollgate_certificate_not_after_seconds", &[file]);
    for file in ["line7.pem", "line8.pem", "server.pem"] {
        until("its end to be told", PATIENCE, || ends(file) > 0.0);
    }
    let before = site.leaf("line7.pem");
    site.issue("line7", &["line7.example"]);
    let after = site.leaf("line7.pem");
    assert_ne!(before, after);
    until("the new one to be shown", PATIENCE, || site.shown(&client, "line7.example").as_ref() == Some(&after));
    until("no alarm", PATIENCE, || alarm() == 0.0);
    // One for another name, while another file is replaced: that one is.
    site.issue("line7", &["line9.example"]);
    site.issue("line8", &["*.line8.example"]);
    let line8 = site.leaf("line8.pem");
    until("the alarm", PATIENCE, || alarm() == 1.0);
    until("the new one to be shown", PATIENCE, || site.shown(&client, "b.line8.example").as_ref() == Some(&line8));
    assert_eq!(site.shown(&client, "line7.example").as_ref(), Some(&after));
    assert_eq!(site.shown(&client, "line9.example"), None);
    fs::write(site.gateway.folder.join("line7.pem"), "nothing").unwrap();
    let first = site.leaf("server.pem");
    assert_eq!(site.shown(&client, "localhost").as_ref(), Some(&first));
    site.issue("line7", &["line7.example"]);
    until("the alarm to end", PATIENCE, || alarm() == 0.0);
    assert_eq!(site.shown(&client, "line7.example"), Some(site.leaf("line7.pem")));
}

#[test]
fn check_holds_certificates_to_their_names() {
    let site = Site::start();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let done =
            command.args(["check", "--config", "gateway.toml"]).current_dir(&site.gateway.folder).output().unwrap();
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        // It is folded to the width of a screen.
        (done.status.code(), said.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(check().0, Some(0));
    site.issue("line7", &["other.example"]);
    let path = site.gateway.folder.join("gateway.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"*.line8.example\"", "\"*.line8.example\", \"line7.EXAMPLE\", \"a b\", \"*\""))
        .unwrap();
    let (code, said) = check();
    assert_eq!(code, Some(1), "{said}");
    for expected in [
        "is no certificate for line7.example: its DNS names are other.example",
        "\"line7.example\" stands here twice",
        "\"a b\" is no name that a client can ask for",
        "\"*\" is no name that a client can ask for",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
}

/// A gateway whose TLS listener has three certificates.
struct Site {
    gateway: Gateway,
    ca: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Site {
    fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let ca = Issuer::new(params, key);
        let gateway = Plan::new(Hub::Embedded).shards(1).start_with(|folder| {
            issue(&ca, folder, "line7", &["line7.example"]);
            issue(&ca, folder, "line8", &["*.line8.example"]);
            let path = folder.join("gateway.toml");
            let text = fs::read_to_string(&path).unwrap();
            let sni = ["line7", "line8"].map(|name| {
                let names = if name == "line7" { "line7.example" } else { "*.line8.example" };
                let file = folder.join(name);
                let file = file.display();
                format!(
                    "[[listener.sni]]\nnames = [\"{names}\"]\ncertificate = \"{file}.pem\"\nprivate_key = \"{file}.key\"\n"
                )
            });
            fs::write(&path, text.replace("[credentials]", &format!("{}[credentials]", sni.concat()))).unwrap();
        });
        Self { gateway, ca, ca_pem }
    }

    fn issue(&self, file: &str, names: &[&str]) {
        issue(&self.ca, &self.gateway.folder, file, names);
    }

    /// What a file holds.
    fn leaf(&self, file: &str) -> Vec<u8> {
        let pem = fs::read(self.gateway.folder.join(file)).unwrap();
        CertificateDer::from_pem_slice(&pem).unwrap().to_vec()
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for pem in [self.ca_pem.as_bytes(), self.gateway.ca_pem()] {
            roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        Arc::new(config.with_protocol_versions(versions).unwrap().with_root_certificates(roots).with_no_client_auth())
    }

    /// The certificate that a client which asks for this name is shown, and believes; none: the handshake fails.
    fn shown(&self, client: &Arc<ClientConfig>, name: &str) -> Option<Vec<u8>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = ClientConnection::new(client.clone(), name).unwrap();
        let mut socket: TcpStream = dial(self.gateway.tls);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).ok()?;
        }
        Some(tls.peer_certificates()?.first()?.to_vec())
    }
}

/// A pair that is written key first: in between it does not fit.
fn issue(ca: &Issuer<'static, KeyPair>, folder: &Path, file: &str, names: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, ca).unwrap();
    let path = folder.join(format!("{file}.key"));
    fs::write(&path, key.serialize_pem()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.join(format!("{file}.pem")), certificate.pem()).unwrap();
}

const PATIENCE: Duration = Duration::from_secs(20);
