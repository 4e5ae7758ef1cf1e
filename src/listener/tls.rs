//! TLS of a listener: 1.2 and 1.3, session tickets, no early data.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};

use super::stream::{Socket, Stream};

/// Makes TLS streams of accepted sockets.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// One handshake; the caller bounds its time.
    ///
    /// # Errors
    /// The peer does not speak TLS 1.2 or 1.3 as we do, or went away.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        Ok(Stream::Tls(Box::new(self.0.accept(Socket::Attached(stream)).await?)))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

/// Reads the server's certificate chain and key.
///
/// # Errors
/// [`TlsFileError`]: which file, and what is wrong with it.
pub fn acceptor(certificate: &Path, private_key: &Path) -> Result<Acceptor, TlsFileError> {
    let unusable = |file: &Path, what: String| TlsFileError { file: file.to_owned(), what };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(certificate, pem_sentence(&e)))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "it holds no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(|e| unusable(private_key, pem_sentence(&e)))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| unusable(certificate, e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| unusable(private_key, format!("certificate and key do not fit together: {e}")))?;
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| unusable(certificate, e.to_string()))?;
    // RFC 8446 §8: early data can be replayed.
    config.max_early_data_size = 0;
    Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
}

/// A certificate or key file that cannot be used.
#[derive(Debug)]
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

fn pem_sentence(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "it holds no such PEM section".into(),
        pem::Error::Io(e) => e.to_string(),
        other => format!("it is no PEM file: {other}"),
    }
}
