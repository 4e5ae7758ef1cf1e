//! `gateway.toml` → [`Config`]: what the text alone can tell.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    document::{Found, Notes, Table},
    files::FileUse,
    keys,
    listeners::read_listeners,
    mistake::Mistake,
    names::{hostname, server_reference},
    routes::read_routes,
    token_service::read_token_service,
    upstreams::read_upstreams,
};
use crate::{
    credential::{ListRules, WhenStale},
    delivery::spool::SpoolKeys,
    gate::{GateConfig, Profile, is_google_registry},
    listener::{LimitsConfig, ListenerConfig, Transport},
    policy::TokenKind,
    route::RouteConfig,
    size::Bytes,
    time::parse_duration,
    token_service::TokenServiceConfig,
    upstream::UpstreamConfig,
};

/// All that `gateway.toml` says, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[gateway]` names and `[credentials]`.
    pub gate: GateConfig,
    /// `revocation_keys` and its like under `[credentials]`; `None`: the list need not be signed.
    pub list_rules: Option<ListRules>,
    /// Every `[[listener]]`.
    pub listeners: Vec<ListenerConfig>,
    /// `[limits]` and `[session]`.
    pub limits: LimitsConfig,
    /// Every `[[upstream]]`.
    pub upstreams: Vec<UpstreamConfig>,
    /// Every `[[route]]`, in the order of the file.
    pub routes: Vec<RouteConfig>,
    /// `[spool]`.
    pub spool: SpoolConfig,
    /// `[admin] bind`: where the admin API listens. Default 127.0.0.1:9080.
    pub admin_bind: SocketAddr,
    /// `[token_service]`; absent: there is none.
    pub token_service: Option<TokenServiceConfig>,
}

/// `[gateway]`: who this gateway is and where its files are. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Its name: stamped on what is forwarded, part of its client ids on a hub. Default `edge-1`.
    pub name: String,
    /// Presets and quirks. Default strict.
    pub profile: Profile,
    /// Shards, each with a thread of its own. Default 0: one per core.
    pub shards: usize,
    /// From the signal to the last session closed and hubs told. Default 15 s.
    pub drain_timeout: Duration,
    /// Where devices are told to go when this gateway ends (MQTT 5.0 §4.11). Default: nowhere.
    pub server_reference: Option<String>,
    /// What the gateway itself writes. Default `var`.
    pub state_dir: PathBuf,
    /// Devices, policies, issuers. Default `config/identities.toml`.
    pub identities: PathBuf,
    /// The revocation list. Default `config/revocations.jsonl`.
    pub revocations: PathBuf,
}

/// `[spool]`: how much may wait on disk for a hub that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Bytes on disk. Default 1 GiB.
    pub size_max: Bytes,
    /// How long a message may wait. Default 0: until it is delivered.
    pub age_max: Duration,
    /// How late a hub's acknowledgement may be before messages go to disk; `None` (`auto`): four times its round trip.
    pub spill_after: Option<Duration>,
    /// `key_file`: what messages on the disk are encrypted with. Default: they are not.
    pub keys: SpoolKeys,
}

/// What the text of the file told, before any other file was looked at.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) config: Config,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    pub(super) files: Vec<FileUse>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            name: "edge-1".into(),
            profile: Profile::default(),
            shards: 0,
            drain_timeout: Duration::from_secs(15),
            server_reference: None,
            state_dir: "var".into(),
            identities: "config/identities.toml".into(),
            revocations: "config/revocations.jsonl".into(),
        }
    }
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { size_max: Bytes::mib(1024), age_max: Duration::ZERO, spill_after: None, keys: SpoolKeys::default() }
    }
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Parsed, Mistake> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse(path, &text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Mistake::of_file(
            path,
            "no such file.",
            "Name the configuration with --config FILE, or start in the directory that holds config/.",
        )),
        Err(error) => Err(Mistake::of_file(path, format!("cannot be read: {error}."), "Correct the file or its mode.")),
    }
}

