//! What an entry with a time does to honest SAS tokens, which do not say when they were issued.

use std::time::Duration;

use super::NewRevocation;
use crate::{
    credential::{Found, Keyring},
    gate::{GateConfig, Identities},
    id::DeviceId,
    policy::TokenKind,
    time::{UnixSeconds, format_duration},
};

/// Sentences for the operator: until when honest tokens are refused by the entry. `identities` are those in force; `None`:
/// they have mistakes.
///
/// # Errors
/// A sentence: tokens may live without a limit, so that the entry would refuse honest ones for as long.
pub fn honest_refused(
    entry: &NewRevocation,
    gate: &GateConfig,
    identities: Option<&Identities>,
    now: UnixSeconds,
) -> Result<Vec<String>, String> {
    let time = entry.issued_before.as_deref().and_then(|time| UnixSeconds::parse_rfc3339(time).ok());
    let Some(time) = time else { return Ok(key_sentence(entry).into_iter().collect()) };
    let Some(identities) = identities else {
        return Ok(vec!["until when it refuses honest SAS tokens cannot be told: the identities have mistakes".into()]);
    };
    let mut sentences = Vec::new();
    if let Some(limit) = longest_sas(gate, identities, entry) {
        if limit >= NO_LIMIT {
            return Err(format!(
                "nothing is written: a SAS token does not say when it was issued, and may live for {} here, so that honest \
                 ones would be refused for as long\n    Use `tollgate revoke expires-before TIME{}`, or rotate the key with \
                 both slots; or set `token_lifetime_max` to what devices ask for.",
                format_duration(limit),
                entry.policy.as_ref().map_or(String::new(), |name| format!(" --policy {name}"))
            ));
        }
        let end = time.plus(limit);
        let (life, short) = (format_duration(limit), limit / 2);
        sentences.push(if end <= now {
            format!("no SAS token that is made from now on is refused by it: the longest live for {life}")
        } else {
            format!(
                "SAS tokens do not say when they were issued, and may live for {life}: an honest one that is made for {} is \
                 refused by it until {}, a shorter one for longer, and none from {end} on",
                format_duration(short),
                time.plus(limit - short)
            )
        });
    }
    sentences.extend(without_issue_time(gate, identities, entry));
    Ok(sentences)
}

/// The longest life of a SAS token that the entry looks at; `None`: it looks at none.
fn longest_sas(gate: &GateConfig, identities: &Identities, entry: &NewRevocation) -> Option<Duration> {
    let (keyring, standard) = (identities.keyring(), gate.token_lifetime_max_anywhere());
    // Also where a certificate is asked for beside it.
    if entry.issuer.is_some() || !TokenKind::Sas.is_taken_by(&gate.accept) {
        return None;
    }
    if let Some(name) = &entry.policy {
        return Some(keyring.policy(name)?.token_lifetime_max.unwrap_or(standard));
    }
    let device = entry.device.as_deref().and_then(|id| DeviceId::try_from(id).ok());
    let found = device.as_ref().and_then(|id| keyring.find(id));
    match (&device, found) {
        (Some(id), Some(found)) => longest_of_device(keyring, id, &found, standard),
        _ => longest_of_all(keyring, standard),
    }
}

fn longest_of_device(keyring: &Keyring, id: &DeviceId, found: &Found<'_>, standard: Duration) -> Option<Duration> {
    let own = [found.device, found.parent].into_iter().flatten().filter_map(|device| device.token_lifetime_max).min();
    let has_key = found.device.is_some_and(|device| !device.keys.is_empty());
    let by_own_key = has_key.then(|| own.unwrap_or(standard));
    let bounded = |limit: Option<Duration>| match (limit, own) {
        (Some(limit), Some(own)) => limit.min(own),
        (limit, own) => limit.or(own).unwrap_or(standard),
    };
    let groups = keyring.groups().iter().filter(|group| id.as_str().starts_with(&*group.prefix));
    let by_group = groups.map(|group| bounded(group.token_lifetime_max));
    let by_policy = keyring.policies().map(|policy| bounded(policy.token_lifetime_max));
    by_own_key.into_iter().chain(by_group).chain(by_policy).max()
}

fn longest_of_all(keyring: &Keyring, standard: Duration) -> Option<Duration> {
    let devices = keyring.devices().filter(|(_, device)| !device.keys.is_empty());
    let devices = devices.map(|(_, device)| device.token_lifetime_max);
    let groups = keyring.groups().iter().map(|group| group.token_lifetime_max);
    let policies = keyring.policies().map(|policy| policy.token_lifetime_max);
    devices.chain(groups).chain(policies).map(|limit| limit.unwrap_or(standard)).max()
}

/// A JWT without `iat` counts as issued before any time.
fn without_issue_time(gate: &GateConfig, identities: &Identities, entry: &NewRevocation) -> Option<String> {
    if entry.policy.is_some() {
        return None;
    }
    let concerned = identities.keyring().issuers().filter(|issuer| {
        entry.issuer.as_deref().is_none_or(|name| name == &*issuer.name)
            && !match &issuer.require {
                Some(require) => require.iter().any(|claim| &**claim == "iat"),
                None => gate.profiles().all(|profile| profile.require().contains(&"iat")),
            }
    });
    let names: Vec<&str> = concerned.map(|issuer| &*issuer.name).collect();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!("JWTs of {names} that have no `iat` are refused for as long as the entry stands: `require` does not ask for it")
    })
}

fn key_sentence(entry: &NewRevocation) -> Option<String> {
    let name = entry.key.as_deref()?;
    Some(format!("it names the slot, not the key in it: once the key of {name} is replaced, remove the entry"))
}

/// The preset of the profile azure, which is there because Azure has no limit.
const NO_LIMIT: Duration = Duration::from_hours(366 * 24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        credential::{Device, SecretKey, Slots},
        policy::Profile,
    };

    const NOW: UnixSeconds = UnixSeconds(1_795_251_600);

    fn identities() -> Identities {
        let mut ring = Keyring::builder();
        let primary = SecretKey::from_bytes(b"primary key of the device d0 ...").ok();
        let keys = Slots { primary, secondary: None };
        ring.add_device(DeviceId::try_from("d0").expect("an id"), Device { keys, ..Device::default() }).expect("new");
        Identities::new(ring.build(), vec![])
    }

    #[test]
    fn an_entry_is_refused_wherever_a_sas_token_without_a_limit_is_taken() {
        let entry = NewRevocation { issued_before: Some(NOW.to_string()), ..NewRevocation::default() };
        let told = |accept: TokenKind, listener: Profile| {
            let gate = GateConfig { accept: vec![accept], listener_profiles: vec![listener], ..GateConfig::default() };
            honest_refused(&entry, &gate, Some(&identities()), NOW)
        };
        for accept in [TokenKind::Sas, TokenKind::CertificateAndSas] {
            let refused = told(accept, Profile::Azure).expect_err("Azure has no limit");
            assert!(refused.contains("expires-before"), "{refused}");
            let sentences = told(accept, Profile::Strict).expect("a day").join(" ");
            assert!(sentences.contains("may live for 1 day"), "{sentences}");
        }
        for accept in [TokenKind::Jwt, TokenKind::Certificate, TokenKind::CertificateAndJwt] {
            assert_eq!(told(accept, Profile::Azure), Ok(vec![]), "{accept:?}");
        }
    }
}
