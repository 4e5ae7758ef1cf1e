//! Making the access token that was decided to be given, within every limit.

use std::time::Duration;

use zeroize::Zeroizing;

use super::{
    super::{
        mint::{JwtOrder, NoSigner, SasSigner, random_jti, sign_jwt},
        problem::{Code, Problem},
        refresh::{Kind, LineTerms, Outstanding, RefreshToken},
        request::Request,
    },
    Service, Settings, TokenName, not_loaded, short, unavailable,
};
use crate::{
    credential::{Credential, Facts, Rights, verify},
    denial::Denial,
    gate::Identities,
    id::{DeviceId, TokenId},
    time::UnixSeconds,
};

/// An access token that is to be made.
pub(super) struct Order<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) kind: Kind,
    pub(super) rights: Rights,
    pub(super) ttl: Option<Duration>,
    pub(super) ttl_max: Duration,
    pub(super) policy: Option<&'a str>,
    pub(super) audience: Option<&'a str>,
    /// A token does not outlive its line.
    pub(super) ends_at: Option<UnixSeconds>,
}

/// An access token that was made, and that the gateway would take.
pub(super) struct Made {
    pub(super) token: Zeroizing<String>,
    pub(super) name: TokenName,
    pub(super) token_id: TokenId,
    pub(super) expires_at: UnixSeconds,
}

impl<'a> Order<'a> {
    pub(super) fn of(
        request: &'a Request,
        (device, kind, rights): (&'a DeviceId, Kind, Rights),
        ttl_max: Duration,
    ) -> Result<Self, Problem> {
        let (policy, audience) = (request.policy.as_deref(), request.audience.as_deref());
        Ok(Self { device, kind, rights, ttl: request.ttl()?, ttl_max, policy, audience, ends_at: None })
    }

    pub(super) fn of_line(device: &'a DeviceId, terms: &'a LineTerms) -> Self {
        let (policy, audience) = (terms.policy.as_deref(), terms.audience.as_deref());
        let (kind, rights) = (terms.kind, terms.rights());
        Self { device, kind, rights, ttl: None, ttl_max: Duration::ZERO, policy, audience, ends_at: None }
    }

    pub(super) fn line_terms(&self) -> LineTerms {
        LineTerms {
            kind: self.kind,
            publish: self.rights.publish,
            subscribe: self.rights.subscribe,
            policy: self.policy.map(Into::into),
            audience: self.audience.map(Into::into),
        }
    }

    /// What was asked for or the usual life, within every limit, and a little less by chance. Whole seconds.
    fn expires_at(&self, owner_max: Duration, settings: &Settings, now: UnixSeconds) -> Result<UnixSeconds, Problem> {
        let max = self.ttl_max.min(owner_max);
        if self.ttl.is_some_and(|ttl| ttl > max) {
            let what = format!("`ttl` is longer than the {} seconds that are allowed for this token.", max.as_secs());
            return Err(Problem::new(Code::LifetimeTooLong, what));
        }
        let ttl = self.ttl.unwrap_or_else(|| settings.terms.token_lifetime.min(max));
        let earlier = random_below(ttl.as_secs() * u64::from(settings.terms.jitter_percent) / 100 + 1)?;
        let expires_at = now.plus(ttl - Duration::from_secs(earlier));
        Ok(self.ends_at.map_or(expires_at, |end| end.min(expires_at)))
    }
}

impl Made {
    /// As the audit log has it.
    pub(super) fn audited(&self, kind: Kind, refresh: Option<&RefreshToken>) -> String {
        let of_line = refresh.map_or_else(String::new, |token| format!(", line {}", short(&token.line())));
        format!("{} sha256:{} until {}{of_line}", kind.as_str(), self.token_id, self.expires_at)
    }

    pub(super) fn outstanding(&self) -> Outstanding {
        Outstanding { name: self.name.clone(), expires_at: self.expires_at.0 }
    }
}

impl Service {
    /// Makes an access token, and asks the gateway's own rules whether it would be taken: what is handed out is good.
    pub(super) fn make(&self, order: &Order<'_>, settings: &Settings, now: UnixSeconds) -> Result<Made, Problem> {
        let identities = self.identities()?;
        let (token, expires_at, jti) = match order.kind {
            Kind::Sas => self.make_sas(order, &identities, settings, now)?,
            Kind::Jwt => self.make_jwt(order, &identities, settings, now)?,
        };
        let token_id = self.check(order.device, &token, &identities, now)?;
        let name = jti.map_or_else(|| TokenName::Token(format!("sha256:{token_id}")), TokenName::Jti);
        Ok(Made { token, name, token_id, expires_at })
    }