/// Parses its text.
pub(super) fn parse(path: &Path, text: &str) -> Parsed {
    let notes = Notes::new(path, text);
    let document = notes.parse();
    let file = Table::new(&notes, &keys::FILE, document.get_ref(), 1);
    let mut files = Vec::new();

    let (gateway, mut gate) = read_gateway(&notes, &file);
    let list_rules = read_list_rules(&notes, &file, &mut files);
    let admin = read_admin(&notes, &file);
    let mut listeners = read_listeners(&notes, &file, gateway.profile, admin, &mut files);
    for rules in listeners.iter_mut().filter_map(|listener| listener.web_socket.as_mut()) {
        rules.hosts = [&gate.hostname].into_iter().chain(&gate.aliases).cloned().collect();
    }
    take_certificates(&notes, &file, &listeners, &mut gate);
    gate.listener_profiles = listeners.iter().map(|listener| listener.profile).collect();
    warn_of_profiles(&notes, &file, &gate, &listeners);
    let upstreams = read_upstreams(&notes, &file, &listeners, &mut files);
    let routes = read_routes(&notes, &file, &listeners, &upstreams);
    let limits = read_limits(&file);
    let spool = read_spool(&notes, &file, limits.maximum_packet_size, &mut files);
    let taken: Vec<SocketAddr> = listeners.iter().map(|listener| listener.bind).chain([admin.value]).collect();
    let token_service = read_token_service(&notes, &file, (&gateway, &gate), &taken, &mut files);
    let admin_bind = admin.value;
    let config =
        Config { gateway, gate, list_rules, listeners, limits, upstreams, routes, spool, admin_bind, token_service };
    let (mistakes, warnings) = notes.into_parts();
    Parsed { config, mistakes, warnings, files }
}

fn read_gateway(notes: &Notes<'_>, file: &Table<'_>) -> (GatewayConfig, GateConfig) {
    let (mut gateway, mut gate) = (GatewayConfig::default(), GateConfig::default());
    if let Some(table) = file.table("gateway", &keys::GATEWAY) {
        gateway.name = table.parsed("name", plain_name).map_or(gateway.name, |found| found.value);
        gateway.profile = table.one_of("profile", &PROFILES).map_or(gateway.profile, |found| found.value);
        gateway.shards = table.number("shards", 0..=SHARDS_MAX).map_or(gateway.shards, |found| found.value);
        set(&mut gateway.drain_timeout, table.duration("drain_timeout", DRAIN_TIMEOUT_MIN..=DRAIN_TIMEOUT_MAX));
        gateway.server_reference = table.parsed("server_reference", server_reference).map(|found| found.value);
        for (key, path) in [
            ("state_dir", &mut gateway.state_dir),
            ("identities", &mut gateway.identities),
            ("revocations", &mut gateway.revocations),
        ] {
            *path = table.text_or(key, &path.to_string_lossy()).into();
        }
        gate.hostname = table.parsed("hostname", hostname).map_or(gate.hostname, |found| found.value);
        for alias in table.texts("aliases").map(|found| found.value).unwrap_or_default() {
            match hostname(alias.value) {
                Ok(alias) => gate.aliases.push(alias),
                Err(error) => notes.mistake(alias.line, format!("`aliases`: {error}."), "Write a host name alone."),
            }
        }
        for registry in table.texts("google_registries").map(|found| found.value).unwrap_or_default() {
            if is_google_registry(registry.value) {
                gate.google_registries.push(registry.value.to_owned());
            } else {
                let what = format!("`google_registries` holds {:?}, which is no registry.", registry.value);
                notes.mistake(registry.line, what, "Write projects/{p}/locations/{r}/registries/{g}.");
            }
        }
    }
    gate.profile = gateway.profile;
    gate.key_sets = gateway.state_dir.join("jwks");
    read_credentials(notes, file, &mut gate);
    (gateway, gate)
}

/// What the gateway is told of lives and clients that its profiles, or the file, allow and that few sites want.
fn warn_of_profiles(notes: &Notes<'_>, file: &Table<'_>, gate: &GateConfig, listeners: &[ListenerConfig]) {
    let profiles = listeners.iter().map(|listener| listener.profile);
    let longest = profiles.map(|profile| gate.rules(profile).token_lifetime_max).max().unwrap_or_default();
    if longest > TOKEN_LIFETIME_CALM {
        let table = file.table("credentials", &keys::CREDENTIALS).or_else(|| file.table("gateway", &keys::GATEWAY));
        let days = longest.as_secs() / 86_400;
        let what = format!("a token may live for {days} days, and so may a stolen one.");
        let remedy = "Set `token_lifetime_max` under [credentials] to what devices ask for.";
        notes.warn(table.map_or(1, |table| table.line_of("token_lifetime_max")), what, remedy);
    }
    let is_google = |listener: &ListenerConfig| listener.profile == Profile::Google;
    if listeners.iter().any(is_google) && gate.google_registries.is_empty() {
        let line = file.table("gateway", &keys::GATEWAY).map_or(1, |table| table.line_of("profile"));
        let what =
            "profile google without `google_registries`: `aud` of a device's own JWT must be `hostname` or an alias.";
        let remedy = "Write google_registries = [\"projects/{p}/locations/{r}/registries/{g}\"] under [gateway].";
        notes.warn(line, what, remedy);
    }
}

