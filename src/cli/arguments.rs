//! What can be asked for, and the help that teaches it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

use crate::{config::KeyOwner, gate::Profile, id::DeviceId};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    about = "An authenticating MQTT gateway: devices connect with a SAS token or a JWT, stay within their own scope, \
             and their telemetry reaches the hub.",
    after_help = "Exit codes: 0 done, 1 refused or not valid, 2 wrong usage.\n\
                  Tokens are read from standard input (-), never from an argument: arguments show in `ps`.",
    max_term_width = 100
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) at: ConfigFile,
}

/// Which gateway is meant.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// The gateway's configuration [default: config/gateway.toml]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Which gateway")]
    config: Option<PathBuf>,
    /// Where a running gateway's admin API answers [default: `bind` under [admin] of the configuration]
    #[arg(long, value_name = "URL", global = true, help_heading = "Which gateway")]
    pub(super) admin: Option<String>,
    /// The admin API's bearer token [default: admin.token in the gateway's `state_dir`]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Which gateway")]
    pub(super) token_file: Option<PathBuf>,
}

/// The configuration file, and whether it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayFile {
    /// By `--config`.
    Named(PathBuf),
    /// It was not: a first run may make demonstration files.
    Default(PathBuf),
}

impl GatewayFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Named(path) | Self::Default(path) => path,
        }
    }
}

