//! What a device may do: a scope, resolved for one device at admission, and the permits that come from it.

mod profile;
mod written;

pub use profile::Profile;

use std::{collections::HashSet, fmt, sync::Arc};

pub use crate::credential::{Rights, TokenKind};

use crate::{
    credential::{Facts, PeerCertificate, Terms},
    denial::Denial,
    id::{DeviceId, KeyName, TokenId},
    time::UnixSeconds,
    topic::{TopicError, TopicFilter, TopicName},
};

/// A scope as the configuration writes it: filters in which `{device}` stands for the device's id, and `{module}` for the
/// module's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeTemplate {
    /// Filters of topics that may be published to. `None`: as the listener's profile has it, the own telemetry.
    pub publish: Option<Vec<FilterTemplate>>,
    /// Filters that cover what may be subscribed to. `None`: as the listener's profile has it, the own commands.
    pub subscribe: Option<Vec<FilterTemplate>>,
    /// Whether RETAIN may be set.
    pub retain: bool,
    /// The highest QoS of a PUBLISH, 0 to 2.
    pub qos_max: u8,
}

/// A device's own telemetry and its own commands: what a file without [defaults.scope] gives.
impl Default for ScopeTemplate {
    fn default() -> Self {
        Self { publish: None, subscribe: None, retain: true, qos_max: 2 }
    }
}

impl ScopeTemplate {
    /// The scope of one device or module that connects to a listener with this profile.
    pub fn for_device(&self, device: &DeviceId, profile: Profile) -> Scope {
        let (publish, subscribe) = profile.default_filters(device);
        let own = |preset: &[&str]| preset.iter().map(|text| fill(text, device)).collect::<Vec<_>>();
        let resolve = |written: &Option<Vec<FilterTemplate>>, preset: &[&str], companions: &[TopicFilter]| {
            let mut filters = match written {
                Some(all) => all.iter().map(|filter| filter.for_device(device)).collect(),
                None => own(preset),
            };
            if !companions.is_empty() && own(preset).iter().all(|own| is_covered(own, &filters)) {
                filters
                    .extend(companions.iter().filter(|more| !is_covered(more, &filters)).cloned().collect::<Vec<_>>());
            }
            filters
        };
        let (with_publish, with_subscribe) =
            profile.companions().map_or((&[][..], &[][..]), |with| (&with.publish[..], &with.subscribe[..]));
        let publish = resolve(&self.publish, publish, with_publish);
        Scope::new(publish, resolve(&self.subscribe, subscribe, with_subscribe), self.retain, self.qos_max)
    }
}

/// A topic filter in which `{device}` may stand as a part of a level, and in a module's scope `{module}`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FilterTemplate(Arc<str>);

impl FilterTemplate {
    /// Checks that it is a filter once ids stand in it.
    ///
    /// # Errors
    /// [`TopicError`] of the filter, as with any ids in the places of `{device}` and `{module}`.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        TopicFilter::try_from(&*text.replace(DEVICE, "d").replace(MODULE, "m"))?;
        Ok(Self(text.into()))
    }

    /// The filter for one device or module.
    pub fn for_device(&self, device: &DeviceId) -> TopicFilter {
        fill(&self.0, device)
    }

    /// Whether it speaks of a module, which a device is not.
    pub fn names_module(&self) -> bool {
        self.0.contains(MODULE)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FilterTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// What one device may do. It only ever becomes narrower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    publish: Vec<TopicFilter>,
    subscribe: Vec<TopicFilter>,
    retain: bool,
    qos_max: u8,
}

impl Scope {
    /// A scope of these filters.
    pub fn new(publish: Vec<TopicFilter>, subscribe: Vec<TopicFilter>, retain: bool, qos_max: u8) -> Self {
        Self { publish, subscribe, retain, qos_max }
    }

    /// Without what `rights` do not hold.
    pub fn bounded_by(mut self, rights: Rights) -> Self {
        if !rights.publish {
            self.publish.clear();
        }
        if !rights.subscribe {
            self.subscribe.clear();
        }
        self
    }