/// A listener that asks for certificates lets devices in by them, unless `accept` is written and says otherwise.
fn take_certificates(notes: &Notes<'_>, file: &Table<'_>, listeners: &[ListenerConfig], gate: &mut GateConfig) {
    let asks =
        |listener: &ListenerConfig| matches!(&listener.transport, Transport::Tls(files) if files.clients.is_some());
    let asked_for = listeners.iter().any(asks);
    let named = gate.accept.iter().any(|kind| kind.with_certificate() == *kind);
    let written = file.table("credentials", &keys::CREDENTIALS).filter(|table| table.has("accept"));
    match written {
        None if asked_for => gate.accept.push(TokenKind::Certificate),
        Some(table) if named && !asked_for => notes.warn(
            table.line_of("accept"),
            "`accept` names client certificates, and no listener asks for one.",
            "Write client_auth = \"optional\" at a TLS listener.",
        ),
        _ => {}
    }
}

fn read_credentials(notes: &Notes<'_>, file: &Table<'_>, gate: &mut GateConfig) {
    let Some(table) = file.table("credentials", &keys::CREDENTIALS) else { return };
    if let Some(found) = table.duration("clock_skew", Duration::ZERO..=CLOCK_SKEW_MAX) {
        gate.clock_skew = Some(found.value);
    }
    if let Some(found) = table.duration("token_lifetime_max", TOKEN_LIFETIME_MIN..=TOKEN_LIFETIME_MAX) {
        gate.token_lifetime_max = Some(found.value);
    }
    if let Some(found) = table.words("accept", &TokenKind::WORDS) {
        if found.value.is_empty() {
            notes.mistake(
                found.line,
                "`accept` is empty: no device could connect.",
                "Write \"sas\", \"jwt\", \"certificate\".",
            );
        }
        gate.accept = found.value;
    }
    if let Some(found) = table.flag("hub_wide_tokens") {
        gate.hub_wide_tokens = found.value;
        if found.value {
            notes.warn(
                found.line,
                "one hub-wide token connects as any device.",
                "Let policies sign tokens for single devices, and take `hub_wide_tokens` out.",
            );
        }
    }
}

/// The keys themselves are read with the other files that are named.
fn read_list_rules(notes: &Notes<'_>, file: &Table<'_>, files: &mut Vec<FileUse>) -> Option<ListRules> {
    let table = file.table("credentials", &keys::CREDENTIALS)?;
    let mut rules = ListRules::default();
    let keys = table.texts("revocation_keys").map(|found| found.value).unwrap_or_default();
    files.extend(keys.iter().map(|key| FileUse::ListKey { line: key.line, path: key.value.into() }));
    let age_max = table.duration("revocation_age_max", Duration::ZERO..=REVOCATION_AGE_MAX);
    rules.age_max = age_max.map(|found| found.value).filter(|age_max| !age_max.is_zero());
    let when_stale = [("refuse", WhenStale::Refuse), ("serve", WhenStale::Serve)];
    set(&mut rules.when_stale, table.one_of("revocation_stale", &when_stale));
    for key in ["revocation_age_max", "revocation_stale"] {
        if keys.is_empty() && table.has(key) && (key != "revocation_age_max" || rules.age_max.is_some()) {
            let what = format!("`{key}` is about signed lists: only a signature says how old a list is.");
            let remedy = "Name who signs it in `revocation_keys`, or take this out.";
            notes.mistake(table.line_of(key), what, remedy);
        }
    }
    (!keys.is_empty()).then_some(rules)
}

