//! TLS of a listener: 1.2 and 1.3, session tickets, no early data; its files can be read anew while it serves.

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem, pem::PemObject},
        server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions},
    },
};

use super::{
    config::{ClientFiles, TlsFiles},
    stream::{Socket, Stream},
    witness::Witness,
};
use crate::{
    credential::{Authorities, ClientAuthorities, PeerCertificate, Refused, Replaced, certificate_end},
    denial::Denial,
    time::UnixSeconds,
};

/// Certificate, key and authorities of one listener, as they are in force. What is admitted by them is asked again by
/// whoever calls [`reload`](Self::reload).
pub struct Tls {
    files: TlsFiles,
    server: ArcSwap<ServerConfig>,
    authorities: Option<Arc<ClientAuthorities>>,
    provider: Arc<CryptoProvider>,
    /// The same for every certificate that follows: a device that comes back resumes its session.
    ticketer: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions + Send + Sync>,
    certificate_end: AtomicU64,
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
        let witness = authorities.as_ref().map(|authorities| Witness::new(authorities.demand(), &provider));
        let pair = Pair::read(files)?;
        let end = pair.end();
        let server = pair.server(files, &provider, witness, (&ticketer, &sessions))?;
        Ok(Arc::new(Self {
            files: files.clone(),
            server: ArcSwap::from_pointee(server),
            authorities,
            provider,
            ticketer,
            sessions,
            certificate_end: AtomicU64::new(end.0),
        }))
    }

    /// Reads the files anew. Certificate and key are taken together or not at all, likewise authorities and their lists.
    pub fn reload(&self) -> Reloaded {
        let mut reloaded = Reloaded { authorities: Replaced::Same, faults: Vec::new() };
        if let Err(fault) = self.reload_pair() {
            reloaded.faults.push(fault);
        }
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

    /// The last second of the certificate that devices are shown.
    pub fn certificate_end(&self) -> UnixSeconds {
        UnixSeconds(self.certificate_end.load(Ordering::Relaxed))
    }

    /// When the first revocation list of the authorities is to be followed by another.
    pub fn lists_end(&self) -> Option<UnixSeconds> {
        self.authorities.as_ref()?.lists_end()
    }

    /// The file with the certificate that devices are shown.
    pub fn certificate_file(&self) -> &Path {
        &self.files.certificate
    }

    fn reload_pair(&self) -> Result<(), TlsFileError> {
        let pair = Pair::read(&self.files)?;
        let end = pair.end();
        let witness = self.authorities.as_ref().map(|authorities| Witness::new(authorities.demand(), &self.provider));
        let server = pair.server(&self.files, &self.provider, witness, (&self.ticketer, &self.sessions))?;
        self.server.store(Arc::new(server));
        self.certificate_end.store(end.0, Ordering::Relaxed);
        Ok(())
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

/// What a listener shows, and the key to it.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Pair {
    fn read(files: &TlsFiles) -> Result<Self, TlsFileError> {
        let chain = read_certificates(&files.certificate)?;
        let key = &files.private_key;
        // Threat T30: also for a key that came while the gateway runs.
        let mode = fs::metadata(key).map_err(|error| unusable(key, error.to_string()))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(unusable(key, format!("its mode {mode:04o} lets group or others at it: chmod 600")));
        }
        Ok(Self { chain, key: PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, pem_sentence(&e)))? })
    }

    fn end(&self) -> UnixSeconds {
        self.chain.first().and_then(|leaf| certificate_end(leaf)).unwrap_or(UnixSeconds(u64::MAX))
    }

    fn server(
        self,
        files: &TlsFiles,
        provider: &Arc<CryptoProvider>,
        witness: Option<Arc<Witness>>,
        (ticketer, sessions): (&Arc<dyn ProducesTickets>, &Arc<dyn StoresServerSessions + Send + Sync>),
    ) -> Result<ServerConfig, TlsFileError> {
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| unusable(&files.certificate, error.to_string()))?;
        let builder = match witness {
            Some(witness) => builder.with_client_cert_verifier(witness),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(self.chain, self.key).map_err(|error| {
            unusable(&files.private_key, format!("certificate and key do not fit together: {error}"))
        })?;
        server.ticketer = ticketer.clone();
        server.session_storage = sessions.clone();
        // RFC 8446 §8: early data can be replayed.
        server.max_early_data_size = 0;
        Ok(server)
    }
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
