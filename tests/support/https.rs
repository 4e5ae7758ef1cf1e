//! A client of the token service: HTTP/1.1 over TLS, one request a connection, every byte of the answer kept.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

use super::secrets::{remember, remember_tokens};

/// Where it asks, whom it believes and what it shows.
#[derive(Clone)]
pub struct Https {
    address: SocketAddr,
    ca_pem: Vec<u8>,
    identity: Option<(String, String)>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// 200, 401 …
    pub status: u16,
    /// Lines of the head, in lower case.
    pub head: String,
    /// The body, as JSON; null where it is none.
    pub body: Value,
}

impl HttpAnswer {
    /// A text of the body.
    #[track_caller]
    pub fn text(&self, name: &str) -> String {
        self.body[name].as_str().unwrap_or_else(|| panic!("no text {name:?} in {self:?}")).to_owned()
    }

    /// `code` of a problem; empty where it is none.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Https {
    /// Asks this address, whose certificate is for `localhost`.
    pub fn new(address: SocketAddr, ca_pem: &[u8]) -> Self {
        Self { address, ca_pem: ca_pem.to_vec(), identity: None }
    }

    /// With a client certificate and its key, PEM.
    pub fn showing(mut self, certificate: &str, key: &str) -> Self {
        self.identity = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// POST of JSON.
    #[track_caller]
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> HttpAnswer {
        self.try_post(path, headers, body).expect("an answer")
    }

    /// POST of JSON; `None`: it was not answered.
    pub fn try_post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Option<HttpAnswer> {
        let body = body.to_string();
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        self.try_send(&format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> HttpAnswer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// A request as it is, and its whole answer.
    #[track_caller]
    pub fn send(&self, request: &str) -> HttpAnswer {
        self.try_send(request).expect("an answer")
    }

    /// A request as it is; `None`: it was not answered.
    pub fn try_send(&self, request: &str) -> Option<HttpAnswer> {
        let mut stream = self.connect();
        remember_tokens(request.as_bytes());
        if let Some((_, rest)) = request.split_once("Authorization: Bearer ") {
            remember(rest.lines().next().unwrap_or_default().as_bytes());
        }
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        // The end may come without close_notify where the connection is cut off.
        let _ = stream.read_to_end(&mut answer);
        remember_tokens(&answer);
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(HttpAnswer {
            status,
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or_default(),
        })
    }

    /// A connection on which nothing was asked yet.
    pub fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.ca_pem).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let socket = TcpStream::connect_timeout(&self.address, Duration::from_secs(10)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        StreamOwned::new(tls, socket)
    }
}
