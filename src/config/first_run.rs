//! The first run: what makes a clean clone work with one command, and nothing that stands there already is touched.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
use zeroize::Zeroizing;

use super::{
    development::Authority,
    files::check_mode,
    gateway::{self, Config},
    listeners::{CERTIFICATE, PRIVATE_KEY},
    mistake::Mistake,
    token_service::make_signing_key,
};
use crate::{
    file::{Made, Readers, make_private_directory, write_new},
    listener::Transport,
};

/// What the first run made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FirstRun {
    /// Every new file.
    pub made: Vec<PathBuf>,
    /// Whether demonstration identities are among them: the devices `demo-sas`, `demo-jwt` and `dashboard`, and the
    /// issuer `demo`.
    pub has_new_identities: bool,
}

/// Makes what a start without `--config` needs and does not find: demonstration identities, development certificates
/// where a listener uses the default files, and an empty revocation list. Files that exist are left alone.
///
/// # Errors
/// The mistakes of `gateway.toml`, or what could not be made.
pub fn first_run(gateway_toml: &Path, now: SystemTime) -> Result<FirstRun, Vec<Mistake>> {
    let parsed = gateway::read(gateway_toml).map_err(|mistake| vec![mistake])?;
    if !parsed.mistakes.is_empty() {
        return Err(parsed.mistakes);
    }
    let mut run = Run::default();
    run.make_all(&parsed.config, now).map_err(|mistake| vec![mistake])?;
    Ok(run.first_run)
}

/// Makes the state directory (0700) and in it, 0600, the admin API's token and the signing key of the token service, when
/// they are missing; every start needs them.
///
/// # Errors
/// What could not be made, or a token that others may read.
pub fn prepare_state(config: &Config) -> Result<(), Mistake> {
    let directory = &config.gateway.state_dir;
    make_private_directory(directory).map_err(|error| not_made(directory, &error))?;
    let token = admin_token_file(config);
    let secret = Zeroizing::new(format!("{}\n", URL_SAFE_NO_PAD.encode(random_key(&token)?)));
    write_new(&token, secret.as_bytes(), Readers::Owner).map_err(|error| not_made(&token, &error))?;
    check_mode(&token).map_err(|fault| Mistake::of_file(&token, fault.what, fault.remedy))?;
    config.token_service.as_ref().map_or(Ok(()), |service| make_signing_key(service, directory))
}

/// Where the admin API's token is.
pub fn admin_token_file(config: &Config) -> PathBuf {
    config.gateway.state_dir.join("admin.token")
}

#[derive(Default)]
struct Run {
    first_run: FirstRun,
}

impl Run {
    fn make_all(&mut self, config: &Config, now: SystemTime) -> Result<(), Mistake> {
        if is_missing(&config.gateway.identities) {
            self.make_identities(&config.gateway.identities, &config.gate.hostname)?;
        }
        self.make(&config.gateway.revocations, REVOCATIONS.as_bytes(), Readers::Owner)?;
        if uses_default_certificate(config) && is_missing(Path::new(CERTIFICATE)) && is_missing(Path::new(PRIVATE_KEY))
        {
            let names: Vec<String> = [&config.gate.hostname].into_iter().chain(&config.gate.aliases).cloned().collect();
            self.make_certificates(&names, now)?;
        }
        Ok(())
    }

    /// The issuer's keys come first: an identities file that names them must not be there without them.
    fn make_identities(&mut self, identities: &Path, hostname: &str) -> Result<(), Mistake> {
        if is_missing(Path::new(ISSUER_KEY)) && is_missing(Path::new(ISSUER_PUBLIC)) {
            let key = rcgen::KeyPair::generate().map_err(|error| not_made(Path::new(ISSUER_KEY), &error))?;
            self.make(Path::new(ISSUER_KEY), Zeroizing::new(key.serialize_pem()).as_bytes(), Readers::Owner)?;
            self.make(Path::new(ISSUER_PUBLIC), key.public_key_pem().as_bytes(), Readers::All)?;
        }
        let text = demonstration(identities, hostname)?;
        self.first_run.has_new_identities = self.make(identities, text.as_bytes(), Readers::Owner)? == Made::New;
        Ok(())
    }

