//! TLS of a listener: 1.2 and 1.3, session tickets, no early data; its files can be read anew while it serves.

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem, pem::PemObject},
        server::{ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions},
        sign::{CertifiedKey, SingleCertAndKey},
    },
};

use super::{
    config::{ClientFiles, NamedFiles, TlsFiles},
    server_names::ByName,
    stream::{Socket, Stream},
    witness::Witness,
};
use crate::{
    credential::{
        Authorities, ClientAuthorities, PeerCertificate, Refused, Replaced, certificate_dns_names, certificate_end,
        names_cover,
    },
    denial::Denial,
    time::UnixSeconds,
};

/// Certificate, key and authorities of one listener, as they are in force. What is admitted by them is asked again by
/// whoever calls [`reload`](Self::reload).
pub struct Tls {
    files: TlsFiles,
    server: ArcSwap<ServerConfig>,
    /// What is shown: the first certificate, then those for names.
    shown: ArcSwap<Vec<Shown>>,
    authorities: Option<Arc<ClientAuthorities>>,
    provider: Arc<CryptoProvider>,
    /// The same for every certificate that follows: a device that comes back resumes its session.
    ticketer: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions + Send + Sync>,
}

/// What reading the files anew did.
#[derive(Debug)]
pub struct Reloaded {
    /// Whether other authorities are believed than before.
    pub authorities: Replaced,
    /// Files that cannot be used: what they were is in force still.
    pub faults: Vec<TlsFileError>,
}

impl Tls {
    /// Reads the files of a listener.
    ///
    /// # Errors
    /// [`TlsFileError`]: which file, and what is wrong with it.
    pub fn load(files: &TlsFiles) -> Result<Arc<Self>, TlsFileError> {
        let authorities = match &files.clients {
            Some(clients) => Some(ClientAuthorities::new(read_authorities(clients)?, clients.demand)),
            None => None,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let ticketer = aws_lc_rs::Ticketer::new().map_err(|error| unusable(&files.certificate, error.to_string()))?;
        let sessions: Arc<dyn StoresServerSessions + Send + Sync> = ServerSessionMemoryCache::new(SESSIONS_MAX);
        let shown = pairs_of(files).map(|pair| Shown::read(&pair, &provider)).collect::<Result<Vec<_>, _>>()?;
        let kept = (&ticketer, &sessions);
        let server = server_of(files, &shown, &provider, authorities.as_deref(), kept)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            server: ArcSwap::from_pointee(server),
            shown: ArcSwap::from_pointee(shown),
            authorities,
            provider,
            ticketer,
            sessions,
        }))
    }

    /// Reads the files anew. A certificate and its key are taken together or not at all, likewise authorities and their
    /// lists.
    pub fn reload(&self) -> Reloaded {
        let mut reloaded = Reloaded { authorities: Replaced::Same, faults: Vec::new() };
        self.reload_pairs(&mut reloaded.faults);
        if let (Some(clients), Some(authorities)) = (&self.files.clients, &self.authorities) {
            match read_authorities(clients) {
                Ok(read) => reloaded.authorities = authorities.replace(read),
                Err(fault) => reloaded.faults.push(fault),
            }
        }
        reloaded
    }

    /// Makes TLS streams with what is in force at each handshake.
    pub fn acceptor(self: &Arc<Self>) -> Acceptor {
        Acceptor(self.clone())
    }

    /// Every file.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.all()
    }

    /// The files with the certificates that devices are shown, and the last second of each.
    pub fn certificates(&self) -> Vec<(PathBuf, UnixSeconds)> {
        let ends = self.shown.load();
        pairs_of(&self.files).map(|pair| pair.certificate.to_owned()).zip(ends.iter().map(|shown| shown.end)).collect()
    }

    /// When the first revocation list of the authorities is to be followed by another.
    pub fn lists_end(&self) -> Option<UnixSeconds> {
        self.authorities.as_ref()?.lists_end()
    }

    fn reload_pairs(&self, faults: &mut Vec<TlsFileError>) {
        let mut shown = Vec::clone(&self.shown.load());
        for (held, pair) in shown.iter_mut().zip(pairs_of(&self.files)) {
            match Shown::read(&pair, &self.provider) {
                Ok(read) => *held = read,
                Err(fault) => faults.push(fault),
            }
        }
        let kept = (&self.ticketer, &self.sessions);
        match server_of(&self.files, &shown, &self.provider, self.authorities.as_deref(), kept) {
            Ok(server) => {
                self.server.store(Arc::new(server));
                self.shown.store(Arc::new(shown));
            }
            Err(fault) => faults.push(fault),
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Makes TLS streams of accepted sockets.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<Tls>);

/// A handshake that succeeded.
#[derive(Debug)]
pub struct Accepted {
    /// The stream.
    pub stream: Stream,
    /// The certificate of the peer, which holds its key; whether it is believed is the gate's to say.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// A handshake that failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The peer went away.
    Gone,
    /// It does not speak TLS as we do, or has shown what it may not.
    Refused(Refused),
}

impl Acceptor {
    /// One handshake; the caller bounds its time.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, HandshakeError> {
        let acceptor = TlsAcceptor::from(self.0.server.load_full());
        let tls = acceptor.accept(Socket::Attached(stream)).await.map_err(|error| why_failed(&error))?;
        let shown = tls.get_ref().1.peer_certificates();
        let certificate = match (shown, &self.0.authorities) {
            (Some(chain), Some(authorities)) if !chain.is_empty() => {
                let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
                Some(PeerCertificate::parse(chain, authorities.clone()).map_err(HandshakeError::Refused)?)
            }
            _ => None,
        };
        Ok(Accepted { stream: Stream::Tls(Box::new(tls)), certificate })
    }
}