impl ConfigFile {
    /// The configuration file that is meant.
    pub(super) fn gateway_file(&self) -> GatewayFile {
        match &self.config {
            Some(path) => GatewayFile::Named(path.clone()),
            None => GatewayFile::Default(DEFAULT_CONFIG.into()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the gateway until SIGTERM or Ctrl-C (also without any command)
    Run,
    /// Find every mistake in configuration, identities, list and certificates, with line and remedy
    Check,
    /// Make, read and explain tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Publish as a device would, and show every answer of the gateway
    ///
    /// The password is --token, else $TOLLGATE_TOKEN, else a token made from the identities of the gateway on this
    /// machine. Exits 0 when all was acknowledged and 1 when something was refused.
    Pub(PublishArguments),
    /// Subscribe as a device would, and show every answer of the gateway and every message
    ///
    /// Messages go to standard output, a line each: topic, two spaces, payload. Answers go to standard error. Stays until
    /// Ctrl-C, or until --count messages came.
    Sub(SubscribeArguments),
    /// Revoke a token, a `jti`, a device, a key or a time; live sessions concerned are cut at once
    ///
    /// Appends one line to the revocation list, atomically, also when no gateway runs; a running one applies it within
    /// a second. Says first which live sessions it will cut.
    #[command(subcommand)]
    Revoke(RevokeCommand),
    /// The revocation list
    Revocations {
        #[command(subcommand)]
        command: RevocationsCommand,
    },
    /// The last refusals and cuts of the running gateway, each with its reason and what to do
    Refusals {
        /// Of one device
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 20)]
        last: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Live sessions of the running gateway
    Sessions {
        #[command(subcommand)]
        command: SessionsCommand,
    },
    /// What time the gateway decides by, and whether it believes the machine's clock
    Clock {
        #[command(subcommand)]
        command: ClockCommand,
    },
    /// State, window, backlog and last error of each hub
    Upstreams {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Keys in two slots: who uses them, and their rotation
    ///
    /// Edits identities.toml, or the key files that it names, in place and atomically, also when no gateway runs; a running
    /// one applies it within a second. Comments and layout stay.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// The messages on disk: what is damaged, what is set aside and what becomes of it
    Spool {
        #[command(subcommand)]
        command: SpoolCommand,
    },
    /// The audit log: who changed what
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SpoolCommand {
    /// Read all of it; exits 1 and names the place where it is damaged
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// The messages that are set aside: a hub would not take them, or they waited for longer than `age_max`
    Aside {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have messages that are set aside wait for their hub again
    Retry(super::spool::Aside),
    /// Throw messages that are set aside away, for good
    Discard(super::spool::Aside),
    /// Keep what is whole of a damaged spool, and the damaged files beside it
    ///
    /// What it could not read is lost, and its devices were told that it was safe: it says how much. Messages that were
    /// acknowledged in a damaged place are sent again.
    Salvage,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClockCommand {
    /// Guarded time, the machine's, and why they differ
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Believe the machine's clock as it is, forwards or back: after it jumped, and is right
    ///
    /// Tokens that have expired by the new time lose their sessions within a second. Where time goes back, tokens that
    /// had expired are valid again: revoke what must not be.
    Reset,
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token; prints it, and nothing else, on standard output
    ///
    /// A SAS token is signed with the device's primary key (or that of --policy), for {hostname}/devices/{device}. A JWT is
    /// signed with the private key of its issuer.
    Mint {
        /// For whom
        #[arg(long, value_name = "ID")]
        device: DeviceId,
        /// What to make
        #[arg(long, value_enum, default_value_t = Kind::Sas)]
        kind: Kind,
        /// How long it is valid: 90s, 15m, 1h, 7d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = crate::time::parse_duration)]
        ttl: Duration,
        /// Sign with the primary key of this [[policy]] and name it (`skn`)
        #[arg(long, value_name = "NAME", conflicts_with = "issuer")]
        policy: Option<String>,
        /// The [[issuer]] of a JWT [default: the only one that has a private key here]
        #[arg(long, value_name = "NAME")]
        issuer: Option<String>,
        /// The issuer's private key, PEM [default: NAME.key beside its public key NAME.pem]
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// `jti` of a JWT [default: 128 random bits]
        #[arg(long, value_name = "ID")]
        jti: Option<String>,
        /// What it may be used for: of a SAS token, by the [[policy]] with these rights; of a JWT, by the issuer's
        /// `scope_claim` [default: all that the device may]
        #[arg(long, value_name = "RIGHTS", value_enum, value_delimiter = ',', num_args = 1)]
        rights: Vec<Right>,
    },
    /// Show what the token on standard input says; no secret is needed, and nothing is verified
    Inspect {
        /// Standard input
        #[arg(value_parser = ["-"], default_value = "-")]
        from: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Decide about the token on standard input as the gateway would: every step, and which mistake it is
    Explain {
        /// Standard input
        #[arg(value_parser = ["-"], default_value = "-")]
        from: String,
        /// Presented by this device (its client id)
        #[arg(long, value_name = "ID")]
        device: Option<DeviceId>,
        /// On a listener with this profile: strict, azure or google [default: the gateway's]
        #[arg(long, value_name = "NAME")]
        profile: Option<Profile>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Kinds of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// A shared access signature
    Sas,
    /// A JSON Web Token
    Jwt,
}

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Right {
    /// Publishing
    Publish,
    /// Subscribing
    Subscribe,
}

/// Where and as whom to connect.
#[derive(Debug, Args)]
pub(super) struct ConnectArguments {
    /// The device: client id and user name
    #[arg(long, value_name = "ID")]
    pub(super) device: DeviceId,
    /// Where its token is: - for standard input, or a file
    #[arg(long, value_name = "FILE")]
    pub(super) token: Option<String>,
    /// What to make where no token is given
    #[arg(long, value_enum, default_value_t = Kind::Sas)]
    pub(super) kind: Kind,
    /// Connect over TLS
    #[arg(long)]
    pub(super) tls: bool,
    /// Who signed the gateway's certificate, PEM
    #[arg(long, value_name = "FILE", default_value = "certs/ca.pem")]
    pub(super) ca: PathBuf,
    /// Host name or address [default: by the configuration]
    #[arg(long, value_name = "HOST")]
    pub(super) host: Option<String>,
    /// Port [default: of the first listener that fits]
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<u16>,
    /// MQTT version: 4 is 3.1.1, 5 is 5.0
    #[arg(long, value_name = "VERSION", default_value_t = 5, value_parser = value_parser!(u8).range(4..=5))]
    pub(super) mqtt: u8,
}

/// `tollgate pub`.
#[derive(Debug, Args)]
pub(super) struct PublishArguments {
    #[command(flatten)]
    pub(super) connect: ConnectArguments,
    /// Where to [default: devices/{device}/messages/events/]
    #[arg(long, short, value_name = "TOPIC")]
    pub(super) topic: Option<String>,
    /// The payload; - reads it from standard input
    #[arg(long, short, value_name = "TEXT", default_value = "hello", allow_hyphen_values = true)]
    pub(super) message: String,
    /// Quality of service
    #[arg(long, short, value_name = "QOS", default_value_t = 1, value_parser = value_parser!(u8).range(0..=1))]
    pub(super) qos: u8,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    pub(super) count: u64,
    /// Ask the hub to keep it for later subscribers
    #[arg(long, short)]
    pub(super) retain: bool,
}

/// `tollgate sub`.
#[derive(Debug, Args)]
pub(super) struct SubscribeArguments {
    #[command(flatten)]
    pub(super) connect: ConnectArguments,
    /// What to [default: devices/{device}/messages/devicebound/#]
    #[arg(long, short, value_name = "FILTER")]
    pub(super) topic: Option<String>,
    /// Quality of service
    #[arg(long, short, value_name = "QOS", default_value_t = 1, value_parser = value_parser!(u8).range(0..=1))]
    pub(super) qos: u8,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum RevokeCommand {
    /// The token on standard input, by its fingerprint; also one that has expired
    Token {
        /// Standard input
        #[arg(value_parser = ["-"], default_value = "-")]
        from: String,
        #[command(flatten)]
        why: Why,
    },
    /// JWTs by their `jti`
    Jti {
        /// The `jti`
        id: String,
        /// Only of this issuer (`name` in identities.toml)
        #[arg(long, value_name = "NAME")]
        issuer: Option<String>,
        #[command(flatten)]
        why: Why,
    },
    /// A device, with every token it has
    Device {
        /// Its id
        id: DeviceId,
        #[command(flatten)]
        why: Why,
    },
    /// Whatever verifies under the key in a slot, until the entry is removed: it names the slot, not the key in it
    Key {
        /// device:ID/SLOT, policy:NAME/SLOT, group:PREFIX/SLOT, certificate:ID/SLOT or issuer:NAME/KID
        #[arg(value_name = "NAME/SLOT")]
        name: String,
        #[command(flatten)]
        why: Why,
    },
    /// Tokens that were issued before a time; of everybody, unless one is named
    ///
    /// A SAS token does not say when it was issued: one that could have been issued before is revoked. Says until when
    /// honest tokens are refused by it, and writes nothing where tokens may live without a limit.
    IssuedBefore {
        /// In UTC, as 2026-11-20T12:00:00Z
        #[arg(value_name = "TIME")]
        time: String,
        /// Of this device
        #[arg(long, value_name = "ID", group = "whose")]
        device: Option<DeviceId>,
        /// Of this issuer (`name` in identities.toml)
        #[arg(long, value_name = "NAME", group = "whose")]
        issuer: Option<String>,
        /// Signed by this policy
        #[arg(long, value_name = "NAME", group = "whose")]
        policy: Option<String>,
        #[command(flatten)]
        why: Why,
    },
    /// Tokens that expire before a time; of everybody, unless a policy is named
    ExpiresBefore {
        /// In UTC, as 2026-12-01T00:00:00Z
        #[arg(value_name = "TIME")]
        time: String,
        /// Signed by this policy
        #[arg(long, value_name = "NAME")]
        policy: Option<String>,
        #[command(flatten)]
        why: Why,
    },
}

/// What an entry says besides what it selects.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// For the log, and for whoever reads the list
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// When the entry ends, in UTC as 2026-12-21T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Who revokes [default: $SUDO_USER, $USER or the user id]
    #[arg(long, value_name = "NAME")]
    pub(super) by: Option<String>,
    #[command(flatten)]
    pub(super) sign: SignAgain,
}

/// With what a list that is signed is signed again.
#[derive(Debug, Args)]
pub(super) struct SignAgain {
    /// Sign the list again with this private key: where it is signed
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum RevocationsCommand {
    /// Its entries with their ids, as they stand in the file
    List {
        /// How many, the newest
        #[arg(long, value_name = "N", default_value_t = 100)]
        last: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take an entry out; what it revoked may connect again
    Remove {
        /// Its id, or more of its hash where two have the same id
        id: String,
        /// Who removes it [default: $SUDO_USER, $USER or the user id]
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        #[command(flatten)]
        sign: SignAgain,
    },
    /// Add the entries of another list, but for those that are there; nothing of one with a bad line
    Import {
        /// The other list; - reads it from standard input
        file: PathBuf,
        /// Who imports them [default: $SUDO_USER, $USER or the user id]
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        #[command(flatten)]
        sign: SignAgain,
    },
    /// Write the entries to another file, without a signature
    Export {
        /// The other file, which must not exist; - writes to standard output
        file: PathBuf,
    },
    /// Sign a list, so that gateways with the public key in `revocation_keys` take it and no other
    Sign(SignArguments),
    /// Take out the entries whose `until` has passed, and nothing else
    Prune {
        /// Who prunes [default: $SUDO_USER, $USER or the user id]
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        #[command(flatten)]
        sign: SignAgain,
    },
    /// Make a pair of keys for signing lists: FILE (0600) and FILE.pub
    Keygen {
        /// The private key; it must not exist
        file: PathBuf,
    },
}

/// `tollgate revocations sign`.
#[derive(Debug, Args)]
pub(super) struct SignArguments {
    /// The list
    pub(super) file: PathBuf,
    /// The private key, PEM (Ed25519)
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: PathBuf,
    /// Where to write it [default: in the place of FILE]
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// How long it holds [default: as long as it did, or 30d]
    #[arg(long, value_name = "TIME", value_parser = crate::time::parse_duration)]
    pub(super) expires: Option<Duration>,
    /// Begin a new count [default: as it was, or 1]
    #[arg(long, value_name = "N")]
    pub(super) epoch: Option<u64>,
    /// Its number [default: one more than it had, or the time in milliseconds]
    #[arg(long, value_name = "N")]
    pub(super) sequence: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionsCommand {
    /// By device
    List {
        /// Of one device
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 100)]
        last: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Close the session of a device; it may connect again
    Close {
        /// Its id
        device: DeviceId,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Keys with their fingerprints, live sessions and last use
    List {
        /// Of one owner: device:ID, policy:NAME, group:PREFIX or issuer:NAME/KID
        name: Option<KeyOwner>,
        /// How many; what signs for many comes first
        #[arg(long, value_name = "N", default_value_t = 100)]
        last: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Give keys to a device, policy or group that has none; one that is not there is added
    Add {
        /// device:ID, device:ID/MODULE, policy:NAME or group:PREFIX
        name: KeyOwner,
        /// Of a new policy: the widest `sr` that it may sign [default: `hostname` under [gateway]]
        #[arg(long, value_name = "SR")]
        resource: Option<String>,
        /// Print the new primary key, for whoever programs the device
        #[arg(long)]
        show: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// secondary := primary, primary := 32 random bytes; says first which live sessions it will cut
    ///
    /// A device that renews in time never notices, where tokens live no longer than the time between two rotations. With
    /// --admin URL the gateway there rotates its own files.
    Rotate {
        /// device:ID, device:ID/MODULE, policy:NAME, group:PREFIX or issuer:NAME/KID
        name: KeyOwner,
        /// Replace both keys, after a compromise: every token of theirs is refused, and its session closed
        #[arg(long)]
        both: bool,
        /// With --both: take out entries of the revocation list that name one of the slots
        #[arg(long, requires = "both")]
        lift: bool,
        /// Only say which live sessions it would cut
        #[arg(long, conflicts_with = "show")]
        dry_run: bool,
        /// Print the new primary key, for whoever programs the device
        #[arg(long)]
        show: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// What a rotation would do now, and when every token of a key is dead
    ///
    /// Exits 1 where tokens may live longer than the keys that a schedule rotates.
    Plan {
        /// Of one owner [default: policies, groups, issuers, and devices whom a rotation would cut]
        name: Option<KeyOwner>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Check the chain of the audit log; exits 1 and names the first bad line where it is broken
    Verify {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

const DEFAULT_CONFIG: &str = "config/gateway.toml";