    fn make_certificates(&mut self, names: &[String], now: SystemTime) -> Result<(), Mistake> {
        let failed = |error| not_made(Path::new(CERTIFICATE), &error);
        let authority = match (is_missing(Path::new(CA_CERTIFICATE)), is_missing(Path::new(CA_KEY))) {
            (true, true) => {
                let (authority, pem) = Authority::create(now).map_err(failed)?;
                self.make(Path::new(CA_KEY), pem.private_key.as_bytes(), Readers::Owner)?;
                self.make(Path::new(CA_CERTIFICATE), pem.certificate.as_bytes(), Readers::All)?;
                Some(authority)
            }
            _ => read_authority(now),
        };
        // Another CA's certificate: its owner makes the server's, and the check of the files says that it is missing.
        let Some(authority) = authority else { return Ok(()) };
        let server = authority.issue_server(names, now).map_err(failed)?;
        self.make(Path::new(PRIVATE_KEY), server.private_key.as_bytes(), Readers::Owner)?;
        self.make(Path::new(CERTIFICATE), server.certificate.as_bytes(), Readers::All)?;
        Ok(())
    }

    fn make(&mut self, path: &Path, content: &[u8], readers: Readers) -> Result<Made, Mistake> {
        let made = write_new(path, content, readers).map_err(|error| not_made(path, &error))?;
        if made == Made::New {
            self.first_run.made.push(path.to_owned());
        }
        Ok(made)
    }
}

fn uses_default_certificate(config: &Config) -> bool {
    config.listeners.iter().any(|listener| match &listener.transport {
        Transport::Tls(files) => {
            files.certificate == Path::new(CERTIFICATE) && files.private_key == Path::new(PRIVATE_KEY)
        }
        Transport::Tcp => false,
    })
}

fn read_authority(now: SystemTime) -> Option<Authority> {
    let certificate = CertificateDer::from_pem_file(CA_CERTIFICATE).ok()?;
    let private_key = Zeroizing::new(fs::read_to_string(CA_KEY).ok()?);
    Authority::again(&certificate, &private_key, now)
}

fn demonstration(file: &Path, hostname: &str) -> Result<Zeroizing<String>, Mistake> {
    let mut text = Zeroizing::new(IDENTITIES.replace("HOSTNAME", hostname));
    while text.contains(KEY) {
        let key = Zeroizing::new(STANDARD.encode(random_key(file)?));
        text = Zeroizing::new(text.replacen(KEY, &key, 1));
    }
    Ok(text)
}

fn random_key(file: &Path) -> Result<Zeroizing<[u8; 32]>, Mistake> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).map_err(|error| not_made(file, &error))?;
    Ok(key)
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn not_made(path: &Path, error: &dyn std::fmt::Display) -> Mistake {
    let remedy = "Give the gateway's user the right to write there, or make it yourself.";
    Mistake::of_file(path, format!("could not be made: {error}."), remedy)
}

const CA_CERTIFICATE: &str = "certs/ca.pem";
const CA_KEY: &str = "certs/ca.key";
const ISSUER_KEY: &str = "certs/demo-issuer.key";
const ISSUER_PUBLIC: &str = "certs/demo-issuer.pem";

/// Stands for 32 random bytes in base64; no base64 text holds it.
const KEY: &str = "<random>";

const IDENTITIES: &str = r#"# Demonstration identities, made at the first run with random keys. Replace them with your own: the gateway applies
# what is saved here at once. This file holds secrets and must stay readable by its owner alone.

[defaults.scope]
publish = ["devices/{device}/messages/events/#"]
subscribe = ["devices/{device}/messages/devicebound/#"]

# Connects with a SAS token signed by one of its keys.
[[device]]
id = "demo-sas"
primary_key = "<random>"
secondary_key = "<random>"

# Connects with a JWT of the issuer below.
[[device]]
id = "demo-jwt"
accept = ["jwt"]

# A program on this site that reads what all devices send.
[[device]]
id = "dashboard"
primary_key = "<random>"
secondary_key = "<random>"
scope.publish = []
scope.subscribe = ["devices/+/messages/events/#"]

# Its private key is certs/demo-issuer.key: whoever holds it can be any device.
[[issuer]]
name = "demo"
iss = "https://demo.invalid"
audience = ["HOSTNAME"]
algorithms = ["ES256"]
device_claim = "sub"
require = ["exp", "iat", "jti"]
[[issuer.key]]
kid = "demo"
file = "certs/demo-issuer.pem"
"#;

const REVOCATIONS: &str = r#"# The revocation list: one JSON object a line, applied as soon as it is saved. Lines that begin with # are comments.
# {"device": "pump-17", "reason": "scrapped"}
# {"jti": "2f1c", "reason": "laptop stolen", "until": "2030-01-01T00:00:00Z"}
# {"token": "sha256:9c1e"}
"#;
