//! `tollgate token mint`: tokens as a device, a policy or an issuer would make them, from the files on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    ConfigFile, Outcome,
    arguments::{Kind, Right},
    local::{note, now},
};
use crate::{
    config::{Config, load_identities, read_signing},
    credential::{
        Credential, Issuer, Keyring, Policy, Rights, SigningKey, VerifyingKey, mint_sas, resource_of, verify,
    },
    id::DeviceId,
    time::{UnixSeconds, format_duration},
    token_service::{JwtOrder, OWN_ISSUER, random_jti, sign_jwt},
};

/// What to make.
#[derive(Debug, Clone)]
pub(super) struct Mint {
    pub(super) device: DeviceId,
    pub(super) kind: Kind,
    pub(super) ttl: Duration,
    pub(super) policy: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) jti: Option<String>,
    /// `None`: all that the device may.
    pub(super) rights: Option<Rights>,
}

impl Mint {
    /// A SAS token for an hour.
    pub(super) fn of(device: &DeviceId) -> Self {
        let device = device.clone();
        Self { device, kind: Kind::Sas, ttl: TTL, policy: None, issuer: None, key_file: None, jti: None, rights: None }
    }
}

impl Kind {
    /// Whether it is a JWT.
    pub(super) fn is_jwt(self) -> bool {
        self == Self::Jwt
    }
}

/// What `--rights` names; `None` where it names nothing.
pub(super) fn rights(named: &[Right]) -> Option<Rights> {
    let has = |right| named.contains(&right);
    (!named.is_empty()).then(|| Rights { publish: has(Right::Publish), subscribe: has(Right::Subscribe) })
}

/// Makes a token. One that the gateway would refuse is made all the same (it may be meant so), with a word about it.
pub(super) fn mint(at: &ConfigFile, request: &Mint) -> Result<Zeroizing<String>, Outcome> {
    if request.ttl < TTL_MIN {
        return Err(Outcome::Usage(format!(
            "--ttl {}: the token would be over when it is made. Times of tokens are whole seconds: write 1s or more",
            format_duration(request.ttl)
        )));
    }
    let config = at.load()?;
    let loaded = load_identities(&config.gateway.identities, &config.gate).map_err(|all| Outcome::mistakes(&all))?;
    let keyring = loaded.identities.keyring();
    let now = now();
    let expires_at = now.plus(request.ttl);
    let token = match request.kind {
        Kind::Sas => sas(&config, keyring, request, expires_at)?,
        Kind::Jwt => jwt(&config, keyring, request, expires_at, now)?,
    };
    let rules = config.gate.rules(config.gate.profile);
    let checked = Credential::parse(token.as_bytes())
        .and_then(|credential| verify(&credential, Some(&request.device), keyring, &rules, now).map(drop));
    if let Err(refused) = checked {
        note(&format!("note: the gateway will refuse it: {} ({})", refused.detail, refused.denial));
    }
    Ok(token)
}

fn sas(
    config: &Config,
    keyring: &Keyring,
    request: &Mint,
    expires_at: UnixSeconds,
) -> Result<Zeroizing<String>, Outcome> {
    if request.issuer.is_some() || request.jti.is_some() || request.key_file.is_some() {
        return Err(Outcome::Usage("--issuer, --key-file and --jti are for --kind jwt".into()));
    }
    let device = &request.device;
    let policy = policy(keyring, request)?;
    let key = match policy {
        Some(policy) => keyring.policy_signing_key(&policy.name),
        None if keyring.find(device).is_none() => return Err(Outcome::Failed(unknown(device))),
        None => keyring.signing_key(device),
    };
    let no_key = || Outcome::Failed(format!("there is no primary key to sign a SAS token for {device} with"));
    let (_, key) = key.ok_or_else(no_key)?;
    let resource = resource_of(&config.gate.hostname, device);
    Ok(Zeroizing::new(mint_sas(&resource, key.bytes(), expires_at, policy.map(|policy| &*policy.name))))
}

fn unknown(device: &DeviceId) -> String {
    match device.module() {
        Some(module) => format!("there is no [[module]] {module} of the device {}", device.device()),
        None => format!("there is no device {device}, and no group that it is in"),
    }
}

/// The policy that is to sign; `None`: the device itself. A SAS token says nothing of rights: they are its policy's.
fn policy<'k>(keyring: &'k Keyring, request: &Mint) -> Result<Option<&'k Policy>, Outcome> {
    let Some(name) = &request.policy else {
        let Some(rights) = request.rights.filter(|rights| *rights != Rights::ALL) else { return Ok(None) };
        let mut fitting = keyring.policies().filter(|policy| policy.rights == rights);
        return match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(Some(only)),
            (Some(_), Some(_)) => {
                Err(Outcome::Usage("several policies have these rights: name one with --policy".into()))
            }
            (None, _) => {
                Err(Outcome::Failed("no [[policy]] has just these `rights`, and a device's own key has all".into()))
            }
        };
    };
    let policy = keyring.policy(name).ok_or_else(|| Outcome::Failed(format!("there is no [[policy]] {name:?}")))?;
    if request.rights.is_some_and(|rights| rights != policy.rights) {
        return Err(Outcome::Failed(format!("the policy {name:?} has other `rights` than these")));
    }
    Ok(Some(policy))
}

