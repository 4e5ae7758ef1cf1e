//! `identities.toml` as it is edited: comments, order and layout stay.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, value};
use zeroize::Zeroizing;

use super::{KeyOwner, RotateError};
use crate::config::files::read_secret;

/// The file, read.
pub(super) struct KeyFile {
    path: PathBuf,
    document: DocumentMut,
}

/// Where one key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In `identities.toml` itself.
    Inline,
    /// In a file of its own.
    File(PathBuf),
    /// There is none.
    Nowhere,
}

/// Where both keys of an owner stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) primary: Place,
    pub(super) secondary: Place,
}

/// One of the two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Primary,
    Secondary,
}

impl KeyFile {
    pub(super) fn read(path: &Path) -> Result<Self, RotateError> {
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| RotateError::io("read", path, error))?);
        let document = text.parse().map_err(|_| RotateError::NoToml { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// The whole text as it is to be written.
    pub(super) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.document.to_string())
    }

    /// Where the keys of an owner stand.
    pub(super) fn home(&self, owner: &KeyOwner) -> Result<Home, RotateError> {
        let entry = self.entry(owner)?;
        let place = |slot| {
            let (inline, in_file) = names(owner, slot);
            match (inline.and_then(|key| text_of(entry, key)), text_of(entry, in_file)) {
                (Some(_), _) => Place::Inline,
                (None, Some(path)) => Place::File(path.into()),
                (None, None) => Place::Nowhere,
            }
        };
        let home = Home { primary: place(Slot::Primary), secondary: place(Slot::Secondary) };
        match (owner, &home.primary) {
            (KeyOwner::Issuer { .. }, Place::Nowhere) => Err(RotateError::PublicKey { owner: owner.clone() }),
            (KeyOwner::Device(_), Place::Nowhere) if home.secondary == Place::Nowhere => {
                Err(RotateError::NoKeyOfItsOwn { owner: owner.clone() })
            }
            (_, Place::Nowhere) => Err(RotateError::NoPrimary { owner: owner.clone() }),
            _ => Ok(home),
        }
    }

    /// The printed form of a key.
    pub(super) fn key(&self, owner: &KeyOwner, slot: Slot, place: &Place) -> Result<Zeroizing<String>, RotateError> {
        match place {
            Place::Inline => {
                let (inline, _) = names(owner, slot);
                let text = inline.and_then(|key| text_of(self.entry(owner).ok()?, key)).unwrap_or_default();
                Ok(Zeroizing::new(text.to_owned()))
            }
            Place::File(path) => {
                read_secret(path).map_err(|fault| RotateError::KeyFile { what: fault.what, remedy: fault.remedy })
            }
            Place::Nowhere => Err(RotateError::NoPrimary { owner: owner.clone() }),
        }
    }

    /// Writes a key into the entry itself.
    pub(super) fn set_key(&mut self, owner: &KeyOwner, slot: Slot, text: &str) -> Result<(), RotateError> {
        let (inline, in_file) = names(owner, slot);
        set(self.entry_mut(owner)?, inline.unwrap_or(in_file), text);
        Ok(())
    }

    /// Writes the name of a key's file into the entry.
    pub(super) fn set_file(&mut self, owner: &KeyOwner, slot: Slot, path: &Path) -> Result<(), RotateError> {
        let (_, in_file) = names(owner, slot);
        set(self.entry_mut(owner)?, in_file, &path.to_string_lossy());
        Ok(())
    }

    /// Whether the owner has an entry.
    pub(super) fn has(&self, owner: &KeyOwner) -> bool {
        self.entry(owner).is_ok()
    }

    /// Adds an entry at the end of its kind, with what it is named by and `more`.
    pub(super) fn add_entry(&mut self, owner: &KeyOwner, more: &[(&str, &str)]) -> Result<(), RotateError> {
        let Some((kind, key, name)) = kind_of(owner) else {
            return Err(RotateError::PublicKey { owner: owner.clone() });
        };
        let mut table = Table::new();
        table.insert(key, value(name));
        for (key, text) in more {
            table.insert(key, value(*text));
        }
        // An empty line before it, as people write it.
        table.decor_mut().set_prefix("\n");
        let all = self.document.entry(kind).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        match all {
            Item::ArrayOfTables(all) => all.push(table),
            Item::Value(Value::Array(all)) => all.push(table.into_inline_table()),
            _ => return Err(RotateError::NoToml { path: self.path.clone() }),
        }
        Ok(())
    }

    fn entry(&self, owner: &KeyOwner) -> Result<&dyn TableLike, RotateError> {
        let unknown = || RotateError::Unknown { owner: owner.clone(), path: self.path.clone() };
        if let KeyOwner::Issuer { name, kid } = owner {
            let issuer =
                tables(self.document.get(ISSUER)).into_iter().find(|entry| text_of(*entry, "name") == Some(name));
            let keys = tables(issuer.ok_or_else(unknown)?.get(ISSUER_KEY));
            if keys.is_empty() {
                return Err(RotateError::PublicKey { owner: owner.clone() });
            }
            return keys.into_iter().find(|entry| text_of(*entry, "kid") == kid.as_deref()).ok_or_else(unknown);
        }
        let (kind, key, name) = kind_of(owner).ok_or_else(unknown)?;
        tables(self.document.get(kind)).into_iter().find(|entry| text_of(*entry, key) == Some(name)).ok_or_else(unknown)
    }

    fn entry_mut(&mut self, owner: &KeyOwner) -> Result<&mut dyn TableLike, RotateError> {
        let unknown = || RotateError::Unknown { owner: owner.clone(), path: self.path.clone() };
        if let KeyOwner::Issuer { name, kid } = owner {
            let mut issuers = tables_mut(self.document.get_mut(ISSUER)).into_iter();
            let issuer = issuers.find(|entry| text_of(&**entry, "name") == Some(name)).ok_or_else(unknown)?;
            let mut keys = tables_mut(issuer.get_mut(ISSUER_KEY)).into_iter();
            return keys.find(|entry| text_of(&**entry, "kid") == kid.as_deref()).ok_or_else(unknown);
        }
        let (kind, key, name) = kind_of(owner).ok_or_else(unknown)?;
        let mut all = tables_mut(self.document.get_mut(kind)).into_iter();
        all.find(|entry| text_of(&**entry, key) == Some(name)).ok_or_else(unknown)
    }
}

