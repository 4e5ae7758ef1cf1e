//! Every key of `gateway.toml`, section by section. `docs/configuration.md` is held to this list by a test.

use super::document::Section;

/// The file itself: its sections.
pub(super) const FILE: Section = Section {
    name: "the file",
    keys: &[
        "gateway",
        "listener",
        "credentials",
        "limits",
        "session",
        "upstream",
        "route",
        "spool",
        "admin",
        "token_service",
    ],
    later: &[],
};

pub(super) const GATEWAY: Section = Section {
    name: "[gateway]",
    keys: &[
        "name",
        "hostname",
        "aliases",
        "profile",
        "google_registries",
        "shards",
        "drain_timeout",
        "server_reference",
        "state_dir",
        "identities",
        "revocations",
    ],
    later: &[],
};

pub(super) const LISTENER: Section = Section {
    name: "[[listener]]",
    keys: &[
        "bind",
        "transport",
        "certificate",
        "private_key",
        "sni",
        "client_auth",
        "client_ca",
        "client_crl",
        "client_crl_stale",
        "paths",
        "origins",
        "proxy_protocol_from",
        "profile",
        "insecure",
    ],
    later: &[],
};

/// Of a listener and of the token service.
pub(super) const SNI: Section =
    Section { name: "[[listener.sni]]", keys: &["names", "certificate", "private_key"], later: &[] };

pub(super) const CREDENTIALS: Section = Section {
    name: "[credentials]",
    keys: &[
        "clock_skew",
        "token_lifetime_max",
        "accept",
        "hub_wide_tokens",
        "revocation_keys",
        "revocation_age_max",
        "revocation_stale",
    ],
    later: &[],
};

pub(super) const LIMITS: Section = Section {
    name: "[limits]",
    keys: &[
        "connect_timeout",
        "packet_timeout",
        "connect_packet_size_max",
        "maximum_packet_size",
        "connections_max",
        "connects_per_second_per_ip",
        "failed_connects_per_minute_per_ip",
        "publishes_per_second_per_device",
        "receive_maximum",
    ],
    later: &[],
};

pub(super) const SESSION: Section =
    Section { name: "[session]", keys: &["expiry_max", "queue_max", "size_max", "subscriptions_max"], later: &[] };

pub(super) const UPSTREAM: Section = Section {
    name: "[[upstream]]",
    keys: &[
        "name",
        "kind",
        "url",
        "version",
        "connections",
        "window",
        "messages_per_second",
        "client",
        "proxy",
        "proxy_username",
        "proxy_password_file",
        "username",
        "password_file",
        "stream",
        "token_file",
        "credentials_file",
        "sas",
        "ca",
        "client_certificate",
        "client_key",
    ],
    later: &[],
};

pub(super) const UPSTREAM_SAS: Section =
    Section { name: "sas", keys: &["policy", "key_file", "key_encoding", "resource", "token_lifetime"], later: &[] };

pub(super) const ROUTE: Section = Section { name: "[[route]]", keys: &["from", "to", "upstream", "ack"], later: &[] };

pub(super) const SPOOL: Section =
    Section { name: "[spool]", keys: &["size_max", "age_max", "spill_after", "key_file"], later: &[] };

pub(super) const ADMIN: Section = Section { name: "[admin]", keys: &["bind"], later: &[] };

pub(super) const TOKEN_SERVICE: Section = Section {
    name: "[token_service]",
    keys: &[
        "bind",
        "certificate",
        "private_key",
        "sni",
        "client_auth",
        "client_ca",
        "client_crl",
        "client_crl_stale",
        "signing_key_file",
        "iss",
        "token_lifetime",
        "token_lifetime_max",
        "jitter_percent",
        "refresh_lifetime",
        "requests_per_second_per_ip",
        "requests_per_minute_per_device",
        "caller",
    ],
    later: &[],
};

pub(super) const TOKEN_SERVICE_CALLER: Section = Section {
    name: "[[token_service.caller]]",
    keys: &[
        "name",
        "key_file",
        "key_sha256",
        "devices",
        "prefix",
        "rights",
        "kinds",
        "token_lifetime_max",
        "refresh",
        "requests_per_second",
    ],
    later: &[],
};

/// All of them.
#[cfg(test)]
pub(super) const ALL: [&Section; 13] = [
    &FILE,
    &GATEWAY,
    &LISTENER,
    &SNI,
    &CREDENTIALS,
    &LIMITS,
    &SESSION,
    &UPSTREAM,
    &ROUTE,
    &SPOOL,
    &ADMIN,
    &TOKEN_SERVICE,
    &TOKEN_SERVICE_CALLER,
];