    /// The part of the scope that lies in these filters, too; `None` leaves that side as it is.
    pub fn narrowed_to(mut self, publish: Option<&[TopicFilter]>, subscribe: Option<&[TopicFilter]>) -> Self {
        if let Some(asked) = publish {
            self.publish = intersection(&self.publish, asked);
        }
        if let Some(asked) = subscribe {
            self.subscribe = intersection(&self.subscribe, asked);
        }
        self
    }

    /// Whether all that `other` allows is allowed by `self`.
    pub fn includes(&self, other: &Scope) -> bool {
        let side = |wide: &[TopicFilter], narrow: &[TopicFilter]| narrow.iter().all(|n| is_covered(n, wide));
        side(&self.publish, &other.publish)
            && side(&self.subscribe, &other.subscribe)
            && self.retain >= other.retain
            && self.qos_max >= other.qos_max
    }

    /// Filters of topics that may be published to.
    pub fn publish(&self) -> &[TopicFilter] {
        &self.publish
    }

    /// Filters that cover what may be subscribed to.
    pub fn subscribe(&self) -> &[TopicFilter] {
        &self.subscribe
    }

    /// The highest QoS of a PUBLISH, 0 to 2.
    pub fn qos_max(&self) -> u8 {
        self.qos_max
    }

    /// Whether RETAIN may be set.
    pub fn retain(&self) -> bool {
        self.retain
    }

    /// A permit for one PUBLISH.
    ///
    /// # Errors
    /// [`Denial::TopicOutOfScope`], [`Denial::RetainNotOffered`], [`Denial::QosNotOffered`].
    #[inline]
    pub fn authorize_publish<'t>(&self, topic: TopicName<'t>, qos: u8, retain: bool) -> Result<Permit<'t>, Denial> {
        let allowed = self.publish.iter().any(|filter| match filter.literal_prefix() {
            Some(prefix) if topic.as_str().starts_with(prefix) => true,
            _ => filter.matches(topic),
        });
        if !allowed {
            return Err(Denial::TopicOutOfScope);
        }
        if retain && !self.retain {
            return Err(Denial::RetainNotOffered);
        }
        if qos > self.qos_max {
            return Err(Denial::QosNotOffered);
        }
        Ok(Permit { topic })
    }

    /// Whether `filter` may be subscribed to.
    ///
    /// # Errors
    /// [`Denial::FilterOutOfScope`].
    pub fn authorize_subscribe(&self, filter: &TopicFilter) -> Result<(), Denial> {
        if is_covered(filter, &self.subscribe) { Ok(()) } else { Err(Denial::FilterOutOfScope) }
    }
}

/// Leave for one PUBLISH on one topic; only a [`Scope`] makes one, and routing a message takes it.
#[must_use]
#[derive(Debug)]
pub struct Permit<'t> {
    topic: TopicName<'t>,
}

impl<'t> Permit<'t> {
    /// The topic that may be published to.
    pub fn topic(&self) -> TopicName<'t> {
        self.topic
    }
}

/// What a believed token gives: made by the gate alone, held by the session for as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub device: DeviceId,
    /// What it may do.
    pub scope: Scope,
    /// Profile of the listener that it came through.
    pub profile: Profile,
    /// `exp` or `se` of the token.
    pub expires_at: UnixSeconds,
    /// `expires_at` + clock skew, or the end of the key that verified the token: from this second on the session is cut.
    pub closes_at: UnixSeconds,
    /// Which token.
    pub token_id: TokenId,
    /// `jti` of a JWT.
    pub jti: Option<Arc<str>>,
    /// How it was proved.
    pub kind: TokenKind,
    /// Which key verified it.
    pub key: KeyName,
    /// Fingerprint of that key's bytes: another key in the same slot is another key.
    pub key_fingerprint: u64,
    /// Name of the `[[issuer]]` (JWT).
    pub issuer: Option<Arc<str>>,
    /// Name of the `[[policy]]` (`skn` of a SAS token).
    pub policy: Option<Arc<str>>,
    /// `iat` of a JWT. For SAS, which has none: `se` − the longest lifetime its key may give, where there is a limit.
    pub issued_at: Option<UnixSeconds>,
    /// The client certificate of its connection, where there is one.
    pub certificate: Option<ShownCertificate>,
    /// What the token said that a change of its policy or its issuer may refuse.
    pub terms: Option<Arc<Terms>>,
}

