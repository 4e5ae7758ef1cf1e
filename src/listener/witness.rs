//! What the TLS handshake asks of a client certificate: that its peer holds the key, and nothing else.

use std::sync::Arc;

use tokio_rustls::rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::credential::ClientAuth;

/// Takes every certificate whose key the peer holds. **It believes none of them**: whether an authority vouches for it,
/// or a device has it as its own, is decided at admission, from what is in force then; a resumed session, which is not
/// verified at all, is decided about in the same place. A self-made certificate may be the one of a device, or the one
/// that a token is bound to.
#[derive(Debug)]
pub(super) struct Witness {
    demand: ClientAuth,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Witness {
    pub(super) fn new(demand: ClientAuth, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self { demand, algorithms: provider.signature_verification_algorithms })
    }
}

impl ClientCertVerifier for Witness {
    fn client_auth_mandatory(&self) -> bool {
        self.demand == ClientAuth::Required
    }

    /// None: a client that picks its certificate by them would keep a self-made one back.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
