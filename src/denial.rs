//! Why we refused, and why a session ended: closed, numbered, one table each. `docs/denials.md` is made from here. (Over
//! 600 lines, since the table of denials is one.)

use std::fmt;

/// Why a peer was refused. The number and the tag are stable: alarms and dashboards are built on them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum Denial {
    /// CONNECT without a token.
    CredentialMissing = 100,
    /// The password is neither a well-formed SAS token nor a well-formed JWT.
    CredentialMalformed = 101,
    /// The kind of token is not accepted here or for this device.
    CredentialKindNotAccepted = 102,
    /// An Authentication Method other than `SAS` and `JWT` (MQTT 5.0 §4.12).
    AuthenticationMethodUnknown = 103,
    /// No client certificate, where one is needed beside the token or asked for by the listener.
    CertificateRequired = 104,
    /// The token is of another kind than the Authentication Method that it came by.
    AuthenticationMethodMismatch = 105,
    /// The client id cannot be a device's.
    ClientIdInvalid = 110,
    /// The token is good, but of another device.
    DeviceMismatch = 111,
    /// The user name names another host or device than the token.
    UserNameMismatch = 112,
    /// A protocol version that is not served.
    ProtocolVersion = 120,
    /// A packet that breaks the specification.
    Malformed = 121,
    /// A packet larger than allowed.
    PacketTooLarge = 122,
    /// No whole CONNECT in time.
    ConnectTimeout = 123,
    /// An HTTP request that does not become a WebSocket with MQTT in it.
    UpgradeDeclined = 124,
    /// A packet that can be read and says what it may not say.
    ProtocolViolation = 125,
    /// No such device.
    DeviceUnknown = 200,
    /// The signature does not verify under any key that may have made it.
    SignatureInvalid = 201,
    /// No such key: `skn` or `kid`.
    KeyUnknown = 202,
    /// No such issuer.
    IssuerUnknown = 203,
    /// The token names another algorithm than its key has.
    AlgorithmMismatch = 204,
    /// The token was made for somebody else: `aud`.
    AudienceMismatch = 205,
    /// `sr` names a host that is not ours.
    HostMismatch = 206,
    /// `sr` is wider than one device.
    HubWideToken = 207,
    /// `sr` is outside what the policy may sign.
    ResourceOutOfPolicy = 208,
    /// A claim is missing, of the wrong type or repeated.
    ClaimInvalid = 209,
    /// The device is switched off.
    DeviceDisabled = 210,
    /// A client certificate that nobody vouches for.
    CertificateUntrusted = 220,
    /// The token is bound to another client certificate than the connection's (`cnf`, RFC 8705).
    CertificateMismatch = 221,
    /// A public key of the device that is not valid yet, or no more.
    KeyOutOfValidity = 222,
    /// The token has expired.
    Expired = 300,
    /// The token is not valid yet: `nbf`.
    NotYetValid = 301,
    /// The token was issued in the future: `iat`.
    IssuedInFuture = 302,
    /// The token lives longer than allowed.
    LifetimeTooLong = 303,
    /// The token, its device or its key is on the revocation list.
    Revoked = 310,
    /// The will is outside the scope.
    WillOutOfScope = 400,
    /// A PUBLISH to a topic outside the scope.
    TopicOutOfScope = 410,
    /// A SUBSCRIBE with a filter outside the scope.
    FilterOutOfScope = 411,
    /// No topic name at all.
    TopicInvalid = 412,
    /// No topic filter at all.
    FilterInvalid = 413,
    /// A QoS that is not offered here or not to this device.
    QosNotOffered = 414,
    /// RETAIN, where the scope does not allow it.
    RetainNotOffered = 415,
    /// A shared subscription.
    SharedSubscriptionNotOffered = 416,
    /// In scope, but no route leads to a hub.
    NotRouted = 417,
    /// What stands behind a telemetry topic is no property bag of IoT Hub (profile azure).
    PropertyBagInvalid = 418,
    /// The hub refused the message.
    HubRefused = 420,
    /// A renewed token that allows more than the one before it.
    RenewalWidens = 430,
    /// AUTH names another method than CONNECT did.
    RenewalMethod = 431,
    /// Too many connects from this address.
    ConnectRate = 500,
    /// As many connections as allowed are open.
    ConnectionQuota = 501,
    /// As many subscriptions as allowed are held.
    SubscriptionQuota = 502,
    /// Somebody guesses from this address, and this is one more guess.
    Banned = 503,
    /// Somebody guesses from this address, and the checks of public keys that it has are used up.
    CheckRate = 504,
    /// Our own trouble: the decision could not be made.
    Unavailable = 900,
    /// The gateway is draining.
    Draining = 901,
}