fn read_limits(file: &Table<'_>) -> LimitsConfig {
    let mut limits = LimitsConfig::default();
    if let Some(table) = file.table("limits", &keys::LIMITS) {
        set(&mut limits.connect_timeout, table.duration("connect_timeout", CONNECT_TIMEOUT_MIN..=CONNECT_TIMEOUT_MAX));
        set(&mut limits.packet_timeout, table.duration("packet_timeout", PACKET_TIMEOUT_MIN..=PACKET_TIMEOUT_MAX));
        set(&mut limits.connect_packet_size_max, table.size("connect_packet_size_max", Bytes::kib(1)..=Bytes::mib(1)));
        set(&mut limits.maximum_packet_size, table.size("maximum_packet_size", Bytes::kib(1)..=Bytes::mib(4)));
        set(&mut limits.connections_max, table.number("connections_max", 1..=10_000_000));
        set(&mut limits.connects_per_second_per_ip, table.number("connects_per_second_per_ip", 0..=1_000_000));
        set(
            &mut limits.failed_connects_per_minute_per_ip,
            table.number("failed_connects_per_minute_per_ip", 0..=1_000_000),
        );
        set(
            &mut limits.publishes_per_second_per_device,
            table.number("publishes_per_second_per_device", 0..=1_000_000),
        );
        set(&mut limits.receive_maximum, table.number("receive_maximum", 1..=u16::MAX));
    }
    if let Some(table) = file.table("session", &keys::SESSION) {
        set(&mut limits.session_expiry_max, table.duration("expiry_max", Duration::ZERO..=SESSION_EXPIRY_MAX));
        set(&mut limits.sessions_size_max, table.size("size_max", Bytes::mib(1)..=Bytes::mib(4096)));
        set(&mut limits.queue_max, table.number("queue_max", 0..=1_000_000));
        set(&mut limits.subscriptions_max, table.number("subscriptions_max", 0..=10_000));
    }
    limits
}

fn read_spool(notes: &Notes<'_>, file: &Table<'_>, packet_size_max: Bytes, files: &mut Vec<FileUse>) -> SpoolConfig {
    let mut spool = SpoolConfig::default();
    let Some(table) = file.table("spool", &keys::SPOOL) else { return spool };
    files.extend(table.text("key_file").map(|found| FileUse::SpoolKeys { line: found.line, path: found.value.into() }));
    if let Some(found) = table.size("size_max", Bytes::mib(1)..=Bytes(u64::MAX)) {
        spool.size_max = found.value;
        // One message of each of a few devices, and room to move.
        let least = Bytes(packet_size_max.0.saturating_mul(SPOOL_PACKETS_MIN));
        if found.value < least {
            let what = format!(
                "`size_max` is less than {SPOOL_PACKETS_MIN} packets of `maximum_packet_size` ({packet_size_max})."
            );
            notes.mistake(found.line, what, format!("Make it {least} or more, or `maximum_packet_size` smaller."));
        }
    }
    set(&mut spool.age_max, table.duration("age_max", Duration::ZERO..=Duration::MAX));
    let spill_after = table.parsed("spill_after", |text| match text {
        "auto" => Ok(None),
        _ => match parse_duration(text)? {
            after if (SPILL_AFTER_MIN..=SPILL_AFTER_MAX).contains(&after) => Ok(Some(after)),
            _ => Err(format!("{text:?} is not between 10ms and 1h")),
        },
    });
    set(&mut spool.spill_after, spill_after);
    spool
}

fn read_admin(notes: &Notes<'_>, file: &Table<'_>) -> Found<SocketAddr> {
    let default = SocketAddr::from(([127, 0, 0, 1], 9080));
    let table = file.table("admin", &keys::ADMIN);
    let bind = table.and_then(|table| table.parsed("bind", socket_address));
    let bind = bind.unwrap_or(Found { value: default, line: table.map_or(1, |table| table.line()) });
    if !bind.value.ip().is_loopback() {
        notes.mistake(
            bind.line,
            format!("the admin API speaks plain HTTP, and {} is not a loopback address.", bind.value.ip()),
            "Bind it to 127.0.0.1 or [::1], and reach it through a tunnel or a proxy that speaks TLS.",
        );
    }
    bind
}

/// `127.0.0.1:1883`, `[::1]:8883`, `0.0.0.0:8883`.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no address with a port, like \"127.0.0.1:1883\" or \"[::]:8883\""))
}

/// A name that can stand in client ids of any hub and in a metric.
pub(super) fn plain_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text.chars().find(|c| !allowed(*c)) {
        Some(found) => Err(format!("a name may hold letters, digits and -_. only, and {text:?} holds {found:?}")),
        None if text.is_empty() || text.len() > NAME_BYTES_MAX => {
            Err(format!("a name has 1 to {NAME_BYTES_MAX} characters, and {text:?} has {}", text.len()))
        }
        None => Ok(text.to_owned()),
    }
}