    fn make_sas(
        &self,
        order: &Order<'_>,
        identities: &Identities,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<(Zeroizing<String>, UnixSeconds, Option<String>), Problem> {
        if order.audience.is_some() {
            return Err(Problem::new(Code::RequestMalformed, "`audience` is for tokens of the kind jwt."));
        }
        let rules = self.backend.rules();
        let signer = SasSigner::choose(identities.keyring(), rules, order.device, order.policy, Some(order.rights));
        let signer = signer.map_err(no_signer)?;
        let expires_at = order.expires_at(signer.lifetime_max, settings, now)?;
        Ok((signer.sign(expires_at), expires_at, None))
    }

    fn make_jwt(
        &self,
        order: &Order<'_>,
        identities: &Identities,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<(Zeroizing<String>, UnixSeconds, Option<String>), Problem> {
        if order.policy.is_some() {
            return Err(Problem::new(Code::RequestMalformed, "`policy` is for tokens of the kind sas."));
        }
        let (issuer, rules) = (self.signing.issuer(), self.backend.rules());
        if order.audience.is_some_and(|named| !issuer.audience.iter().any(|ours| **ours == *named)) {
            return Err(Problem::new(Code::RequestMalformed, "`audience` is no name of this gateway."));
        }
        let found = identities.keyring().find(order.device).ok_or_else(|| no_signer(NoSigner::DeviceUnknown))?;
        let expires_at = order.expires_at(found.lifetime_max(issuer.token_lifetime_max, rules), settings, now)?;
        let jti = random_jti().map_err(no_signer)?;
        let (device, audience, rights) = (order.device, order.audience, order.rights);
        let stands_in_it = JwtOrder { device, audience, rights, jti: &jti, issued_at: now, expires_at };
        let token = sign_jwt(issuer, self.signing.key(), &stands_in_it).map_err(no_signer)?;
        Ok((token, expires_at, Some(jti)))
    }

    /// Whether the gateway would take it.
    fn check(
        &self,
        device: &DeviceId,
        token: &str,
        identities: &Identities,
        now: UnixSeconds,
    ) -> Result<TokenId, Problem> {
        let gate = &self.backend.gate;
        let list = gate.revocations().ok_or_else(not_loaded)?;
        let verified = Credential::parse(token.as_bytes())
            .and_then(|credential| verify(&credential, Some(device), identities.keyring(), self.backend.rules(), now));
        let identity = verified.map_err(|refused| match refused.denial {
            Denial::DeviceUnknown | Denial::DeviceDisabled => Problem::not_served(refused.detail),
            Denial::CredentialKindNotAccepted => {
                let what = "The device does not connect with tokens of this kind.";
                Problem::new(Code::CannotSign, what).because(refused.detail)
            }
            _ => {
                tracing::warn!(%device, denial = refused.denial.tag(), detail = refused.detail, "would be refused");
                let what = "The gateway would refuse such a token; its operator knows why.";
                Problem::new(Code::CannotSign, what).because(refused.detail)
            }
        })?;
        let facts = Facts {
            token_id: identity.token_id(),
            jti: identity.jti().map(|jti| &**jti),
            issuer: identity.issuer().map(|name| &**name),
            policy: identity.policy().map(|name| &**name),
            device: identity.device(),
            key: identity.key(),
            issued_at: identity.issued_at(),
            expires_at: identity.expires_at(),
        };
        match list.matches(&facts, now) {
            Some(hit) => Err(Problem::not_served(hit.to_string())),
            None => Ok(identity.token_id()),
        }
    }
}

fn no_signer(error: NoSigner) -> Problem {
    match error {
        NoSigner::DeviceUnknown => Problem::not_served("There is no such device, and no group that it is in."),
        error => {
            let sentence = error.to_string();
            let mut letters = sentence.chars();
            let first = letters.next().map(|letter| letter.to_ascii_uppercase());
            let sentence: String = first.into_iter().chain(letters).chain(['.']).collect();
            Problem::new(Code::CannotSign, sentence)
        }
    }
}

/// Even enough for spreading renewals.
fn random_below(end: u64) -> Result<u64, Problem> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(unavailable)?;
    Ok(u64::from_le_bytes(bytes) % end.max(1))
}