fn jwt(
    config: &Config,
    keyring: &Keyring,
    request: &Mint,
    expires_at: UnixSeconds,
    now: UnixSeconds,
) -> Result<Zeroizing<String>, Outcome> {
    if request.policy.is_some() {
        return Err(Outcome::Usage("--policy is for --kind sas".into()));
    }
    let (issuer, key) = signer(config, keyring, request)?;
    let jti = match &request.jti {
        Some(jti) => jti.clone(),
        None => random_jti().map_err(Outcome::failed)?,
    };
    let rights = request.rights.unwrap_or(Rights::ALL);
    let device = &request.device;
    let order = JwtOrder { device, audience: None, rights, jti: &jti, issued_at: now, expires_at };
    sign_jwt(issuer, &key, &order).map_err(Outcome::failed)
}

/// The issuer that is meant and a key of it that can sign.
fn signer<'k>(config: &Config, keyring: &'k Keyring, request: &Mint) -> Result<(&'k Issuer, SigningKey), Outcome> {
    // Never without its name: whoever asks for a JWT means an issuer of the site.
    if let (Some(OWN_ISSUER), Some(service)) = (request.issuer.as_deref(), &config.token_service) {
        let signing = read_signing(service, &config.gate).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
        let own = keyring.issuers().find(|issuer| &*issuer.name == OWN_ISSUER);
        let own =
            own.ok_or_else(|| Outcome::Failed("the token service was never started: it has no key yet".into()))?;
        return Ok((own, signing.key().clone()));
    }
    let mut able: Vec<(&Issuer, SigningKey)> = Vec::new();
    let sources = sources(&config.gateway.identities)?;
    for issuer in keyring.issuers().filter(|issuer| request.issuer.as_ref().is_none_or(|name| **name == *issuer.name)) {
        let own = sources.iter().filter(|source| source.issuer == *issuer.name);
        let key = match &request.key_file {
            Some(file) => issuer.keys.iter().find_map(|(kid, key)| from_pem(file, kid.as_deref(), key)),
            None => own.filter_map(|source| source.signing_key(issuer)).next(),
        };
        able.extend(key.map(|key| (issuer, key)));
    }
    let named = request.issuer.as_deref();
    match (able.pop(), able.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Outcome::Usage("several issuers could sign: name one with --issuer".into())),
        (None, _) => Err(Outcome::Failed(match named {
            Some(name) if !keyring.issuers().any(|issuer| &*issuer.name == name) => {
                format!("there is no [[issuer]] {name:?}")
            }
            _ => "no private key of an issuer is here: it is looked for beside its public key (certs/x.key for \
                  certs/x.pem), or name it with --key-file. A gateway needs none: who makes your JWTs holds it."
                .into(),
        })),
    }
}

/// Where one key of an issuer is, which the keyring does not keep.
struct Source {
    issuer: String,
    kid: Option<String>,
    public: Option<PathBuf>,
    secret: Option<PathBuf>,
    is_utf8: bool,
}

impl Source {
    fn signing_key(&self, issuer: &Issuer) -> Option<SigningKey> {
        let (kid, key) = issuer.keys.iter().find(|(kid, _)| kid.as_deref() == self.kid.as_deref())?;
        if let Some(public) = &self.public {
            return from_pem(&public.with_extension("key"), kid.as_deref(), key);
        }
        let text = Zeroizing::new(fs::read_to_string(self.secret.as_ref()?).ok()?);
        let secret = match self.is_utf8 {
            true => Zeroizing::new(text.trim_end().as_bytes().to_vec()),
            false => Zeroizing::new(STANDARD.decode(text.trim()).ok()?),
        };
        SigningKey::from_secret(key.algorithm(), &secret, kid.as_deref()).ok()
    }
}

/// The places of the issuers' keys in a file that was read without mistakes.
fn sources(identities: &Path) -> Result<Vec<Source>, Outcome> {
    let text = fs::read_to_string(identities).map(Zeroizing::new).map_err(Outcome::failed)?;
    let file: toml::Table = text.parse().map_err(Outcome::failed)?;
    let array = |table: &toml::Table, key: &str| table.get(key).and_then(toml::Value::as_array).cloned();
    let mut sources = Vec::new();
    for issuer in array(&file, "issuer").unwrap_or_default() {
        let Some(issuer) = issuer.as_table() else { continue };
        for key in array(issuer, "key").unwrap_or_default() {
            let text = |name: &str| key.get(name).and_then(toml::Value::as_str).map(str::to_owned);
            sources.push(Source {
                issuer: issuer.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned(),
                kid: text("kid"),
                public: text("file").map(Into::into),
                secret: text("secret_file").map(Into::into),
                is_utf8: text("key_encoding").is_some_and(|encoding| encoding == "utf8"),
            });
        }
    }
    Ok(sources)
}

fn from_pem(file: &Path, kid: Option<&str>, key: &VerifyingKey) -> Option<SigningKey> {
    let pem = Zeroizing::new(fs::read_to_string(file).ok()?);
    SigningKey::from_pem(key.algorithm(), &pem, kid).ok()
}

/// RFC 7519 NumericDate, and `se` of SAS.
const TTL_MIN: Duration = Duration::from_secs(1);
/// As the help of `token mint` says.
const TTL: Duration = Duration::from_secs(3600);
