//! Why keys were not rotated, and what to do about it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::KeyOwner;
use crate::{admin::LedgerError, config::Mistake};

/// Why keys were not rotated.
#[derive(Debug)]
pub enum RotateError {
    /// There is no such entry.
    Unknown {
        /// Who was named.
        owner: KeyOwner,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The device has no SAS key of its own.
    NoKeyOfItsOwn {
        /// The device.
        owner: KeyOwner,
    },
    /// There is a secondary key, and no primary.
    NoPrimary {
        /// Who was named.
        owner: KeyOwner,
    },
    /// Public keys are rotated where their private half is.
    PublicKey {
        /// The issuer's key.
        owner: KeyOwner,
    },
    /// The keys of an issuer are not made here.
    IssuerKeysAreTheirs {
        /// The issuer's key.
        owner: KeyOwner,
    },
    /// There is nothing to add.
    HasBoth {
        /// Who was named.
        owner: KeyOwner,
    },
    /// The revocation list names one of the slots: the entry is about whichever key stands there.
    SlotRevoked {
        /// Who was named.
        owner: KeyOwner,
        /// Id and slot of each entry.
        entries: Vec<(String, String)>,
    },
    /// The list that names one of the slots is signed: who signs it has to take the entries out.
    ListSigned {
        /// Who was named.
        owner: KeyOwner,
        /// Id and slot of each entry.
        entries: Vec<(String, String)>,
    },
    /// Both keys were replaced; entries of the revocation list that name their slots still stand.
    NotLifted(LedgerError),
    /// A file stands where the secondary key would go, and nobody names it.
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The identities have mistakes: no gateway would follow a change.
    Mistakes(Vec<Mistake>),
    /// The identities are no TOML.
    NoToml {
        /// The file.
        path: PathBuf,
    },
    /// A key file is not what it should be.
    KeyFile {
        /// One sentence.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// What was remembered of rotations is damaged.
    BadState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system has no randomness.
    NoRandomness(io::Error),
    /// A file could not be read, locked or written.
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RotateError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

impl fmt::Display for RotateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { owner, path } => {
                write!(f, "{} has no entry for {owner}. `tollgate key list` shows those that it has", path.display())
            }
            Self::NoKeyOfItsOwn { owner } => {
                let advice =
                    "where a [[group]] derives it, rotate group:PREFIX; `tollgate key add` gives it one of its own";
                write!(f, "{owner} has no SAS key of its own: {advice}")
            }
            Self::NoPrimary { owner } => write!(f, "{owner} has no primary key: `tollgate key add` gives it one"),
            Self::PublicKey { owner } => write!(
                f,
                "{owner} is a public key: its private half is the issuer's, and so is its rotation. Let the issuer publish \
                 its next key beside this one (another `kid`), sign with that, and take this one out when its last token \
                 has expired"
            ),
            Self::IssuerKeysAreTheirs { owner } => write!(
                f,
                "{owner}: an [[issuer]] is added with an editor, since its keys, `iss` and `audience` are its own"
            ),
            Self::HasBoth { owner } => write!(f, "{owner} has both keys: `tollgate key rotate {owner}` turns them"),
            Self::SlotRevoked { owner, entries } => slot_revoked(f, owner, entries),
            Self::ListSigned { owner, entries } => {
                let ids: Vec<&str> = entries.iter().map(|(id, _)| id.as_str()).collect();
                write!(
                    f,
                    "the revocation list is signed, and its entries {} name slots of {owner}: whoever signs it takes them \
                     out, and the keys are rotated after that. Nothing was changed",
                    ids.join(", ")
                )
            }
            Self::NotLifted(error) => write!(
                f,
                "both keys are replaced, but the entries of the revocation list that name them are not taken out: {error}. \
                 Until they are, the new keys are refused"
            ),
            Self::InTheWay { path } => write!(
                f,
                "{} is there, and nobody names it: the old primary key would go there. Name it as the secondary key's file, or \
                 remove it",
                path.display()
            ),
            Self::Mistakes(mistakes) => {
                let all: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                write!(f, "{}\nno key was changed: a gateway does not take a file with mistakes", all.join("\n"))
            }
            Self::NoToml { path } => {
                write!(f, "{} cannot be edited: it is no TOML that we know how to keep", path.display())
            }
            Self::KeyFile { what, remedy } => write!(f, "{what} {remedy}"),
            Self::BadState { path, what } => write!(
                f,
                "{} is damaged: {what}. Move it away: only the times of the last rotations are in it",
                path.display()
            ),
            Self::NoRandomness(error) => write!(f, "the system has no randomness for a new key: {error}"),
            Self::Io { what, path, source } => {
                write!(
                    f,
                    "cannot {what} {}: {source}. The user that rotates must be able to write there",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for RotateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::NoRandomness(source) => Some(source),
            _ => None,
        }
    }
}

fn slot_revoked(f: &mut fmt::Formatter<'_>, owner: &KeyOwner, entries: &[(String, String)]) -> fmt::Result {
    for (id, slot) in entries {
        writeln!(f, "entry {id} of the revocation list names {slot}, whichever key stands there.")?;
    }
    if entries.iter().any(|(_, slot)| slot.ends_with("/secondary")) {
        writeln!(f, "After a rotation the key that is the primary now would stand in a revoked slot.")?;
    }
    if entries.iter().any(|(_, slot)| !slot.ends_with("/secondary")) {
        writeln!(f, "After a rotation the revoked key would be the secondary, and the new one would be revoked.")?;
    }
    let ids: Vec<String> = entries.iter().map(|(id, _)| format!("`tollgate revocations remove {id}`")).collect();
    write!(
        f,
        "Nothing was changed. Where the revoked key is known to others, replace both: `tollgate key rotate {owner} --both \
         --lift` does that and takes the entry out afterwards. Where it is not, take the entry out first: {}",
        ids.join(", ")
    )
}