/// What is known of one [`Denial`]: a row of `docs/denials.md`.
#[derive(Clone, Copy, Debug)]
pub struct DenialRow {
    /// Which.
    pub denial: Denial,
    /// Metric label, log field, reason string.
    pub tag: &'static str,
    /// MQTT 3.1.1 CONNACK return code (§3.2.2.3); `None`: the connection is closed, or it is no answer to CONNECT.
    pub connack_v4: Option<u8>,
    /// MQTT 5.0 reason code (§2.4), of whichever packet answers.
    pub reason_v5: u8,
    /// Azure's number for the same, where it has one.
    pub azure: Option<u32>,
    /// One sentence for the operator.
    pub sentence: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Denial {
    /// The stable number.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// What is known of it.
    pub fn row(self) -> &'static DenialRow {
        DENIALS.iter().find(|row| row.denial == self).expect("invariant: every denial has a row (tested)")
    }

    /// Metric label, log field, reason string.
    pub fn tag(self) -> &'static str {
        self.row().tag
    }

    /// Whether it says of a token what is wrong with it: then it may be one of the usual mistakes.
    pub fn is_of_token(self) -> bool {
        (Self::CredentialMissing.number() + 1..Self::WillOutOfScope.number()).contains(&self.number())
    }

    /// What the peer is told in its place. Before a signature has verified every reason is told as a wrong signature, or
    /// anybody could find out which devices, keys, policies and issuers there are.
    pub fn as_told(self) -> Self {
        match self {
            Self::DeviceUnknown | Self::KeyUnknown | Self::IssuerUnknown | Self::AlgorithmMismatch => {
                Self::SignatureInvalid
            }
            told => told,
        }
    }

    /// All of them, in order of number.
    pub fn all() -> &'static [DenialRow] {
        DENIALS
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.tag())
    }
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CloseReason {
    /// DISCONNECT from the device.
    ClientDisconnect,
    /// The device closed or lost the connection without DISCONNECT.
    ConnectionLost,
    /// Nothing was heard for one and a half times the keep alive.
    KeepAlive,
    /// The token is past `exp` + skew.
    Expired,
    /// The token or the device was revoked.
    Revoked,
    /// The key, the device or its scope is gone or changed.
    GrantWithdrawn,
    /// The same device connected again.
    TakenOver,
    /// An operator closed it.
    Administrative,
    /// The gateway is draining.
    Draining,
    /// A packet that cannot be parsed.
    Malformed,
    /// A packet that may not come here.
    ProtocolError,
    /// A packet larger than announced.
    PacketTooLarge,
    /// More unacknowledged PUBLISH than announced.
    ReceiveMaximumExceeded,
    /// A topic alias out of range or never set.
    TopicAliasInvalid,
    /// Something was refused that can only be answered by closing.
    Denied(Denial),
    /// The token that it renewed with was refused.
    RenewalRefused(Denial),
    /// A packet that began did not come to its end in time.
    PacketTimeout,
    /// The device does not take what is sent to it.
    NotReading,
    /// Our own trouble.
    InternalError,
}

