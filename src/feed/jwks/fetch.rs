//! One fetch: by https, from an address that may be asked, of a bounded size and in a bounded time.

use std::{fmt, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio_rustls::rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use ureq::{
    Agent, Error,
    config::Config,
    http::{StatusCode, Uri, header::LOCATION, uri::Scheme},
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use super::{KeySetSource, Network, address::may_be_asked};

/// `jwks_url`: https, a host, no user and no fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySetUrl {
    text: Box<str>,
    uri: Uri,
}

impl KeySetUrl {
    /// Reads it.
    ///
    /// # Errors
    /// Half a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("{text:?} is no address"))?;
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(format!("{text:?} does not begin with https://"));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if uri.host().is_none_or(str::is_empty) || authority.contains('@') || text.contains('#') {
            return Err(format!("{text:?} is not https://HOST/PATH without user and fragment"));
        }
        Ok(Self { text: text.into(), uri })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where a redirect leads, if that is the same host and port.
    fn redirected(&self, location: &str) -> Option<Self> {
        let authority = self.uri.authority()?;
        let target = match location.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => format!("https://{authority}{location}"),
            _ => location.to_owned(),
        };
        let target = Self::parse(&target).ok()?;
        let port = |url: &Self| url.uri.port_u16().unwrap_or(HTTPS);
        let same_host = target.uri.host()?.eq_ignore_ascii_case(self.uri.host()?) && port(&target) == port(self);
        same_host.then_some(target)
    }
}

impl fmt::Debug for KeySetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// The text of a key set.
///
/// # Errors
/// Half a sentence for the operator.
pub(super) fn fetch(source: &KeySetSource) -> Result<String, String> {
    fetch_within(source, WITHIN)
}

pub(super) fn fetch_within(source: &KeySetSource, within: Duration) -> Result<String, String> {
    let agent = agent(source, within)?;
    let mut url = source.url.clone();
    for _ in 0..=REDIRECTS_MAX {
        let mut response = agent.get(url.as_str()).call().map_err(|error| sentence(&error))?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            url = url.redirected(location).ok_or("it leads to another host, which is not followed")?;
            continue;
        }
        if status != StatusCode::OK {
            return Err(format!("the server answers {status}"));
        }
        // Such a limit is the first size that is too large.
        let body = response.body_mut().with_config().limit(BODY_BYTES_MAX + 1);
        return body.read_to_string().map_err(|error| sentence(&error));
    }
    Err(format!("it leads from one address to the next, more than {REDIRECTS_MAX} times"))
}

fn agent(source: &KeySetSource, within: Duration) -> Result<Agent, String> {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
        .root_certs(roots(source.ca.as_deref())?)
        .build();
    let config = Config::builder()
        .tls_config(tls)
        .https_only(true)
        .http_status_as_error(false)
        // Redirects are followed here, where it is known to whom.
        .max_redirects(0)
        .max_redirects_will_error(false)
        // A proxy would choose the address.
        .proxy(None)
        .user_agent("tollgate")
        .timeout_global(Some(within))
        .max_response_header_size(HEAD_BYTES_MAX)
        .max_idle_connections(0)
        .build();
    let resolver = Guard { private: source.private.clone(), inner: DefaultResolver::default() };
    Ok(Agent::with_parts(config, DefaultConnector::default(), resolver))
}

fn roots(ca: Option<&Path>) -> Result<RootCerts, String> {
    let ders: Vec<CertificateDer<'static>> = match ca {
        Some(file) => CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| format!("`jwks_ca` {} cannot be read: {error}", file.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if ders.is_empty() {
        return Err("there is no authority that its certificate could be of: name one as `jwks_ca`".into());
    }
    let all: Vec<Certificate<'static>> = ders.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    Ok(RootCerts::new_with_certs(&all))
}

/// Looks at the addresses that a name stands for, and lets those alone through that may be asked. The connection is made
/// to what it lets through: a name that stands for something else a moment later changes nothing.
#[derive(Debug)]
struct Guard {
    private: Vec<Network>,
    inner: DefaultResolver,
}

impl Resolver for Guard {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter().filter(|address| may_be_asked(address.ip(), &self.private)) {
            allowed.push(*address);
        }
        match found.first() {
            Some(first) if allowed.is_empty() => Err(Error::Other(Box::new(PrivateAddress(*first)))),
            _ => Ok(allowed),
        }
    }
}

/// A host is at an address that may not be asked.
#[derive(Debug)]
struct PrivateAddress(SocketAddr);

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.ip();
        write!(f, "its host is at {address}, which is not public: list it in `jwks_private_addresses` if that is right")
    }
}

impl std::error::Error for PrivateAddress {}

fn sentence(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "the server does not answer in time".into(),
        Error::BodyExceedsLimit(_) => "it is larger than 256 KiB".into(),
        Error::Other(other) => other.to_string(),
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => "the server does not answer in time".into(),
        // A reader hands the error of the body on in its own.
        Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => sentence(inner),
            None => error.to_string(),
        },
        other => other.to_string(),
    }
}

/// From the look-up of the name to the last byte.
const WITHIN: Duration = Duration::from_secs(10);
/// As with a file.
const BODY_BYTES_MAX: u64 = 256 << 10;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// On the same host.
const REDIRECTS_MAX: usize = 3;
const HTTPS: u16 = 443;