/// A client certificate, and what a grant needed it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownCertificate {
    /// The certificate.
    pub peer: Arc<PeerCertificate>,
    /// Why it counts.
    pub role: CertificateRole,
    /// Where it counts beside a token: how the revocation list names what it was believed by, `certificate:pump-17/primary`.
    pub key: Option<KeyName>,
}

/// What a grant needed a client certificate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateRole {
    /// Nothing: it came with the connection.
    Shown,
    /// The token is bound to it (`cnf`, RFC 8705).
    Bound,
    /// It proves the device, alone or beside a token, or the listener lets nobody in without.
    Trusted,
}

impl ShownCertificate {
    /// From this second on it proves nothing (RFC 5280 §4.1.2.5: the last second is valid); `None`: nothing hangs on it.
    pub fn ends(&self) -> Option<UnixSeconds> {
        (self.role != CertificateRole::Shown).then(|| UnixSeconds(self.peer.not_after().0.saturating_add(1)))
    }
}

impl Grant {
    /// The certificate that the grant hangs on, as the revocation list names it, where it is not the token itself.
    pub fn certificate_id(&self) -> Option<TokenId> {
        let held = self.certificate.as_ref().filter(|held| held.role != CertificateRole::Shown)?;
        Some(held.peer.thumbprint().token_id()).filter(|id| *id != self.token_id)
    }

    /// What the revocation list looks at: the token, and the certificate beside it.
    pub fn all_facts(&self) -> impl Iterator<Item = Facts<'_>> {
        let facts = self.facts();
        let key = self.certificate_key().unwrap_or(facts.key);
        let beside = self.certificate_id().map(|token_id| Facts { token_id, key, ..facts });
        std::iter::once(facts).chain(beside)
    }

    /// The keys that it hangs on: the token's, and what the certificate beside it was believed by.
    pub fn keys(&self) -> impl Iterator<Item = &KeyName> {
        std::iter::once(&self.key).chain(self.certificate_key())
    }

    fn certificate_key(&self) -> Option<&KeyName> {
        self.certificate.as_ref()?.key.as_ref()
    }

    /// What the revocation list looks at of the token.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            token_id: self.token_id,
            jti: self.jti.as_deref(),
            issuer: self.issuer.as_deref(),
            policy: self.policy.as_deref(),
            device: &self.device,
            key: &self.key,
            issued_at: self.issued_at,
            expires_at: self.expires_at,
        }
    }
}

/// An id holds no wildcard and no `/`, so each stays what it was: part of a level.
fn fill(template: &str, device: &DeviceId) -> TopicFilter {
    let mut text = String::with_capacity(template.len() + device.as_str().len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let names = [("device}", device.device()), ("module}", device.module().unwrap_or_default())];
        let named = names.into_iter().find_map(|(name, id)| Some((id, after.strip_prefix(name)?)));
        let (put, after) = named.unwrap_or(("{", after));
        text.push_str(put);
        rest = after;
    }
    text.push_str(rest);
    TopicFilter::try_from(&*text).expect("invariant: checked in FilterTemplate::new(), or a preset (tested)")
}

fn is_covered(filter: &TopicFilter, by: &[TopicFilter]) -> bool {
    by.iter().any(|wide| wide.covers(filter))
}

/// Exactly the topics that lie in one of either side.
fn intersection(have: &[TopicFilter], asked: &[TopicFilter]) -> Vec<TopicFilter> {
    let mut known = HashSet::new();
    let both = have.iter().flat_map(|have| asked.iter().filter_map(|asked| have.intersection(asked)));
    both.filter(|filter| known.insert(filter.clone())).collect()
}

