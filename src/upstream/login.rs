//! Who the pool says it is: read, or made, for each connection, so that what was changed on the disk counts from the next
//! one on.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::{
    credential::{KeyEncoding, SecretKey, mint_sas},
    time::UnixSeconds,
};

/// User name and secret of a hub's pool. Cheap to clone.
#[derive(Clone)]
pub struct HubLogin {
    user_name: Option<Arc<str>>,
    secret: Secret,
}

#[derive(Clone)]
enum Secret {
    None,
    /// The file, and what was last read from it.
    Password(PathBuf, Arc<Mutex<Zeroizing<String>>>),
    Sas(Arc<HubSasConfig>, Arc<Mutex<SecretKey>>),
}

/// `sas` of an `[[upstream]]`: tokens that this gateway makes for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSasConfig {
    /// `skn`; none: the key is a device's own.
    pub policy: Option<String>,
    /// What the tokens are for. Default: the host of `url`.
    pub resource: String,
    /// Where the key is.
    pub key_file: PathBuf,
    /// How it is written there. Default base64.
    pub key_encoding: KeyEncoding,
    /// How long a token is good. Default an hour.
    pub token_lifetime: Duration,
}

/// What stands in one CONNECT.
pub struct HubCredentials {
    /// User name.
    pub user_name: Option<Arc<str>>,
    /// Password.
    pub password: Option<Zeroizing<String>>,
    /// So long after this another connection should take the place of the one that begins with it.
    pub renew_after: Option<Duration>,
}

impl HubLogin {
    /// A user name, or none, and no secret.
    pub fn named(user_name: Option<&str>) -> Self {
        Self { user_name: user_name.map(Into::into), secret: Secret::None }
    }

    /// With a password of a file that was read.
    pub fn with_password(self, file: &Path, password: &Zeroizing<String>) -> Self {
        Self { secret: Secret::Password(file.into(), Arc::new(Mutex::new(password.clone()))), ..self }
    }

    /// With tokens made by a key that was read.
    pub fn with_sas(self, config: &HubSasConfig, key: &SecretKey) -> Self {
        Self { secret: Secret::Sas(Arc::new(config.clone()), Arc::new(Mutex::new(key.clone()))), ..self }
    }

    /// What the next CONNECT says. A file that cannot be read leaves what was last read from it.
    pub fn credentials(&self, now: UnixSeconds) -> HubCredentials {
        let (password, renew_after) = match &self.secret {
            Secret::None => (None, None),
            Secret::Password(file, last) => {
                (Some(again(file, last, |text| Some(Zeroizing::new(text.to_owned())))), None)
            }
            Secret::Sas(sas, last) => {
                let HubSasConfig { resource, policy, token_lifetime, key_encoding, key_file } = &**sas;
                let key = again(key_file, last, |text| SecretKey::parse(text, *key_encoding).ok());
                let until = UnixSeconds(now.0 + token_lifetime.as_secs());
                let token = mint_sas(resource, key.bytes(), until, policy.as_deref());
                (Some(Zeroizing::new(token)), Some(*token_lifetime / 5 * 4))
            }
        };
        HubCredentials { user_name: self.user_name.clone(), password, renew_after }
    }
}

/// By what the configuration says, whatever the files hold.
impl PartialEq for HubLogin {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.secret, &other.secret) {
            (Secret::None, Secret::None) => true,
            (Secret::Password(a, _), Secret::Password(b, _)) => a == b,
            (Secret::Sas(a, _), Secret::Sas(b, _)) => a == b,
            _ => false,
        };
        same && self.user_name == other.user_name
    }
}

impl Eq for HubLogin {}

impl fmt::Debug for HubLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.secret {
            Secret::None => "none",
            Secret::Password(..) => "password",
            Secret::Sas(..) => "sas",
        };
        write!(f, "HubLogin({kind})")
    }
}

/// What the file holds; what it held where it says nothing that can be used.
fn again<T: Clone>(file: &Path, last: &Mutex<T>, read: impl Fn(&str) -> Option<T>) -> T {
    let text = fs::read_to_string(file).map(Zeroizing::new);
    let found = text.ok().and_then(|text| {
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() { None } else { read(secret) }
    });
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    match found {
        Some(found) => *last = found,
        None => tracing::warn!(file = %file.display(), "the hub's secret cannot be read: the last one is used"),
    }
    last.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("secret");
        fs::write(&path, text).expect("written");
        (folder, path)
    }

    fn password_of(login: &HubLogin) -> String {
        login.credentials(UnixSeconds(0)).password.expect("a password").to_string()
    }

    #[test]
    fn a_password_is_read_anew_for_each_connection_and_the_last_one_stays_where_it_cannot_be() {
        let (folder, path) = file("first\n");
        let login = HubLogin::named(Some("pool")).with_password(&path, &Zeroizing::new("first".into()));
        assert_eq!(password_of(&login), "first");
        fs::write(&path, "second\r\n").expect("written");
        assert_eq!(password_of(&login), "second");
        fs::write(&path, "\n").expect("written");
        assert_eq!(password_of(&login), "second");
        drop(folder);
        assert_eq!(password_of(&login.clone()), "second");
    }

    #[test]
    fn a_token_is_made_for_each_connection_by_the_key_that_the_file_holds_then() {
        const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        const NEXT: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
        let (_folder, path) = file(KEY);
        let config = HubSasConfig {
            policy: Some("gateway".into()),
            resource: "hub.example".into(),
            key_file: path.clone(),
            key_encoding: KeyEncoding::Base64,
            token_lifetime: Duration::from_secs(3_600),
        };
        let key = SecretKey::parse(KEY, KeyEncoding::Base64).expect("a key");
        let login = HubLogin::named(None).with_sas(&config, &key);
        let made = login.credentials(UnixSeconds(1_000));
        let expected = mint_sas("hub.example", key.bytes(), UnixSeconds(4_600), Some("gateway"));
        assert_eq!(made.password.as_deref(), Some(&expected));
        assert_eq!(made.renew_after, Some(Duration::from_secs(2_880)));
        fs::write(&path, NEXT).expect("written");
        let next = SecretKey::parse(NEXT, KeyEncoding::Base64).expect("a key");
        let expected = mint_sas("hub.example", next.bytes(), UnixSeconds(4_601), Some("gateway"));
        assert_eq!(login.credentials(UnixSeconds(1_001)).password.as_deref(), Some(&expected));
        assert_eq!(format!("{login:?}"), "HubLogin(sas)");
    }
}
