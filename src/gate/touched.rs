//! Whom a change of the identities may concern, so that not every session has to be asked.

use std::collections::HashMap;

use super::Identities;
use crate::{
    credential::{Algorithm, Device, Group, Issuer, Keyring, Policy, PublicKey, Slots},
    id::DeviceId,
    policy::ScopeTemplate,
};

/// Whose sessions may have less than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anybody's.
    Everybody,
    /// Those of some.
    Some {
        /// These devices and their modules.
        devices: Vec<DeviceId>,
        /// Whose token a key of these verified: `policy:NAME`, `group:PREFIX` or `issuer:NAME`.
        owners: Vec<String>,
    },
}

impl Identities {
    /// Whom the change from `old` to these may concern; everybody, where those are more than `at_most` devices. To ask one
    /// too many does no harm, one too few would let it live on.
    pub fn touched_since(&self, old: &Self, at_most: usize) -> Touched {
        let (ring, old_ring) = (self.keyring(), old.keyring());
        let Some(mut owners) = changed_groups((ring, &self.scopes), (old_ring, &old.scopes)) else {
            return Touched::Everybody;
        };
        let is_same_policy = |old: &Policy| ring.policy(&old.name).is_some_and(|new| is_same_policy(new, old));
        let policies = old_ring.policies().filter(|old| !is_same_policy(old));
        owners.extend(policies.map(|old| format!("policy:{}", old.name)));
        let issuers: HashMap<&str, &Issuer> = ring.issuers().map(|issuer| (&*issuer.name, issuer)).collect();
        let is_same_issuer = |old: &Issuer| issuers.get(&*old.name).is_some_and(|new| is_same_issuer(new, old));
        owners.extend(old_ring.issuers().filter(|old| !is_same_issuer(old)).map(|old| format!("issuer:{}", old.name)));

        let is_scope_same = scopes_alike(&self.scopes, &old.scopes);
        let is_same = |id: &DeviceId, device: &Device, others: &Keyring| {
            others.device(id).is_some_and(|other| is_same_device(device, other, &is_scope_same))
        };
        let changed = ring.devices().filter(|(id, device)| !is_same(id, device, old_ring));
        let gone = old_ring.devices().filter(|(id, _)| ring.device(id).is_none());
        let devices: Vec<DeviceId> = changed.chain(gone).map(|(id, _)| id.clone()).take(at_most + 1).collect();
        if devices.len() > at_most { Touched::Everybody } else { Touched::Some { devices, owners } }
    }
}

/// `None`: devices may belong to another group than before, or to none.
fn changed_groups(
    (new, scopes): (&Keyring, &[ScopeTemplate]),
    (old, old_scopes): (&Keyring, &[ScopeTemplate]),
) -> Option<Vec<String>> {
    if new.groups().len() != old.groups().len() {
        return None;
    }
    let scope_of = |scopes: &[ScopeTemplate], group: &Group| scopes.get(group.scope.0 as usize).cloned();
    let mut changed = Vec::new();
    for (new, old) in new.groups().iter().zip(old.groups()) {
        if new.prefix != old.prefix || scope_of(scopes, new) != scope_of(old_scopes, old) {
            return None;
        }
        if !is_same_slots(&new.keys, &old.keys) || new.token_lifetime_max != old.token_lifetime_max {
            changed.push(format!("group:{}", new.prefix));
        }
    }
    Some(changed)
}

/// Whether two devices have one scope, by their places in the old and the new list. These lists are mostly the same.
fn scopes_alike<'s>(new: &'s [ScopeTemplate], old: &'s [ScopeTemplate]) -> impl Fn(&Device, &Device) -> bool + 's {
    let is_same_list = new == old;
    move |device, other| {
        let (at, was_at) = (device.scope.0 as usize, other.scope.0 as usize);
        (is_same_list && at == was_at) || new.get(at) == old.get(was_at)
    }
}

fn is_same_device(device: &Device, other: &Device, is_scope_same: impl Fn(&Device, &Device) -> bool) -> bool {
    let public = |device: &Device| -> Vec<_> {
        let told = |public: &PublicKey| {
            (public.kid.clone(), public.key.fingerprint(), public.key.algorithm(), public.validity)
        };
        device.public_keys.iter().map(told).collect()
    };
    let Device { keys, thumbprints, enabled, accept, token_lifetime_max, .. } = device;
    is_same_slots(keys, &other.keys)
        && *thumbprints == other.thumbprints
        && *enabled == other.enabled
        && *accept == other.accept
        && *token_lifetime_max == other.token_lifetime_max
        && public(device) == public(other)
        && is_scope_same(device, other)
}

fn is_same_slots(keys: &Slots, others: &Slots) -> bool {
    let told = |keys: &Slots| keys.each().map(|(_, key)| key.map(|key| key.fingerprint()));
    told(keys) == told(others)
}

fn is_same_policy(new: &Policy, old: &Policy) -> bool {
    let Policy { name: _, resource, keys, rights, token_lifetime_max } = new;
    is_same_slots(keys, &old.keys)
        && *resource == old.resource
        && *rights == old.rights
        && *token_lifetime_max == old.token_lifetime_max
}

fn is_same_issuer(new: &Issuer, old: &Issuer) -> bool {
    let Issuer {
        name: _,
        iss,
        audience,
        keys: _,
        published: _,
        device_claim,
        scope_claim,
        require,
        token_lifetime_max,
    } = new;
    issuer_keys(new).eq(issuer_keys(old))
        && *iss == old.iss
        && *audience == old.audience
        && *device_claim == old.device_claim
        && *scope_claim == old.scope_claim
        && *require == old.require
        && *token_lifetime_max == old.token_lifetime_max
}