impl CloseReason {
    /// Metric label and log field.
    pub fn tag(self) -> &'static str {
        match self {
            Self::ClientDisconnect => "client_disconnect",
            Self::ConnectionLost => "connection_lost",
            Self::KeepAlive => "keep_alive",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::GrantWithdrawn => "grant_withdrawn",
            Self::TakenOver => "taken_over",
            Self::Administrative => "administrative",
            Self::Draining => "draining",
            Self::Malformed => "malformed",
            Self::ProtocolError => "protocol_error",
            Self::PacketTooLarge => "packet_too_large",
            Self::ReceiveMaximumExceeded => "receive_maximum_exceeded",
            Self::TopicAliasInvalid => "topic_alias_invalid",
            Self::Denied(denial) => denial.tag(),
            Self::RenewalRefused(_) => "renewal_refused",
            Self::PacketTimeout => "packet_timeout",
            Self::NotReading => "not_reading",
            Self::InternalError => "internal_error",
        }
    }

    /// Reason code of the DISCONNECT that a 5.0 device is sent (§3.14.2.1); `None`: none is sent.
    pub fn disconnect_v5(self) -> Option<u8> {
        Some(match self {
            Self::ClientDisconnect | Self::ConnectionLost => return None,
            Self::KeepAlive => 0x8D,
            Self::Expired => 0xA0,
            Self::Revoked | Self::Administrative => 0x98,
            Self::GrantWithdrawn => 0x87,
            Self::TakenOver => 0x8E,
            Self::Draining => 0x8B,
            Self::Malformed => 0x81,
            Self::ProtocolError => 0x82,
            Self::PacketTooLarge => 0x95,
            Self::ReceiveMaximumExceeded => 0x93,
            Self::TopicAliasInvalid => 0x94,
            Self::Denied(denial) => denial.row().reason_v5,
            Self::RenewalRefused(_) => 0x8C,
            // MQTT has none of its own for it: no whole packet came in the time that was given.
            Self::PacketTimeout => 0x8D,
            Self::NotReading => 0x97,
            Self::InternalError => 0x83,
        })
    }

    /// Azure's number for the same, where it has one.
    pub fn azure(self) -> Option<u32> {
        match self {
            Self::Expired => Denial::Expired.row().azure,
            Self::Revoked | Self::GrantWithdrawn => Denial::Revoked.row().azure,
            Self::TakenOver => Some(400_027),
            Self::Denied(denial) | Self::RenewalRefused(denial) => denial.row().azure,
            _ => None,
        }
    }

    /// Whether the gateway ended it against the device's will, so that `refusals` shows it.
    pub fn is_cut(self) -> bool {
        !matches!(self, Self::ClientDisconnect | Self::ConnectionLost)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tag())
    }
}

const fn row(
    denial: Denial,
    tag: &'static str,
    (connack_v4, reason_v5): (Option<u8>, u8),
    azure: Option<u32>,
    sentence: &'static str,
    remedy: &'static str,
) -> DenialRow {
    DenialRow { denial, tag, connack_v4, reason_v5, azure, sentence, remedy }
}

// MQTT 3.1.1 §3.2.2.3 beside MQTT 5.0 §2.4. 4 is never sent: Azure's C SDK does not retry after it.
const NOT_AUTHORIZED: (Option<u8>, u8) = (Some(5), 0x87);
const BAD_PASSWORD: (Option<u8>, u8) = (Some(5), 0x86);
const BAD_CLIENT_ID: (Option<u8>, u8) = (Some(2), 0x85);