/// The key that holds a secret itself, where there may be one, and the key that names its file.
fn names(owner: &KeyOwner, slot: Slot) -> (Option<&'static str>, &'static str) {
    match (owner, slot) {
        (KeyOwner::Issuer { .. }, Slot::Primary) => (None, "secret_file"),
        (KeyOwner::Issuer { .. }, Slot::Secondary) => (None, "secondary_secret_file"),
        (_, Slot::Primary) => (Some("primary_key"), "primary_key_file"),
        (_, Slot::Secondary) => (Some("secondary_key"), "secondary_key_file"),
    }
}

/// Kind of the entry, the key that names it, and its name.
fn kind_of(owner: &KeyOwner) -> Option<(&'static str, &'static str, &str)> {
    match owner {
        KeyOwner::Device(id) if id.as_str().contains('/') => Some(("module", "id", id.as_str())),
        KeyOwner::Device(id) => Some(("device", "id", id.as_str())),
        KeyOwner::Policy(name) => Some(("policy", "name", name)),
        KeyOwner::Group(prefix) => Some(("group", "prefix", prefix)),
        KeyOwner::Issuer { .. } => None,
    }
}

/// `[[kind]]`, or `kind = [{…}]`.
fn tables(item: Option<&Item>) -> Vec<&dyn TableLike> {
    match item {
        Some(Item::ArrayOfTables(all)) => all.iter().map(|table| table as &dyn TableLike).collect(),
        Some(Item::Value(Value::Array(all))) => {
            all.iter().filter_map(|one| one.as_inline_table().map(|table| table as &dyn TableLike)).collect()
        }
        _ => Vec::new(),
    }
}

fn tables_mut(item: Option<&mut Item>) -> Vec<&mut dyn TableLike> {
    match item {
        Some(Item::ArrayOfTables(all)) => all.iter_mut().map(|table| table as &mut dyn TableLike).collect(),
        Some(Item::Value(Value::Array(all))) => all
            .iter_mut()
            .filter_map(|one| one.as_inline_table_mut().map(|table| table as &mut dyn TableLike))
            .collect(),
        _ => Vec::new(),
    }
}

fn text_of<'t>(entry: &'t dyn TableLike, key: &str) -> Option<&'t str> {
    entry.get(key)?.as_str()
}

/// What stands around an old value, a comment behind it above all, stays.
fn set(entry: &mut dyn TableLike, key: &str, text: &str) {
    match entry.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = Value::from(text);
            *old.decor_mut() = decor;
        }
        None => {
            entry.insert(key, value(text));
        }
    }
}

const ISSUER: &str = "issuer";
const ISSUER_KEY: &str = "key";
