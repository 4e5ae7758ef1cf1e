//! Which certificate a TLS listener shows: by the name that the client asks for (RFC 6066 §3).

use std::{collections::HashMap, fmt, sync::Arc};

use tokio_rustls::rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::credential::wildcard_of;

/// Strict: a name that no certificate is for is refused, not shown another's (threat T34). Who asks for none is shown the
/// first certificate.
pub(super) struct ByName {
    first: Arc<CertifiedKey>,
    /// Names and wildcards in lower case.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    /// The first certificate with the names that it is for, and each further one with those that it is shown for.
    pub(super) fn new<'n>(
        first: (Arc<CertifiedKey>, &'n [String]),
        further: impl Iterator<Item = (Arc<CertifiedKey>, &'n [String])>,
    ) -> Self {
        let mut named = HashMap::new();
        // What is written down for a name goes before what a certificate says of itself.
        for (key, names) in further.chain([(first.0.clone(), first.1)]) {
            for name in names {
                named.entry(name.clone()).or_insert_with(|| key.clone());
            }
        }
        Self { first: first.0, named }
    }

    fn of_name(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let exact = self.named.get(&name);
        exact.or_else(|| self.named.get(&wildcard_of(&name)?)).cloned()
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) => self.of_name(name),
            None => Some(self.first.clone()),
        }
    }
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByName").field("names", &self.named.keys()).finish_non_exhaustive()
    }
}