/// In the order of the file, which a fetched set may change: then its sessions are asked, and stay.
fn issuer_keys(issuer: &Issuer) -> impl Iterator<Item = (u64, Algorithm)> {
    issuer.keys.iter().flat_map(|(_, key)| key.each()).map(|key| (key.fingerprint(), key.algorithm()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        credential::{Resource, Rights, ScopeIndex, SecretKey},
        policy::FilterTemplate,
    };

    /// What can be changed of a site.
    #[derive(Clone, Copy, PartialEq)]
    enum Change {
        None,
        Key,
        Disabled,
        Scope,
        Gone,
        Added,
        Group,
        GroupKey,
        PolicyKey,
        PolicyRights,
        PolicyResource,
        PolicyLife,
        GroupLife,
        DeviceLife,
        IssuerGone,
        Audience,
        Require,
    }

    const HOUR: std::time::Duration = std::time::Duration::from_hours(1);

    fn site(change: Change) -> Identities {
        let key = |name: &str| SecretKey::from_bytes(format!("0123456789abcdef {name}").as_bytes()).expect("a key");
        let slots = |name: &str| Slots { primary: Some(key(name)), secondary: None };
        let id = |name: &str| DeviceId::try_from(name).expect("an id");
        let changed = |this, then: &'static str, otherwise: &'static str| if change == this { then } else { otherwise };
        let mut ring = Keyring::builder();
        for name in ["a", "b", "b/m", "c"] {
            let device = Device {
                keys: slots(if name == "a" { changed(Change::Key, "a2", "a") } else { name }),
                enabled: name != "a" || change != Change::Disabled,
                token_lifetime_max: (name == "a" && change == Change::DeviceLife).then_some(HOUR),
                scope: ScopeIndex(u32::from(name == "a" && change == Change::Scope)),
                ..Device::default()
            };
            if name != "c" || change != Change::Gone {
                ring.add_device(id(name), device).expect("free");
            }
        }
        if change == Change::Added {
            ring.add_device(id("line7-1"), Device { keys: slots("own"), ..Device::default() }).expect("free");
        }
        let (prefix, keys) =
            (changed(Change::Group, "line", "line7-").into(), slots(changed(Change::GroupKey, "g2", "g")));
        let token_lifetime_max = (change == Change::GroupLife).then_some(HOUR);
        ring.add_group(Group { prefix, keys, token_lifetime_max, scope: ScopeIndex(0) }).expect("free");
        ring.add_policy(Policy {
            name: "p".into(),
            resource: Resource::parse(changed(Change::PolicyResource, "localhost/devices/a", "localhost"))
                .expect("a resource"),
            keys: slots(changed(Change::PolicyKey, "p2", "p")),
            rights: Rights { publish: change != Change::PolicyRights, subscribe: true },
            token_lifetime_max: (change == Change::PolicyLife).then_some(HOUR),
        })
        .expect("free");
        if change != Change::IssuerGone {
            ring.add_issuer(Issuer {
                name: "i".into(),
                iss: "https://i.example".into(),
                audience: vec![changed(Change::Audience, "b", "a").into()],
                keys: vec![],
                published: crate::credential::Published::No,
                device_claim: "sub".into(),
                scope_claim: None,
                require: (change == Change::Require).then(|| vec!["jti".into()]),
                token_lifetime_max: None,
            })
            .expect("free");
        }
        let narrow = FilterTemplate::new("devices/{device}/narrow").expect("a filter");
        let narrow = ScopeTemplate { publish: Some(vec![narrow]), ..ScopeTemplate::default() };
        Identities::new(ring.build(), vec![ScopeTemplate::default(), narrow])
    }

    #[test]
    fn a_change_touches_those_whom_it_may_concern_and_nobody_else() {
        let some = |devices: &[&str], owners: &[&str]| Touched::Some {
            devices: devices.iter().map(|id| DeviceId::try_from(*id).expect("an id")).collect(),
            owners: owners.iter().map(|owner| (*owner).to_owned()).collect(),
        };
        for (change, expected) in [
            (Change::None, some(&[], &[])),
            (Change::Key, some(&["a"], &[])),
            (Change::Disabled, some(&["a"], &[])),
            (Change::Scope, some(&["a"], &[])),
            (Change::Gone, some(&["c"], &[])),
            (Change::Added, some(&["line7-1"], &[])),
            (Change::Group, Touched::Everybody),
            (Change::GroupKey, some(&[], &["group:line7-"])),
            (Change::PolicyKey, some(&[], &["policy:p"])),
            (Change::PolicyRights, some(&[], &["policy:p"])),
            (Change::PolicyResource, some(&[], &["policy:p"])),
            (Change::PolicyLife, some(&[], &["policy:p"])),
            (Change::GroupLife, some(&[], &["group:line7-"])),
            (Change::DeviceLife, some(&["a"], &[])),
            (Change::IssuerGone, some(&[], &["issuer:i"])),
            (Change::Audience, some(&[], &["issuer:i"])),
            (Change::Require, some(&[], &["issuer:i"])),
        ] {
            assert_eq!(site(change).touched_since(&site(Change::None), 10), expected);
        }
        assert_eq!(site(Change::Key).touched_since(&site(Change::Gone), 1), Touched::Everybody, "more than asked for");
    }
}