const DENIALS: &[DenialRow] = &[
    row(
        Denial::CredentialMissing,
        "credential_missing",
        BAD_PASSWORD,
        None,
        "CONNECT carries no token.",
        "Send the SAS token or the JWT as the password.",
    ),
    row(
        Denial::CredentialMalformed,
        "credential_malformed",
        BAD_PASSWORD,
        None,
        "The password is neither a well-formed SAS token nor a well-formed JWT.",
        "Pipe the token into `tollgate token explain -`: it names the mistake.",
    ),
    row(
        Denial::CredentialKindNotAccepted,
        "credential_kind_not_accepted",
        NOT_AUTHORIZED,
        Some(401003),
        "This kind of token is not accepted here or for this device.",
        "See `accept` under [credentials] in gateway.toml and at the device in identities.toml.",
    ),
    row(
        Denial::AuthenticationMethodUnknown,
        "authentication_method_unknown",
        (None, 0x8C),
        None,
        "CONNECT names an authentication method other than SAS and JWT.",
        "Send the token as the password, or name the method SAS or JWT.",
    ),
    row(
        Denial::CertificateRequired,
        "certificate_required",
        NOT_AUTHORIZED,
        Some(401003),
        "A client certificate is needed, and the connection has none.",
        "Give the device its certificate and key, connect to a TLS listener with `client_auth`, or change `accept`.",
    ),
    row(
        Denial::AuthenticationMethodMismatch,
        "authentication_method_mismatch",
        (None, 0x8C),
        None,
        "The authentication method is SAS and the token a JWT, or the other way round.",
        "Name the method of the token that is sent, or send the token as the password.",
    ),
    row(
        Denial::ClientIdInvalid,
        "client_id_invalid",
        BAD_CLIENT_ID,
        None,
        "The client id cannot be a device id: 1 to 128 bytes of letters, digits and -._:%=@!'(),.",
        "Connect with the device id as the client id.",
    ),
    row(
        Denial::DeviceMismatch,
        "device_mismatch",
        BAD_CLIENT_ID,
        None,
        "The token is good, but it belongs to another device than the client id names.",
        "Connect with the id of the device that the token was made for; if nobody should have had both, revoke the token.",
    ),
    row(
        Denial::UserNameMismatch,
        "user_name_mismatch",
        BAD_PASSWORD,
        None,
        "The user name names another host or device than the client id and this gateway.",
        "Send the device id as user name, or Azure's {host}/{device}/?api-version=…",
    ),
    row(
        Denial::ProtocolVersion,
        "protocol_version",
        (Some(1), 0x84),
        None,
        "The client speaks a version of MQTT other than 3.1.1 and 5.0.",
        "Set the client to MQTT 3.1.1 or 5.0.",
    ),
    row(
        Denial::Malformed,
        "malformed",
        (None, 0x81),
        None,
        "What arrived is no MQTT CONNECT by the specification.",
        "See that an MQTT client speaks to this port, and TLS only to the TLS listener.",
    ),
    row(
        Denial::PacketTooLarge,
        "packet_too_large",
        (None, 0x95),
        None,
        "A packet is larger than `connect_packet_size_max` or `maximum_packet_size` allows.",
        "Send smaller packets or raise the limit under [limits].",
    ),
    row(
        Denial::ConnectTimeout,
        "connect_timeout",
        (None, 0x82),
        None,
        "No whole CONNECT arrived within `connect_timeout`.",
        "Look at the network between device and gateway, and at the device's TLS settings.",
    ),
    row(
        Denial::UpgradeDeclined,
        "upgrade_declined",
        (None, 0x81),
        None,
        "The HTTP request does not become a WebSocket: path, Origin, sub-protocol or head. The client has the status.",
        "Use a path of `paths` and the sub-protocol mqtt, list the page's Origin in `origins`, keep tokens out of the URL.",
    ),
    row(
        Denial::ProtocolViolation,
        "protocol_violation",
        (None, 0x82),
        None,
        "CONNECT can be read, but says what the specification forbids: a property twice, or a value that may not be.",
        "Update or reconfigure the client's MQTT library.",
    ),
    row(
        Denial::DeviceUnknown,
        "device_unknown",
        NOT_AUTHORIZED,
        Some(401003),
        "No such device in identities.toml.",
        "Add a [[device]] with this id, or a [[group]] whose prefix it has.",
    ),
    row(
        Denial::SignatureInvalid,
        "signature_invalid",
        NOT_AUTHORIZED,
        Some(40103),
        "The signature does not verify under any key that may have made it.",
        "Pipe the token into `tollgate token explain -`: it tries the usual mistakes.",
    ),
    row(
        Denial::KeyUnknown,
        "key_unknown",
        NOT_AUTHORIZED,
        Some(40103),
        "The token names a key (`skn` or `kid`) that is not configured.",
        "Compare with identities.toml; after a rotation the device needs a new token.",
    ),
    row(
        Denial::IssuerUnknown,
        "issuer_unknown",
        NOT_AUTHORIZED,
        Some(401003),
        "No [[issuer]] has this `iss`.",
        "Add the issuer to identities.toml; the text must be the same, to the slash.",
    ),
    row(
        Denial::AlgorithmMismatch,
        "algorithm_mismatch",
        NOT_AUTHORIZED,
        Some(40103),
        "The token names another algorithm than its key has.",
        "The algorithm belongs to the key: see `algorithms` at the issuer.",
    ),
    row(
        Denial::AudienceMismatch,
        "audience_mismatch",
        NOT_AUTHORIZED,
        Some(401003),
        "`aud` of the token names none of the issuer's `audience`.",
        "Have the token issued for this gateway, or add the name to `audience`.",
    ),
    row(
        Denial::HostMismatch,
        "host_mismatch",
        NOT_AUTHORIZED,
        Some(401003),
        "`sr` of the token names a host that is not this gateway's.",
        "Add the host to `aliases` under [gateway], or have the token made for `hostname`.",
    ),
    row(
        Denial::HubWideToken,
        "hub_wide_token",
        NOT_AUTHORIZED,
        Some(401003),
        "The token is not scoped to one device.",
        "Have it made for {host}/devices/{device}; `hub_wide_tokens = true` would accept it for every device.",
    ),
    row(
        Denial::ResourceOutOfPolicy,
        "resource_out_of_policy",
        NOT_AUTHORIZED,
        Some(401003),
        "`sr` lies outside the `resource` that the policy may sign for.",
        "Have it made for a resource below the policy's, or widen the policy's `resource`.",
    ),
    row(
        Denial::ClaimInvalid,
        "claim_invalid",
        NOT_AUTHORIZED,
        Some(401003),
        "A claim that must be there is missing, or one is repeated or of the wrong type.",
        "Pipe the token into `tollgate token explain -`: it names the claim.",
    ),
    row(
        Denial::DeviceDisabled,
        "device_disabled",
        NOT_AUTHORIZED,
        Some(401003),
        "The device is switched off in identities.toml.",
        "Set `enabled = true` at the device when it may connect again.",
    ),
    row(
        Denial::CertificateUntrusted,
        "certificate_untrusted",
        NOT_AUTHORIZED,
        Some(401003),
        "The client certificate is of no authority that the listener believes, and pinned to no device.",
        "Sign it with a CA of `client_ca`, or write its thumbprint as `certificate_sha256` of the device.",
    ),
    row(
        Denial::CertificateMismatch,
        "certificate_mismatch",
        NOT_AUTHORIZED,
        Some(401003),
        "The token is bound to a client certificate that this connection has not.",
        "Connect with the certificate that the token was made for; if the device did, the token was copied: revoke it.",
    ),
    row(
        Denial::KeyOutOfValidity,
        "key_out_of_validity",
        NOT_AUTHORIZED,
        Some(401003),
        "The device's public key that verifies the token is not valid yet, or no more.",
        "Give the device a new [[device.public_key]], or correct `not_before` and `not_after` of this one.",
    ),
    row(
        Denial::Expired,
        "expired",
        NOT_AUTHORIZED,
        Some(40105),
        "The token has expired, also counting the allowed clock skew.",
        "The device needs a new token; if it just made this one, its clock is wrong.",
    ),
    row(
        Denial::NotYetValid,
        "not_yet_valid",
        NOT_AUTHORIZED,
        Some(401003),
        "`nbf` of the token lies in the future, beyond the allowed clock skew.",
        "Compare the clocks of the issuer and of this gateway.",
    ),
    row(
        Denial::IssuedInFuture,
        "issued_in_future",
        NOT_AUTHORIZED,
        Some(401003),
        "`iat` of the token lies in the future, beyond the allowed clock skew.",
        "Compare the clocks of the issuer and of this gateway.",
    ),
    row(
        Denial::LifetimeTooLong,
        "lifetime_too_long",
        NOT_AUTHORIZED,
        Some(401003),
        "The token lives longer than `token_lifetime_max` allows.",
        "Have shorter tokens made, or raise `token_lifetime_max` of the policy, issuer or device.",
    ),
    row(
        Denial::Revoked,
        "revoked",
        NOT_AUTHORIZED,
        Some(401003),
        "The token, its device or its key is on the revocation list.",
        "See the entry's reason in config/revocations.jsonl.",
    ),
    row(
        Denial::WillOutOfScope,
        "will_out_of_scope",
        NOT_AUTHORIZED,
        Some(401003),
        "The will's topic is outside the device's scope.",
        "Set a will topic that the device may publish to.",
    ),
    row(
        Denial::TopicOutOfScope,
        "topic_out_of_scope",
        (None, 0x87),
        Some(401003),
        "A PUBLISH to a topic outside the device's scope.",
        "Publish within the device's own topics, or widen `scope.publish`.",
    ),
    row(
        Denial::FilterOutOfScope,
        "filter_out_of_scope",
        (None, 0x87),
        Some(401003),
        "A SUBSCRIBE with a filter that matches topics outside the device's scope.",
        "Subscribe within the device's own topics, or widen `scope.subscribe`.",
    ),
    row(
        Denial::TopicInvalid,
        "topic_invalid",
        (None, 0x90),
        None,
        "A PUBLISH to something that is no topic name.",
        "No wildcards, no U+0000, UTF-8, not empty.",
    ),
    row(
        Denial::FilterInvalid,
        "filter_invalid",
        (None, 0x8F),
        None,
        "A SUBSCRIBE with something that is no topic filter.",
        "`+` and `#` stand alone in their level, `#` last.",
    ),
    row(
        Denial::QosNotOffered,
        "qos_not_offered",
        (None, 0x9B),
        None,
        "A QoS that is not offered here or not to this device.",
        "Publish with QoS 0 or 1.",
    ),
    row(
        Denial::RetainNotOffered,
        "retain_not_offered",
        (None, 0x9A),
        None,
        "A retained PUBLISH, which the device's scope does not allow.",
        "Publish without RETAIN, or set `scope.retain = true`.",
    ),
    row(
        Denial::SharedSubscriptionNotOffered,
        "shared_subscription_not_offered",
        (None, 0x9E),
        None,
        "A shared subscription, which this gateway does not offer.",
        "Subscribe without $share/…; fan-out is the hub's work.",
    ),
    row(
        Denial::NotRouted,
        "not_routed",
        (None, 0x87),
        None,
        "The topic is in scope, but no [[route]] leads it to a hub.",
        "Add a [[route]] whose `from` matches the topic.",
    ),
    row(
        Denial::PropertyBagInvalid,
        "property_bag_invalid",
        (None, 0x90),
        None,
        "What stands behind devices/{device}/messages/events/ is no property bag (profile azure).",
        "Write it as k=v&k=v, every special character as %XX of its UTF-8, at most 100 of them, no control characters.",
    ),
    row(
        Denial::HubRefused,
        "hub_refused",
        (None, 0x83),
        None,
        "The hub refused the message.",
        "See `tollgate upstreams` and the hub's own log.",
    ),
    row(
        Denial::RenewalWidens,
        "renewal_widens",
        (None, 0x8C),
        None,
        "The renewed token allows more than the one before it.",
        "Renew with a token of the same scope; for a wider one, connect again.",
    ),
    row(
        Denial::RenewalMethod,
        "renewal_method",
        (None, 0x8C),
        None,
        "AUTH names another authentication method than CONNECT did.",
        "Renew by the method of CONNECT, or publish the token to $tollgate/auth/renew.",
    ),
    row(
        Denial::ConnectRate,
        "connect_rate",
        (Some(3), 0x9F),
        None,
        "Too many connects from one address.",
        "Raise `connects_per_second_per_ip` under [limits] for sites behind one address.",
    ),
    row(
        Denial::ConnectionQuota,
        "connection_quota",
        (Some(3), 0x97),
        None,
        "As many connections are open as `connections_max` allows.",
        "Raise `connections_max` under [limits], or find out who holds them: `tollgate sessions list`.",
    ),
    row(
        Denial::SubscriptionQuota,
        "subscription_quota",
        (None, 0x97),
        None,
        "The device holds as many subscriptions as `subscriptions_max` allows, or filters of 64 KiB together.",
        "Subscribe with fewer, wider filters, or raise `subscriptions_max` under [session].",
    ),
    row(
        Denial::Banned,
        "banned",
        (Some(5), 0x8A),
        None,
        "Many connects with tokens that do not verify came from this address, or with this very token, and this is another.",
        "It lifts by itself a minute after they stop; good tokens connect meanwhile. Find out who guesses, or who was \
         left behind by a change of keys; `failed_connects_per_minute_per_ip` under [limits] says how many are borne with.",
    ),
    row(
        Denial::CheckRate,
        "check_rate",
        (Some(3), 0x9F),
        None,
        "The address is banned, and the checks of public keys that it has in a second are used up.",
        "The device will try again by itself; SAS tokens and known tokens are always checked. See the refusals `banned`.",
    ),
    row(
        Denial::Unavailable,
        "unavailable",
        (Some(3), 0x88),
        None,
        "The gateway cannot decide: keys or list could not be read.",
        "See /readyz and the alarms; the device will try again by itself.",
    ),
    row(
        Denial::Draining,
        "draining",
        (Some(3), 0x89),
        None,
        "The gateway is draining and accepts no new session.",
        "The device will try again by itself.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_denial_has_one_row_with_its_own_number_and_tag() {
        let numbers: Vec<u16> = DENIALS.iter().map(|r| r.denial.number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "in order, each once: {numbers:?}");
        let mut tags: Vec<_> = DENIALS.iter().map(|r| r.tag).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), DENIALS.len());
        let last = Denial::Draining.number();
        assert_eq!(numbers.last(), Some(&last));
        assert!(DENIALS.iter().all(|r| r.denial.tag() == r.tag && r.reason_v5 >= 0x80));
    }

    #[test]
    fn the_peer_cannot_tell_an_unknown_device_from_a_wrong_signature() {
        let [unknown, wrong] = [Denial::DeviceUnknown, Denial::SignatureInvalid].map(|denial| denial.as_told().row());
        assert_eq!((unknown.tag, unknown.azure), (wrong.tag, wrong.azure));
        assert_eq!((unknown.connack_v4, unknown.reason_v5), (wrong.connack_v4, wrong.reason_v5));
        assert_eq!(Denial::Expired.as_told(), Denial::Expired);
    }
}
