//! Entries that speak of times: everything that was issued, or expires, before one.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{Entry, Facts, Until, What, compact::Hash, first_16};
use crate::{id::DeviceId, time::UnixSeconds};

/// Whose tokens an entry with a time selects.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Whose {
    /// Everybody's.
    All,
    /// Those of one device.
    Device(DeviceId),
    /// Those of one issuer, by its name.
    Issuer(Arc<str>),
    /// Those that one policy signed, by its name.
    Policy(Arc<str>),
}

/// Everything that was issued, or expires, before a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Before {
    pub(super) which: Moment,
    pub(super) time: UnixSeconds,
    pub(super) of: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moment {
    Issued,
    Expires,
}

impl Before {
    fn parts(&self) -> (&'static str, &'static str, &str) {
        let which = match self.which {
            Moment::Issued => "issued_before",
            Moment::Expires => "expires_before",
        };
        match &self.of {
            Whose::All => (which, "", ""),
            Whose::Device(id) => (which, "device", id.as_str()),
            Whose::Issuer(name) => (which, "issuer", name),
            Whose::Policy(name) => (which, "policy", name),
        }
    }

    pub(super) fn hash(&self) -> Hash {
        let (which, kind, name) = self.parts();
        first_16(&[which, &self.time.0.to_string(), kind, name])
    }
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (which, kind, name) = self.parts();
        write!(f, "{which} {}", self.time)?;
        if kind.is_empty() { Ok(()) } else { write!(f, " of the {kind} {name}") }
    }
}

/// Entries with a time, found by whom they select.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    all: Vec<Mark>,
    devices: HashMap<DeviceId, Vec<Mark>>,
    issuers: HashMap<Arc<str>, Vec<Mark>>,
    policies: HashMap<Arc<str>, Vec<Mark>>,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    which: Moment,
    time: UnixSeconds,
    until: Until,
}

impl Mark {
    fn selects(&self, facts: &Facts<'_>, now: UnixSeconds) -> bool {
        self.until.is_after(now)
            && match self.which {
                Moment::Issued => facts.issued_at.is_none_or(|at| at < self.time),
                Moment::Expires => facts.expires_at < self.time,
            }
    }
}

impl Times {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn put(&mut self, before: Before, until: Until) {
        let Before { which, time, of } = before;
        let marks = match of {
            Whose::All => &mut self.all,
            Whose::Device(id) => self.devices.entry(id).or_default(),
            Whose::Issuer(name) => self.issuers.entry(name).or_default(),
            Whose::Policy(name) => self.policies.entry(name).or_default(),
        };
        match marks.iter_mut().find(|mark| (mark.which, mark.time) == (which, time)) {
            Some(mark) => mark.until = mark.until.max(until),
            None => {
                marks.push(Mark { which, time, until });
                self.count += 1;
            }
        }
    }

    pub(super) fn until(&self, before: &Before) -> Option<Until> {
        let marks = match &before.of {
            Whose::All => &self.all,
            Whose::Device(id) => self.devices.get(id)?,
            Whose::Issuer(name) => self.issuers.get(name)?,
            Whose::Policy(name) => self.policies.get(name)?,
        };
        marks.iter().find(|mark| (mark.which, mark.time) == (before.which, before.time)).map(|mark| mark.until)
    }

    pub(super) fn find(&self, facts: &Facts<'_>, now: UnixSeconds) -> Option<Before> {
        let of = |marks: Option<&Vec<Mark>>| marks?.iter().find(|mark| mark.selects(facts, now)).copied();
        let told = |mark: Mark, of: Whose| Before { which: mark.which, time: mark.time, of };
        if let Some(mark) = of(Some(&self.all)) {
            return Some(told(mark, Whose::All));
        }
        let of_device = |id: DeviceId| Some((of(self.devices.get(&id))?, id));
        if let Some((mark, id)) = facts.device.and_parent().find_map(of_device) {
            return Some(told(mark, Whose::Device(id)));
        }
        if let Some((mark, name)) = facts.issuer.and_then(|name| Some((of(self.issuers.get(name))?, name))) {
            return Some(told(mark, Whose::Issuer(name.into())));
        }
        let (mark, name) = facts.policy.and_then(|name| Some((of(self.policies.get(name))?, name)))?;
        Some(told(mark, Whose::Policy(name.into())))
    }

    pub(super) fn each(&self, visit: &mut impl FnMut(Entry)) {
        let mut each = |marks: &[Mark], of: &dyn Fn() -> Whose| {
            for Mark { which, time, until } in marks.iter().copied() {
                visit(Entry { what: What::Before(Before { which, time, of: of() }), until });
            }
        };
        each(&self.all, &|| Whose::All);
        self.devices.iter().for_each(|(id, marks)| each(marks, &|| Whose::Device(id.clone())));
        self.issuers.iter().for_each(|(name, marks)| each(marks, &|| Whose::Issuer(name.clone())));
        self.policies.iter().for_each(|(name, marks)| each(marks, &|| Whose::Policy(name.clone())));
    }
}
