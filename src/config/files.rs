//! What `gateway.toml` points to: whether it is there, may be read by the right people, and is what it should be.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_rustls::rustls::{
    self, CertificateError, Error,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject,
    },
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::{
    gateway::Config,
    listeners::{CERTIFICATE, PRIVATE_KEY},
    mistake::Mistake,
    token_service::read_signing,
};
use crate::{
    credential::{Authorities, ListKey, SecretKey, StaleList, certificate_dns_names, names_cover},
    delivery::spool::SpoolKeys,
    gate::OwnIssuer,
    upstream::{HubLogin, HubSasConfig, NatsLoginKind, UpstreamKind, check_credentials},
};

/// A file that a line of `gateway.toml` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileUse {
    /// What a TLS listener shows, or the pool to a hub.
    ServerIdentity { line: usize, certificate: PathBuf, private_key: PathBuf },
    /// The names that a certificate is to be shown for.
    ServerNames { line: usize, certificate: PathBuf, names: Vec<String> },
    /// Who may have signed the certificates of clients, and what was taken back.
    ClientAuthorities { lines: [usize; 2], ca: PathBuf, crl: Option<PathBuf> },
    /// Who may have signed the revocation list.
    ListKey { line: usize, path: PathBuf },
    /// Who may have signed a hub's certificate.
    Authorities { line: usize, path: PathBuf },
    /// What signs the tokens of the token service.
    SigningKeys { line: usize },
    /// What the pool says to a hub; `upstream` is its place in the list.
    HubPassword { line: usize, path: PathBuf, upstream: usize },
    /// What the pool says to the proxy before a hub.
    ProxyPassword { line: usize, path: PathBuf, upstream: usize },
    /// What signs the pool's tokens.
    HubSas { line: usize, sas: HubSasConfig, upstream: usize },
    /// What the spool is encrypted with.
    SpoolKeys { line: usize, path: PathBuf },
}

/// What is wrong with a file, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) remedy: String,
}

/// What the files of a configuration gave.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

/// Looks at every file; passwords and keys are put into the configuration.
pub(super) fn check_files(gateway_toml: &Path, files: &[FileUse], config: &mut Config, now: UnixTime) -> Findings {
    let mut findings = Findings::default();
    let at = |line: usize, fault: Fault| Mistake::at_line(gateway_toml, line, fault.what, fault.remedy);
    for file in files {
        match file {
            FileUse::ServerIdentity { line, certificate, private_key } => {
                let faults = check_server_identity(certificate, private_key);
                findings.mistakes.extend(faults.into_iter().map(|fault| at(*line, fault)));
                findings.warnings.extend(check_validity(certificate, now).map(|fault| at(*line, fault)));
            }
            FileUse::ServerNames { line, certificate, names } => {
                findings.mistakes.extend(check_names(certificate, names).map(|fault| at(*line, fault)));
            }
            FileUse::ClientAuthorities { lines, ca, crl } => {
                let faults = check_client_authorities(ca, crl.as_deref());
                let [ca_line, crl_line] = *lines;
                findings.mistakes.extend(
                    faults
                        .into_iter()
                        .map(|(of, fault)| at(if of == Of::Authorities { ca_line } else { crl_line }, fault)),
                );
            }
            FileUse::ListKey { line, path } => match read_list_key(path) {
                Ok(key) => config.list_rules.iter_mut().for_each(|rules| rules.keys.push(key.clone())),
                Err(fault) => findings.mistakes.push(at(*line, fault)),
            },
            FileUse::Authorities { line, path } => {
                findings.mistakes.extend(read_certificates(path).err().map(|fault| at(*line, fault)));
            }
            FileUse::SigningKeys { line } => {
                let read = config.token_service.as_ref().map(|service| read_signing(service, &config.gate));
                match read {
                    Some(Ok(signing)) => config.gate.own_issuer = Some(OwnIssuer::new(signing.issuer())),
                    Some(Err(mistake)) => findings.mistakes.push(Mistake {
                        line: Some(*line),
                        file: gateway_toml.into(),
                        what: format!("{}: {}", mistake.file.display(), mistake.what),
                        ..mistake
                    }),
                    None => {}
                }
            }
            FileUse::HubPassword { line, path, upstream } => match read_secret(path) {
                Ok(secret) => {
                    set_login(config, *upstream, |login| login.with_password(path, &secret));
                    findings
                        .mistakes
                        .extend(check_hub_secret(config, *upstream, path, &secret).err().map(|fault| at(*line, fault)));
                }
                Err(fault) => findings.mistakes.push(at(*line, fault)),
            },
            FileUse::ProxyPassword { line, path, upstream } => match read_secret(path) {
                Ok(secret) => {
                    if let Some(UpstreamKind::Mqtt(hub)) =
                        config.upstreams.get_mut(*upstream).map(|upstream| &mut upstream.kind)
                        && let Some(proxy) = &mut hub.wire.proxy
                    {
                        proxy.login = proxy.login.clone().with_password(path, &secret);
                    }
                }
                Err(fault) => findings.mistakes.push(at(*line, fault)),
            },
            FileUse::HubSas { line, sas, upstream } => match read_hub_key(sas) {
                Ok(key) => set_login(config, *upstream, |login| login.with_sas(sas, &key)),
                Err(fault) => findings.mistakes.push(at(*line, fault)),
            },
            FileUse::SpoolKeys { line, path } => match read_spool_keys(path) {
                Ok(keys) => config.spool.keys = keys,
                Err(fault) => findings.mistakes.push(at(*line, fault)),
            },
        }
    }
    let state_dir = &config.gateway.state_dir;
    if state_dir.exists() && !state_dir.is_dir() {
        let what = format!("`state_dir`: {} is no directory.", state_dir.display());
        findings.mistakes.push(Mistake::of_file(
            gateway_toml,
            what,
            "Name a directory; it is made when it is missing.",
        ));
    }
    findings
}