pub(super) fn set<T>(place: &mut T, found: Option<Found<T>>) {
    if let Some(found) = found {
        *place = found.value;
    }
}

pub(super) const PROFILES: [(&str, Profile); 3] =
    [("strict", Profile::Strict), ("azure", Profile::Azure), ("google", Profile::Google)];

/// Shorter, and no hub could be waited for.
const DRAIN_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Longer, and a gateway that is to be replaced is in the way.
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_mins(10);
/// More threads than this are a slip of the pen.
const SHARDS_MAX: usize = 256;
/// A clock that is further off than this is to be set, not to be borne with.
const CLOCK_SKEW_MAX: Duration = Duration::from_hours(1);
const TOKEN_LIFETIME_MIN: Duration = Duration::from_mins(1);
const TOKEN_LIFETIME_MAX: Duration = Duration::from_hours(10 * 366 * 24);
/// Longer than this is as good as no limit.
const REVOCATION_AGE_MAX: Duration = Duration::from_hours(10 * 366 * 24);
/// Longer than any device needs that can renew its token.
const TOKEN_LIFETIME_CALM: Duration = Duration::from_hours(31 * 24);
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_mins(5);
const PACKET_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const PACKET_TIMEOUT_MAX: Duration = Duration::from_hours(1);
/// A year: a device that was away for longer begins anew.
const SESSION_EXPIRY_MAX: Duration = Duration::from_secs(366 * 86_400);
/// With the shard's and the link's number behind it, a client id stays within what MQTT 3.1.1 hubs commonly take.
const NAME_BYTES_MAX: usize = 64;
/// Smaller, and one message could wait for ever for room.
const SPOOL_PACKETS_MIN: u64 = 4;
/// Below it, a hub that is busy for a moment causes disk writes; above it, devices wait for an hour.
const SPILL_AFTER_MIN: Duration = Duration::from_millis(10);
const SPILL_AFTER_MAX: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../config/gateway.toml");

    fn mistakes(text: &str) -> Vec<String> {
        let parsed = parse(Path::new("g.toml"), text);
        parsed.mistakes.iter().map(ToString::to_string).collect()
    }

    fn warnings(text: &str) -> Vec<String> {
        let parsed = parse(Path::new("g.toml"), text);
        assert_eq!(parsed.mistakes, [], "{text}");
        parsed.warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_shipped_file_says_what_an_empty_one_means() {
        let (shipped, empty) = (parse(Path::new("g.toml"), SHIPPED), parse(Path::new("g.toml"), ""));
        assert_eq!(shipped.config, empty.config);
        assert_eq!(
            (shipped.mistakes, shipped.warnings, empty.mistakes, empty.warnings),
            (vec![], vec![], vec![], vec![])
        );
    }

    #[test]
    fn the_shipped_file_shows_every_key_of_this_version() {
        let words: Vec<&str> =
            SHIPPED.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')).collect();
        for section in keys::ALL {
            let unused = ["client"];
            for key in section.keys.iter().filter(|key| !unused.contains(key)) {
                assert!(words.contains(key), "{key} of {}", section.name);
            }
        }
    }

    #[test]
    fn the_documentation_tells_every_key() {
        let text = include_str!("../../docs/configuration.md");
        for section in keys::ALL {
            for key in section.keys.iter().copied().chain(section.later.iter().map(|(key, _)| *key)) {
                assert!(
                    text.contains(&format!("`{key}`")) || text.contains(&format!("[{key}]")),
                    "{key} of {}",
                    section.name
                );
            }
        }
    }

    #[test]
    fn a_profile_sets_what_the_file_does_not() {
        let gate = |text: &str| parse(Path::new("g.toml"), text).config.gate;
        let presets = |gate: &GateConfig, profile| {
            let rules = gate.rules(profile);
            (rules.clock_skew.as_secs(), rules.token_lifetime_max.as_secs(), rules.require)
        };
        let azure = gate("[gateway]\nprofile = 'azure'\n");
        assert_eq!(azure.profile, Profile::Azure);
        // The gateway's profile is that of listeners which name none: another one's presets are its own.
        for gate in [&azure, &gate("")] {
            assert_eq!(presets(gate, Profile::Strict), (30, 86_400, ["exp", "iat"].as_slice()));
            assert_eq!(presets(gate, Profile::Azure), (300, 366 * 86_400, ["exp"].as_slice()));
            assert_eq!(presets(gate, Profile::Google), (600, 86_400, ["exp", "iat", "aud"].as_slice()));
        }
        let set = gate("[credentials]\nclock_skew = '5s'\n");
        for profile in Profile::ALL {
            assert_eq!(set.rules(profile).clock_skew.as_secs(), 5);
        }
    }

    #[test]
    fn what_is_about_signed_lists_asks_who_signs_them() {
        for text in ["revocation_age_max = '1h'\n", "revocation_stale = 'serve'\n"] {
            let found = mistakes(&format!("[credentials]\n{text}"));
            assert!(found.len() == 1 && found[0].contains("`revocation_keys`"), "{text}: {found:?}");
            let parsed = parse(Path::new("g.toml"), &format!("[credentials]\nrevocation_keys = ['a', 'b']\n{text}"));
            let keys = parsed.files.iter().filter(|file| matches!(file, FileUse::ListKey { .. })).count();
            assert_eq!((parsed.mistakes, keys), (vec![], 2));
        }
        assert_eq!(mistakes("[credentials]\nrevocation_age_max = '0'\n"), Vec::<String>::new());
        let routed = "[[upstream]]\nname = 'hub'\n";
        assert_eq!(mistakes(&format!("{routed}kind = 'embedded'\nclient = 'native'\n")), Vec::<String>::new());
    }

    #[test]
    fn client_certificates_are_asked_for_as_the_listener_says() {
        let tls = "[[listener]]\nbind = '127.0.0.1:1'\ntransport = 'tls'\ncertificate = 'c'\nprivate_key = 'k'\n";
        let accept = |more: &str| parse(Path::new("g.toml"), &format!("{tls}{more}")).config.gate.accept;
        let (tokens, certificate) = ([TokenKind::Sas, TokenKind::Jwt], TokenKind::Certificate);
        assert_eq!(accept(""), tokens);
        assert_eq!(accept("client_auth = 'optional'\n"), [tokens.as_slice(), &[certificate]].concat());
        assert_eq!(accept("client_auth = 'required'\n[credentials]\naccept = ['sas', 'jwt']\n"), tokens);
        for (more, about) in [
            ("client_ca = 'x'\n", "nobody would be asked"),
            ("client_auth = 'optional'\nclient_crl = 'x'\n", "without `client_ca`"),
            ("client_auth = 'yes'\n", "may not be \"yes\""),
        ] {
            let found = mistakes(&format!("{tls}{more}"));
            assert!(found.len() == 1 && found[0].contains(about), "{more}: {found:?}");
        }
        let plain = "[[listener]]\nbind = '127.0.0.1:1'\ntransport = 'tcp'\nclient_ca = 'x'\n";
        assert!(mistakes(plain)[0].contains("no meaning"));
        assert!(
            warnings(&format!("{tls}[credentials]\naccept = ['certificate+sas']\n"))[0].contains("no listener asks")
        );
    }

    #[test]
    fn a_list_of_words_that_are_all_wrong_is_one_mistake() {
        for (text, about) in [("accept = ['foo']", "\"foo\""), ("accept = []", "is empty")] {
            let found = mistakes(&format!("[credentials]\n{text}\n"));
            assert!(found.len() == 1 && found[0].contains(about), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_works_but_not_well_is_a_warning() {
        for (text, about) in [
            ("[credentials]\nhub_wide_tokens = true\n", "any device"),
            ("[gateway]\nprofile = 'azure'\n", "may live for 366 days"),
            ("[credentials]\ntoken_lifetime_max = '32d'\n", "may live for 32 days"),
            ("[[route]]\nfrom = 'devices/{device}/#'\nupstream = 'hub'\nack = 'hub'\n", "memory of this process"),
            ("[[listener]]\nbind = '0.0.0.0:1883'\ntransport = 'tcp'\ninsecure = true\n", "in the clear"),
            ("[[listener]]\nbind = '127.0.0.1:1883'\ntransport = 'tcp'\ninsecure = true\n", "no meaning"),
            ("[[upstream]]\nname = 'hub'\nkind = 'mqtt'\nurl = 'mqtt://hub.example'\n", "in the clear"),
            (
                "[[upstream]]\nname = 'hub'\nkind = 'embedded'\n[[upstream]]\nname = 'b'\nkind = 'embedded'\n",
                "no route leads",
            ),
        ] {
            let found = warnings(text);
            assert!(found.len() == 1 && found[0].contains(about), "{text}: {found:?}");
        }
    }
}
