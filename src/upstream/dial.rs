//! One connection to a hub: TCP or TLS, and when to try the next.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    HubTlsConfig, Interpreted, Tally,
    trust::{Trust, TrustError},
};

/// Where a hub is, and how it is believed.
#[derive(Clone)]
pub struct HubAddress {
    host: String,
    port: u16,
    tls: Option<Arc<Trust>>,
}

impl HubAddress {
    /// A hub on plain TCP.
    pub fn plain(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, tls: None }
    }

    /// A hub behind TLS 1.2 or 1.3. Its certificate must name `host`.
    ///
    /// # Errors
    /// [`TrustError`]: no CA to believe, a certificate of ours that cannot be used, or a host that no certificate can name.
    pub fn tls(host: impl Into<String>, port: u16, config: &HubTlsConfig) -> Result<Self, TrustError> {
        let host = host.into();
        let trust = Trust::new(&host, config)?;
        Ok(Self { host, port, tls: Some(Arc::new(trust)) })
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Connects within ten seconds, the TLS handshake included.
///
/// # Errors
/// What the network or the TLS library says; [`io::ErrorKind::TimedOut`].
pub async fn dial(address: &HubAddress) -> io::Result<HubStream> {
    match timeout(CONNECT_TIMEOUT, connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the hub did not answer")),
    }
}

/// A connection to a hub.
#[derive(Debug)]
pub enum HubStream {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// Spoken to by a library.
    Interpreted(Box<Interpreted>),
}

impl HubStream {
    /// What is counted besides what the link sees.
    pub fn tally(&self) -> Option<&Tally> {
        match self {
            Self::Interpreted(stream) => Some(stream.tally()),
            Self::Plain(_) | Self::Tls(_) => None,
        }
    }

    /// Whether it was given up for a reason that no message is the cause of: the hub did not answer in time, or not in MQTT.
    pub fn was_given_up(&self) -> bool {
        match self {
            Self::Interpreted(stream) => stream
                .explanation()
                .is_some_and(|why| matches!(why.kind(), io::ErrorKind::TimedOut | io::ErrorKind::InvalidData)),
            Self::Plain(_) | Self::Tls(_) => false,
        }
    }

    /// Why the connection came to its end, where somebody knows it better than the error that ended it.
    pub fn explanation(&self) -> Option<String> {
        match self {
            Self::Interpreted(stream) => stream.explanation().map(ToString::to_string),
            Self::Plain(_) | Self::Tls(_) => None,
        }
    }
}

impl AsyncRead for HubStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Interpreted(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for HubStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Interpreted(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Interpreted(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Interpreted(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// How long to wait before the next connection: twice as long each time, from 100 ms to 10 s, less up to a half by
/// chance, so that a fleet does not come back all at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Another attempt failed. `random` is any number.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let full = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        half + Duration::from_micros(random % (half.as_micros() as u64 + 1))
    }

    /// A connection served: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

async fn connect(address: &HubAddress) -> io::Result<HubStream> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    // While nothing listens on a local port, a connection to it can meet itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the connection met itself"));
    }
    stream.set_nodelay(true)?;
    match &address.tls {
        None => Ok(HubStream::Plain(stream)),
        Some(trust) => {
            let (connector, name) = trust.connector();
            Ok(HubStream::Tls(Box::new(connector.connect(name, stream).await?)))
        }
    }
}

/// A hub at the other end of the world answers within a second; a lost SYN is repeated after 1, 3 and 7.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A hub that is only restarting is back soon.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// A hub that is away is not hammered, and not waited for much longer than it is away.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer},
    };

    /// A CA's PEM, and a server that it vouches for under `name`.
    fn server(name: &str) -> (String, TlsAcceptor) {
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut ca = rcgen::CertificateParams::new(vec![]).expect("parameters");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(ca, ca_key).expect("a CA");
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a configuration");
        (ca.pem(), TlsAcceptor::from(Arc::new(config)))
    }

    async fn answer(listener: TcpListener, acceptor: TlsAcceptor) {
        let (stream, _) = listener.accept().await.expect("a connection");
        if let Ok(mut stream) = acceptor.accept(stream).await {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.expect("a byte");
            stream.write_all(&byte).await.expect("written");
        }
    }

    fn ca_file(name: &str, pem: &str) -> HubTlsConfig {
        let path = std::env::temp_dir().join(format!("tollgate-dial-{}-{name}.pem", std::process::id()));
        std::fs::write(&path, pem).expect("a file");
        HubTlsConfig { ca: Some(path), identity: None }
    }

    #[tokio::test]
    async fn a_hub_is_believed_when_its_ca_and_its_name_are_right() {
        let (pem, acceptor) = server("localhost");
        let (other_pem, _) = server("localhost");
        let right = ca_file("right", &pem);
        for (host, trust, works) in [
            ("localhost", &right, true),
            ("127.0.0.1", &right, false),
            ("localhost", &ca_file("other", &other_pem), false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let hub = tokio::spawn(answer(listener, acceptor.clone()));
            let address = HubAddress::tls(host, port, trust).expect("an address");
            match dial(&address).await {
                Ok(mut stream) => {
                    assert!(works, "{address}");
                    stream.write_all(b"x").await.expect("written");
                    assert_eq!(stream.read_u8().await.expect("a byte"), b'x');
                }
                Err(error) => assert!(!works, "{address}: {error}"),
            }
            hub.await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn a_plain_hub_is_reached_without_delay_of_small_packets() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let address = HubAddress::plain("127.0.0.1", port);
        assert_eq!(address.to_string(), format!("mqtt://127.0.0.1:{port}"));
        let HubStream::Plain(stream) = dial(&address).await.expect("connected") else { panic!("plain") };
        assert!(stream.nodelay().expect("an option"));
        drop(listener);
        dial(&address).await.expect_err("nobody listens");
    }

    #[test]
    fn what_cannot_be_believed_is_said_before_anything_is_dialled() {
        let missing = HubTlsConfig { ca: Some("/nonexistent/ca.pem".into()), identity: None };
        assert!(matches!(HubAddress::tls("hub", 8883, &missing), Err(TrustError::CaFile { .. })));
        let empty = ca_file("empty", "no certificate here\n");
        assert!(matches!(HubAddress::tls("hub", 8883, &empty), Err(TrustError::CaFile { .. })));
        let (pem, _) = server("hub");
        let good = ca_file("good", &pem);
        assert!(matches!(HubAddress::tls("not a host", 8883, &good), Err(TrustError::HostName { .. })));
        assert!(HubAddress::tls("hub", 8883, &good).is_ok());
    }

    #[test]
    fn delays_double_from_a_tenth_of_a_second_to_ten_and_are_jittered() {
        for (random, first, last) in [(0, 50, 5_000), (50_000, 100, 5_050)] {
            let mut backoff = Backoff::default();
            let delays: Vec<_> = (0..40).map(|_| backoff.next_delay(random)).collect();
            assert_eq!(delays[0].as_millis(), first);
            assert_eq!(delays[39].as_millis(), last);
            let full = |i: u32| Duration::from_millis(100 << i.min(7)).min(BACKOFF_MAX);
            for (i, delay) in (0..).zip(&delays) {
                assert!(*delay >= full(i) / 2 && *delay <= full(i), "{i}: {delay:?}");
            }
            backoff.reset();
            assert_eq!(backoff.next_delay(random), delays[0]);
        }
    }
}