const DEVICE: &str = "{device}";
const MODULE: &str = "{module}";

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(publish: &[&str], subscribe: &[&str]) -> Scope {
        let filters = |all: &[&str]| all.iter().map(|f| TopicFilter::try_from(*f).expect("a filter")).collect();
        Scope::new(filters(publish), filters(subscribe), false, 1)
    }

    fn publish(scope: &Scope, topic: &str) -> Result<(), Denial> {
        scope.authorize_publish(TopicName::new(topic.as_bytes()).expect(topic), 1, false).map(|_| ())
    }

    #[test]
    fn a_publish_is_held_to_the_scope() {
        let template = ScopeTemplate {
            publish: Some(vec![FilterTemplate::new("devices/{device}/messages/events/#").expect("a filter")]),
            subscribe: Some(vec![]),
            retain: false,
            qos_max: 1,
        };
        let scope = template.for_device(&DeviceId::try_from("dev1").expect("an id"), Profile::Strict);
        for good in
            ["devices/dev1/messages/events/", "devices/dev1/messages/events", "devices/dev1/messages/events/a/b"]
        {
            assert_eq!(publish(&scope, good), Ok(()), "{good}");
        }
        for bad in [
            "devices/dev10/messages/events/",
            "devices/dev1/messages/eventsx",
            "devices/dev1",
            "/devices/dev1/messages/events/",
        ] {
            assert_eq!(publish(&scope, bad), Err(Denial::TopicOutOfScope), "{bad}");
        }
        let topic = TopicName::new(b"devices/dev1/messages/events/").expect("a name");
        assert_eq!(scope.authorize_publish(topic, 1, true).map(|_| ()), Err(Denial::RetainNotOffered));
        assert_eq!(scope.authorize_publish(topic, 2, false).map(|_| ()), Err(Denial::QosNotOffered));
    }

    #[test]
    fn by_default_everybody_has_its_own_topics_alone_as_the_profile_names_them() {
        let scope_of = |id: &str, profile| {
            let scope = ScopeTemplate::default().for_device(&DeviceId::try_from(id).expect("an id"), profile);
            let texts = |filters: &[TopicFilter]| filters.iter().map(|f| f.as_str().to_owned()).collect::<Vec<_>>();
            (texts(scope.publish()), texts(scope.subscribe()))
        };
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let module = (
            own(&["devices/d/modules/m/messages/events/#"]),
            own(&["devices/d/modules/m/messages/devicebound/#", "devices/d/modules/m/inputs/#"]),
        );
        let device = (own(&["devices/d/messages/events/#"]), own(&["devices/d/messages/devicebound/#"]));
        assert_eq!(scope_of("d", Profile::Strict), device);
        assert_eq!(scope_of("d/m", Profile::Strict), module);
        for (id, (publish, subscribe)) in [("d", device), ("d/m", module)] {
            let with_twin = ([publish, own(&TWIN_PUBLISH)].concat(), [subscribe, own(&TWIN_SUBSCRIBE)].concat());
            assert_eq!(scope_of(id, Profile::Azure), with_twin);
        }
        let uplink = own(&["/devices/d/events/#", "/devices/d/state"]);
        assert_eq!(scope_of("d", Profile::Google), (uplink, own(&["/devices/d/config", "/devices/d/commands/#"])));
        let scope = ScopeTemplate::default().for_device(&DeviceId::try_from("dev1").expect("an id"), Profile::Strict);
        assert_eq!(publish(&scope, "devices/dev1/messages/events/x"), Ok(()));
        assert_eq!(publish(&scope, "devices/dev2/messages/events/x"), Err(Denial::TopicOutOfScope));
        let commands = |id| TopicFilter::try_from(&*format!("devices/{id}/messages/devicebound/#")).expect("a filter");
        assert_eq!(scope.authorize_subscribe(&commands("dev1")), Ok(()));
        assert_eq!(scope.authorize_subscribe(&commands("+")), Err(Denial::FilterOutOfScope));
    }

    const TWIN_PUBLISH: [&str; 3] =
        ["$iothub/twin/GET/#", "$iothub/twin/PATCH/properties/reported/#", "$iothub/methods/res/#"];
    const TWIN_SUBSCRIBE: [&str; 3] =
        ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"];

    #[test]
    fn twin_and_methods_go_with_telemetry_and_commands_and_with_less_they_do_not() {
        let device = DeviceId::try_from("d").expect("an id");
        let scope_of = |publish: &[&str], subscribe: &[&str]| {
            let templates = |all: &[&str]| all.iter().map(|text| FilterTemplate::new(text).expect(text)).collect();
            let template = ScopeTemplate {
                publish: Some(templates(publish)),
                subscribe: Some(templates(subscribe)),
                ..ScopeTemplate::default()
            };
            template.for_device(&device, Profile::Azure)
        };
        let (all, nothing) = (Ok(()), Err(Denial::TopicOutOfScope));
        let get = "$iothub/twin/GET/?$rid=1";
        let methods = TopicFilter::try_from("$iothub/methods/POST/#").expect("a filter");
        for (telemetry, expected) in [
            ("devices/{device}/messages/events/#", all),
            ("devices/{device}/#", all),
            ("devices/{device}/messages/events/alarms", nothing),
            ("devices/other/messages/events/#", nothing),
        ] {
            assert_eq!(publish(&scope_of(&[telemetry], &[]), get), expected, "{telemetry}");
            assert_eq!(scope_of(&[telemetry], &[]).authorize_subscribe(&methods), Err(Denial::FilterOutOfScope));
        }
        for (commands, expected) in [
            ("devices/{device}/messages/devicebound/#", Ok(())),
            ("devices/{device}/messages/devicebound/urgent", Err(Denial::FilterOutOfScope)),
        ] {
            assert_eq!(scope_of(&[], &[commands]).authorize_subscribe(&methods), expected, "{commands}");
            assert_eq!(publish(&scope_of(&[], &[commands]), get), nothing);
        }
        let scope = scope_of(&["devices/{device}/messages/events/#", "$iothub/#"], &[]);
        assert_eq!(scope.publish().len(), 2, "what is covered is not said twice: {:?}", scope.publish());
        assert_eq!(publish(&scope, "$iothub/twin/res/200/?$rid=1"), all);
        let scope = scope_of(&["devices/{device}/messages/events/#"], &[]);
        for forged in ["$iothub/twin/res/200/?$rid=1", "$iothub/methods/POST/reboot/?$rid=1", "$iothub/x"] {
            assert_eq!(publish(&scope, forged), nothing, "{forged}");
        }
    }

    #[test]
    fn a_subscribe_must_be_covered() {
        let scope = scope(&[], &["devices/+/messages/events/#"]);
        let ask = |f: &str| scope.authorize_subscribe(&TopicFilter::try_from(f).expect(f));
        assert_eq!(ask("devices/a/messages/events/x"), Ok(()));
        assert_eq!(ask("devices/+/messages/events/#"), Ok(()));
        for bad in
            ["#", "devices/#", "devices/+/messages/#", "+/a/messages/events/#", "$share/g/devices/+/messages/events/#"]
        {
            assert_eq!(ask(bad), Err(Denial::FilterOutOfScope), "{bad}");
        }
    }

    #[test]
    fn a_scope_only_becomes_narrower() {
        let wide = scope(&["a/#", "b/c"], &["s/#"]);
        let asked = [
            TopicFilter::try_from("a/b").expect("f"),
            TopicFilter::try_from("b/#").expect("f"),
            TopicFilter::try_from("x/#").expect("f"),
        ];
        let narrow = wide.clone().narrowed_to(Some(&asked), None);
        assert_eq!(narrow, scope(&["a/b", "b/c"], &["s/#"]));
        assert!(wide.includes(&narrow) && !narrow.includes(&wide));
        assert_eq!(wide.clone().bounded_by(Rights { publish: false, subscribe: true }), scope(&[], &["s/#"]));
    }

    #[test]
    fn of_filters_that_overlap_the_overlap_is_left() {
        let wide = scope(&["devices/d1/events/#", "devices/d1/+/alarm"], &[]);
        let asked = |text: &str| vec![TopicFilter::try_from(text).expect("f")];
        let left = wide.clone().narrowed_to(Some(&asked("devices/+/events/alarm")), None);
        assert_eq!(left, scope(&["devices/d1/events/alarm"], &[]));
        assert_eq!(wide.clone().narrowed_to(Some(&asked("#")), None), wide);
        assert_eq!(wide.narrowed_to(Some(&asked("devices/d2/#")), None), scope(&[], &[]));
    }

    #[test]
    fn a_template_is_checked_when_it_is_read() {
        assert_eq!(FilterTemplate::new("a/#/b"), Err(TopicError::Wildcard));
        assert_eq!(FilterTemplate::new(""), Err(TopicError::Empty));
        assert!(FilterTemplate::new("line/{device}-x/+/#").is_ok());
    }
}