fn read_hub_key(sas: &HubSasConfig) -> Result<SecretKey, Fault> {
    let text = read_secret(&sas.key_file)?;
    SecretKey::parse(&text, sas.key_encoding).map_err(|error| {
        let remedy = "Write the key as the hub prints it, and nothing else; `key_encoding` says how it is to be read.";
        fault(&sas.key_file, &format!("is no key: {error}"), remedy)
    })
}

/// A text that nobody but the owner may read, without its last line break.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, Fault> {
    check_mode(path)?;
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| unreadable(path, &error))?);
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(fault(path, "is empty", "Write the secret into it, and nothing else."));
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

/// Threat T30: group and others may not read a secret. Links are followed: a mounted secret is one.
pub(super) fn check_mode(path: &Path) -> Result<(), Fault> {
    let mode = fs::metadata(path).map_err(|error| unreadable(path, &error))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let what = format!("holds a secret, and its mode {mode:04o} lets group or others at it");
    Err(fault(path, &what, &format!("Run: chmod 600 {}", path.display())))
}

fn read_spool_keys(path: &Path) -> Result<SpoolKeys, Fault> {
    SpoolKeys::parse(&read_secret(path)?).map_err(|what| {
        let remedy = format!("Make one, where there is none yet: openssl rand -base64 32 > {}", path.display());
        fault(path, &format!("is no file of keys: {what}"), &remedy)
    })
}

fn read_list_key(path: &Path) -> Result<ListKey, Fault> {
    let pem = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    ListKey::from_pem(&pem).map_err(|error| {
        let remedy = "It must hold an Ed25519 public key in PEM, as `tollgate revocations keygen` makes one.";
        fault(path, &format!("is no key that signs lists: {error}"), remedy)
    })
}

fn check_server_identity(certificate: &Path, private_key: &Path) -> Vec<Fault> {
    let chain = read_certificates(certificate);
    let key = check_mode(private_key).and_then(|()| read_private_key(private_key));
    match (chain, key) {
        (Ok(chain), Ok(key)) => check_pair(certificate, private_key, chain, key).err().into_iter().collect(),
        (chain, key) => chain.err().into_iter().chain(key.err()).collect(),
    }
}

/// What cannot be read was told before.
fn check_names(certificate: &Path, names: &[String]) -> Option<Fault> {
    let chain = read_certificates(certificate).ok()?;
    let held = certificate_dns_names(chain.first()?);
    let name = names.iter().find(|name| !names_cover(&held, name))?;
    let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
    let remedy = "Clients that ask for the name would refuse it: have one made for it, or correct `names`.";
    Some(fault(certificate, &format!("is no certificate for {name}: its DNS names are {held}"), remedy))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Authorities,
    Lists,
}

fn check_client_authorities(ca: &Path, crl: Option<&Path>) -> Vec<(Of, Fault)> {
    let roots = read_certificates(ca).map_err(|fault| (Of::Authorities, fault));
    let lists = crl.map_or(Ok(Vec::new()), read_lists).map_err(|fault| (Of::Lists, fault));
    match (roots, lists) {
        (Ok(roots), Ok(lists)) => match Authorities::new(&roots, &lists, StaleList::Refuse) {
            Ok(_) => Vec::new(),
            Err(what) => {
                vec![(
                    Of::Lists,
                    fault(crl.unwrap_or(ca), &format!("cannot be used: {what}"), "Make it anew with its CA."),
                )]
            }
        },
        (roots, lists) => roots.err().into_iter().chain(lists.err()).collect(),
    }
}

fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    let pem = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let remedy = "It must hold revocation lists in PEM: -----BEGIN X509 CRL-----.";
    let lists = CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(path, &format!("is no PEM: {}", pem_sentence(&error)), remedy))?;
    if lists.is_empty() { Err(fault(path, "holds no revocation list", remedy)) } else { Ok(lists) }
}

fn check_pair(
    certificate: &Path,
    private_key: &Path,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
) -> Result<(), Fault> {
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) => Ok(()),
        Err(Error::InconsistentKeys(_)) => Err(fault(
            private_key,
            &format!("is not the key of {}", certificate.display()),
            "The first certificate of the file must be the server's own; the others follow it.",
        )),
        Err(error) => Err(fault(certificate, &format!("holds no usable certificate: {error}"), "Make a new one.")),
    }
}

/// A warning, since a gateway that restarts in the night is to serve those who do not look at dates.
fn check_validity(path: &Path, now: UnixTime) -> Option<Fault> {
    let leaf = read_certificates(path).ok()?.into_iter().next()?;
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + EXPIRY_NOTICE);
    match (out_of_date(&leaf, now), out_of_date(&leaf, soon)) {
        (Some(what), _) => Some(fault(path, what, "Devices that look at its dates refuse it: make a new one.")),
        (None, Some(_)) => {
            let days = EXPIRY_NOTICE.as_secs() / 86_400;
            Some(fault(path, &format!("expires within {days} days"), "Make a new one in time."))
        }
        (None, None) => None,
    }
}

/// The verifier looks at the dates before it looks for an issuer, so none is needed.
fn out_of_date(leaf: &CertificateDer<'static>, at: UnixTime) -> Option<&'static str> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(leaf.clone()).ok()?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
    let name = ServerName::try_from("localhost").ok()?;
    match verifier.verify_server_cert(leaf, &[], &name, &[], at).err()? {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("has expired")
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            Some("is not valid yet")
        }
        _ => None,
    }
}

fn pem_sentence(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "it stops before the -----END line of a section".into(),
        other => other.to_string(),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let remedy = "It must hold certificates in PEM: -----BEGIN CERTIFICATE-----.";
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(path, &format!("is no PEM: {}", pem_sentence(&error)), remedy))?;
    if chain.is_empty() {
        return Err(fault(path, "holds no certificate", remedy));
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &chain {
        roots
            .add(certificate.clone())
            .map_err(|error| fault(path, &format!("holds a bad certificate: {error}"), remedy))?;
    }
    Ok(chain)
}

fn read_private_key(path: &Path) -> Result<Arc<dyn rustls::sign::SigningKey>, Fault> {
    let pem = Zeroizing::new(fs::read(path).map_err(|error| unreadable(path, &error))?);
    let remedy =
        "It must hold a private key in PEM without a passphrase: PKCS#8, SEC1 or PKCS#1; P-256, P-384, Ed25519 or RSA.";
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| fault(path, "holds no private key", remedy))?;
    aws_lc_rs::sign::any_supported_type(&key).map_err(|_| fault(path, "holds a private key of an unknown kind", remedy))
}

fn set_login(config: &mut Config, upstream: usize, with: impl FnOnce(HubLogin) -> HubLogin) {
    let login = match config.upstreams.get_mut(upstream).map(|upstream| &mut upstream.kind) {
        Some(UpstreamKind::Mqtt(hub)) => &mut hub.login,
        Some(UpstreamKind::Nats(hub)) => &mut hub.login.secret,
        Some(UpstreamKind::Embedded) | None => return,
    };
    *login = with(login.clone());
}

fn check_hub_secret(config: &Config, upstream: usize, path: &Path, secret: &str) -> Result<(), Fault> {
    match config.upstreams.get(upstream).map(|upstream| &upstream.kind) {
        Some(UpstreamKind::Nats(hub)) if hub.login.kind == NatsLoginKind::Credentials => check_credentials(secret)
            .map_err(|what| {
                let remedy = "It is the file that `nsc` writes for a user (.creds), as a whole.";
                fault(path, &format!("is no credentials file: {what}"), remedy)
            }),
        _ => Ok(()),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    if error.kind() != io::ErrorKind::NotFound {
        return fault(path, &format!("cannot be read: {error}"), "Give the gateway's user the right to read it.");
    }
    let made_at_first_run = [CERTIFICATE, PRIVATE_KEY].iter().any(|made| path == Path::new(made));
    let remedy = if made_at_first_run {
        "Start the gateway once without --config, which makes one for development, or name your own."
    } else {
        "Correct the path (it is relative to the working directory), or make the file."
    };
    fault(path, "does not exist", remedy)
}

fn fault(path: &Path, what: &str, remedy: &str) -> Fault {
    Fault { what: format!("{} {what}.", path.display()), remedy: remedy.to_owned() }
}

/// Time enough for a person to act on a warning.
const EXPIRY_NOTICE: Duration = Duration::from_hours(14 * 24);
