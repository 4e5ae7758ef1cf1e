//! The first run in an empty clone. Its paths are relative to the working directory, which a whole process shares: this
//! file holds one test.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tokio_rustls::rustls::{
    self, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use tollgate::config::{Config, Report, admin_token_file, first_run, load_identities, prepare_state};

#[test]
fn a_clean_clone_has_all_it_needs_after_the_first_run_and_keeps_it() {
    let clone = tempfile::tempdir().expect("a directory");
    std::env::set_current_dir(clone.path()).expect("there");
    let gateway_toml = Path::new("config/gateway.toml");
    fs::create_dir("config").expect("made");
    fs::write(gateway_toml, "[gateway]\nhostname = 'gw.example'\naliases = ['hub.example', '10.0.0.7', 'localhost']\n")
        .expect("written");

    let before = Config::load(gateway_toml).expect_err("no certificates yet");
    assert!(before.iter().any(|mistake| mistake.what.contains("certs/server.pem does not exist")), "{before:?}");

    let run = first_run(gateway_toml, SystemTime::now()).expect("made");
    assert!(run.has_new_identities);
    assert_eq!(run.made.iter().map(PathBuf::as_path).collect::<BTreeSet<_>>(), MADE.iter().map(Path::new).collect());
    let config = Config::load(gateway_toml).expect("a good configuration").config;
    prepare_state(&config).expect("made");

    for path in MADE.iter().map(Path::new).chain([&*admin_token_file(&config)]) {
        let is_public = matches!(path.to_str(), Some("certs/ca.pem" | "certs/server.pem" | "certs/demo-issuer.pem"));
        assert_eq!(mode(path) & 0o077 == 0, !is_public, "{}: {:o}", path.display(), mode(path));
    }
    assert_eq!(mode(&config.gateway.state_dir) & 0o077, 0);
    assert!(fs::read_to_string(admin_token_file(&config)).expect("a token").trim_end().len() >= 43);
    let identities = fs::read_to_string("config/identities.toml").expect("identities");
    assert!(!identities.contains("<random>") && identities.contains("audience = [\"gw.example\"]"), "{identities}");

    let identities = load_identities(&config.gateway.identities, &config.gate).expect("good identities").identities;
    assert_eq!((identities.keyring().devices().count(), identities.keyring().issuers().count()), (3, 1));
    let report = Report::of(gateway_toml);
    assert!(report.mistakes.is_empty() && report.warnings.is_empty(), "{report:#?}");

    certificates_hold(&["localhost", "gw.example", "hub.example", "127.0.0.1", "::1", "10.0.0.7"]);
    nothing_is_made_twice(gateway_toml, &config);
    a_lost_server_certificate_is_made_again_under_the_same_authority(gateway_toml);
}

fn certificates_hold(names: &[&str]) {
    let pem = |path: &str| CertificateDer::from_pem_file(path).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(pem("certs/ca.pem")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
    let verify = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&pem("certs/server.pem"), &[], &name, &[], UnixTime::now())
    };
    for name in names {
        verify(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    verify("other.example").expect_err("not its name");
}

fn nothing_is_made_twice(gateway_toml: &Path, config: &Config) {
    let contents = || MADE.iter().map(|path| fs::read(path).expect("there")).collect::<Vec<_>>();
    let (before, token) = (contents(), fs::read(admin_token_file(config)).expect("there"));
    let again = first_run(gateway_toml, SystemTime::now()).expect("nothing to do");
    prepare_state(config).expect("nothing to do");
    assert!(again.made.is_empty() && !again.has_new_identities, "{again:?}");
    assert!(before == contents() && token == fs::read(admin_token_file(config)).expect("there"));
}

fn a_lost_server_certificate_is_made_again_under_the_same_authority(gateway_toml: &Path) {
    for lost in ["certs/server.pem", "certs/server.key"] {
        fs::remove_file(lost).expect("removed");
    }
    first_run(gateway_toml, SystemTime::now()).expect("made");
    certificates_hold(&["localhost"]);
    Config::load(gateway_toml).expect("a good configuration");

    for lost in ["certs/server.pem", "certs/server.key", "certs/ca.key"] {
        fs::remove_file(lost).expect("removed");
    }
    let run = first_run(gateway_toml, SystemTime::now()).expect("nothing to do");
    assert!(run.made.is_empty(), "a CA without its key is somebody else's: {run:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
}

const MADE: [&str; 8] = [
    "certs/ca.key",
    "certs/ca.pem",
    "certs/demo-issuer.key",
    "certs/demo-issuer.pem",
    "certs/server.key",
    "certs/server.pem",
    "config/identities.toml",
    "config/revocations.jsonl",
];
