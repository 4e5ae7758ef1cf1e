//! `[token_service]` and every `[[token_service.caller]]`.

use std::{net::SocketAddr, ops::RangeInclusive, path::Path, time::Duration};

use super::{
    document::{Found, Notes, Table},
    files::{FileUse, read_secret},
    gateway::{Config, GatewayConfig, plain_name, set, socket_address},
    keys,
    listeners::{authorities_of, further_identities, is_same_place, read_clients, read_further},
    mistake::Mistake,
};
use crate::{
    credential::ClientAuth,
    file::{Made, Readers, write_new},
    gate::{GateConfig, OwnIssuer},
    id::DeviceId,
    listener::TlsFiles,
    policy::{Rights, TokenKind},
    token_service::{CallerConfig, Refresh, Signing, Terms, TokenServiceConfig, key_sha256},
};

/// The section, or none: then there is no token service.
pub(super) fn read_token_service(
    notes: &Notes<'_>,
    file: &Table<'_>,
    (gateway, gate): (&GatewayConfig, &GateConfig),
    taken: &[SocketAddr],
    files: &mut Vec<FileUse>,
) -> Option<TokenServiceConfig> {
    let table = file.table("token_service", &keys::TOKEN_SERVICE)?;
    for (key, remedy) in [
        ("bind", "Write where it listens, like bind = \"0.0.0.0:8443\"."),
        ("certificate", "It speaks TLS alone: write certificate = \"FILE\" and private_key = \"FILE\", both PEM."),
        ("private_key", "It speaks TLS alone: write certificate = \"FILE\" and private_key = \"FILE\", both PEM."),
    ] {
        table.require(key, remedy);
    }
    let bind = table.parsed("bind", socket_address)?;
    if let Some(other) = taken.iter().find(|other| is_same_place(**other, bind.value)) {
        let what = format!("{} is taken by another listener of this file, on {other}.", bind.value);
        notes.mistake(bind.line, what, "Give one of them another port.");
    }
    let service = TokenServiceConfig {
        bind: bind.value,
        tls: TlsFiles {
            certificate: table.text_or("certificate", "").into(),
            private_key: table.text_or("private_key", "").into(),
            further: read_further(notes, &table),
            clients: read_clients(notes, &table, Some(ClientAuth::Optional)),
        },
        signing_key_file: match table.text("signing_key_file") {
            Some(found) => found.value.into(),
            None => gateway.state_dir.join(SIGNING_KEY),
        },
        iss: table.parsed("iss", not_empty).map_or_else(|| own_name(gate, bind.value), |found| found.value),
        terms: read_terms(notes, &table, gate),
        callers: read_callers(notes, &table, gate),
    };
    note_files(&table, &service, files);
    Some(service)
}

/// The private keys of `signing_key_file`; those that are only to be made at the first start are not there yet.
///
/// # Errors
/// What is wrong with the file.
pub fn read_signing(service: &TokenServiceConfig, gate: &GateConfig) -> Result<Signing, Mistake> {
    let file = &service.signing_key_file;
    let text = read_secret(file).map_err(|fault| Mistake::of_file(file, fault.what, fault.remedy))?;
    let audience: Vec<String> = std::iter::once(&gate.hostname).chain(&gate.aliases).cloned().collect();
    Signing::from_pem(&text, &service.iss, &audience, service.terms.token_lifetime_max).map_err(|what| {
        let remedy = "Make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256.";
        Mistake::of_file(file, format!("{what}."), remedy)
    })
}

impl Config {
    /// With what the gateway must know of its own token service, whose signing key may have been made a moment ago.
    ///
    /// # Errors
    /// What is wrong with the signing key.
    pub fn with_own_issuer(mut self) -> Result<Self, Mistake> {
        if let Some(service) = &self.token_service {
            self.gate.own_issuer = Some(OwnIssuer::new(read_signing(service, &self.gate)?.issuer()));
        }
        Ok(self)
    }
}

