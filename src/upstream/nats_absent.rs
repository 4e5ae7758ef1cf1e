//! In the place of `nats`, in a program that was built without it.

use std::{convert::Infallible, io};

use super::{HubStream, NatsHubConfig, TrustError};

/// There is none.
#[derive(Clone, Debug)]
pub struct NatsHub(Infallible);

impl NatsHub {
    /// Never one.
    ///
    /// # Errors
    /// Always.
    pub fn new(_config: &NatsHubConfig, _upstream: &str, _client_name: String) -> Result<Self, TrustError> {
        Err(TrustError::BuiltWithoutNats)
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    #[expect(clippy::unused_async, reason = "as its counterpart")]
    pub async fn dial(&self) -> io::Result<HubStream> {
        match self.0 {}
    }
}

/// Always wrong.
///
/// # Errors
/// Always.
pub fn check_credentials(_text: &str) -> Result<(), &'static str> {
    Err("this program was built without NATS")
}
