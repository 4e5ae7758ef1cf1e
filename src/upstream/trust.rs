//! How a hub behind TLS is believed, and what it is shown: read anew when one of the files has changed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::{HubIdentity, HubTlsConfig};

/// CAs, the pool's own certificate, and the name that the hub's must have.
pub(super) struct Trust {
    name: ServerName<'static>,
    config: HubTlsConfig,
    /// What is in force, and what the files looked like when it was read.
    client: Mutex<(Seen, Arc<ClientConfig>)>,
}

/// Length and time of each file.
type Seen = Vec<Option<(u64, SystemTime)>>;

impl Trust {
    pub(super) fn new(host: &str, config: &HubTlsConfig) -> Result<Self, TrustError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TrustError::HostName { host: host.to_owned() })?;
        let client = (seen(config), read(config)?);
        Ok(Self { name, config: config.clone(), client: Mutex::new(client) })
    }

    pub(super) fn connector(&self) -> (TlsConnector, ServerName<'static>) {
        (TlsConnector::from(self.client()), self.name.clone())
    }

    /// What the next connection uses. Files that cannot be used leave what was in force.
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        let found = seen(&self.config);
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if client.0 != found {
            client.0 = found;
            match read(&self.config) {
                Ok(read) => client.1 = read,
                Err(error) => tracing::warn!(%error, "files for a hub's TLS changed and cannot be used"),
            }
        }
        client.1.clone()
    }
}

/// Why no hub can be believed with this configuration.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrustError {
    /// The CA file cannot be read or holds no certificate.
    CaFile {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The certificate that we show, or its key, cannot be used.
    Identity {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system has no CA.
    NoSystemCa,
    /// Not a host name or an address.
    HostName {
        /// What was written.
        host: String,
    },
    /// The TLS library takes no part of the configuration.
    Tls(rustls::Error),
    /// `kind = "nats"`, and a program without the feature.
    BuiltWithoutNats,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CaFile { path, what } | Self::Identity { path, what } => write!(f, "{}: {what}", path.display()),
            Self::NoSystemCa => f.write_str("this system has no CA certificates: name a file with `ca`"),
            Self::HostName { host } => write!(f, "{host:?} is neither a host name nor an address"),
            Self::Tls(error) => error.fmt(f),
            Self::BuiltWithoutNats => f.write_str("this program was built without NATS"),
        }
    }
}

impl std::error::Error for TrustError {}

impl From<rustls::Error> for TrustError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

fn seen(config: &HubTlsConfig) -> Seen {
    let identity = config.identity.iter().flat_map(|identity| [&identity.certificate, &identity.private_key]);
    let look = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    config.ca.iter().chain(identity).map(look).collect()
}

fn read(config: &HubTlsConfig) -> Result<Arc<ClientConfig>, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(config)?);
    Ok(Arc::new(match &config.identity {
        None => client.with_no_client_auth(),
        Some(HubIdentity { certificate, private_key }) => {
            let wrong = |path: &Path, what: String| TrustError::Identity { path: path.into(), what };
            let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
            let chain: Vec<_> = chain.map_err(|error| wrong(certificate, error.to_string()))?;
            let key =
                PrivateKeyDer::from_pem_file(private_key).map_err(|error| wrong(private_key, error.to_string()))?;
            client.with_client_auth_cert(chain, key).map_err(|error| wrong(certificate, error.to_string()))?
        }
    }))
}

fn roots(config: &HubTlsConfig) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &config.ca else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() { Err(TrustError::NoSystemCa) } else { Ok(roots) };
    };
    let wrong = |what: String| TrustError::CaFile { path: path.clone(), what };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("it holds no certificate".into())) } else { Ok(roots) }
}
