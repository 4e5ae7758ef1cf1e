//! The private key that signs revocation lists: made, read, and asked for where a list is signed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use zeroize::Zeroizing;

use super::{Outcome, arguments::SignAgain, local::now_by};
use crate::{
    admin::{Ledger, Signature},
    config::{self, Config},
    credential::{ListKey, ListSigner},
};

/// A key, and when it signs.
pub(super) struct Signer {
    key: ListSigner,
    now_ms: u64,
}

impl Signer {
    /// From a file that its owner alone may read.
    pub(super) fn read(file: &Path) -> Result<Self, Outcome> {
        let pem = config::read_secret_file(file).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
        let key = ListSigner::from_pem(&pem).map_err(|error| {
            Outcome::Failed(format!(
                "{} is no key that signs lists: {error}\n    Make one: tollgate revocations keygen FILE",
                file.display()
            ))
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        Ok(Self { key, now_ms: u64::try_from(now).unwrap_or(u64::MAX) })
    }

    /// It counts on from what the list had.
    pub(super) fn signature(&self) -> Signature<'_> {
        Signature { signer: &self.key, epoch: None, sequence: None, lifetime: None, now_ms: self.now_ms }
    }

    /// As [`ListKey::id`].
    pub(super) fn id(&self) -> u64 {
        self.key.id()
    }
}

/// Who signs the gateway's list again after a change; `None`: it is not signed and need not be.
pub(super) fn of_list(config: &Config, ledger: &Ledger, asked: &SignAgain) -> Result<Option<Signer>, Outcome> {
    let Some(file) = &asked.key_file else {
        if config.list_rules.is_none() && !ledger.is_signed() {
            return Ok(None);
        }
        return Err(Outcome::Failed(
            "the revocation list is signed, and a change would break its signature: the gateway would keep the old one\n    \
             Add --key-file FILE with the private key, or change and sign it where the key is. At once, and without it: \
             `enabled = false` for the device in identities.toml."
                .into(),
        ));
    };
    let signer = Signer::read(file)?;
    if let Some(rules) = config.list_rules.as_ref().filter(|rules| rules.keys.iter().all(|key| key.id() != signer.id()))
    {
        let known: Vec<String> = rules.keys.iter().map(|key| format!("{:016x}", key.id())).collect();
        return Err(Outcome::Failed(format!(
            "the gateway would refuse the list: `revocation_keys` names {}, and {} is {:016x}",
            known.join(", "),
            file.display(),
            signer.id()
        )));
    }
    config::check_signed_again(config, now_by(config)).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
    Ok(Some(signer))
}

/// Makes FILE and FILE.pub. Answers the public key's file and its id.
pub(super) fn make_pair(file: &Path) -> Result<(PathBuf, u64), Outcome> {
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [file, &public] {
        if fs::symlink_metadata(path).is_ok() {
            return Err(Outcome::Failed(format!("{} exists already, and is kept as it is", path.display())));
        }
    }
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(Outcome::failed)?;
    let private = Zeroizing::new(pair.serialize_pem());
    let public_pem = pair.public_key_pem();
    let id = ListKey::from_pem(&public_pem).map_err(Outcome::failed)?.id();
    config::write_key_pair((file, &private), (&public, &public_pem)).map_err(|error| {
        Outcome::Failed(format!("cannot write {} and {}: {error}", file.display(), public.display()))
    })?;
    Ok((public, id))
}
