//! The decision about a token, with its reasons, as the API and the command line show it.

use serde::{Deserialize, Serialize};

use crate::{
    audit::Audit,
    credential::{self, Credential, Keyring, RevocationList, VerifyRules},
    denial::Denial,
    id::DeviceId,
    time::UnixSeconds,
};

/// Body of `POST /v1/tokens/explain`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    pub(super) token: String,
    pub(super) device: Option<String>,
    /// Of the listener; absent: the gateway's.
    pub(super) profile: Option<String>,
}

/// What the gateway would decide, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Whether it would be admitted.
    pub admitted: bool,
    /// Number of the denial.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub number: Option<u16>,
    /// Tag of the denial.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub denial: Option<String>,
    /// Whose token it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// What was checked, in the order of the gate, up to what failed.
    pub steps: Vec<ExplainedStep>,
    /// Which mistake it is: each was tried and found true. Of a good token: what else its device should know.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub near_misses: Vec<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub remedy: String,
}

/// Whose keys may have signed a SAS token, as key commands name them.
fn owners(token: &str, keyring: &Keyring) -> Vec<String> {
    let Ok(Credential::Sas(token)) = Credential::parse(token.as_bytes()) else { return Vec::new() };
    if let Some(policy) = token.policy() {
        return vec![format!("policy:{policy}")];
    }
    let id = token.resource().identity().and_then(|id| DeviceId::try_from(&*id).ok());
    let Some(id) = id else { return Vec::new() };
    let group = keyring.find(&id).and_then(|found| found.group).map(|group| format!("group:{}", group.prefix));
    std::iter::once(format!("device:{id}")).chain(group).collect()
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedStep {
    /// What was checked.
    pub what: String,
    /// Whether the token passed.
    pub ok: bool,
    /// The values that were compared.
    pub detail: String,
}

impl Explained {
    /// With what the audit log tells of keys that are gone: nobody can try a key that is no longer there, but that it was
    /// replaced is known.
    #[must_use]
    pub fn with_rotations(mut self, token: &str, keyring: &Keyring, audit: &Audit) -> Self {
        let is_wrong_key = self.number == Some(Denial::SignatureInvalid.number()) && self.near_misses.is_empty();
        if let Some((owner, at)) = audit.last_rotation(&owners(token, keyring)).filter(|_| is_wrong_key) {
            self.near_misses.push(format!(
                "The keys of {owner} were replaced last at {at}: if it was made with one that left then, its maker needs the \
                 present primary."
            ));
        }
        self
    }

    /// Decides as the gate would for a CONNECT of `device`; `None`: of whomever the token names.
    pub fn of(
        token: &str,
        device: Option<&DeviceId>,
        (keyring, rules, list): (&Keyring, &VerifyRules, &RevocationList),
        now: UnixSeconds,
    ) -> Self {
        let explanation = credential::explain(token, device, keyring, rules, list, now);
        let steps = explanation.steps.into_iter();
        let steps = steps.map(|s| ExplainedStep { what: s.what.into(), ok: s.ok, detail: s.detail }).collect();
        let near_misses = explanation.near_misses;
        match explanation.verdict {
            Ok(identity) => Self {
                admitted: true,
                number: None,
                denial: None,
                device: Some(identity.device().to_string()),
                steps,
                near_misses,
                remedy: String::new(),
            },
            Err(refused) => Self {
                admitted: false,
                number: Some(refused.denial.number()),
                denial: Some(refused.denial.tag().into()),
                device: refused.device.map(|id| id.to_string()),
                steps,
                near_misses,
                remedy: refused.denial.row().remedy.into(),
            },
        }
    }
}
