//! Who the pool says it is at a NATS server.

use async_nats::{Auth, AuthError};
use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

use super::super::{NatsLogin, NatsLoginKind};
use crate::time::UnixSeconds;

/// What a connection proves itself with. Made anew for each attempt.
///
/// # Errors
/// Credentials that cannot sign.
pub(super) fn auth(login: &NatsLogin, nonce: &[u8]) -> Result<Auth, AuthError> {
    // Nothing that it says here ends by the clock.
    let said = login.secret.credentials(UnixSeconds(0));
    let secret = said.password.unwrap_or_default();
    let mut auth = Auth::new();
    match login.kind {
        NatsLoginKind::Nobody => {}
        NatsLoginKind::Password => {
            auth.username = said.user_name.map(|name| name.to_string());
            auth.password = Some(secret.to_string());
        }
        NatsLoginKind::Token => auth.token = Some(secret.to_string()),
        NatsLoginKind::Credentials => {
            let Credentials { jwt, key } = Credentials::parse(&secret).map_err(AuthError::new)?;
            auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
            auth.jwt = Some(jwt.to_string());
        }
    }
    Ok(auth)
}

/// Whether a text is a credentials file (`.creds`): what is wrong with it, if anything.
///
/// # Errors
/// A sentence without a part of the text.
pub fn check_credentials(text: &str) -> Result<(), &'static str> {
    Credentials::parse(text).map(drop)
}

/// A user's JWT and the seed of its key, as `nsc` and the operator tools write them.
struct Credentials {
    jwt: Zeroizing<String>,
    key: KeyPair,
}

impl Credentials {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let jwt = block(text, "NATS USER JWT").ok_or("it holds no block NATS USER JWT")?;
        let seed = block(text, "USER NKEY SEED").ok_or("it holds no block USER NKEY SEED")?;
        if jwt.split('.').count() != 3 {
            return Err("its block NATS USER JWT is no JWT");
        }
        let key = KeyPair::from_seed(seed).map_err(|_| "its block USER NKEY SEED is no seed")?;
        if key.key_pair_type() != KeyPairType::User {
            return Err("its seed is not a user's");
        }
        Ok(Self { jwt: Zeroizing::new(jwt.to_owned()), key })
    }
}

/// The line between `-----BEGIN {name}-----` and the next line of hyphens.
fn block<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| {
        line.starts_with("---") && line.trim_matches('-').strip_prefix("BEGIN ").is_some_and(|title| title == name)
    })?;
    let line = lines.find(|line| !line.is_empty())?;
    (!line.starts_with("---")).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::HubLogin;

    fn file(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n************* IMPORTANT *************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n\
             ------END USER NKEY SEED------\n"
        )
    }

    /// A login whose secret stands in a file of the test's own.
    fn login(kind: NatsLoginKind, folder: &tempfile::TempDir, secret: &str) -> NatsLogin {
        let file = folder.path().join("secret");
        std::fs::write(&file, secret).expect("written");
        let secret = HubLogin::named(Some("edge")).with_password(&file, &Zeroizing::new("old".to_owned()));
        NatsLogin { kind, secret }
    }

    #[test]
    fn a_credentials_file_signs_the_servers_nonce() {
        let key = KeyPair::new_user();
        let text = file("a.b.c", &key.seed().expect("a seed")).replace('\n', "\r\n");
        let folder = tempfile::tempdir().expect("a folder");
        let auth = auth(&login(NatsLoginKind::Credentials, &folder, &text), b"nonce").expect("signed");
        assert_eq!((auth.jwt.as_deref(), auth.username), (Some("a.b.c"), None));
        key.verify(b"nonce", &auth.signature.expect("a signature")).expect("the user's own");
    }

    #[test]
    fn what_is_no_credentials_file_is_told_without_its_text() {
        let user = KeyPair::new_user().seed().expect("a seed");
        let account = KeyPair::new_account().seed().expect("a seed");
        for (text, what) in [
            (String::new(), "no block NATS USER JWT"),
            (file("", &user), "no block NATS USER JWT"),
            (file("a.b", &user), "no JWT"),
            (file("a.b.c", ""), "no block USER NKEY SEED"),
            (file("a.b.c", "SUsecret"), "no seed"),
            (file("a.b.c", &account), "not a user's"),
        ] {
            let error = check_credentials(&text).expect_err(&text);
            assert!(error.contains(what), "{text}: {error}");
        }
        assert_eq!(check_credentials(&file("a.b.c", &user)), Ok(()));
    }

    #[test]
    fn every_login_says_only_what_it_is_and_its_secret_is_read_for_each_connection() {
        let folder = tempfile::tempdir().expect("a folder");
        let shown = |kind| {
            let auth = auth(&login(kind, &folder, "new\n"), b"").expect("nothing to sign");
            (auth.username, auth.password, auth.token, auth.jwt)
        };
        let new = || Some("new".to_owned());
        assert_eq!(shown(NatsLoginKind::Nobody), (None, None, None, None));
        assert_eq!(shown(NatsLoginKind::Password), (Some("edge".into()), new(), None, None));
        assert_eq!(shown(NatsLoginKind::Token), (None, None, new(), None));
    }
}