/// Makes the signing key where the file names none and none was made before.
///
/// # Errors
/// It could not be made.
pub(super) fn make_signing_key(service: &TokenServiceConfig, state_dir: &Path) -> Result<(), Mistake> {
    let file = &service.signing_key_file;
    if *file != state_dir.join(SIGNING_KEY) {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| {
        let remedy = "Give the gateway's user the right to write there, or make it yourself.";
        Mistake::of_file(file, format!("could not be made: {error}."), remedy)
    };
    let key = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
    let pem = zeroize::Zeroizing::new(key.serialize_pem());
    if write_new(file, pem.as_bytes(), Readers::Owner).map_err(|error| failed(&error))? == Made::New {
        tracing::info!(file = %file.display(), "a signing key of the token service was made");
    }
    Ok(())
}

fn read_terms(notes: &Notes<'_>, table: &Table<'_>, gate: &GateConfig) -> Terms {
    let mut terms = Terms::default();
    let of_gateway = gate.rules(gate.profile).token_lifetime_max;
    set(&mut terms.token_lifetime, table.duration("token_lifetime", LIFETIMES));
    let max = table.duration("token_lifetime_max", LIFETIMES);
    terms.token_lifetime_max = match &max {
        Some(found) => found.value,
        None => terms.token_lifetime_max.min(of_gateway),
    };
    if let Some(found) = max.filter(|found| found.value > of_gateway) {
        notes.mistake(
            found.line,
            "`token_lifetime_max` is longer than that of the gateway, which would refuse such tokens.",
            "Write at most what `token_lifetime_max` under [credentials] (or its profile) allows.",
        );
    }
    if terms.token_lifetime > terms.token_lifetime_max {
        if table.has("token_lifetime") {
            let what = "`token_lifetime` is longer than `token_lifetime_max`.";
            notes.mistake(table.line_of("token_lifetime"), what, "Shorten it.");
        }
        terms.token_lifetime = terms.token_lifetime_max;
    }
    set(&mut terms.jitter_percent, table.number("jitter_percent", 0..=50_u8));
    set(&mut terms.refresh_lifetime, table.duration("refresh_lifetime", Duration::ZERO..=REFRESH_LIFETIME_MAX));
    set(&mut terms.requests_per_second_per_ip, table.number("requests_per_second_per_ip", 0..=RATE_MAX));
    set(&mut terms.requests_per_minute_per_device, table.number("requests_per_minute_per_device", 0..=RATE_MAX));
    terms
}

fn read_callers(notes: &Notes<'_>, service: &Table<'_>, gate: &GateConfig) -> Vec<CallerConfig> {
    let mut callers: Vec<CallerConfig> = Vec::new();
    for table in service.tables("caller", &keys::TOKEN_SERVICE_CALLER).unwrap_or_default() {
        table.require("name", "Write what you call it.");
        let name = table.parsed("name", plain_name);
        let key = read_key(notes, &table);
        let (devices, prefix) = read_devices(notes, &table);
        let rights = table.words("rights", &[("publish", true), ("subscribe", false)]);
        let kinds = table.words("kinds", &[("sas", TokenKind::Sas), ("jwt", TokenKind::Jwt)]);
        let empty = [
            rights.as_ref().map(|f| (f.line, f.value.is_empty())),
            kinds.as_ref().map(|f| (f.line, f.value.is_empty())),
        ];
        for (line, _) in empty.into_iter().flatten().filter(|(_, is_empty)| *is_empty) {
            notes.mistake(
                line,
                "an empty list: the caller could have no token.",
                "Write at least one, or take it out.",
            );
        }
        let kinds = kinds.map_or_else(|| vec![TokenKind::Sas, TokenKind::Jwt], |found| found.value);
        if let Some(kind) = kinds.iter().find(|kind| !gate.accept.contains(kind)) {
            let what = format!("the gateway takes no {} tokens, so the caller gets none.", kind.as_str());
            notes.warn(table.line_of("kinds"), what, "Write `kinds` of those in `accept` under [credentials].");
        }
        let (Some(name), Some(key_sha256)) = (name, key) else { continue };
        if callers.iter().any(|other| other.name == name.value || other.key_sha256 == key_sha256) {
            let what = format!("{:?} has the name or the key of another caller.", name.value);
            notes.mistake(name.line, what, "Give each a name and a key of its own.");
        }
        let refresh = table.flag("refresh").is_none_or(|found| found.value);
        callers.push(CallerConfig {
            name: name.value,
            key_sha256,
            devices,
            prefix,
            rights: rights.map_or(Rights::ALL, |found| Rights {
                publish: found.value.contains(&true),
                subscribe: found.value.contains(&false),
            }),
            kinds,
            token_lifetime_max: table.duration("token_lifetime_max", LIFETIMES).map(|found| found.value),
            refresh: if refresh { Refresh::Allowed } else { Refresh::Denied },
            requests_per_second: table.number("requests_per_second", 0..=RATE_MAX).map_or(100, |found| found.value),
        });
    }
    callers
}

/// The key itself in a file, or its hash here: the gateway need not hold it.
fn read_key(notes: &Notes<'_>, table: &Table<'_>) -> Option<[u8; 32]> {
    match (table.text("key_file"), table.text("key_sha256")) {
        (Some(file), None) => match read_secret(Path::new(file.value)) {
            Ok(key) if key.trim().len() < KEY_BYTES_MIN => {
                let what = format!("{}: a service key has at least {KEY_BYTES_MIN} characters.", file.value);
                notes.mistake(file.line, what, KEY_REMEDY);
                None
            }
            Ok(key) => Some(key_sha256(key.trim())),
            Err(fault) => {
                notes.mistake(file.line, fault.what, fault.remedy);
                None
            }
        },
        (None, Some(hash)) => {
            let read = sha256_of(hash.value);
            if read.is_none() {
                notes.mistake(hash.line, "`key_sha256` is not 64 hexadecimal digits.", KEY_REMEDY);
            }
            read
        }
        _ => {
            let what = "a caller has `key_file` or `key_sha256`, and not both.";
            notes.mistake(table.line(), what, KEY_REMEDY);
            None
        }
    }
}

fn read_devices(notes: &Notes<'_>, table: &Table<'_>) -> (Vec<DeviceId>, Option<String>) {
    let mut devices = Vec::new();
    for text in table.texts("devices").map(|found| found.value).unwrap_or_default() {
        match DeviceId::try_from(text.value) {
            Ok(device) => devices.push(device),
            Err(error) => notes.mistake(text.line, format!("`devices`: {error}."), "Write ids of devices."),
        }
    }
    let prefix = table.text("prefix");
    match &prefix {
        None if devices.is_empty() => notes.mistake(
            table.line(),
            "the caller may have tokens for no device.",
            "Write `devices = [\"pump-17\"]`, or `prefix = \"line7-\"`.",
        ),
        Some(Found { value: "", line }) => notes.warn(
            *line,
            "the caller may have tokens for every device: whoever steals its key is any of them.",
            "Write the `prefix` of those that it serves.",
        ),
        Some(Found { value, line }) if value.ends_with(|c: char| c.is_ascii_alphanumeric()) => notes.warn(
            *line,
            format!("the prefix {value:?} takes in {value:?}, and {value}0 as well."),
            "End it with what separates, as in \"line7-\", or name single devices in `devices`.",
        ),
        _ => {}
    }
    (devices, prefix.map(|found| found.value.to_owned()))
}

fn note_files(table: &Table<'_>, service: &TokenServiceConfig, files: &mut Vec<FileUse>) {
    if table.has("certificate") && table.has("private_key") {
        files.push(FileUse::ServerIdentity {
            line: table.line_of("certificate"),
            certificate: service.tls.certificate.clone(),
            private_key: service.tls.private_key.clone(),
        });
    }
    files.extend(further_identities(table, &service.tls.further));
    files.extend(service.tls.clients.as_ref().and_then(|clients| authorities_of(clients, table)));
    let named = table.has("signing_key_file");
    if named || service.signing_key_file.exists() {
        files.push(FileUse::SigningKeys { line: table.line_of("signing_key_file") });
    }
}

/// What an `iss` of one's own looks like: where its key set is.
fn own_name(gate: &GateConfig, bind: SocketAddr) -> String {
    match bind.port() {
        443 => format!("https://{}", gate.hostname),
        port => format!("https://{}:{port}", gate.hostname),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.into()) }
}

fn sha256_of(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

const KEY_REMEDY: &str = "Make one: openssl rand -base64 32 | tee line7.key | tr -d '\\n' | sha256sum";
/// Below the state directory.
const SIGNING_KEY: &str = "token-service.key";
/// 192 bits in base64.
const KEY_BYTES_MIN: usize = 32;
const LIFETIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(10 * 366 * 24);
const REFRESH_LIFETIME_MAX: Duration = Duration::from_hours(10 * 366 * 24);
const RATE_MAX: u32 = 1_000_000;