/// A certificate or key file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFileError {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)
    }
}

impl std::error::Error for TlsFileError {}

/// A certificate and its key, and the names that it is to be shown for; none: whoever names none.
struct Pair<'f> {
    certificate: &'f Path,
    private_key: &'f Path,
    names: &'f [String],
}

fn pairs_of(files: &TlsFiles) -> impl Iterator<Item = Pair<'_>> {
    let TlsFiles { certificate, private_key, further, .. } = files;
    let further =
        further.iter().map(|NamedFiles { names, certificate, private_key }| Pair { certificate, private_key, names });
    std::iter::once(Pair { certificate, private_key, names: &[] }).chain(further)
}

/// What is shown.
#[derive(Clone)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// The names that the certificate says it is for.
    dns_names: Vec<String>,
    end: UnixSeconds,
}

impl Shown {
    fn read(pair: &Pair<'_>, provider: &CryptoProvider) -> Result<Self, TlsFileError> {
        let chain = read_certificates(pair.certificate)?;
        let key = pair.private_key;
        // Threat T30: also for a key that came while the gateway runs.
        let mode = fs::metadata(key).map_err(|error| unusable(key, error.to_string()))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(unusable(key, format!("its mode {mode:04o} lets group or others at it: chmod 600")));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, pem_sentence(&error)))?;
        let leaf = chain.first();
        let end = leaf.and_then(|leaf| certificate_end(leaf)).unwrap_or(UnixSeconds(u64::MAX));
        let dns_names = leaf.map_or_else(Vec::new, |leaf| certificate_dns_names(leaf));
        if let Some(name) = pair.names.iter().find(|name| !names_cover(&dns_names, name)) {
            return Err(unusable(pair.certificate, format!("it is no certificate for {name}")));
        }
        let certified = CertifiedKey::from_der(chain, private, provider)
            .map_err(|error| unusable(key, format!("certificate and key do not fit together: {error}")))?;
        Ok(Self { key: Arc::new(certified), dns_names, end })
    }
}

fn server_of(
    files: &TlsFiles,
    shown: &[Shown],
    provider: &Arc<CryptoProvider>,
    authorities: Option<&ClientAuthorities>,
    (ticketer, sessions): (&Arc<dyn ProducesTickets>, &Arc<dyn StoresServerSessions + Send + Sync>),
) -> Result<ServerConfig, TlsFileError> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| unusable(&files.certificate, error.to_string()))?;
    let builder = match authorities {
        Some(authorities) => builder.with_client_cert_verifier(Witness::new(authorities.demand(), provider)),
        None => builder.with_no_client_auth(),
    };
    let (first, further) = shown.split_first().expect("invariant: a listener has a certificate");
    let resolver: Arc<dyn ResolvesServerCert> = match further {
        [] => Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&first.key))),
        further => {
            let named = files.further.iter().map(|named| named.names.as_slice());
            let further = further.iter().map(|shown| shown.key.clone()).zip(named);
            Arc::new(ByName::new((first.key.clone(), &first.dns_names), further))
        }
    };
    let mut server = builder.with_cert_resolver(resolver);
    server.ticketer = ticketer.clone();
    server.session_storage = sessions.clone();
    // RFC 8446 §8: early data can be replayed.
    server.max_early_data_size = 0;
    Ok(server)
}

fn read_authorities(clients: &ClientFiles) -> Result<Authorities, TlsFileError> {
    let Some(ca) = &clients.ca else { return Ok(Authorities::default()) };
    let roots = read_certificates(ca)?;
    let lists = match &clients.crl {
        Some(crl) => read_lists(crl)?,
        None => Vec::new(),
    };
    Authorities::new(&roots, &lists, clients.stale_crl)
        .map_err(|what| unusable(clients.crl.as_ref().unwrap_or(ca), what))
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(file, pem_sentence(&error)))?;
    if chain.is_empty() { Err(unusable(file, "it holds no certificate".into())) } else { Ok(chain) }
}

fn read_lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsFileError> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(file, pem_sentence(&error)))?;
    if lists.is_empty() { Err(unusable(file, "it holds no revocation list (X509 CRL)".into())) } else { Ok(lists) }
}

fn why_failed(error: &io::Error) -> HandshakeError {
    if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
        return HandshakeError::Gone;
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if matches!(tls, Some(rustls::Error::NoCertificatesPresented)) {
        let detail = "The listener has `client_auth = \"required\"`, and the peer has shown no certificate.";
        return HandshakeError::Refused(Refused::new(Denial::CertificateRequired, detail));
    }
    HandshakeError::Refused(Refused::new(Denial::Malformed, format!("the TLS handshake failed: {error}")))
}

fn unusable(file: &Path, what: String) -> TlsFileError {
    TlsFileError { file: file.to_owned(), what }
}

fn pem_sentence(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "it holds no such PEM section".into(),
        pem::Error::Io(e) => e.to_string(),
        pem::Error::MissingSectionEnd { .. } => "it stops before the -----END line of a section".into(),
        other => format!("it is no PEM file: {other}"),
    }
}

/// Sessions of TLS 1.2 that are resumed without a ticket.
const SESSIONS_MAX: usize = 256;
